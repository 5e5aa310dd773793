// SPDX-License-Identifier: Apache-2.0
// Weights with permuted columns: the gather is exact whatever the shape and alignment of X, and the
// product with what it gathered is, bit for bit, the product with columns in order.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "gather_launch.hpp"
#include "gpu_case.hpp"
#include "some_kernels.hpp"

namespace mixgemm::gpu_test {
namespace {

std::vector<std::int32_t> random_permutation(int k, unsigned seed) {
  std::vector<std::int32_t> permutation(static_cast<std::size_t>(k));
  std::iota(permutation.begin(), permutation.end(), 0);
  std::shuffle(permutation.begin(), permutation.end(), std::mt19937(seed));
  return permutation;
}

/// One weight twice, in order and permuted, with an X for either that gives the same product.
class GatherCase {
 public:
  GatherCase(int m, int n, int k, const QuantSpec& spec, DataType act, const std::string& kernel)
      : arena_(*Session::instance().arena), stream_(Session::instance().stream), m_(m), k_(k) {
    arena_.reset();
    CanonicalWeight w = random_weight(n, k, spec, 3);
    in_order_ = upload(w);
    permutation_ = w.permutation = random_permutation(k, 7);
    permuted_ = upload(w);
    name_ = kernel + " m " + std::to_string(m) + " k " + std::to_string(k);
    Problem problem = problem_for(in_order_.view(), m, act, {});
    PlanOptions options;
    options.kernel = kernel;
    plain_ = value(plan(problem, options));
    problem.columns = ColumnOrder::permuted;
    gathering_ = value(plan(problem, options));
    findings_ = arena_.allocate_array<Findings>(1);
    check_cuda(cudaMemsetAsync(findings_, 0, sizeof(Findings), stream_), "findings");
    x_ = make_matrix(arena_, m, k, Placement::aligned);
    fill_matrix(x_, act, 5, -1, 1, stream_);
    workspace_bytes_ = std::max(plain_.workspace_bytes(), gathering_.workspace_bytes());
    workspace_ = arena_.allocate_array<std::uint8_t>(workspace_bytes_ + kGuard);
    check_cuda(cudaMemsetAsync(workspace_, 0xcd, workspace_bytes_ + kGuard, stream_), "workspace");
  }

  /// X with its columns where the permuted weight looks for them.
  Matrix scattered(Placement placement) {
    const std::vector<std::uint16_t> from = download(x_);
    const Matrix x = make_matrix(arena_, m_, k_, placement);
    std::vector<std::uint16_t> to(x.elems, 0xffff);
    for (int row = 0; row < m_; ++row) {
      for (int j = 0; j < k_; ++j) {
        const auto at = static_cast<std::size_t>(permutation_[static_cast<std::size_t>(j)]);
        to[x.first + static_cast<std::size_t>(row * x.ld) + at] =
            from[x_.first + static_cast<std::size_t>(row * x_.ld + j)];
      }
    }
    // On the stream: cudaMemcpy may return before its bytes are on the device.
    check_cuda(
        cudaMemcpyAsync(x.allocation, to.data(), 2 * to.size(), cudaMemcpyHostToDevice, stream_),
        "X");
    check_cuda(cudaStreamSynchronize(stream_), "X");
    return x;
  }
  Matrix output() {
    const Matrix y =
        make_matrix(arena_, m_, static_cast<int>(in_order_.view().n), Placement::aligned);
    check_cuda(cudaMemsetAsync(y.allocation, 0xff, 2 * y.elems, stream_), "Y");
    return y;
  }
  RunArgs args(const Matrix& x, const Matrix& y, const PackedWeight& weight, bool pdl) {
    RunArgs a;
    a.x = x.data();
    a.ldx = x.ld;
    a.weight = weight.view();
    a.y = y.data();
    a.ldy = y.ld;
    a.workspace = workspace_;
    a.workspace_bytes = workspace_bytes_;
    a.stream = stream_;
    a.pdl = pdl;
    return a;
  }
  void multiply_in_order(const Matrix& y) { run(plain_, args(x_, y, in_order_, false)); }
  void multiply_permuted(const Matrix& x, const Matrix& y, bool pdl) {
    run(gathering_, args(x, y, permuted_, pdl));
  }
  void late(const Matrix& target, const Matrix& source) {
    late_copy(target.allocation, source.allocation, target.elems, 100, stream_);
  }

