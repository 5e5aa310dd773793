// SPDX-License-Identifier: Apache-2.0
// A million launches, each of whose outputs is compared bit for bit: what a missing wait or barrier
// breaks now and then, not at once.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "gpu_case.hpp"
#include "some_kernels.hpp"

namespace mixgemm::gpu_test {
namespace {

constexpr int kLaunches = 1'000'000;
constexpr int kStressN = 640, kStressK = 1024;
constexpr int kOutputs = 8;  // launches in a row, each under the end of the one before
constexpr int kRounds = 8;   // of a graph

/// One configuration, `launches` times. The reference is its first output, checked by the oracle.
void repeat(const SomeKernel& kernel, int m, int launches) {
  Session& session = Session::instance();
  const cudaStream_t stream = session.stream;
  Arena& arena = *session.arena;
  arena.reset();
  const TestWeight weight(arena, kStressN, kStressK, kernel.spec, 7, stream);
  const TestInputs in(arena, weight, m, kernel.act, 8, stream);
  const Matrix first = make_matrix(arena, m, kStressN, Placement::aligned);
  const Matrix expected = make_matrix(arena, kOutputs * m, kStressN, Placement::aligned);
  const Matrix y = make_matrix(arena, kOutputs * m, kStressN, Placement::aligned);
  auto* const findings = arena.allocate_array<Findings>(1);
  PlanOptions options;
  options.kernel = kernel.config_id;
  const auto plan = mixgemm::plan(problem_for(weight.view(), m, kernel.act, {}), options);
  ASSERT_TRUE(plan) << plan.status().message();
  RunArgs args;
  args.x = in.x[0].data();
  args.ldx = in.x[0].ld;
  args.weight = weight.view();
  args.workspace_bytes = plan->workspace_bytes();
  if (args.workspace_bytes > 0) args.workspace = arena.allocate(args.workspace_bytes);
  args.stream = stream;
  args.pdl = true;
  const auto run = [&](const Matrix& out, int row) {
    args.y = out.data() + row * out.ld;
    args.ldy = out.ld;
    const Status status = plan->run(args);
    ASSERT_TRUE(status) << status.message();
  };
  const auto poison = [&](const Matrix& out) {
    check_cuda(cudaMemsetAsync(out.allocation, 0xff, out.elems * 2, stream), "poison");
  };
  check_cuda(cudaMemsetAsync(findings, 0, sizeof(Findings), stream), "findings");
  poison(first);
  run(first, 0);
  check_output(first, kernel.act, in.sums, kStressK, {}, findings, stream);
  poison(expected);
  for (int i = 0; i < kOutputs; ++i) {
    check_cuda(cudaMemcpy2DAsync(expected.data() + i * m * expected.ld,
                                 static_cast<std::size_t>(expected.ld) * 2, first.data(),
                                 static_cast<std::size_t>(first.ld) * 2, std::size_t{kStressN} * 2,
                                 static_cast<std::size_t>(m), cudaMemcpyDeviceToDevice, stream),
               "expected");
  }

  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int round = 0; round < kRounds; ++round) {
    poison(y);
    for (int i = 0; i < kOutputs; ++i) run(y, i * m);
    check_same(y, expected, findings, stream);
  }
  check_cuda(cudaStreamEndCapture(stream, &graph), kernel.config_id.c_str());
  check_cuda(cudaGraphInstantiate(&exec, graph, 0), "graph");
  for (int done = 0; done < launches; done += kRounds * kOutputs) {
    check_cuda(cudaGraphLaunch(exec, stream), "replay");
  }
  Findings found;
  check_cuda(cudaMemcpyAsync(&found, findings, sizeof(found), cudaMemcpyDeviceToHost, stream),
             kernel.config_id.c_str());
  check_cuda(cudaStreamSynchronize(stream), kernel.config_id.c_str());
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  expect_contract(found, std::size_t{kStressN} * static_cast<std::size_t>(m), kernel.config_id);
}

TEST(Stress, AMillionLaunchesGiveTheSameBits) {
  MIXGEMM_NEED_DEVICE();
  struct Case {
    SomeKernel kernel;
    int m;
  };
  std::vector<Case> cases;
  for (const int m : {1, 8, 40}) {
    for (SomeKernel& kernel : some_kernels(m, kStressK)) cases.push_back({std::move(kernel), m});
  }
  if (cases.empty()) GTEST_SKIP() << "this build has no kernels";
  constexpr int kOfGraph = kRounds * kOutputs;
  const int of_case = static_cast<int>(kLaunches / cases.size());
  const int each = (of_case + kOfGraph) / kOfGraph * kOfGraph;  // at least a million in all
  for (const Case& one : cases) {
    repeat(one.kernel, one.m, each);
    Summary::instance().count("stress, every output compared", each);
  }
}

}  // namespace
}  // namespace mixgemm::gpu_test
