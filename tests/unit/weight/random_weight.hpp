// SPDX-License-Identifier: Apache-2.0
// Random inputs and shared matchers of the weight tests.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "mixgemm/weight.hpp"
#include "util/half.hpp"

namespace mixgemm::testing {

inline constexpr WeightType kWeightTypes[] = {WeightType::int4, WeightType::int8};
inline constexpr ZeroKind kZeroKinds[] = {ZeroKind::none, ZeroKind::integer, ZeroKind::scaled};
inline constexpr int kGroupSizes[] = {0, 16, 32, 64, 128};
inline constexpr DataType kScaleTypes[] = {DataType::f16, DataType::bf16};

/// "37x100 int4 integer g32 f16", for SCOPED_TRACE.
inline std::string describe(std::int64_t n, std::int64_t k, const QuantSpec& spec) {
  return fmt::format("{}x{} {} {} g{} {}", n, k, to_string(spec.type), to_string(spec.zero),
                     spec.group_size, to_string(spec.scale_type));
}

/// Any finite 16-bit float.
inline std::uint16_t random_half(std::mt19937_64& rng, DataType type) {
  const std::uint16_t exponent = type == DataType::bf16 ? 0x7f80 : 0x7c00;
  for (;;) {
    const auto bits = static_cast<std::uint16_t>(rng());
    if ((bits & exponent) != exponent) return bits;
  }
}

/// A valid weight with every code, scale and zero drawn at random.
inline CanonicalWeight random_weight(std::int64_t n, std::int64_t k, const QuantSpec& spec,
                                     std::uint64_t seed) {
  std::mt19937_64 rng(seed);
  const auto mask = static_cast<std::uint8_t>((1 << bits_of(spec.type)) - 1);
  CanonicalWeight weight;
  weight.n = n;
  weight.k = k;
  weight.spec = spec;
  weight.codes.resize(n * k);
  for (auto& code : weight.codes) code = static_cast<std::uint8_t>(rng() >> 32) & mask;
  weight.scales.resize(n * weight.groups());
  for (auto& scale : weight.scales) scale = random_half(rng, spec.scale_type);
  if (spec.zero == ZeroKind::integer) {
    weight.zeros.resize(n * weight.groups());
    for (auto& zero : weight.zeros) zero = static_cast<std::uint8_t>(rng() >> 32) & mask;
  }
  if (spec.zero == ZeroKind::scaled) {
    weight.scaled_zeros.resize(n * weight.groups());
    for (auto& zero : weight.scaled_zeros) zero = random_half(rng, spec.scale_type);
  }
  return weight;
}

inline bool same(const CanonicalWeight& a, const CanonicalWeight& b) {
  return a.n == b.n && a.k == b.k && a.spec == b.spec && a.codes == b.codes &&
         a.scales == b.scales && a.zeros == b.zeros && a.scaled_zeros == b.scaled_zeros;
}

/// Rows [n0, n1) and columns [k0, k1) of a weight; k0 must be a multiple of the group size.
inline CanonicalWeight cut(const CanonicalWeight& weight, std::int64_t n0, std::int64_t n1,
                           std::int64_t k0, std::int64_t k1) {
  CanonicalWeight part;
  part.n = n1 - n0;
  part.k = k1 - k0;
  part.spec = weight.spec;
  const std::int64_t groups = weight.groups();
  const std::int64_t g0 = weight.spec.group_size == 0 ? 0 : k0 / weight.spec.group_size;
  const auto copy = [&](const auto& from, auto& to, std::int64_t pitch, std::int64_t first,
                        std::int64_t count) {
    if (from.empty()) return;
    for (std::int64_t n = n0; n < n1; ++n) {
      to.insert(to.end(), from.begin() + n * pitch + first,
                from.begin() + n * pitch + first + count);
    }
  };
  copy(weight.codes, part.codes, weight.k, k0, part.k);
  copy(weight.scales, part.scales, groups, g0, part.groups());
  copy(weight.zeros, part.zeros, groups, g0, part.groups());
  copy(weight.scaled_zeros, part.scaled_zeros, groups, g0, part.groups());
  return part;
}

/// [n, k] fp32, Gaussian with a few outliers, as trained weights look.
inline std::vector<float> random_dense(std::int64_t n, std::int64_t k, std::uint64_t seed) {
  std::mt19937_64 rng(seed);
  std::normal_distribution<float> normal(0, 0.03f);
  std::vector<float> dense(n * k);
  for (auto& w : dense) w = normal(rng) * (rng() % 100 == 0 ? 6.0f : 1.0f);
  return dense;
}

}  // namespace mixgemm::testing
