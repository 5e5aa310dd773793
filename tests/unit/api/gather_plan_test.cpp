// SPDX-License-Identifier: Apache-2.0
// Plans for permuted columns: X is gathered in the workspace, and the product is that of columns in
// order; weights and plans of different orders refuse each other.
#include "api/gather_plan.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "api/check.hpp"
#include "call.hpp"
#include "gather_launch.hpp"
#include "mixgemm/tuning.hpp"
#include "mixgemm/weight.hpp"

namespace mixgemm {
namespace {

using ::testing::HasSubstr;

constexpr std::int64_t kN = 40, kK = 203;

std::vector<std::int32_t> random_permutation(std::int64_t k, unsigned seed) {
  std::vector<std::int32_t> permutation(static_cast<std::size_t>(k));
  std::iota(permutation.begin(), permutation.end(), 0);
  std::shuffle(permutation.begin(), permutation.end(), std::mt19937(seed));
  return permutation;
}

CanonicalWeight random_weight() {
  CanonicalWeight w;
  w.n = kN;
  w.k = kK;
  w.spec = {.zero = ZeroKind::integer, .group_size = 64};
  std::mt19937 random(4);
  for (std::int64_t i = 0; i < kN * kK; ++i) w.codes.push_back(random() % 16);
  for (std::int64_t i = 0; i < kN * w.groups(); ++i) {
    w.scales.push_back(static_cast<std::uint16_t>(0x2c00 + random() % 512));
    w.zeros.push_back(random() % 16);
  }
  return w;
}

/// Numbers of about 1 in fp16.
std::vector<std::uint16_t> random_x(std::int64_t count) {
  std::vector<std::uint16_t> x(static_cast<std::size_t>(count));
  std::mt19937 random(5);
  for (auto& value : x)
    value = static_cast<std::uint16_t>((random() % 2) << 15 | (0x3800 + random() % 2048));
  return x;
}

class GatherPlan : public ::testing::Test {
 protected:
  GatherPlan() {
    CanonicalWeight w = random_weight();
    in_order_ = pack(w, 1).value();
    permutation_ = w.permutation = random_permutation(kK, 9);
    permuted_ = pack(w, 1).value();
    problem_.n = kN;
    problem_.k = kK;
    problem_.weight = w.spec;
    problem_.columns = ColumnOrder::permuted;
  }

  std::vector<std::uint16_t> multiply(const PackedWeight& weight, std::vector<std::uint16_t> x,
                                      std::int64_t ldx, ColumnOrder columns) {
    Problem problem = problem_;
    problem.columns = columns;
    const Plan made = plan(problem).value();
    AlignedBuffer workspace(made.workspace_bytes());
    std::vector<std::uint16_t> y(static_cast<std::size_t>(problem.m * kN), 0xffff);
    RunArgs args;
    args.x = x.data();
    args.ldx = ldx;
    args.weight = weight.view();
    args.y = y.data();
    args.ldy = kN;
    args.workspace = workspace.get();
    args.workspace_bytes = made.workspace_bytes();
    made.run(args).throw_if_error();
    return y;
  }

