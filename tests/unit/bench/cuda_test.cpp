// SPDX-License-Identifier: Apache-2.0
// What of the CUDA benchmark can be tested without a device.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>

#include "bench_api.hpp"
#include "gpu/configurations.hpp"
#include "gpu/cublas.hpp"
#include "gpu/weight_pool.hpp"

namespace mixgemm::bench {
namespace {

using ::testing::HasSubstr;

TEST(CudaOptions, EachBrokenRuleIsNamed) {
  const auto message = [](const Options& options) {
    return run_cuda(options, {}).status().message();
  };
  Options options;
  options.tokens = {4, 0};
  EXPECT_THAT(message(options), HasSubstr("got 0"));
  options = {};
  options.group = 48;
  EXPECT_THAT(message(options), HasSubstr("got 48"));
  options = {};
  options.acts = {DataType::f32};
  EXPECT_THAT(message(options), HasSubstr("f32"));
  options.acts = {};
  EXPECT_THAT(message(options), HasSubstr("got none"));
  options = {};
  options.timeout_s = -1;
  EXPECT_THAT(message(options), HasSubstr("got -1"));
}

TEST(WeightPool, PartsAreAlignedAndDisjoint) {
  for (const auto zero : {ZeroKind::none, ZeroKind::integer, ZeroKind::scaled}) {
    for (const auto& [n, k] : {std::pair{17, 100}, {4096, 4096}, {1, 1}}) {
      QuantSpec spec;
      spec.zero = zero;
      spec.group_size = 16;
      const WeightPool::Layout at = WeightPool::layout_of({n, k, "x"}, spec);
      EXPECT_EQ(static_cast<double>(at.codes_bytes), code_bytes(n, k, spec.type));
      EXPECT_GE(at.scales, at.codes_bytes);
      const std::size_t scale_bytes = 2 * static_cast<std::size_t>(at.num_scales);
      if (zero == ZeroKind::none) {
        EXPECT_EQ(at.zeros, 0u);
      } else {
        EXPECT_GE(at.zeros, at.scales + scale_bytes);
      }
      EXPECT_GE(at.stride, (at.zeros == 0 ? at.scales : at.zeros) + scale_bytes);
      for (const std::size_t offset : {at.scales, at.zeros, at.stride}) EXPECT_EQ(offset % 256, 0u);
    }
  }
}

TEST(Clusters, AreParsedWholeOrRefused) {
  const LaunchGrid::Cluster two = parse_cluster("2x1");
  EXPECT_EQ((std::array{two.n, two.m, two.k}), (std::array{2, 1, 1}));
  const LaunchGrid::Cluster three = parse_cluster("1x2x4");
  EXPECT_EQ((std::array{three.n, three.m, three.k}), (std::array{1, 2, 4}));
  for (const char* text : {"", "2", "2x", "2x1x", "2x1 ", "2x1x3x4", "axb"}) {
    EXPECT_THROW(parse_cluster(text), Error) << text;
  }
}

TEST(LaunchGrid, OnlyLegalLaunchesEachOnce) {
  KernelConfig config;
  config.tile_m = 64;
  Problem problem;
  problem.m = 64;
  problem.n = problem.k = 4096;
  LaunchGrid grid;
  grid.clusters = {{1, 1, 1}, {1, 1, 2}, {16, 1, 1}};
  grid.stages = {0, max_stages(config), 2, 40};
  grid.splits = {1, 2};
  const select::DeviceFacts device = select::h100_facts();
  const auto launches = expand(grid, config, problem, device);
  int deepest = 0;
  for (std::size_t i = 0; i < launches.size(); ++i) {
    EXPECT_EQ(select::why_unfit(config, launches[i], problem, device, true), nullptr);
    deepest = std::max(deepest, launches[i].stages);
    for (std::size_t j = 0; j < i; ++j) EXPECT_FALSE(launches[i] == launches[j]);
  }
  EXPECT_EQ(deepest, max_stages(config));
  // {1x1, split 1 and 2; 1x1x2} × {deepest, 2}; a cluster of 16 is none.
  EXPECT_EQ(launches.size(), 6u);
}

TEST(CublasSearch, NamedFileComesFirstThenTheLoadersOwnSearch) {
  ASSERT_EQ(setenv("MIXGEMM_CUBLASLT", "/somewhere/libcublasLt.so.13", 1), 0);
  const auto candidates = cublas_candidates();
  ASSERT_GE(candidates.size(), 4u);
  EXPECT_EQ(candidates[0], "/somewhere/libcublasLt.so.13");
  EXPECT_EQ(candidates[1], "libcublasLt.so.13");
  ASSERT_EQ(setenv("MIXGEMM_CUBLASLT", "none", 1), 0);
  EXPECT_TRUE(cublas_candidates().empty());
  unsetenv("MIXGEMM_CUBLASLT");
  EXPECT_EQ(cublas_candidates()[0], "libcublasLt.so.13");
}

}  // namespace
}  // namespace mixgemm::bench
