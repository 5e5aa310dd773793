// SPDX-License-Identifier: Apache-2.0
// The caches that this process consults, as one.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "mixgemm/tuning.hpp"

namespace mixgemm::tuning {

/// What the caches say of a problem.
struct Tuned {
  std::string config;
  double us = 0;
  std::int64_t m = 0;  ///< where it was measured; the problem's M, or a neighbour
};

/// TuningCache::lookup() over all caches in use. Thread-safe; the first call reads them.
std::optional<Tuned> lookup(const TuningDevice& device, const Problem& problem);

/// The entry of exactly this problem, whose times can stand beside estimates.
std::optional<TuningEntry> find(const TuningDevice& device, const Problem& problem);

/// Changes whenever the caches in use do: a part of what a remembered plan depends on.
std::uint32_t generation();

}  // namespace mixgemm::tuning
