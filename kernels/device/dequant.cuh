// SPDX-License-Identifier: Apache-2.0
// Codes → 16-bit weights, in registers, in the order of the A fragment.
//
// A k16 step of a 64-row tile gives each thread eight codes: rows g and g + 8 of its warp's strip,
// four k each. They leave as four registers a0..a3 of two weights: a0, a2 belong to row g, a1, a3
// to row g + 8. The arithmetic is exact up to one rounding per weight:
//
//   f16   0x6400 | q  is 1024 + q. The low nibble of each half is subtracted; the high one,
//   standing
//         16 times too high, takes an FMA with 1/16. Two nibbles of a half serve without a shift.
//   bf16  0x4300 | q  is 128 + q: seven mantissa bits leave room for a low nibble only, hence
//   shifts. int8  f16: bytes are put under 0x64 by PRMT. bf16 has no room for 128 + 255, so the
//   byte goes
//         through fp32 (2²³ + q) and is packed after the exact subtraction.
//
// Integer zeros join the exact subtraction; scaled zeros join the multiply as an FMA's addend.
//
// Folded, for group scales without zeros: a mask leaves q as a subnormal (or, in bf16, one of the
// least normal numbers), q·2⁻²⁴ in fp16 and q·2⁻¹³³ in bf16, 16 times that where it stands four
// bits higher, and one FMA does the rest, in units of the row (row_units.cuh, wide_units.cuh).
#pragma once

#include <cstdint>

#include "kernel_config.hpp"
#include "ptx/arith.cuh"

namespace mixgemm::device {

/// What one thread needs to know of a group: constants for rows g (index 0) and g + 8 (index 1).
struct GroupConstants {
  std::uint32_t scale[2];   // s, twice
  std::uint32_t offset[2];  // −(bias of the code trick + zero), twice; fp32 bits for bf16 · int8
  std::uint32_t addend[2];  // −z of scaled zeros, else −0; folded: z in the row's unit, subtracted
};

template <DataType kAct, WeightType kWeight, Quant kQuant, bool kFolded = false>
struct Dequantizer {
  static_assert(!kFolded || kQuant == Quant::group);
  static constexpr bool kF16 = kAct == DataType::f16;
  static constexpr bool kInt4 = kWeight == WeightType::int4;
  static constexpr int kWordsPerStep = kInt4 ? 1 : 2;

  /// What the code trick adds to q in row slot 0 (g) or 1 (g + 8), whose f16 nibbles stand 16 times
  /// too high.
  static __device__ constexpr float code_bias(int row) {
    if (!kInt4) return kF16 ? 1024.f : 8388608.f;
    if (!kF16) return 128.f;
    return row == 0 ? 1024.f : 64.f;
  }
  static __device__ __forceinline__ std::uint32_t twice(std::uint16_t bits) {
    return bits * 0x10001u;
  }
  static __device__ __forceinline__ std::uint32_t pack(float low, float high) {
    return kF16 ? ptx::cvt_f16x2_f32(low, high) : ptx::cvt_bf16x2_f32(low, high);
  }
  static __device__ __forceinline__ float to_float(std::uint16_t bits) {
    return kF16 ? ptx::cvt_f32_f16(bits) : __uint_as_float(std::uint32_t(bits) << 16);
  }
  static __device__ __forceinline__ std::uint32_t fma(std::uint32_t a, std::uint32_t b,
                                                      std::uint32_t c) {
    return kF16 ? ptx::fma_f16x2(a, b, c) : ptx::fma_bf16x2(a, b, c);
  }

  /// Offset of the exact subtraction for row slot `row` (0: g, 1: g + 8) and zero point z.
  static __device__ __forceinline__ std::uint32_t offset_of(int row, float z) {
    const float offset = -(code_bias(row) + z);
    if constexpr (!kInt4 && !kF16) return __float_as_uint(offset);
    return pack(offset, offset);
  }

  /// Constants from the bits of the two rows' scales and zeros (gz only).
  static __device__ __forceinline__ GroupConstants constants(const std::uint16_t (&scale)[2],
                                                             const std::uint16_t (&zero)[2],
                                                             bool zeros_scaled) {
    GroupConstants c;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      c.scale[row] = twice(scale[row]);
      if constexpr (kQuant == Quant::group_zero) {
        c.offset[row] = offset_of(row, zeros_scaled ? 0.f : to_float(zero[row]));
        c.addend[row] = zeros_scaled ? twice(zero[row]) ^ 0x80008000u : 0x80008000u;
      }
    }
    return c;
  }