  PackedWeight in_order_, permuted_;
  std::vector<std::int32_t> permutation_;
  Problem problem_;
};

TEST_F(GatherPlan, GivesTheProductOfColumnsInOrder) {
  for (const std::int64_t m : {1, 3, 70}) {
    problem_.m = m;
    const std::vector<std::uint16_t> x = random_x(m * kK);
    constexpr std::int64_t kLdx = kK + 5;
    std::vector<std::uint16_t> scattered(static_cast<std::size_t>(m * kLdx), 0x7e00);
    for (std::int64_t row = 0; row < m; ++row) {
      for (std::int64_t j = 0; j < kK; ++j) {
        scattered[row * kLdx + permutation_[j]] = x[row * kK + j];
      }
    }
    EXPECT_EQ(multiply(permuted_, scattered, kLdx, ColumnOrder::permuted),
              multiply(in_order_, x, kK, ColumnOrder::natural))
        << "m " << m;
  }
}

TEST_F(GatherPlan, SaysWhatItNeedsAndDoes) {
  problem_.m = 9;
  const Plan made = plan(problem_).value();
  const Plan product = plan(in_order(problem_)).value();
  EXPECT_EQ(made.config_id(), product.config_id());
  EXPECT_EQ(made.problem().columns, ColumnOrder::permuted);
  EXPECT_EQ(product.problem().columns, ColumnOrder::natural);
  EXPECT_EQ(made.workspace_bytes(), (product.workspace_bytes() + 255) / 256 * 256 + 9 * 208 * 2);
  EXPECT_THAT(made.explain(), HasSubstr("permuted columns: X is gathered first; 3744 of the"));
  EXPECT_EQ(plan_candidates(problem_)->size(), plan_candidates(in_order(problem_))->size());
}

TEST_F(GatherPlan, RefusesWeightsOfTheOtherOrder) {
  problem_.m = 2;
  Call call = make_call({.m = 2, .n = kN, .k = kK, .workspace_bytes = 4096});
  EXPECT_TRUE(check_args(call.problem, call.args, 4096).ok());
  call.args.weight.permutation = permutation_.data();
  const auto refusal = [&] {
    const Status status = check_args(call.problem, call.args, 4096);
    EXPECT_EQ(status.code(), StatusCode::invalid_argument);
    return status.message();
  };
  EXPECT_THAT(refusal(), HasSubstr("must be null where the problem's columns are natural"));
  EXPECT_THAT(refusal(), HasSubstr("plan with columns = permuted"));
  call.problem.columns = ColumnOrder::permuted;
  EXPECT_TRUE(check_args(call.problem, call.args, 4096).ok());
  call.args.weight.permutation = nullptr;
  EXPECT_THAT(refusal(), HasSubstr("weight.permutation must be given"));
  call.args.weight.permutation =
      reinterpret_cast<const std::int32_t*>(reinterpret_cast<const char*>(permutation_.data()) + 2);
  EXPECT_THAT(refusal(), HasSubstr("weight.permutation must be aligned to 4 bytes on cpu"));
  call.args.weight.permutation = static_cast<const std::int32_t*>(call.args.y);
  EXPECT_THAT(refusal(), HasSubstr("y must not overlap weight.permutation"));
  call.args.weight.permutation = permutation_.data();
  call.args.workspace_bytes = 4095;
  EXPECT_THAT(refusal(), HasSubstr("workspace_bytes must be at least 4096"));
}

TEST_F(GatherPlan, RefusesAnUnknownOrderAndAnXThatFitsNoMemory) {
  problem_.m = 1;
  problem_.columns = static_cast<ColumnOrder>(2);
  EXPECT_THAT(plan(problem_).status().message(), HasSubstr("columns must be natural or permuted"));
  problem_.columns = ColumnOrder::permuted;
  problem_.m = problem_.k = (std::int64_t{1} << 31) - 1;
  EXPECT_EQ(plan(problem_).status().code(), StatusCode::out_of_memory);
}

TEST(GatherLaunch, CoversEveryRowAndColumnWithinItsMemory) {
  for (const int sms : {1, 108, 132}) {
    for (const std::int64_t m : {1, 2, 100, 264, 1000, 8192, 1 << 20}) {
      for (const std::int64_t k : {1, 8, 2048, 2049, 4096, 14336, 28672, 49152, 49153, 1 << 30}) {
        SCOPED_TRACE(::testing::Message() << sms << " SMs, m " << m << ", k " << k);
        const gather::Launch l = gather::launch_for(m, k, sms);
        EXPECT_GE(l.ctas * l.rows, m);
        EXPECT_LT((l.ctas - 1) * l.rows, m);
        EXPECT_GE(l.slices, 1);
        EXPECT_LE(l.slices, 65535);
        EXPECT_LE(l.ctas, std::int64_t{1} << 31);
        EXPECT_LE((l.slices - 1) * gather::kThreads * gather::kVector, gather::padded(k));
        EXPECT_LE(l.smem_bytes, static_cast<std::size_t>(gather::kMaxStagedBytes));
        if (l.staged) {
          EXPECT_EQ(l.slices, 1);
          EXPECT_EQ(l.smem_bytes, static_cast<std::size_t>(l.rows * gather::padded(k) * 2));
        } else {
          EXPECT_EQ(l.smem_bytes, 0u);
        }
      }
    }
  }
}

TEST(GatherLaunch, CutsFewRowsAndStagesMany) {
  EXPECT_EQ(gather::launch_for(1, 14336, 132).slices, 7);
  EXPECT_FALSE(gather::launch_for(1, 14336, 132).staged);
  EXPECT_TRUE(gather::launch_for(4096, 4096, 132).staged);
  EXPECT_EQ(gather::launch_for(4096, 4096, 132).rows, 8);
}

}  // namespace
}  // namespace mixgemm
