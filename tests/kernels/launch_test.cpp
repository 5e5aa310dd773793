// SPDX-License-Identifier: Apache-2.0
// Launches as callers make them: several streams and threads, graphs, in place, wrong arguments.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gpu_case.hpp"
#include "some_kernels.hpp"

namespace mixgemm::gpu_test {
namespace {

constexpr int kM = 40, kN = 640, kK = 1024;

/// A weight, its inputs, and everything one launch of a configuration needs.
struct Prepared {
  Prepared(Arena& arena, const SomeKernel& kernel, int m, std::uint32_t seed, cudaStream_t stream)
      : weight(arena, kN, kK, kernel.spec, seed, stream),
        in(arena, weight, m, kernel.act, seed, stream),
        y(make_matrix(arena, m, kN, Placement::aligned)),
        findings(arena.allocate_array<Findings>(1)) {
    PlanOptions options;
    options.kernel = kernel.config_id;
    auto made = mixgemm::plan(problem_for(weight.view(), m, kernel.act, {}), options);
    made.status().throw_if_error();
    plan = std::move(*made);
    args.x = in.x[0].data();
    args.ldx = in.x[0].ld;
    args.weight = weight.view();
    args.y = y.data();
    args.ldy = y.ld;
    args.workspace_bytes = plan.workspace_bytes();
    if (args.workspace_bytes > 0) {
      args.workspace = arena.allocate(args.workspace_bytes);
      check_cuda(cudaMemsetAsync(args.workspace, 0xcd, args.workspace_bytes, stream), "workspace");
    }
    args.stream = stream;
    check_cuda(cudaMemsetAsync(y.allocation, 0xff, y.elems * 2, stream), "Y");
    check_cuda(cudaMemsetAsync(findings, 0, sizeof(Findings), stream), "findings");
  }

  void check(cudaStream_t stream) { check_output(y, in.act, in.sums, in.k, {}, findings, stream); }
  void expect(const std::string& name) {
    Findings found;
    check_cuda(cudaMemcpy(&found, findings, sizeof(found), cudaMemcpyDeviceToHost), "findings");
    expect_contract(found, static_cast<std::size_t>(in.m) * static_cast<std::size_t>(in.n), name);
    check_cuda(cudaMemset(findings, 0, sizeof(Findings)), "findings");
  }