  /// Folded: the codes, in the last bits of each half; in slot 1 of int4, 16 times too large.
  static __device__ __forceinline__ void subnormals(const std::uint32_t (&words)[kWordsPerStep],
                                                    std::uint32_t (&a)[4]) {
    if constexpr (kInt4) {
      const std::uint32_t high = words[0] >> 8;
      a[0] = words[0] & 0x000f000fu;
      a[1] = words[0] & 0x00f000f0u;
      a[2] = high & 0x000f000fu;
      a[3] = high & 0x00f000f0u;
    } else {
#pragma unroll
      for (int r = 0; r < 4; ++r) a[r] = ptx::prmt(words[r / 2], 0u, r % 2 ? 0x4342u : 0x4140u);
    }
  }

  /// q − zero for the four registers of a step: exact.
  static __device__ __forceinline__ void subtract(const std::uint32_t (&words)[kWordsPerStep],
                                                  const std::uint32_t (&offset)[2],
                                                  std::uint32_t (&a)[4]) {
    if constexpr (kInt4 && kF16) {
      constexpr std::uint32_t kSixteenth = 0x2c002c00u;
      const std::uint32_t high = words[0] >> 8;
      a[0] = ptx::add_f16x2(ptx::lop3_and_or(words[0], 0x000f000fu, 0x64006400u), offset[0]);
      a[1] = ptx::fma_f16x2(ptx::lop3_and_or(words[0], 0x00f000f0u, 0x64006400u), kSixteenth,
                            offset[1]);
      a[2] = ptx::add_f16x2(ptx::lop3_and_or(high, 0x000f000fu, 0x64006400u), offset[0]);
      a[3] =
          ptx::fma_f16x2(ptx::lop3_and_or(high, 0x00f000f0u, 0x64006400u), kSixteenth, offset[1]);
    } else if constexpr (kInt4) {
      constexpr std::uint32_t kOne = 0x3f803f80u;
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        a[r] = ptx::fma_bf16x2(ptx::lop3_and_or(words[0] >> (4 * r), 0x000f000fu, 0x43004300u),
                               kOne, offset[r % 2]);
      }
    } else if constexpr (kF16) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        a[r] = ptx::add_f16x2(ptx::prmt(words[r / 2], 0x64646464u, r % 2 ? 0x4342u : 0x4140u),
                              offset[r % 2]);
      }
    } else {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const float minus = __uint_as_float(offset[r % 2]);
        const std::uint32_t low = ptx::prmt(words[r / 2], 0x4b000000u, r % 2 ? 0x7652u : 0x7650u);
        const std::uint32_t high = ptx::prmt(words[r / 2], 0x4b000000u, r % 2 ? 0x7653u : 0x7651u);
        a[r] =
            pack(__fadd_rn(__uint_as_float(low), minus), __fadd_rn(__uint_as_float(high), minus));
      }
    }
  }

  /// One k16 step: words → the fragment of the weights. column leaves q − zero: its scale is
  /// applied to the fp32 sum.
  static __device__ __forceinline__ void step(const std::uint32_t (&words)[kWordsPerStep],
                                              const GroupConstants& group, std::uint32_t (&a)[4]) {
    if constexpr (kFolded) {
      subnormals(words, a);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        a[r] = kF16 ? ptx::fms_f16x2(a[r], group.scale[r % 2], group.addend[r % 2])
                    : ptx::fms_bf16x2(a[r], group.scale[r % 2], group.addend[r % 2]);
      }
      return;
    }
    if constexpr (kQuant == Quant::group_zero) {
      subtract(words, group.offset, a);
#pragma unroll
      for (int r = 0; r < 4; ++r) a[r] = fma(a[r], group.scale[r % 2], group.addend[r % 2]);
      return;
    }
    const float z = implicit_zero(kWeight);
    const std::uint32_t offset[2] = {offset_of(0, z), offset_of(1, z)};
    subtract(words, offset, a);
    if constexpr (kQuant == Quant::group) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        a[r] = kF16 ? ptx::mul_f16x2(a[r], group.scale[r % 2])
                    : ptx::fma_bf16x2(a[r], group.scale[r % 2], 0x80008000u);
      }
    }
  }
};

}  // namespace mixgemm::device
