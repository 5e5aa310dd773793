// SPDX-License-Identifier: Apache-2.0
// What a plan on CUDA was chosen among, for a person: candidates with their times, and why the
// other kernels are out.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "mixgemm/tuning.hpp"
#include "registry.hpp"
#include "select/select.hpp"

namespace mixgemm::select {

/// The list of mixgemm::plan_candidates(). `picked`: the plan's configuration id; `tuned`: what the
/// caches say of exactly this problem.
std::vector<PlanCandidate> explain(const Problem& problem, std::span<const KernelEntry> registry,
                                   const KernelIndex& index, const DeviceFacts& device,
                                   const std::string& picked,
                                   const std::optional<TuningEntry>& tuned, std::size_t limit);

/// A line for each candidate that can run, and one for each reason why others can't.
std::string format_candidates(const std::vector<PlanCandidate>& candidates);

}  // namespace mixgemm::select
