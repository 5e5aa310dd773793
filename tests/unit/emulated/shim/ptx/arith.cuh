// SPDX-License-Identifier: Apache-2.0
// kernels/ptx/arith.cuh on the host: each 16-bit operation rounds once.
#pragma once

#include "cuda_keywords.hpp"
#include "util/half.hpp"

namespace mixgemm::ptx {

inline std::uint32_t lop3_and_or(std::uint32_t a, std::uint32_t mask, std::uint32_t bits) {
  return (a & mask) | bits;
}
inline std::uint32_t prmt(std::uint32_t a, std::uint32_t b, std::uint32_t selector) {
  const std::uint64_t bytes = std::uint64_t{b} << 32 | a;
  std::uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const auto which = selector >> (4 * i) & 7u;
    result |= static_cast<std::uint32_t>(bytes >> (8 * which) & 0xffu) << (8 * i);
  }
  return result;
}

/// A float that rounds to 16 bits as `value` does: towards zero, the last bit set where inexact.
inline float round_to_odd(double value) {
  float f = static_cast<float>(value);
  if (std::isnan(value) || static_cast<double>(f) == value) return f;
  if (std::fabs(static_cast<double>(f)) > std::fabs(value)) f = std::nextafter(f, 0.0f);
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(f) | 1u);
}
template <DataType kType, class Operation>
std::uint32_t each_half(std::uint32_t a, std::uint32_t b, std::uint32_t c, Operation operation) {
  std::uint32_t result = 0;
  for (int half = 0; half < 2; ++half) {
    const auto value = [&](std::uint32_t bits) {
      return static_cast<double>(
          f32_from_bits(static_cast<std::uint16_t>(bits >> (16 * half)), kType));
    };
    const float exact = round_to_odd(operation(value(a), value(b), value(c)));
    result |= static_cast<std::uint32_t>(bits_from_f32(exact, kType)) << (16 * half);
  }
  return result;
}
inline std::uint32_t fma_f16x2(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  return each_half<DataType::f16>(a, b, c, [](double x, double y, double z) { return x * y + z; });
}
inline std::uint32_t fms_f16x2(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  return each_half<DataType::f16>(a, b, c, [](double x, double y, double z) { return x * y - z; });
}
inline std::uint32_t mul_f16x2(std::uint32_t a, std::uint32_t b) {
  return each_half<DataType::f16>(a, b, 0, [](double x, double y, double) { return x * y; });
}
inline std::uint32_t add_f16x2(std::uint32_t a, std::uint32_t b) {
  return each_half<DataType::f16>(a, b, 0, [](double x, double y, double) { return x + y; });
}
inline std::uint32_t fma_bf16x2(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  return each_half<DataType::bf16>(a, b, c, [](double x, double y, double z) { return x * y + z; });
}
inline std::uint32_t fms_bf16x2(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  return each_half<DataType::bf16>(a, b, c, [](double x, double y, double z) { return x * y - z; });
}
inline std::uint32_t mul_bf16x2(std::uint32_t a, std::uint32_t b) {
  return each_half<DataType::bf16>(a, b, 0, [](double x, double y, double) { return x * y; });
}

inline std::uint32_t cvt_f16x2_f32(float low, float high) {
  return std::uint32_t{f16_from_f32(high)} << 16 | f16_from_f32(low);
}
inline std::uint32_t cvt_bf16x2_f32(float low, float high) {
  return std::uint32_t{bf16_from_f32(high)} << 16 | bf16_from_f32(low);
}
inline float cvt_f32_f16(std::uint16_t bits) { return f32_from_f16(bits); }
inline float max_nan(float a, float b) {
  return std::isnan(a) || std::isnan(b) ? NAN : std::max(a, b);
}
inline float ex2_approx(float x) { return std::exp2(x); }
inline float rcp_approx(float x) { return 1.0f / x; }

}  // namespace mixgemm::ptx
