// SPDX-License-Identifier: Apache-2.0
#include "api/gather_plan.hpp"

#include <fmt/format.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "api/check.hpp"
#include "api/plan_impl.hpp"
#include "gather_launch.hpp"
#include "mixgemm/weight.hpp"

#if MIXGEMM_HAS_CUDA
#include "launch/cuda_backend.hpp"
#endif

namespace mixgemm {
namespace {

/// Far above any memory and far below overflow.
constexpr std::size_t kMaxGatheredBytes = std::size_t{1} << 60;

/// The leading dimension of the gathered X: rows begin on 16-byte boundaries, which every kernel
/// takes by its fastest way.
std::int64_t padded_k(const Problem& problem) { return gather::padded(problem.k); }

std::size_t aligned_bytes(std::size_t bytes) {
  return (bytes + kWorkspaceAlignment - 1) / kWorkspaceAlignment * kWorkspaceAlignment;
}

std::size_t gathered_bytes(const Problem& problem) {
  return static_cast<std::size_t>(problem.m) * static_cast<std::size_t>(padded_k(problem)) * 2;
}

/// The product, and where in the workspace its X is gathered.
class GatherThenMultiply : public Plan::Impl {
 public:
  std::string explain() const override {
    std::string text = product_.explain();
    return text.insert(text.find('\n') + 1,
                       fmt::format("  permuted columns: {}; {} of the {} bytes of workspace\n",
                                   how(), gathered_bytes(problem()), workspace_bytes()));
  }

  Status run(const RunArgs& args) const final {
    const std::size_t before = aligned_bytes(product_.workspace_bytes());
    RunArgs product = args;
    void* const gathered = static_cast<char*>(args.workspace) + before;
    if (Status s = gather(args, gathered, padded_k(problem())); !s) return s;
    product.x = gathered;
    product.ldx = padded_k(problem());
    product.weight = args.weight.for_gathered_x();
    product.workspace_bytes = product_.workspace_bytes();
    return product_.run(product);
  }

 protected:
  GatherThenMultiply(const Problem& problem, Plan product)
      : Impl(problem, product.kernel_id(), product.config_id(),
             aligned_bytes(product.workspace_bytes()) + gathered_bytes(problem)),
        product_(std::move(product)) {}

  /// By what X is gathered, for a person.
  virtual std::string how() const = 0;
  virtual Status gather(const RunArgs& args, void* gathered, std::int64_t ldg) const = 0;

 private:
  const Plan product_;
};

class CpuGatherPlan final : public GatherThenMultiply {
 public:
  CpuGatherPlan(const Problem& problem, Plan product, int num_threads)
      : GatherThenMultiply(problem, std::move(product)), num_threads_(num_threads) {}

 private:
  std::string how() const override { return "X is gathered first"; }
  Status gather(const RunArgs& args, void* gathered, std::int64_t ldg) const override {
    return gather_columns(args.weight, args.x, problem().m, args.ldx, gathered, ldg, num_threads_);
  }

  const int num_threads_;
};

#if MIXGEMM_HAS_CUDA
class CudaGatherPlan final : public GatherThenMultiply {
 public:
  CudaGatherPlan(const Problem& problem, Plan product, const cuda::GatherPlan& plan)
      : GatherThenMultiply(problem, std::move(product)), plan_(plan) {}

 private:
  std::string how() const override {
    const gather::Launch& l = plan_.launch;
    return fmt::format("X is gathered first, by {} x {} CTAs of {} threads, {} row{} each{}",
                       l.ctas, l.slices, gather::kThreads, l.rows, l.rows == 1 ? "" : "s",
                       l.staged ? " through shared memory" : "");
  }
  Status gather(const RunArgs& args, void* gathered, std::int64_t ldg) const override {
    return cuda::enqueue_gather(plan_, problem(), args, gathered, ldg);
  }

  const cuda::GatherPlan plan_;
};
#endif

}  // namespace

Result<Plan> plan_with_gather(const Problem& problem, const PlanOptions& options) {
  if (gathered_bytes(problem) > kMaxGatheredBytes) {
    return Status(StatusCode::out_of_memory,
                  fmt::format("X of {} x {}, gathered for permuted columns, fits no memory",
                              problem.m, problem.k));
  }
  Result<Plan> product = plan(in_order(problem), options);
  if (!product) return product.status();
#if MIXGEMM_HAS_CUDA
  if (problem.device == Device::cuda) {
    const auto made = cuda::plan_gather(problem);
    if (!made) return made.status();
    return Plan(std::make_shared<CudaGatherPlan>(problem, *std::move(product), *made));
  }
#endif
  return Plan(std::make_shared<CpuGatherPlan>(problem, *std::move(product), options.num_threads));
}

}  // namespace mixgemm