  TestWeight weight;
  TestInputs in;
  Matrix y;
  Findings* findings;
  mixgemm::Plan plan;
  RunArgs args;
};

TEST(Streams, LaunchesAtOnceDoNotDisturbEachOther) {
  MIXGEMM_NEED_DEVICE();
  Session& session = Session::instance();
  for (const SomeKernel& kernel : some_kernels(8, kK)) {
    session.arena->reset();
    constexpr int kStreams = 4;
    cudaStream_t streams[kStreams];
    std::vector<std::unique_ptr<Prepared>> all;
    for (int i = 0; i < kStreams; ++i) {
      check_cuda(cudaStreamCreateWithFlags(&streams[i], cudaStreamNonBlocking), "stream");
      all.push_back(std::make_unique<Prepared>(*session.arena, kernel, 8,
                                               static_cast<std::uint32_t>(i), streams[i]));
    }
    check_cuda(cudaDeviceSynchronize(), "preparing");
    for (int round = 0; round < 10; ++round) {
      for (const auto& one : all) {
        const Status status = one->plan.run(one->args);
        ASSERT_TRUE(status) << status.message();
      }
    }
    for (int i = 0; i < kStreams; ++i) all[static_cast<std::size_t>(i)]->check(streams[i]);
    check_cuda(cudaDeviceSynchronize(), kernel.config_id.c_str());
    for (const auto& one : all) one->expect(kernel.config_id);
    for (const cudaStream_t stream : streams) cudaStreamDestroy(stream);
    Summary::instance().count("several streams", 10 * kStreams);
  }
}

TEST(Threads, ShareOnePlan) {
  MIXGEMM_NEED_DEVICE();
  const auto kernels = some_kernels(kM, kK);
  if (kernels.empty()) GTEST_SKIP() << "this build has no kernels";
  Session& session = Session::instance();
  session.arena->reset();
  const SomeKernel& kernel = kernels.front();
  constexpr std::size_t kThreads = 8;
  std::vector<std::unique_ptr<Prepared>> all;
  for (std::size_t i = 0; i < kThreads; ++i) {
    all.push_back(std::make_unique<Prepared>(*session.arena, kernel, kM,
                                             static_cast<std::uint32_t>(i), session.stream));
  }
  check_cuda(cudaDeviceSynchronize(), "preparing");
  std::vector<Status> statuses(kThreads);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      for (int round = 0; round < 200; ++round) {
        if (Status s = all[0]->plan.run(all[i]->args); !s) statuses[i] = s;
        Problem p = all[0]->plan.problem();
        p.m = 1 + (round + static_cast<int>(i)) % 50;  // plans made meanwhile
        if (const auto made = mixgemm::plan(p); !made) statuses[i] = made.status();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (std::size_t i = 0; i < kThreads; ++i) {
    EXPECT_TRUE(statuses[i]) << statuses[i].message();
    all[i]->check(session.stream);
  }
  check_cuda(cudaDeviceSynchronize(), "threads");
  for (const auto& one : all) one->expect(kernel.config_id);
  Summary::instance().count("several threads", 200 * kThreads);
}

TEST(Graphs, ReplaysComputeWithTheNewInputs) {
  MIXGEMM_NEED_DEVICE();
  Session& session = Session::instance();
  for (const int m : {8, kM}) {
    for (const SomeKernel& kernel : some_kernels(m, kK)) {
      session.arena->reset();
      Prepared one(*session.arena, kernel, m, 5, session.stream);
      one.args.pdl = true;
      cudaGraph_t graph = nullptr;
      cudaGraphExec_t exec = nullptr;
      check_cuda(cudaStreamBeginCapture(session.stream, cudaStreamCaptureModeThreadLocal),
                 "capture");
      for (int twice = 0; twice < 2; ++twice) {  // the second finds the first one's workspace
        const Status status = one.plan.run(one.args);
        EXPECT_TRUE(status) << status.message();
      }
      check_cuda(cudaStreamEndCapture(session.stream, &graph), kernel.config_id.c_str());
      check_cuda(cudaGraphInstantiate(&exec, graph, 0), "graph");
      for (std::uint32_t replay = 0; replay < 10; ++replay) {
        fill_matrix(one.in.x[0], one.in.act, 100 + replay, -1, 1, session.stream);
        reference_sums(one.in.x[0], one.in.act, one.weight.exact(), one.weight.rounded(), kN,
                       one.in.sums, session.stream);
        check_cuda(cudaMemsetAsync(one.y.allocation, 0xff, one.y.elems * 2, session.stream), "Y");
        check_cuda(cudaGraphLaunch(exec, session.stream), "replay");
        one.check(session.stream);
      }
      check_cuda(cudaStreamSynchronize(session.stream), kernel.config_id.c_str());
      one.expect(kernel.config_id);
      cudaGraphExecDestroy(exec);
      cudaGraphDestroy(graph);
      Summary::instance().count("graph replays", 20);
    }
  }
}

TEST(InPlace, ResidualMayBeTheOutput) {
  MIXGEMM_NEED_DEVICE();
  Session& session = Session::instance();
  for (const SomeKernel& kernel : some_kernels(8, kK)) {
    session.arena->reset();
    Prepared one(*session.arena, kernel, 8, 6, session.stream);
    PlanOptions options;
    options.kernel = kernel.config_id;
    const auto made = plan(problem_for(one.weight.view(), 8, kernel.act, {false, true}), options);
    ASSERT_TRUE(made) << made.status().message();
    fill_matrix(one.y, kernel.act, 77, -2, 2, session.stream);
    const Matrix residual = make_matrix(*session.arena, 8, kN, Placement::aligned);
    fill_matrix(residual, kernel.act, 77, -2, 2, session.stream);
    one.args.residual = one.y.data();
    one.args.ldr = one.y.ld;
    const Status status = made->run(one.args);
    ASSERT_TRUE(status) << status.message();
    CheckedEpilogue epilogue;
    epilogue.residual = residual.data();
    epilogue.ldr = residual.ld;
    check_output(one.y, one.in.act, one.in.sums, kK, epilogue, one.findings, session.stream);
    check_cuda(cudaStreamSynchronize(session.stream), kernel.config_id.c_str());
    one.expect(kernel.config_id);
    Summary::instance().count("in-place residual");
  }
}

TEST(BadArguments, AreRefusedBeforeAnythingIsLaunched) {
  MIXGEMM_NEED_DEVICE();
  Session& session = Session::instance();
  const SomeKernel* split = nullptr;
  const auto kernels = some_kernels(kM, kK);
  for (const SomeKernel& kernel : kernels) {
    if (kernel.config_id.find("_sk3") != std::string::npos) split = &kernel;
  }
  if (split == nullptr) GTEST_SKIP() << "no tiled kernel in this build";
  session.arena->reset();
  Prepared one(*session.arena, *split, kM, 5, session.stream);
  ASSERT_GT(one.plan.workspace_bytes(), 0u);
  const auto refused = [&](const char* words, auto&& change) {
    RunArgs args = one.args;
    change(args);
    const Status status = one.plan.run(args);
    EXPECT_FALSE(status) << words;
    EXPECT_NE(status.message().find(words), std::string::npos) << status.message();
  };
  refused("x must not be null", [](RunArgs& a) { a.x = nullptr; });
  refused("ldx must be at least", [](RunArgs& a) { a.ldx = kK - 1; });
  refused("y must not be null", [](RunArgs& a) { a.y = nullptr; });
  refused("ldy must be at least", [](RunArgs& a) { a.ldy = kN - 1; });
  refused("workspace must not be null", [](RunArgs& a) { a.workspace = nullptr; });
  refused("workspace_bytes must be at least", [](RunArgs& a) { --a.workspace_bytes; });
  refused("workspace must be aligned",
          [](RunArgs& a) { a.workspace = static_cast<char*>(a.workspace) + 16; });
  refused("weight.device", [](RunArgs& a) { a.weight.device = Device::cpu; });
  refused("weight.k must be", [](RunArgs& a) { a.weight.k = kK / 2; });
  refused("bias must be null", [](RunArgs& a) { a.bias = a.x; });
  refused("x must be aligned", [](RunArgs& a) { a.x = static_cast<const char*>(a.x) + 1; });
  check_cuda(cudaStreamSynchronize(session.stream), "refusals");
  check_guards(one.y, one.findings, session.stream);
  check_bytes(one.y.allocation, one.y.elems * 2, 0xff, one.findings, session.stream);
  check_cuda(cudaStreamSynchronize(session.stream), "refusals");
  Findings found;
  check_cuda(cudaMemcpy(&found, one.findings, sizeof(found), cudaMemcpyDeviceToHost), "findings");
  EXPECT_EQ(found.strays, 0u) << "a refused launch wrote to Y";
}

TEST(BadArguments, MulticastOfAnUnalignedXIsRefusedByNameOrAvoided) {
  MIXGEMM_NEED_DEVICE();
  Session& session = Session::instance();
  for (const SomeKernel& kernel : some_kernels(kM, kK)) {
    if (kernel.config_id.find("_c2x") == std::string::npos) continue;
    session.arena->reset();
    Prepared one(*session.arena, kernel, kM, 5, session.stream);
    one.args.x = one.in.x[2].data();
    one.args.ldx = one.in.x[2].ld;
    const Status status = one.plan.run(one.args);
    EXPECT_EQ(status.code(), StatusCode::unsupported);
    EXPECT_NE(status.message().find(kernel.config_id), std::string::npos) << status.message();
    check_cuda(cudaStreamSynchronize(session.stream), "refusal");
  }
}

// In a process of its own, because the context doesn't survive.
TEST(StickyErrorsDeathTest, AreReportedWithTheKernelId) {
  MIXGEMM_NEED_DEVICE();
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto child = [] {
    const auto kernels = some_kernels(kM, kK);
    if (kernels.empty()) std::exit(0);
    Session& session = Session::instance();
    Prepared one(*session.arena, kernels.front(), kM, 5, session.stream);
    check_cuda(cudaStreamSynchronize(session.stream), "preparing");
    trap(session.stream);
    cudaStreamSynchronize(session.stream);
    const Status status = one.plan.run(one.args);
    const bool good = status.code() == StatusCode::device_error &&
                      status.message().find(kernels.front().config_id) != std::string::npos;
    std::fprintf(stderr, "%s\n", status.message().c_str());
    std::_Exit(good ? 0 : 1);
  };
  EXPECT_EXIT(child(), testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace mixgemm::gpu_test
