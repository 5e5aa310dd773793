// SPDX-License-Identifier: Apache-2.0
// Products of codes: the tensor cores multiply the codes themselves, as numbers that a mask makes
// of their bits, and the fp32 sum of a group is scaled, so that weights are never rounded:
//   Σ w·x = s·(Σ c·x − (b + z)·Σ x),  c = b + q the code as the tensor cores see it
//   f16 · int4   q as a subnormal, q·2⁻²⁴ (row g) or q·2⁻²⁰ (row g + 8, whose nibbles stand four
//                bits higher): b = 0, one AND a register; the power of two is undone at the end
//   f16 · int8   q·2⁻²⁴ again, a byte permutation
//   bf16 · int4  128 + q: bf16 subnormals would leave fp32's range
//   bf16 · int8  q − 128 through fp32, exact: b = −128
// Σ x of a group comes from one more MMA, whose A is the constant one().
#pragma once

#include <cstdint>

#include "device/dequant.cuh"
#include "kernel_config.hpp"
#include "ptx/arith.cuh"

namespace mixgemm::device {

template <KernelConfig kConfig>
struct CodeProducts {
  static constexpr bool kF16 = kConfig.act == DataType::f16;
  static constexpr bool kInt4 = kConfig.weight == WeightType::int4;
  static constexpr int kWordsPerStep = kInt4 ? 1 : 2;
  using Exact = Dequantizer<kConfig.act, kConfig.weight, Quant::column>;

  /// b of the table above, the value that code 0 has for the tensor cores, in units of unit().
  static constexpr float kCodeBias = kF16 ? 0.f : kInt4 ? 128.f : -128.f;
  /// What the sums of row slot 0 (g) or 1 (g + 8) must be multiplied by.
  static __device__ constexpr float unit(int row) {
    return !kF16 ? 1.f : kInt4 && row == 1 ? 0x1p20f : 0x1p24f;
  }
  /// One in those units, twice: the constant A of Σ x.
  static __device__ constexpr std::uint32_t one(int row) {
    return !kF16 ? 0x3f803f80u : kInt4 && row == 1 ? 0x00100010u : 0x00010001u;
  }

  /// The codes of one k16 step, as numbers b + q in units of unit().
  static __device__ __forceinline__ void codes_of(const std::uint32_t* words,
                                                  std::uint32_t (&a)[4]) {
    if constexpr (kInt4 && kF16) {
      const std::uint32_t high = words[0] >> 8;
      a[0] = words[0] & 0x000f000fu;
      a[1] = words[0] & 0x00f000f0u;
      a[2] = high & 0x000f000fu;
      a[3] = high & 0x00f000f0u;
    } else if constexpr (kInt4) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        a[r] = ptx::lop3_and_or(words[0] >> (4 * r), 0x000f000fu, 0x43004300u);
      }
    } else if constexpr (kF16) {
#pragma unroll
      for (int r = 0; r < 4; ++r) a[r] = ptx::prmt(words[r / 2], 0u, r % 2 ? 0x4342u : 0x4140u);
    } else {
      const std::uint32_t pair[2] = {words[0], words[1]};
      const std::uint32_t offset[2] = {Exact::offset_of(0, 128.f), Exact::offset_of(1, 128.f)};
      Exact::subtract(pair, offset, a);
    }
  }

  /// What a group's sums are multiplied by, s, and Σ x by, s·(b + z) or, with scaled zeros,
  /// s·b + z, from the bits of the two rows' scales and zeros (gz only).
  static __device__ __forceinline__ void factors(const std::uint16_t* scales,
                                                 const std::uint16_t* zeros, bool zeros_scaled,
                                                 float (&scale)[2], float (&shift)[2]) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      scale[row] = Exact::to_float(scales[8 * row]);
      if constexpr (kConfig.quant == Quant::group_zero) {
        const float zero = Exact::to_float(zeros[8 * row]);
        shift[row] = fmaf(zeros_scaled ? 1.f : scale[row], zero, scale[row] * kCodeBias);
      } else {
        shift[row] = scale[row] * (kCodeBias + implicit_zero(kConfig.weight));
      }
    }
  }
};

}  // namespace mixgemm::device
