// SPDX-License-Identifier: Apache-2.0
// The CUDA backend, as src/api calls it. Nothing here fails or crashes on a machine without a
// driver: plans are refused with `unsupported`, lists are empty or carry a note.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "gather_launch.hpp"
#include "mixgemm/gemm.hpp"
#include "mixgemm/tuning.hpp"

namespace mixgemm::cuda {

/// A plan for the current device. Fails with unsupported (no usable device, a device without
/// kernels, a kernel family that this build lacks), not_found (PlanOptions::kernel names a kernel
/// that isn't in the registry) or invalid_argument (an illegal problem or configuration id).
Result<Plan> plan(const Problem& problem, const PlanOptions& options);

/// How X's columns are put in the order of a permuted weight's on the current device.
struct GatherPlan {
  int ordinal = 0;
  bool takes_pdl = false;
  gather::Launch launch;
};
Result<GatherPlan> plan_gather(const Problem& problem);
/// Enqueues it: X of `args` [M, K] → gathered [M, ldg], 16-byte aligned, ldg ≥ padded K. Fails with
/// invalid_argument where the current device isn't the plan's.
Status enqueue_gather(const GatherPlan& plan, const Problem& problem, const RunArgs& args,
                      void* gathered, std::int64_t ldg);

/// Every kernel of the registry. Registers are 0 where no device can be asked.
std::vector<KernelInfo> kernels();

/// Every CUDA device, or one unusable entry with the note "no CUDA driver" (or no device).
std::vector<DeviceInfo> devices();

/// mixgemm::plan_candidates() and tuning_device() for the current device.
Result<std::vector<PlanCandidate>> plan_candidates(const Problem& problem, std::size_t limit);
Result<TuningDevice> tuning_device();

}  // namespace mixgemm::cuda
