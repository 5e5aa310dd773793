// SPDX-License-Identifier: Apache-2.0
#include "select/config_id.hpp"

#include <gtest/gtest.h>

#include <random>
#include <string>

namespace mixgemm::select {
namespace {

constexpr char kKernel[] = "sm90_f16_i4_gz_t128x256x64_coop";

TEST(ConfigId, ReadsAsDocumented) {
  LaunchConfig l;
  l.cluster_n = 2;
  l.stages = 4;
  l.split_k = 2;
  EXPECT_EQ(config_id(kKernel, 128, l), std::string(kKernel) + "@g128_c2x1_s4_sk2");
  l = {};
  l.cluster_k = 3;
  l.stages = 12;
  EXPECT_EQ(config_id(kKernel, 0, l), std::string(kKernel) + "@g0_c1x1x3_s12");
  l = {};
  l.stream_k = true;
  l.raster_m = 16;
  EXPECT_EQ(config_id(kKernel, 32, l), std::string(kKernel) + "@g32_c1x1_s4_streamk_r16");
}

TEST(ConfigId, ParsesWhatItWrites) {
  std::mt19937 random(7);
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  for (int i = 0; i < 2000; ++i) {
    LaunchConfig l;
    l.cluster_n = pick(1, 8);
    l.cluster_m = pick(1, 8);
    l.cluster_k = pick(1, 8);
    l.stages = pick(2, 16);
    l.raster_m = pick(1, 64);
    l.one_pass = pick(0, 1) == 1;
    if (pick(0, 2) == 0) {
      l.stream_k = true;
    } else {
      l.split_k = pick(1, 12);
    }
    const int groups[] = {0, 16, 32, 64, 128};
    const int group = groups[pick(0, 4)];
    const std::string id = config_id(kKernel, group, l);
    const auto parsed = parse_config_id(id);
    ASSERT_TRUE(parsed) << id << ": " << parsed.status().message();
    EXPECT_EQ(parsed->kernel_id, kKernel);
    EXPECT_TRUE(parsed->has_launch);
    EXPECT_EQ(parsed->group_size, group) << id;
    EXPECT_EQ(parsed->launch, l) << id;
  }
}

TEST(ConfigId, BareKernelIdLeavesTheLaunchFree) {
  const auto parsed = parse_config_id(kKernel);
  ASSERT_TRUE(parsed);
  EXPECT_EQ(parsed->kernel_id, kKernel);
  EXPECT_FALSE(parsed->has_launch);
}

TEST(ConfigId, RefusesAnythingElseAndQuotesIt) {
  for (const char* tail :
       {"@", "@g128", "@g128_c1x1", "@g128_c1_s4", "@g128_c1x1_s", "@g128_c1x1_s4_", "@g_c1x1_s4",
        "@g128_c1x1_s4_sk", "@g128_c1x1_s4_sk2_streamk", "@g128_c1x1_s4_r", "@g128_c1x1_s4 ",
        "@g128_c01x1_s4", "@g128_c-1x1_s4", "@g128_c1x1_s99999999999", "@G128_c1x1_s4",
        "@g128_c1x1_s4@g128_c1x1_s4", "@g128_c1x1x_s4"}) {
    const std::string id = std::string(kKernel) + tail;
    const auto parsed = parse_config_id(id);
    ASSERT_FALSE(parsed) << id;
    EXPECT_EQ(parsed.status().code(), StatusCode::invalid_argument);
    EXPECT_NE(parsed.status().message().find(id), std::string::npos) << parsed.status().message();
  }
}

}  // namespace
}  // namespace mixgemm::select
