// SPDX-License-Identifier: Apache-2.0
// The rules a quantized weight must keep, each in one place, with messages that name rule and
// value.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <string_view>

#include "mixgemm/status.hpp"
#include "mixgemm/weight.hpp"

namespace mixgemm {

/// Every enumerator known, group size 0, 16, 32, 64 or 128, scale type f16 or bf16.
Status check_spec(const QuantSpec& spec);

/// The largest M, N and K.
inline constexpr std::int64_t kMaxDimension = std::numeric_limits<std::int32_t>::max();

/// 1 ≤ N, K < 2^31, as for a Problem: no product of sizes then overflows an int64_t.
Status check_size(std::int64_t n, std::int64_t k);

/// Every index of 0 … K − 1, once.
Status check_permutation(std::span<const std::int32_t> permutation, std::int64_t k);

/// Specification, sizes, the lengths of the arrays, and the permutation where there is one.
Status check_arrays(const CanonicalWeight& weight);

/// Scales and zeros: finite, and integer zeros below 2^bits. Needs check_arrays().
Status check_scales_and_zeros(const CanonicalWeight& weight);

/// Specification, sizes, pointers, alignment and pitches of a packed view; not what the bytes say.
Status check_view(const PackedView& view);

/// check_view(), and that the view lies in host memory: `verb` names who asks ("unpack").
Status check_cpu_view(const PackedView& view, std::string_view verb);

}  // namespace mixgemm
