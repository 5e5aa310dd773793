// SPDX-License-Identifier: Apache-2.0
#include "weight/checks.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "layout/packed.hpp"
#include "util/half.hpp"

namespace mixgemm {
namespace {

Status invalid(std::string message) {
  return Status(StatusCode::invalid_argument, std::move(message));
}

Status check_length(std::string_view what, std::size_t length, std::int64_t expected,
                    std::string_view rule) {
  if (length == static_cast<std::size_t>(expected)) return {};
  return invalid(
      fmt::format("{} must hold {} = {} elements; got {}", what, rule, expected, length));
}

// Index of the first non-finite 16-bit float, or -1.
std::int64_t first_nonfinite(const std::vector<std::uint16_t>& values, DataType type) {
  const std::uint16_t exponent = type == DataType::bf16 ? 0x7f80 : 0x7c00;
  // All of them first, without a way out of the loop, which the compiler then vectorizes.
  std::uint16_t largest = 0;
  for (const std::uint16_t value : values) {
    largest = std::max(largest, static_cast<std::uint16_t>(value & exponent));
  }
  if (largest != exponent) return -1;
  std::int64_t at = 0;
  while ((values[at] & exponent) != exponent) ++at;
  return at;
}

Status check_finite(std::string_view what, const std::vector<std::uint16_t>& values,
                    const CanonicalWeight& weight) {
  const std::int64_t at = first_nonfinite(values, weight.spec.scale_type);
  if (at < 0) return {};
  return invalid(fmt::format("{} of row {}, group {} is {}; {}s must be finite", what,
                             at / weight.groups(), at % weight.groups(),
                             f32_from_bits(values[at], weight.spec.scale_type), what));
}

}  // namespace

Status check_spec(const QuantSpec& spec) {
  if (spec.type != WeightType::int4 && spec.type != WeightType::int8) {
    return invalid(fmt::format("weight type must be int4 or int8; got enumerator {}",
                               static_cast<int>(spec.type)));
  }
  if (spec.zero != ZeroKind::none && spec.zero != ZeroKind::integer &&
      spec.zero != ZeroKind::scaled) {
    return invalid(fmt::format("zero kind must be none, integer or scaled; got enumerator {}",
                               static_cast<int>(spec.zero)));
  }
  if (spec.scale_type != DataType::f16 && spec.scale_type != DataType::bf16) {
    return invalid(
        fmt::format("scale type must be f16 or bf16; got {}", to_string(spec.scale_type)));
  }
  switch (spec.group_size) {
    case 0:
    case 16:
    case 32:
    case 64:
    case 128: return {};
    default:
      return invalid(fmt::format("group_size must be 0 (per column), 16, 32, 64 or 128; got {}",
                                 spec.group_size));
  }
}

Status check_size(std::int64_t n, std::int64_t k) {
  if (n < 1 || n > kMaxDimension) {
    return invalid(fmt::format("N must be 1 .. {}; got {}", kMaxDimension, n));
  }
  if (k < 1 || k > kMaxDimension) {
    return invalid(fmt::format("K must be 1 .. {}; got {}", kMaxDimension, k));
  }
  return {};
}

Status check_arrays(const CanonicalWeight& weight) {
  if (Status status = check_spec(weight.spec); !status.ok()) return status;
  if (Status status = check_size(weight.n, weight.k); !status.ok()) return status;
  const std::int64_t per_group = weight.n * weight.groups();
  const bool integer = weight.spec.zero == ZeroKind::integer;
  const bool scaled = weight.spec.zero == ZeroKind::scaled;
  if (Status status = check_length("codes", weight.codes.size(), weight.n * weight.k, "N*K");
      !status.ok()) {
    return status;
  }
  if (Status status = check_length("scales", weight.scales.size(), per_group, "N*G");
      !status.ok()) {
    return status;
  }
  if (Status status = check_length("zeros", weight.zeros.size(), integer ? per_group : 0,
                                   integer ? "N*G" : "(no integer zeros)");
      !status.ok()) {
    return status;
  }
  if (Status status = check_length("scaled_zeros", weight.scaled_zeros.size(),
                                   scaled ? per_group : 0, scaled ? "N*G" : "(no scaled zeros)");
      !status.ok()) {
    return status;
  }
  return weight.permutation.empty() ? Status() : check_permutation(weight.permutation, weight.k);
}

Status check_permutation(std::span<const std::int32_t> permutation, std::int64_t k) {
  if (Status status = check_length("permutation", permutation.size(), k, "K"); !status.ok()) {
    return status;
  }
  std::vector<bool> seen(permutation.size());
  for (std::size_t j = 0; j < permutation.size(); ++j) {
    const std::int32_t at = permutation[j];
    if (at < 0 || at >= k) {
      return invalid(
          fmt::format("permutation must hold indices in 0 .. {}; element {} is {}", k - 1, j, at));
    }
    if (seen[static_cast<std::size_t>(at)]) {
      return invalid(
          fmt::format("permutation must hold every index once; element {} repeats {}", j, at));
    }
    seen[static_cast<std::size_t>(at)] = true;
  }
  return {};
}

Status check_scales_and_zeros(const CanonicalWeight& weight) {
  if (Status status = check_finite("scale", weight.scales, weight); !status.ok()) return status;
  const int limit = 1 << bits_of(weight.spec.type);
  for (std::size_t i = 0; i < weight.zeros.size(); ++i) {
    if (weight.zeros[i] < limit) continue;
    const auto at = static_cast<std::int64_t>(i);
    return invalid(fmt::format("zero of row {}, group {} is {}; {} zeros must be less than {}",
                               at / weight.groups(), at % weight.groups(), weight.zeros[i],
                               to_string(weight.spec.type), limit));
  }
  return check_finite("scaled zero", weight.scaled_zeros, weight);
}

Status validate(const CanonicalWeight& weight) {
  if (Status status = check_arrays(weight); !status.ok()) return status;
  if (weight.spec.type == WeightType::int4) {
    std::uint8_t any = 0;
    for (const std::uint8_t code : weight.codes) any |= code;
    if (any >= 16) {
      std::int64_t at = 0;
      while (weight.codes[at] < 16) ++at;
      return invalid(fmt::format("code of row {}, k {} is {}; int4 codes must be less than 16",
                                 at / weight.k, at % weight.k, weight.codes[at]));
    }
  }
  return check_scales_and_zeros(weight);
}

Status check_view(const PackedView& view) {
  if (Status status = check_spec(view.spec); !status.ok()) return status;
  if (Status status = check_size(view.n, view.k); !status.ok()) return status;
  if (view.codes == nullptr) return invalid("packed weight has no codes: the pointer is null");
  if (view.scales == nullptr) return invalid("packed weight has no scales: the pointer is null");
  const bool has_zeros = view.spec.zero != ZeroKind::none;
  if (has_zeros != (view.zeros != nullptr)) {
    return invalid(fmt::format("packed weight with zero kind {} must {} zeros; the pointer is {}",
                               to_string(view.spec.zero), has_zeros ? "have" : "have no",
                               has_zeros ? "null" : "not null"));
  }
  const auto misalignment = [](const void* pointer, std::uintptr_t alignment) {
    return reinterpret_cast<std::uintptr_t>(pointer) % alignment;
  };
  if (const auto off = misalignment(view.codes, 16); off != 0) {
    return invalid(
        fmt::format("packed codes must be 16-byte aligned; the address is {} bytes past", off));
  }
  if (misalignment(view.scales, 2) != 0) {
    return invalid("packed scales must be 2-byte aligned; the address is odd");
  }
  if (view.spec.zero == ZeroKind::scaled && misalignment(view.zeros, 2) != 0) {
    return invalid("packed scaled zeros must be 2-byte aligned; the address is odd");
  }
  const std::int64_t strip_bytes = layout::strip_bytes(view.k, bits_of(view.spec.type));
  if (view.codes_pitch_bytes < strip_bytes || view.codes_pitch_bytes % 16 != 0) {
    return invalid(fmt::format(
        "codes_pitch_bytes must be a multiple of 16 and at least the {} bytes of a strip; got {}",
        strip_bytes, view.codes_pitch_bytes));
  }
  if (view.groups_pitch < view.groups()) {
    return invalid(fmt::format("groups_pitch must be at least the {} groups of K = {}; got {}",
                               view.groups(), view.k, view.groups_pitch));
  }
  return {};
}

Status check_cpu_view(const PackedView& view, std::string_view verb) {
  if (view.device != Device::cpu) {
    return invalid(fmt::format("{} needs a weight in CPU memory; got one on {}", verb,
                               to_string(view.device)));
  }
  return check_view(view);
}

}  // namespace mixgemm
