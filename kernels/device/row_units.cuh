// SPDX-License-Identifier: Apache-2.0
// Units in which a thread sums the rows g and g + 8 of a strip, so that dequantization takes one
// FMA a register (dequant.cuh, "folded"):
//
//   (q − z)·s·2^(f−24) = (q·2⁻²⁴)·m − z·2⁻²⁴·m,   m = s·2^f
//
// q·2⁻²⁴ is the code itself, read as an fp16 subnormal, and z·2⁻²⁴·m is exact, z being a power of
// two: one rounding a weight, as of (q − z)·s. m must be an fp16 number, so each row has an f of
// its own that fits its scales: m in [2¹⁰, 2¹⁶), where neither m overflows nor a weight is a
// subnormal in those units. There m and z·2⁻²⁴·m are s with another exponent: an integer addition
// each. When the scales of a stage leave that window, f changes, and the sums are brought to the
// new unit, which is exact. Scales of a row mostly stay within a factor of some, so that f is
// chosen once.
//
// The groups of one stage share f. If their scales of a row lie far apart, weights of the smallest
// may be subnormals in those units: an absolute error of up to 2⁻¹³ of the largest scale.
#pragma once

#include <cstdint>

#include "device/dequant.cuh"
#include "kernel_config.hpp"
#include "ptx/arith.cuh"

namespace mixgemm::device {

/// The windows of two rows' scales, without anything that depends on the weights.
class RowWindows {
 public:
  /// Whether two rows' scales lie in their windows: then what this returns has none of the bits of
  /// kOutside. `both`: one in each half.
  __device__ __forceinline__ std::uint32_t outside(std::uint32_t both) const {
    const std::uint32_t sizes = both & 0x7fff7fffu;
    // Bits of positive fp16 numbers: a difference below zero borrows from its half's bit 15.
    return (sizes - least_) | (least_ + kWidth * 0x10001 - sizes);
  }
  static constexpr std::uint32_t kOutside = 0x80008000u;

  /// Puts the largest of each row's scales, given by their bits, near the middle of its window.
  __device__ __forceinline__ void move(const int (&largest)[2]) {
    const int f[2] = {power_for(largest[0], power(0)), power_for(largest[1], power(1))};
    least_ = least_of(f[0]) | least_of(f[1]) << 16;
  }

  /// f where a row's largest scale has these bits.
  static __device__ __forceinline__ int power_for(int largest, int old) {
    return largest == 0 ? old : max(0, min(kMiddle + 15 - (largest >> 10), kMaxPower));
  }
  /// At first f suits scales from 2⁻¹⁰ to 2⁻⁴, as most checkpoints have them.
  static constexpr int kFirstPower = 20;

 private:
  static constexpr int kLeast = 10, kMiddle = 13;  // m of the least and of the middle scale
  static constexpr int kWidth = (6 << 10) - 1;     // up to 2¹⁶, as a difference of bits
  static constexpr int kMaxPower = 24;             // a subnormal scale stays below the window
  /// The bits of the least scale of a window.
  static __device__ constexpr std::uint32_t least_of(int f) {
    return static_cast<std::uint32_t>(kLeast + 15 - f) << 10;
  }
  __device__ __forceinline__ int power(int row) const {
    return kLeast + 15 - static_cast<int>(least_ >> (10 + 16 * row) & 0x3f);
  }

  std::uint32_t least_ = least_of(kFirstPower) * 0x10001;
};

template <WeightType kWeight>
class RowUnits {
 public:
  using Windows = RowWindows;

  /// Whether the scales of a thread's two rows leave their windows (RowWindows::outside).
  __device__ __forceinline__ std::uint32_t outside(std::uint16_t row_g,
                                                   std::uint16_t row_g8) const {
    return windows_.outside(ptx::prmt(row_g, row_g8, 0x5410u));
  }
  static constexpr std::uint32_t kOutside = Windows::kOutside;

  /// Constants of scales within the windows.
  __device__ __forceinline__ GroupConstants constants(const std::uint16_t (&scale)[2]) const {
    GroupConstants c;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      c.scale[row] = scale[row] * std::uint32_t(kTwice) + factor_[row];
      c.addend[row] = c.scale[row] - (kZeroPower - shift(row)) * kExponent;
    }
    return c;
  }

  /// Constants of any scales.
  __device__ __forceinline__ GroupConstants
  constants_of_any(const std::uint16_t (&scale)[2]) const {
    GroupConstants c;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float m = ptx::cvt_f32_f16(scale[row]) * power_of_two(power(row));
      const float factor = m * power_of_two(-shift(row)), addend = m * power_of_two(-kZeroPower);
      c.scale[row] = ptx::cvt_f16x2_f32(factor, factor);
      c.addend[row] = ptx::cvt_f16x2_f32(addend, addend);
    }
    return c;
  }

  /// Chooses units that put the largest of the rows' scales near the middle of the window, and
  /// brings the sums to them. Accumulator i belongs to row g + 8·(i/2 % 2).
  template <int kScales, int kSums>
  __device__ __forceinline__ void adapt(const std::uint16_t (&scales)[kScales][2],
                                        float (&sums)[kSums]) {
    float ratio[2];
    int largest[2] = {0, 0};
#pragma unroll
    for (int row = 0; row < 2; ++row) {  // positive fp16 numbers order as their bits do
#pragma unroll
      for (int i = 0; i < kScales; ++i) largest[row] = max(largest[row], scales[i][row] & 0x7fff);
      const int old = power(row);
      const int f = Windows::power_for(largest[row], old);
      factor_[row] = (f - shift(row)) * kExponent;
      ratio[row] = power_of_two(f - old);
    }
    windows_.move(largest);
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i] *= ratio[i / 2 % 2];
  }

  /// Brings the sums to units of one.
  template <int kSums>
  __device__ __forceinline__ void undo(float (&sums)[kSums]) const {
    const float unit[2] = {power_of_two(24 - power(0)), power_of_two(24 - power(1))};
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i] *= unit[i / 2 % 2];
  }

 private:
  static constexpr int kTwice = 0x10001;          // times a half: in both halves
  static constexpr int kExponent = kTwice << 10;  // one more in the exponents of both halves
  static constexpr int kZeroPower = kWeight == WeightType::int4 ? 21 : 17;  // z·2⁻²⁴ = 2^−this
  /// The codes of row slot 1 stand 2^shift too high.
  static __device__ constexpr int shift(int row) {
    return kWeight == WeightType::int4 && row == 1 ? 4 : 0;
  }
  static __device__ __forceinline__ float power_of_two(int exponent) {
    return __int_as_float((127 + exponent) << 23);
  }
  /// f of a row.
  __device__ __forceinline__ int power(int row) const {
    return factor_[row] / kExponent + shift(row);
  }

  // f − shift, as exponents.
  int factor_[2] = {(Windows::kFirstPower - shift(0)) * kExponent,
                    (Windows::kFirstPower - shift(1)) * kExponent};
  Windows windows_;
};

}  // namespace mixgemm::device
