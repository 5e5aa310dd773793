// SPDX-License-Identifier: Apache-2.0
// Plans on the CPU: names, choice by name, refusals, and that running one is safe from many
// threads.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "call.hpp"
#include "mixgemm/gemm.hpp"
#include "mixgemm/weight.hpp"
#include "util/half.hpp"

namespace mixgemm {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::StartsWith;

#if defined(__SANITIZE_THREAD__)
constexpr bool kThreadSanitizer = true;
#else
constexpr bool kThreadSanitizer = false;
#endif

/// A random problem of one shape with everything that running it takes.
struct Workload {
  Problem problem;
  PackedWeight weight;
  std::vector<std::uint16_t> x, bias, residual;

  Workload(std::int64_t m, std::int64_t n, std::int64_t k, DataType act, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const auto fill = [&](std::int64_t count) {
      std::vector<std::uint16_t> values(static_cast<std::size_t>(count));
      for (std::uint16_t& value : values) value = bits_from_f32(normal(random), act);
      return values;
    };
    x = fill(m * k);
    bias = fill(n);
    residual = fill(m * n);
    std::vector<float> dense(static_cast<std::size_t>(n * k));
    for (float& value : dense) value = 0.1f * normal(random);
    QuantizeOptions options;
    options.spec = {WeightType::int4, ZeroKind::integer, 64, act};
    options.search_clip = false;
    weight = quantize_packed(dense.data(), DataType::f32, n, k, k, options).value();
    problem.m = m;
    problem.n = n;
    problem.k = k;
    problem.act = act;
    problem.weight = options.spec;
    problem.epilogue = {.bias = true, .residual = true, .activation = Activation::silu};
  }

  RunArgs args() const {
    RunArgs a;
    a.x = x.data();
    a.ldx = problem.k;
    a.weight = weight.view();
    a.bias = bias.data();
    a.residual = residual.data();
    a.ldr = a.ldy = problem.n;
    a.alpha = 0.5f;
    return a;
  }

  std::size_t num_outputs() const { return static_cast<std::size_t>(problem.m * problem.n); }

  /// Y of one run, with a workspace of its own.
  std::vector<std::uint16_t> run(const Plan& plan) const {
    std::vector<std::uint16_t> y(num_outputs());
    const AlignedBuffer workspace(plan.workspace_bytes());
    RunArgs a = args();
    a.y = y.data();
    a.workspace = workspace.get();
    a.workspace_bytes = plan.workspace_bytes();
    const Status status = plan.run(a);
    EXPECT_TRUE(status.ok()) << status.message();
    return y;
  }
};

std::vector<std::string> names_for(const Problem& problem) {
  std::vector<std::string> names;
  for (const KernelInfo& kernel : kernels()) {
    PlanOptions options;
    options.kernel = kernel.id;
    if (kernel.device == problem.device && plan(problem, options).ok()) names.push_back(kernel.id);
  }
  return names;
}

Problem small_problem() {
  Problem p;
  p.m = 4;
  p.n = 32;
  p.k = 128;
  return p;
}

void expect_refused(const Problem& problem, const PlanOptions& options, StatusCode code,
                    const std::vector<std::string>& words) {
  const Result<Plan> result = plan(problem, options);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.status().code(), code) << result.status().message();
  for (const std::string& word : words) EXPECT_THAT(result.status().message(), HasSubstr(word));
}

TEST(Plan, EmptyOneAnswersAndRefusesToRun) {
  const Plan empty;
  EXPECT_EQ(empty.kernel_id(), "");
  EXPECT_EQ(empty.config_id(), "");
  EXPECT_EQ(empty.workspace_bytes(), 0u);
  EXPECT_EQ(empty.problem().m, 0);
  EXPECT_THAT(empty.explain(), HasSubstr("empty plan"));
  EXPECT_EQ(empty.run({}).code(), StatusCode::invalid_argument);
}

TEST(Plan, NamesSayWhatRuns) {
  Problem p = small_problem();
  p.act = DataType::bf16;
  p.weight = {WeightType::int8, ZeroKind::scaled, 64, DataType::bf16};
  p.m = 1;
  PlanOptions options;
  options.num_threads = 3;
  Plan decided = plan(p, options).value();
  EXPECT_EQ(decided.kernel_id(), "cpu_bf16_i8_gz_simd");
  EXPECT_EQ(decided.config_id(), "cpu_bf16_i8_gz_simd@g64_t3");
  p.weight.zero = ZeroKind::none;
  EXPECT_EQ(plan(p, options).value().config_id(), "cpu_bf16_i8_g_simd@g64_t3");
  p.weight.group_size = 0;
  decided = plan(p, options).value();
  EXPECT_EQ(decided.config_id(), "cpu_bf16_i8_c_simd@t3");
  EXPECT_THAT(decided.explain(), HasSubstr(decided.config_id()));
  EXPECT_THAT(decided.explain(), ContainsRegex("why  *[a-zA-Z]"));
}

