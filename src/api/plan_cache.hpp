// SPDX-License-Identifier: Apache-2.0
// Plans made before, by problem: a server asks for the same few hundred again and again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "mixgemm/gemm.hpp"

namespace mixgemm {

/// What a plan depends on, besides a kernel asked for by name.
struct PlanKey {
  std::int64_t m, n, k;
  std::uint64_t rest;   ///< the problem's other fields, and `where`
  std::uint64_t extra;  ///< whatever else the backend's choice depends on

  /// A legal problem; `where` is a device ordinal or a number of threads, below 2^16.
  PlanKey(const Problem& problem, int where, std::uint64_t extra);
  friend bool operator==(const PlanKey&, const PlanKey&) = default;
};

class PlanCache {
 public:
  using ImplPtr = std::shared_ptr<const Plan::Impl>;

  /// Plans remembered per process. A server sees some hundreds; a fuzzer must not eat the memory.
  static constexpr std::size_t kMaxPlans = 8192;

  /// The plan, or nullptr. Thread-safe, and quick: readers don't exclude each other.
  static ImplPtr find(const PlanKey& key);
  /// Remembers a plan; returns the one that is remembered, which another thread may have made.
  static ImplPtr insert(const PlanKey& key, ImplPtr plan);
};

}  // namespace mixgemm
