// SPDX-License-Identifier: Apache-2.0
// The contract of programmatic dependent launch: before its wait a kernel touches weights only.
// Predecessors here let their successor start at once, sleep, and then read or write what the
// successor must not have touched.
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "gpu_case.hpp"
#include "some_kernels.hpp"

namespace mixgemm::gpu_test {
namespace {

constexpr int kSleepUs = 100;
constexpr int kSize = 768;  // square, so that outputs can be inputs

/// Two launches' worth of matrices for one configuration.
class PdlCase {
 public:
  PdlCase(const SomeKernel& kernel, int m, const Epilogue& epilogue)
      : session_(Session::instance()),
        arena_(*session_.arena),
        stream_(session_.stream),
        kernel_(kernel),
        m_(m),
        weight_((arena_.reset(), arena_), kSize, kSize, kernel.spec, 1, stream_),
        findings_(arena_.allocate_array<Findings>(1)) {
    PlanOptions options;
    options.kernel = kernel.config_id;
    auto made = plan(problem_for(weight_.view(), m, kernel.act, epilogue), options);
    made.status().throw_if_error();
    plan_ = std::move(*made);
    check_cuda(cudaMemsetAsync(findings_, 0, sizeof(Findings), stream_), "findings");
  }

  Matrix matrix(std::uint32_t seed, int rows = 0) {
    const Matrix x = make_matrix(arena_, rows > 0 ? rows : m_, kSize, Placement::aligned);
    fill_matrix(x, kernel_.act, seed, -1, 1, stream_);
    return x;
  }
  Matrix zeros() {
    const Matrix x = make_matrix(arena_, m_, kSize, Placement::aligned);
    check_cuda(cudaMemsetAsync(x.allocation, 0, x.elems * 2, stream_), "zeros");
    return x;
  }
  RunArgs args(const Matrix& x, const Matrix& y, bool pdl) {
    RunArgs a;
    a.x = x.data();
    a.ldx = x.ld;
    a.weight = weight_.view();
    a.y = y.data();
    a.ldy = y.ld;
    a.workspace_bytes = plan_.workspace_bytes();
    if (a.workspace_bytes > 0) {
      if (workspace_ == nullptr) workspace_ = arena_.allocate(a.workspace_bytes);
      a.workspace = workspace_;
    }
    a.stream = stream_;
    a.pdl = pdl;
    return a;
  }
  void run(const RunArgs& a) {
    const Status status = plan_.run(a);
    ASSERT_TRUE(status) << status.message();
  }
  void sync() { check_cuda(cudaStreamSynchronize(stream_), kernel_.config_id.c_str()); }
  void same(const Matrix& a, const Matrix& b) { check_same(a, b, findings_, stream_); }
  void late(const Matrix& target, const Matrix& source) {
    late_copy(target.allocation, source.allocation, target.elems, kSleepUs, stream_);
  }
  void expect(const char* what) {
    sync();
    Findings found;
    check_cuda(cudaMemcpy(&found, findings_, sizeof(found), cudaMemcpyDeviceToHost), "findings");
    EXPECT_EQ(found.differing, 0u) << kernel_.config_id << " m " << m_ << ": " << what;
    Summary::instance().count("programmatic dependent launch");
  }

 private:
  Session& session_;
  Arena& arena_;
  const cudaStream_t stream_;
  const SomeKernel& kernel_;
  const int m_;
  TestWeight weight_;
  Findings* findings_;
  Plan plan_;
  void* workspace_ = nullptr;
};

void for_each_case(const Epilogue& epilogue, const std::function<void(PdlCase&)>& body) {
  for (const int m : {1, 8, 150}) {
    for (const SomeKernel& kernel : some_kernels(m, kSize)) {
      PdlCase c(kernel, m, epilogue);
      body(c);
      if (testing::Test::HasFailure()) return;
    }
  }
}

TEST(Pdl, SeesActivationsThatThePredecessorWritesLate) {
  MIXGEMM_NEED_DEVICE();
  for_each_case({}, [](PdlCase& c) {
    const Matrix x = c.matrix(1), wanted = c.zeros(), y = c.zeros(), stale = c.matrix(2);
    c.run(c.args(x, wanted, false));
    c.sync();
    c.late(stale, x);
    c.run(c.args(stale, y, true));
    c.same(wanted, y);
    c.expect("X was read before the kernel that writes it was done");
  });
}

TEST(Pdl, SeesBiasAndResidualThatThePredecessorWritesLate) {
  MIXGEMM_NEED_DEVICE();
  for_each_case({true, true}, [](PdlCase& c) {
    const Matrix x = c.matrix(1), wanted = c.zeros(), y = c.zeros();
    const Matrix bias = c.matrix(3, 1), residual = c.matrix(4);
    const Matrix stale_bias = c.matrix(5, 1), stale_residual = c.matrix(6);
    RunArgs a = c.args(x, wanted, false);
    a.bias = bias.data();
    a.residual = residual.data();
    a.ldr = residual.ld;
    c.run(a);
    c.sync();
    c.late(stale_residual, residual);
    a = c.args(x, y, true);
    a.bias = bias.data();
    a.residual = stale_residual.data();
    a.ldr = stale_residual.ld;
    c.run(a);
    c.same(wanted, y);
    c.sync();
    c.late(stale_bias, bias);
    a.bias = stale_bias.data();
    c.run(a);
    c.same(wanted, y);
    c.expect("bias or residual was read too early");
  });
}

TEST(Pdl, WritesNothingThatThePredecessorStillReads) {
  MIXGEMM_NEED_DEVICE();
  for_each_case({}, [](PdlCase& c) {
    const Matrix x = c.matrix(1), y = c.matrix(2), before = c.matrix(2), seen = c.zeros();
    c.sync();
    c.late(seen, y);
    c.run(c.args(x, y, true));
    c.same(before, seen);
    c.expect("Y was written while the kernel before still read it");
  });
}

TEST(Pdl, WaitsEvenForKernelsThatItDoesNotDependOn) {
  MIXGEMM_NEED_DEVICE();
  for_each_case({}, [](PdlCase& c) {
    const Matrix x = c.matrix(1), other = c.matrix(7), ignored = c.zeros();
    const Matrix wanted = c.zeros(), y = c.zeros(), stale = c.matrix(2);
    c.run(c.args(x, wanted, false));
    c.sync();
    c.late(stale, x);                     // writes what the next but one reads
    c.run(c.args(other, ignored, true));  // depends on nothing, yet must outlast the first
    c.run(c.args(stale, y, true));
    c.same(wanted, y);
    c.expect("a kernel completed before the one it was launched behind");
  });
}

TEST(Pdl, LayersInPingPongAgreeWithLayersInOrder) {
  MIXGEMM_NEED_DEVICE();
  for_each_case({}, [](PdlCase& c) {
    const Matrix first = c.matrix(1);
    Matrix results[2] = {c.zeros(), c.zeros()};
    for (const bool pdl : {false, true}) {
      const Matrix a = c.zeros();
      const Matrix& b = results[pdl];
      for (int round = 0; round < 5; ++round) {
        c.run(c.args(first, b, pdl && round > 0));
        c.run(c.args(b, a, pdl));
        c.run(c.args(a, b, pdl));
      }
      c.sync();
    }
    c.same(results[0], results[1]);
    c.expect("a layer ran ahead of the one before");
  });
}

}  // namespace
}  // namespace mixgemm::gpu_test