TEST(Plan, ConfigurationIdLeadsBackToItself) {
  PlanOptions options;
  options.num_threads = 2;
  for (const int group : {0, 16, 128}) {
    Problem p = small_problem();
    p.weight.group_size = group;
    const Plan decided = plan(p, options).value();
    PlanOptions named;
    named.kernel = decided.config_id();
    EXPECT_EQ(plan(p, named).value().config_id(), decided.config_id());
  }
}

TEST(Plan, IllegalProblemsAreRefusedByNameOfTheRule) {
  Problem p = small_problem();
  p.m = 0;
  expect_refused(p, {}, StatusCode::invalid_argument, {"m must be 1 .."});
  p = small_problem();
  p.weight.group_size = 48;
  expect_refused(p, {}, StatusCode::invalid_argument, {"group_size must be", "48"});
}

TEST(Plan, UnknownKernelNamesItsNeighbours) {
  PlanOptions options;
  options.kernel = "cpu_f16_i4_g_smid";
  expect_refused(small_problem(), options, StatusCode::not_found,
                 {"cpu_f16_i4_g_smid", "nearest: cpu_f16_i4_g_simd", "`mixgemm kernels`"});
}

TEST(Plan, NamedKernelMustFitTheProblem) {
  const Problem p = small_problem();
  const auto refuse = [&](const char* kernel, const std::vector<std::string>& words) {
    PlanOptions options;
    options.kernel = kernel;
    expect_refused(p, options, StatusCode::invalid_argument, words);
  };
  refuse("cpu_bf16_i4_g_simd", {"does not fit the problem", "cpu_f16_i4_g_simd"});
  refuse("cpu_f16_i4_g_simd@g64", {"is for group_size 64; the problem has 128"});
  refuse("cpu_f16_i4_g_simd@t5000", {"5000 threads; at most 4096"});
  for (const char* junk : {"@", "@t", "@t2_", "@t0", "@t-1", "@x4", "@t2_t2", "@g128t2",
                           "@t99999999999999999999", "@g128_t2@"}) {
    refuse((std::string("cpu_f16_i4_g_simd") + junk).c_str(), {"must be like g128_t2", junk});
  }
}

TEST(Plan, NumThreadsHasARange) {
  for (const int bad : {-1, 4097}) {
    PlanOptions options;
    options.num_threads = bad;
    expect_refused(small_problem(), options, StatusCode::invalid_argument,
                   {"num_threads must be 0 (all cores) .. 4096", std::to_string(bad)});
  }
}

TEST(Plan, BatchInvariantRefusesTheBlas) {
  Problem p = small_problem();
  p.batch_invariant = true;
  PlanOptions options;
  options.kernel = "cpu_f16_i4_g_blas";
  expect_refused(p, options, StatusCode::invalid_argument, {"not batch invariant"});
  for (const std::int64_t m : {1, 64, 1024}) {
    p.m = m;
    EXPECT_EQ(plan(p).value().kernel_id(), "cpu_f16_i4_g_simd");
  }
}

#if !MIXGEMM_HAS_CUDA
TEST(Plan, BuildWithoutCudaSaysSo) {
  Problem p = small_problem();
  p.device = Device::cuda;
  expect_refused(p, {}, StatusCode::unsupported, {"this build has no CUDA support", "CPU"});
  EXPECT_EQ(to_cuda(PackedWeight()).status().code(), StatusCode::unsupported);
}
#endif

TEST(Plan, RefusedArgumentsLeaveYUntouched) {
  const Workload work(3, 40, 96, DataType::f16, 7);
  const Plan decided = plan(work.problem).value();
  std::vector<std::uint16_t> y(work.num_outputs(), 0x7e01);
  const AlignedBuffer workspace(decided.workspace_bytes());
  RunArgs args = work.args();
  args.y = y.data();
  args.workspace = workspace.get();
  args.workspace_bytes = decided.workspace_bytes();
  args.bias = nullptr;
  const Status status = decided.run(args);
  EXPECT_EQ(status.code(), StatusCode::invalid_argument);
  EXPECT_THAT(status.message(), StartsWith("bias must not be null"));
  EXPECT_THAT(y, ::testing::Each(0x7e01));
}

