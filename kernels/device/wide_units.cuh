// SPDX-License-Identifier: Apache-2.0
// Units in which a thread sums the rows g and g + 8 of a strip in bf16, so that dequantization
// takes one FMA a register, as RowUnits does for fp16:
//
//   (q − z)·s·2^(f−133) = (q·2⁻¹³³)·m − z·2⁻¹³³·m,   m = s·2^f
//
// A code below 256 read as a bf16 number is q·2⁻¹³³: below 128 a subnormal, from there on one of
// the least normal numbers, which lie as close together. With bf16's range f = 126 serves every
// scale below 2, so that it is a constant of the program; whether all scales are that small is one
// bit of each. A row of which a stage has a scale of 2 or more takes an f that its largest scale
// leaves room for, until a stage has none, and the sums are brought to each new unit, which is
// exact.
//
// One rounding a weight, as of (q − z)·s. What remains of a weight below 2⁻¹²⁶ is as in any bf16
// arithmetic, but 2⁷ times as much of it is lost.
#pragma once

#include <cstdint>

#include "device/dequant.cuh"
#include "kernel_config.hpp"
#include "ptx/arith.cuh"

namespace mixgemm::device {

/// What f of two rows lacks to kPower, without anything that depends on the weights.
class WideWindows {
 public:
  static constexpr int kPower = 126;  // f of scales below 2

  /// Whether two rows may use constants(): then what this returns has none of the bits of kOutside.
  /// `both`: the scale of one in each half.
  __device__ __forceinline__ std::uint32_t outside(std::uint32_t both) const {
    return both | lowered_;
  }
  static constexpr std::uint32_t kOutside = 0x40004000u;  // 2 and more: exponent fields from 128

  /// Chooses what suits the largest of each row's scales, given by their bits.
  __device__ __forceinline__ void move(const int (&largest)[2]) {
    lowered_ = 0;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const int less = max(0, min((largest[row] >> 7) - 127, kPower));
      if (less > 0) lowered_ |= (0x4000u | less) << (16 * row);
    }
  }

  /// f of a row.
  __device__ __forceinline__ int power(int row) const {
    return kPower - static_cast<int>(lowered_ >> (16 * row) & 0x7f);
  }
  __device__ __forceinline__ bool lowered() const { return lowered_ != 0; }

 private:
  std::uint32_t lowered_ = 0;  // what f lacks, a half for each row, and bit 14 if anything
};

template <WeightType kWeight>
class WideUnits {
 public:
  using Windows = WideWindows;

  /// Whether a thread's two rows need more than constants() (WideWindows::outside).
  __device__ __forceinline__ std::uint32_t outside(std::uint16_t row_g,
                                                   std::uint16_t row_g8) const {
    return windows_.outside(ptx::prmt(row_g, row_g8, 0x5410u));
  }
  static constexpr std::uint32_t kOutside = Windows::kOutside;

  /// Constants of scales below 2, in the units of kPower.
  __device__ __forceinline__ GroupConstants constants(const std::uint16_t (&scale)[2]) const {
    GroupConstants c;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      c.scale[row] = ptx::mul_bf16x2(scale[row] * 0x10001u, twice(kPower - shift(row)));
      c.addend[row] = ptx::mul_bf16x2(scale[row] * 0x10001u, twice(kPower - kZeroPower));
    }
    return c;
  }

  /// Constants of any scales.
  __device__ __forceinline__ GroupConstants
  constants_of_any(const std::uint16_t (&scale)[2]) const {
    GroupConstants c;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float s = __uint_as_float(std::uint32_t(scale[row]) << 16);
      const float m = s * power_of_two(power(row));
      const float factor = m * power_of_two(-shift(row)), addend = m * kZero;
      c.scale[row] = ptx::cvt_bf16x2_f32(factor, factor);
      c.addend[row] = ptx::cvt_bf16x2_f32(addend, addend);
    }
    return c;
  }

  /// Chooses units that suit the largest of the rows' scales, and brings the sums to them.
  /// Accumulator i belongs to row g + 8·(i/2 % 2).
  template <int kScales, int kSums>
  __device__ __forceinline__ void adapt(const std::uint16_t (&scales)[kScales][2],
                                        float (&sums)[kSums]) {
    int largest[2] = {0, 0};
#pragma unroll
    for (int row = 0; row < 2; ++row) {  // positive bf16 numbers order as their bits do
#pragma unroll
      for (int i = 0; i < kScales; ++i) largest[row] = max(largest[row], scales[i][row] & 0x7fff);
    }
    const Windows old = windows_;
    windows_.move(largest);
    const float ratio[2] = {power_of_two(power(0) - old.power(0)),
                            power_of_two(power(1) - old.power(1))};
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i] *= ratio[i / 2 % 2];
  }

  /// Brings the sums to units of one.
  template <int kSums>
  __device__ __forceinline__ void undo(float (&sums)[kSums]) const {
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i] *= power_of_two(kCodePower - kPower);
    if (!windows_.lowered()) return;
    const float unit[2] = {power_of_two(kPower - power(0)), power_of_two(kPower - power(1))};
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i] *= unit[i / 2 % 2];
  }

 private:
  static constexpr int kPower = Windows::kPower;
  static constexpr int kCodePower = 133;  // a code q is the number q·2^−this
  static constexpr int kZeroPower = kWeight == WeightType::int4 ? 130 : 126;  // z·2⁻¹³³ = 2^−this
  static constexpr float kZero = kWeight == WeightType::int4 ? 0x1p-130f : 0x1p-126f;
  /// The codes of row slot 1 stand 2^shift too high.
  static __device__ constexpr int shift(int row) {
    return kWeight == WeightType::int4 && row == 1 ? 4 : 0;
  }
  /// A power of two, twice, as bf16.
  static __device__ constexpr std::uint32_t twice(int exponent) {
    return (127u + exponent) * 0x800080u;
  }
  static __device__ __forceinline__ float power_of_two(int exponent) {
    return __int_as_float((127 + exponent) << 23);
  }
  __device__ __forceinline__ int power(int row) const { return windows_.power(row); }

  Windows windows_;
};

}  // namespace mixgemm::device