  /// The end of the workspace is X in the weight's order, with zeros up to whole vectors.
  void expect_gathered() {
    const auto ld = static_cast<std::size_t>(gather::padded(k_));
    std::vector<std::uint16_t> found(static_cast<std::size_t>(m_) * ld);
    const std::size_t begin = gathering_.workspace_bytes() - 2 * found.size();
    check_cuda(cudaStreamSynchronize(stream_), name_.c_str());
    check_cuda(
        cudaMemcpy(found.data(), workspace_ + begin, 2 * found.size(), cudaMemcpyDeviceToHost),
        "workspace");
    const std::vector<std::uint16_t> x = download(x_);
    std::size_t wrong = 0;
    for (std::size_t row = 0; row < static_cast<std::size_t>(m_); ++row) {
      const auto* from = x.data() + x_.first + row * static_cast<std::size_t>(x_.ld);
      for (std::size_t j = 0; j < ld; ++j) {
        const std::uint16_t wanted = j < static_cast<std::size_t>(k_) ? from[j] : 0;
        if (found[row * ld + j] != wanted) ++wrong;
      }
    }
    EXPECT_EQ(wrong, 0u) << name_;
  }
  void expect_same(const Matrix& a, const Matrix& b, const char* what) {
    check_same(a, b, findings_, stream_);
    check_guards(b, findings_, stream_);
    check_bytes(workspace_ + workspace_bytes_, kGuard, 0xcd, findings_, stream_);
    check_cuda(cudaStreamSynchronize(stream_), name_.c_str());
    Findings found;
    check_cuda(cudaMemcpy(&found, findings_, sizeof(found), cudaMemcpyDeviceToHost), "findings");
    EXPECT_EQ(found.differing, 0u) << name_ << ": " << what;
    EXPECT_EQ(found.strays, 0u) << name_ << ": " << what;
    check_cuda(cudaMemset(findings_, 0, sizeof(Findings)), "findings");
    Summary::instance().count("permuted columns");
  }

  const Matrix& x() const { return x_; }
  const Plan& gathering() const { return gathering_; }
  const PackedWeight& permuted() const { return permuted_; }
  const std::vector<std::int32_t>& permutation() const { return permutation_; }
  cudaStream_t stream() const { return stream_; }

 private:
  static constexpr std::size_t kGuard = 4096;

  template <class T>
  static T value(Result<T> result) {
    result.status().throw_if_error();
    return std::move(*result);
  }
  static PackedWeight upload(const CanonicalWeight& w) { return value(to_cuda(value(pack(w)))); }
  std::vector<std::uint16_t> download(const Matrix& matrix) {
    std::vector<std::uint16_t> copy(matrix.elems);
    check_cuda(cudaStreamSynchronize(stream_), name_.c_str());
    check_cuda(cudaMemcpy(copy.data(), matrix.allocation, 2 * copy.size(), cudaMemcpyDeviceToHost),
               "download");
    return copy;
  }
  void run(const Plan& plan, const RunArgs& a) {
    const Status status = plan.run(a);
    ASSERT_TRUE(status) << name_ << ": " << status.message();
  }