TEST(Plan, EveryKernelThatFitsAgreesWithTheOracle) {
  for (const DataType act : {DataType::f16, DataType::bf16}) {
    const Workload work(9, 50, 200, act, 11);
    std::vector<double> expected(work.num_outputs());
    RunArgs args = work.args();
    args.y = expected.data();
    reference_gemm(work.problem, args).throw_if_error();
    const std::vector<std::string> names = names_for(work.problem);
    EXPECT_THAT(names, ::testing::Contains(::testing::EndsWith("_simd")));
    for (const std::string& name : names) {
      PlanOptions options;
      options.kernel = name;
      const std::vector<std::uint16_t> y = work.run(plan(work.problem, options).value());
      double error = 0, norm = 0;
      for (std::size_t i = 0; i < y.size(); ++i) {
        error += std::pow(f32_from_bits(y[i], act) - expected[i], 2);
        norm += std::pow(expected[i], 2);
      }
      EXPECT_LT(std::sqrt(error / norm), act == DataType::f16 ? 5e-4 : 4e-3) << name;
    }
  }
}

TEST(Plan, ResidualInPlaceGivesTheSameBits) {
  for (const std::int64_t m : {1, 5, 40}) {
    const Workload work(m, 70, 130, DataType::f16, 13);
    for (const std::string& name : names_for(work.problem)) {
      PlanOptions options;
      options.kernel = name;
      const Plan decided = plan(work.problem, options).value();
      std::vector<std::uint16_t> y = work.residual;
      const AlignedBuffer workspace(decided.workspace_bytes());
      RunArgs args = work.args();
      args.y = y.data();
      args.residual = y.data();
      args.workspace = workspace.get();
      args.workspace_bytes = decided.workspace_bytes();
      ASSERT_TRUE(decided.run(args).ok());
      EXPECT_EQ(y, work.run(decided)) << name << " m=" << m;
    }
  }
}

TEST(PlanThreads, ShareOnePlan) {
  constexpr int kThreads = 4, kRuns = 5;
  const Workload work(6, 96, 256, DataType::bf16, 17);
  for (const std::string& name : names_for(work.problem)) {
    // A BLAS isn't instrumented, so ThreadSanitizer sees races in its hand-over of work.
    if (kThreadSanitizer && name.ends_with("_blas")) continue;
    PlanOptions options;
    options.kernel = name;
    options.num_threads = 2;
    const Plan shared = plan(work.problem, options).value();
    const std::vector<std::uint16_t> expected = work.run(shared);
    std::vector<std::vector<std::uint16_t>> results(kThreads * kRuns);
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        const Plan mine = shared;  // copies share the decision
        for (int run = 0; run < kRuns; ++run) {
          results[static_cast<std::size_t>(t * kRuns + run)] = work.run(run % 2 ? mine : shared);
          EXPECT_FALSE(mine.explain().empty());
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const auto& y : results) EXPECT_EQ(y, expected) << name;
  }
}

TEST(PlanThreads, PlanAndListConcurrently) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([] {
      EXPECT_TRUE(plan(small_problem()).ok());
      EXPECT_FALSE(kernels().empty());
      EXPECT_FALSE(devices().empty());
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(Listing, KernelIdsAreUniqueAndReasoned) {
  std::set<std::string> ids;
  for (const KernelInfo& kernel : kernels()) {
    EXPECT_TRUE(ids.insert(kernel.id).second) << kernel.id;
    EXPECT_FALSE(kernel.reason.empty()) << kernel.id;
  }
  EXPECT_TRUE(ids.contains("cpu_f16_i4_gz_simd"));
}

TEST(Listing, CpuIsTheFirstDevice) {
  const std::vector<DeviceInfo> list = devices();
  ASSERT_FALSE(list.empty());
  EXPECT_EQ(list[0].device, Device::cpu);
  EXPECT_TRUE(list[0].usable);
  EXPECT_GE(list[0].num_sms, 1);
  EXPECT_FALSE(list[0].name.empty());
  EXPECT_THAT(list[0].note, HasSubstr("SIMD target"));
}

}  // namespace
}  // namespace mixgemm
