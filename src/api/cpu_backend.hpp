// SPDX-License-Identifier: Apache-2.0
// Plans on the CPU: names, choice and listing around cpu/cpu_gemm.hpp.
//
//   kernel id         cpu_<act>_<weight>_<quantization>_<method>     cpu_f16_i4_gz_simd
//   configuration id  <kernel id>@[g<group size>_]t<threads>         cpu_f16_i4_gz_simd@g128_t2
//
//   <quantization>    c: a scale per column; g: per group; gz: with stored zeros, of either kind
#pragma once

#include <vector>

#include "mixgemm/gemm.hpp"
#include "mixgemm/tuning.hpp"

namespace mixgemm::cpu_backend {

/// Decides; `problem` has passed check_problem() and its device is the CPU.
Result<Plan> plan(const Problem& problem, const PlanOptions& options);

/// Every CPU kernel.
std::vector<KernelInfo> kernels();

/// This machine's CPU: cores, SIMD target, BLAS.
DeviceInfo device();

/// mixgemm::plan_candidates() on the CPU: every method, without estimates.
Result<std::vector<PlanCandidate>> plan_candidates(const Problem& problem);

/// By which tuning caches know this processor.
const TuningDevice& tuning_device();

}  // namespace mixgemm::cpu_backend
