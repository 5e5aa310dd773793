// SPDX-License-Identifier: Apache-2.0
#include "product.hpp"

#include <new>
#include <utility>

namespace mixgemm::python {
namespace {

constexpr std::size_t kWorkspaceAlignment = 256;

}  // namespace

Plan make_plan(const PackedView& weight, Place place, std::int64_t m, DataType act,
               const Epilogue& epilogue, const Options& options) {
  Problem problem;
  problem.m = m;
  problem.n = weight.n;
  problem.k = weight.k;
  problem.act = act;
  problem.weight = weight.spec;
  problem.epilogue = epilogue;
  problem.device = place.device;
  problem.deterministic = options.deterministic;
  problem.batch_invariant = options.batch_invariant;
  if (weight.permutation != nullptr) problem.columns = ColumnOrder::permuted;
  PlanOptions plan_options;
  plan_options.kernel = options.kernel;
  plan_options.num_threads = options.num_threads;
  return plan(problem, plan_options).value();
}

Workspace::Workspace(std::size_t bytes, Place place, nb::handle allocate, KeptScratch* kept,
                     void* stream)
    : bytes_((bytes + kWorkspaceAlignment - 1) / kWorkspaceAlignment * kWorkspaceAlignment) {
  if (bytes_ == 0) return;
  if (place.device == Device::cpu) {
    owned_.reset(std::aligned_alloc(kWorkspaceAlignment, bytes_));
    if (owned_ == nullptr) throw std::bad_alloc();
    data_ = owned_.get();
    return;
  }
  if (kept != nullptr && !may_be_capturing(stream)) {
    block_ = kept->take(stream, bytes_, allocate);
    if (block_.data != nullptr) {
      kept_ = kept;
      stream_ = stream;
      data_ = block_.data;
      return;
    }
  }
  allocated_ = nb::cast<nb::tuple>(allocate(bytes_));
  data_ = reinterpret_cast<void*>(nb::cast<std::uintptr_t>(allocated_[1]));
}

Workspace::~Workspace() {
  if (kept_ != nullptr) kept_->give_back(stream_, std::move(block_));
}

}  // namespace mixgemm::python
