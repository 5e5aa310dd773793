// SPDX-License-Identifier: Apache-2.0
// X's columns in the order of a permuted weight's, on a CUDA device.
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <atomic>
#include <cstdint>

#include "gather_columns.hpp"
#include "launch/cuda_backend.hpp"
#include "launch/device.hpp"

namespace mixgemm::cuda {
namespace {

/// Once per device; devices beyond the mask's bits are told each time, which does no harm.
Status allow_shared_memory(int ordinal) {
  static std::atomic<std::uint64_t> told{0};
  const std::uint64_t bit = ordinal < 64 ? std::uint64_t{1} << ordinal : 0;
  if ((told.load(std::memory_order_relaxed) & bit) != 0) return Status();
  if (cudaError_t error = gather::allow_shared_memory(); error != cudaSuccess) {
    return cuda_error(error, "giving shared memory to the gather of columns");
  }
  told.fetch_or(bit, std::memory_order_relaxed);
  return Status();
}

}  // namespace

Result<GatherPlan> plan_gather(const Problem& problem) {
  const auto device = current_device();
  if (!device) return device.status();
  GatherPlan plan;
  plan.ordinal = (*device)->ordinal;
  plan.takes_pdl = (*device)->arch >= 90;
  plan.launch = gather::launch_for(problem.m, problem.k, (*device)->facts.num_sms);
  if (plan.launch.staged) {
    if (Status s = allow_shared_memory(plan.ordinal); !s) return s;
  }
  return plan;
}

Status enqueue_gather(const GatherPlan& plan, const Problem& problem, const RunArgs& args,
                      void* gathered, std::int64_t ldg) {
  int current = -1;
  if (cudaError_t error = cudaGetDevice(&current); error != cudaSuccess) {
    return cuda_error(error, "gathering columns");
  }
  if (current != plan.ordinal) {
    return Status(StatusCode::invalid_argument,
                  fmt::format("the current device must be {}, where the plan was made; got {}",
                              plan.ordinal, current));
  }
  gather::Params p;
  p.x = static_cast<const std::uint16_t*>(args.x);
  p.ldx = args.ldx;
  p.permutation = args.weight.permutation;
  p.gathered = static_cast<std::uint16_t*>(gathered);
  p.ldg = ldg;
  p.m = problem.m;
  p.k = static_cast<int>(problem.k);
  p.rows = plan.launch.rows;
  p.x_vectors = reinterpret_cast<std::uintptr_t>(args.x) % 16 == 0 &&
                (args.ldx % gather::kVector == 0 || problem.m == 1);
  const cudaError_t error = gather::enqueue(p, plan.launch, args.pdl && plan.takes_pdl,
                                            static_cast<cudaStream_t>(args.stream));
  return error == cudaSuccess ? Status() : cuda_error(error, "gathering columns");
}

}  // namespace mixgemm::cuda
