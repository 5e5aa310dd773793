// SPDX-License-Identifier: Apache-2.0
// Problem → Plan → run: the door to the backends.
#include <iterator>
#include <utility>

#include "api/check.hpp"
#include "api/cpu_backend.hpp"
#include "api/gather_plan.hpp"
#include "api/plan_impl.hpp"
#include "mixgemm/gemm.hpp"
#include "mixgemm/tuning.hpp"
#include "util/trace.hpp"

#if MIXGEMM_HAS_CUDA
#include "launch/cuda_backend.hpp"
#endif

namespace mixgemm {
namespace {

const Problem kNoProblem;
const std::string kNoName;

#if !MIXGEMM_HAS_CUDA
Status no_cuda() {
  return Status(StatusCode::unsupported,
                "device = cuda, but this build has no CUDA support; configure with "
                "-DMIXGEMM_CUDA=ON where nvcc is installed, or plan for the CPU");
}
#endif

}  // namespace

Status Plan::run(const RunArgs& args) const {
  if (impl_ == nullptr) {
    return Status(StatusCode::invalid_argument, "the plan must come from plan(); got an empty one");
  }
  if (Status s = check_args(impl_->problem(), args, impl_->workspace_bytes()); !s) return s;
  const trace::Range range(impl_->config_id());
  return impl_->run(args);
}

const Problem& Plan::problem() const { return impl_ ? impl_->problem() : kNoProblem; }
const std::string& Plan::kernel_id() const { return impl_ ? impl_->kernel_id() : kNoName; }
const std::string& Plan::config_id() const { return impl_ ? impl_->config_id() : kNoName; }
std::size_t Plan::workspace_bytes() const { return impl_ ? impl_->workspace_bytes() : 0; }
std::string Plan::explain() const {
  return impl_ ? impl_->explain() : "an empty plan: it must come from plan()\n";
}

Result<Plan> plan(const Problem& problem, const PlanOptions& options) {
  if (Status s = check_problem(problem); !s) return s;
  if (problem.columns == ColumnOrder::permuted) return plan_with_gather(problem, options);
  if (problem.device == Device::cpu) return cpu_backend::plan(problem, options);
#if MIXGEMM_HAS_CUDA
  return cuda::plan(problem, options);
#else
  return no_cuda();
#endif
}

Result<std::vector<PlanCandidate>> plan_candidates(const Problem& problem,
                                                   [[maybe_unused]] std::size_t limit) {
  if (Status s = check_problem(problem); !s) return s;
  if (problem.columns == ColumnOrder::permuted) return plan_candidates(in_order(problem), limit);
  if (problem.device == Device::cpu) return cpu_backend::plan_candidates(problem);
#if MIXGEMM_HAS_CUDA
  return cuda::plan_candidates(problem, limit);
#else
  return no_cuda();
#endif
}

Result<TuningDevice> tuning_device(Device device) {
  if (device == Device::cpu) return cpu_backend::tuning_device();
#if MIXGEMM_HAS_CUDA
  return cuda::tuning_device();
#else
  return no_cuda();
#endif
}

std::vector<KernelInfo> kernels() {
  std::vector<KernelInfo> all = cpu_backend::kernels();
#if MIXGEMM_HAS_CUDA
  std::vector<KernelInfo> more = cuda::kernels();
  all.insert(all.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
#endif
  return all;
}

std::vector<DeviceInfo> devices() {
  std::vector<DeviceInfo> all = {cpu_backend::device()};
#if MIXGEMM_HAS_CUDA
  std::vector<DeviceInfo> more = cuda::devices();
  all.insert(all.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
#endif
  return all;
}

}  // namespace mixgemm
