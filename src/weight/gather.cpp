// SPDX-License-Identifier: Apache-2.0
// X's columns in the order of a packed weight's.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "mixgemm/weight.hpp"
#include "util/parallel.hpp"
#include "weight/checks.hpp"

namespace mixgemm {
namespace {

// Elements a thread takes at a time, at least.
constexpr std::int64_t kGatherGrainElems = 1 << 15;

Status refused(std::string message) {
  return Status(StatusCode::invalid_argument, "gather_columns: " + std::move(message));
}

Status check_matrix(const char* name, const void* data, const char* ld_name, std::int64_t ld,
                    std::int64_t k) {
  if (data == nullptr) return refused(fmt::format("{} must not be null", name));
  if (reinterpret_cast<std::uintptr_t>(data) % sizeof(std::uint16_t) != 0) {
    return refused(
        fmt::format("{} must be aligned to 2 bytes; got address {}", name, fmt::ptr(data)));
  }
  if (ld < k) return refused(fmt::format("{} must be at least K = {}; got {}", ld_name, k, ld));
  return {};
}

}  // namespace

Status gather_columns(const PackedView& weight, const void* x, std::int64_t m, std::int64_t ldx,
                      void* gathered, std::int64_t ldg, int num_threads) {
  const std::int64_t k = weight.k;
  if (Status status = check_size(weight.n, k); !status.ok()) return status;
  if (weight.device != Device::cpu) {
    return refused(fmt::format(
        "weight.device must be cpu; got {} (a plan with columns = permuted gathers X there)",
        to_string(weight.device)));
  }
  if (m < 0) return refused(fmt::format("m must be at least 0; got {}", m));
  if (m == 0) return {};
  if (Status status = check_matrix("x", x, "ldx", ldx, k); !status.ok()) return status;
  if (Status status = check_matrix("gathered", gathered, "ldg", ldg, k); !status.ok()) {
    return status;
  }
  const auto* from = static_cast<const std::uint16_t*>(x);
  auto* to = static_cast<std::uint16_t*>(gathered);
  const std::uint16_t* from_end = from + (m - 1) * ldx + k;
  if (from < to + (m - 1) * ldg + k && to < from_end) {
    return refused("gathered must not overlap x");
  }
  const std::int32_t* permutation = weight.permutation;
  parallel_for(m, std::max<std::int64_t>(1, kGatherGrainElems / k), num_threads,
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t row = begin; row < end; ++row) {
                   const std::uint16_t* source = from + row * ldx;
                   std::uint16_t* target = to + row * ldg;
                   if (permutation == nullptr) {
                     std::memcpy(target, source, static_cast<std::size_t>(k) * sizeof(*source));
                     continue;
                   }
                   for (std::int64_t j = 0; j < k; ++j) target[j] = source[permutation[j]];
                 }
               });
  return {};
}

}  // namespace mixgemm