  Arena& arena_;
  const cudaStream_t stream_;
  const int m_, k_;
  std::string name_;
  PackedWeight in_order_, permuted_;
  std::vector<std::int32_t> permutation_;
  Plan plain_, gathering_;
  Matrix x_;
  std::uint8_t* workspace_ = nullptr;
  std::size_t workspace_bytes_ = 0;
  Findings* findings_ = nullptr;
};

/// An empty name where the build has a tiled kernel for the default weight, else a reason to skip.
std::string why_no_kernel() {
  for (const SomeKernel& kernel : some_kernels(300, 1024)) {
    if (kernel.spec == QuantSpec{} && kernel.act == DataType::f16) return {};
  }
  return "no f16 x int4 group kernels in this build";
}

TEST(PermutedColumns, GiveTheProductOfColumnsInOrder) {
  MIXGEMM_NEED_DEVICE();
  if (const std::string why = why_no_kernel(); !why.empty()) GTEST_SKIP() << why;
  // Slices of a row, whole rows several at a time, rows beyond shared memory; ragged ends of each.
  for (const auto& [m, k] : {std::pair{1, 1},
                             {1, 7},
                             {3, 8},
                             {1, 4096},
                             {2, 14336},
                             {17, 100},
                             {150, 1000},
                             {263, 65},
                             {300, 2048},
                             {2500, 520},
                             {1, 50008},
                             {300, 50001}}) {
    GatherCase c(m, 48, k, QuantSpec{}, DataType::f16, "");
    const Matrix wanted = c.output();
    c.multiply_in_order(wanted);
    for (const Placement placement : kPlacements) {
      for (const bool pdl : {false, true}) {
        const Matrix x = c.scattered(placement), y = c.output();
        c.multiply_permuted(x, y, pdl);
        c.expect_gathered();
        c.expect_same(wanted, y, pdl ? "with pdl" : "without pdl");
      }
    }
    if (HasFailure()) return;
  }
}

TEST(PermutedColumns, GoBeforeEveryKindOfKernel) {
  MIXGEMM_NEED_DEVICE();
  for (const int m : {1, 8, 150}) {
    for (const SomeKernel& kernel : some_kernels(m, 768)) {
      GatherCase c(m, 640, 768, kernel.spec, kernel.act, kernel.config_id);
      const Matrix wanted = c.output(), x = c.scattered(Placement::aligned), y = c.output();
      c.multiply_in_order(wanted);
      c.multiply_permuted(x, y, true);
      c.expect_same(wanted, y, "another product than with columns in order");
      if (HasFailure()) return;
    }
  }
}

TEST(PermutedColumns, AreGatheredFromAnXThatThePredecessorWritesLate) {
  MIXGEMM_NEED_DEVICE();
  for (const int m : {1, 8, 600}) {
    for (const SomeKernel& kernel : some_kernels(m, 768)) {
      GatherCase c(m, 640, 768, kernel.spec, kernel.act, kernel.config_id);
      const Matrix wanted = c.output(), x = c.scattered(Placement::aligned), y = c.output();
      const Matrix late = c.scattered(Placement::aligned);
      c.multiply_in_order(wanted);
      check_cuda(cudaMemsetAsync(late.allocation, 0, 2 * late.elems, c.stream()), "late X");
      check_cuda(cudaStreamSynchronize(c.stream()), "late X");
      c.late(late, x);
      c.multiply_permuted(late, y, true);
      c.expect_same(wanted, y, "X was gathered before the kernel that writes it was done");
      if (HasFailure()) return;
    }
  }
}

TEST(PermutedColumns, ShareOneWorkspaceFromLayerToLayer) {
  MIXGEMM_NEED_DEVICE();
  for (const int m : {1, 150}) {
    for (const SomeKernel& kernel : some_kernels(m, 768)) {
      GatherCase c(m, 768, 768, kernel.spec, kernel.act, kernel.config_id);
      Matrix results[2] = {c.output(), c.output()};
      const Matrix first = c.scattered(Placement::aligned), a = c.output();
      for (const bool pdl : {false, true}) {
        for (int round = 0; round < 4; ++round) {
          c.multiply_permuted(first, results[pdl], pdl);
          c.multiply_permuted(results[pdl], a, pdl);
          c.multiply_permuted(a, results[pdl], pdl);
        }
        check_cuda(cudaStreamSynchronize(c.stream()), "layers");
      }
      c.expect_same(results[0], results[1], "a gather ran ahead of the product before it");
      if (HasFailure()) return;
    }
  }
}

TEST(PermutedColumns, AreGatheredAgainInEachReplayOfAGraph) {
  MIXGEMM_NEED_DEVICE();
  for (const SomeKernel& kernel : some_kernels(40, 768)) {
    GatherCase c(40, 640, 768, kernel.spec, kernel.act, kernel.config_id);
    const Matrix wanted = c.output(), x = c.scattered(Placement::aligned), y = c.output();
    const Matrix input = c.scattered(Placement::aligned);
    c.multiply_in_order(wanted);
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    check_cuda(cudaMemsetAsync(input.allocation, 0, 2 * input.elems, c.stream()), "X");
    check_cuda(cudaStreamBeginCapture(c.stream(), cudaStreamCaptureModeThreadLocal), "capture");
    c.multiply_permuted(input, y, true);
    c.multiply_permuted(input, y, true);
    check_cuda(cudaStreamEndCapture(c.stream(), &graph), "capture");
    check_cuda(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
    check_cuda(cudaGraphLaunch(exec, c.stream()), "replay");
    check_cuda(cudaMemcpyAsync(input.allocation, x.allocation, 2 * x.elems,
                               cudaMemcpyDeviceToDevice, c.stream()),
               "X");
    for (int replay = 0; replay < 3; ++replay)
      check_cuda(cudaGraphLaunch(exec, c.stream()), "replay");
    c.expect_same(wanted, y, "a replay gave the X of the capture");
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    if (HasFailure()) return;
  }
}

TEST(PermutedColumns, AreExplainedAndKeptOnTheDevice) {
  MIXGEMM_NEED_DEVICE();
  if (const std::string why = why_no_kernel(); !why.empty()) GTEST_SKIP() << why;
  GatherCase c(8, 48, 512, QuantSpec{}, DataType::f16, "");
  EXPECT_NE(c.gathering().explain().find("permuted columns: X is gathered first"),
            std::string::npos)
      << c.gathering().explain();
  std::vector<std::int32_t> copy(c.permutation().size());
  check_cuda(cudaMemcpy(copy.data(), c.permuted().view().permutation, 4 * copy.size(),
                        cudaMemcpyDeviceToHost),
             "permutation");
  EXPECT_EQ(copy, c.permutation());
  const Matrix y = c.output();
  RunArgs a = c.args(c.x(), y, c.permuted(), false);
  a.workspace_bytes = c.gathering().workspace_bytes() - 1;
  EXPECT_EQ(c.gathering().run(a).code(), StatusCode::invalid_argument);
}

}  // namespace
}  // namespace mixgemm::gpu_test
