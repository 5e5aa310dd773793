// SPDX-License-Identifier: Apache-2.0
#include "select/select.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <utility>

#include "fake_registry.hpp"
#include "launch/geometry.hpp"
#include "select/config_id.hpp"

namespace mixgemm::select {
namespace {

const FakeRegistry& registry() {
  static const FakeRegistry instance;
  return instance;
}
const KernelIndex& kernel_index() {
  static const KernelIndex instance(registry().entries());
  return instance;
}

Problem problem(std::int64_t m, std::int64_t n, std::int64_t k, int group_size = 128) {
  Problem p;
  p.m = m;
  p.n = n;
  p.k = k;
  p.device = Device::cuda;
  p.weight.group_size = group_size;
  return p;
}

class RandomProblems {
 public:
  explicit RandomProblems(unsigned seed) : random_(seed) {}

  Problem next() {
    const int groups[] = {0, 16, 32, 64, 128};
    const ZeroKind zeros[] = {ZeroKind::none, ZeroKind::integer, ZeroKind::scaled};
    Problem p = problem(size(1 << 14), size(1 << 17), size(1 << 15), groups[pick(5)]);
    p.weight.zero = zeros[pick(3)];
    p.weight.type = pick(2) == 0 ? WeightType::int4 : WeightType::int8;
    p.act = p.weight.scale_type = pick(2) == 0 ? DataType::f16 : DataType::bf16;
    p.batch_invariant = pick(8) == 0;
    return p;
  }

 private:
  int pick(int count) { return static_cast<int>(random_() % static_cast<unsigned>(count)); }
  /// Sizes over all magnitudes, many of them ragged.
  std::int64_t size(std::int64_t most) {
    const double exponent =
        std::uniform_real_distribution<double>(0, std::log2(static_cast<double>(most)))(random_);
    const auto value = static_cast<std::int64_t>(std::exp2(exponent));
    return pick(2) == 0 ? value : (value + 63) / 64 * 64;
  }

  std::mt19937 random_;
};

std::string show(const Problem& p) {
  return "m " + std::to_string(p.m) + " n " + std::to_string(p.n) + " k " + std::to_string(p.k) +
         " group " + std::to_string(p.weight.group_size);
}

TEST(Select, EveryLegalProblemHasACandidateAndAllAreLegal) {
  RandomProblems problems(11);
  const DeviceFacts device = h100_facts();
  for (int i = 0; i < 3000; ++i) {
    const Problem p = problems.next();
    const auto ranked = rank(p, kernel_index().kernels(p), device, 6);
    ASSERT_FALSE(ranked.empty()) << show(p);
    double last = 0;
    for (const Candidate& c : ranked) {
      const std::string id = config_id(c.entry->id, p.weight.group_size, c.launch);
      EXPECT_EQ(why_unfit(c.entry->config, p), nullptr) << show(p) << id;
      EXPECT_EQ(why_unfit(c.entry->config, c.launch, p, device, p.k % 8 == 0), nullptr)
          << show(p) << id;
      EXPECT_GE(c.estimate.total_us, last) << show(p) << id;
      EXPECT_TRUE(std::isfinite(c.estimate.total_us)) << show(p) << id;
      last = c.estimate.total_us;
      const auto g =
          launch::geometry(c.entry->config, c.launch, p.m, p.n, p.k,
                           device.resident(c.entry->config.ctas_per_sm, c.launch.cluster_size()));
      EXPECT_TRUE(g.fits()) << show(p) << id;
    }
  }
}

TEST(Select, SameProblemSameAnswer) {
  RandomProblems problems(12);
  const KernelIndex again(registry().entries());
  for (int i = 0; i < 500; ++i) {
    const Problem p = problems.next();
    const auto a = rank(p, kernel_index().kernels(p), h100_facts(), 4);
    const auto b = rank(p, again.kernels(p), h100_facts(), 4);
    ASSERT_EQ(a.size(), b.size());
    for (std::size_t j = 0; j < a.size(); ++j) {
      EXPECT_EQ(a[j].entry, b[j].entry) << show(p);
      EXPECT_EQ(a[j].launch, b[j].launch) << show(p);
    }
  }
}

TEST(Select, KeepingFewerCandidatesKeepsTheBest) {
  RandomProblems problems(13);
  for (int i = 0; i < 200; ++i) {
    const Problem p = problems.next();
    const auto one = rank(p, kernel_index().kernels(p), h100_facts(), 1);
    const auto many = rank(p, kernel_index().kernels(p), h100_facts(), 1000);
    ASSERT_EQ(one.size(), 1u);
    EXPECT_EQ(one[0].entry, many[0].entry) << show(p);
    EXPECT_EQ(one[0].launch, many[0].launch) << show(p);
  }
}

TEST(Select, BatchInvariantNeverSplitsK) {
  RandomProblems problems(14);
  for (int i = 0; i < 500; ++i) {
    Problem p = problems.next();
    p.batch_invariant = true;
    for (const Candidate& c : rank(p, kernel_index().kernels(p), h100_facts(), 50)) {
      EXPECT_EQ(c.launch.cluster_k, 1);
      EXPECT_EQ(c.launch.split_k, 1);
      EXPECT_FALSE(c.launch.stream_k);
    }
  }
}

TEST(Select, FamiliesFollowTheWeight) {
  Problem p = problem(1, 64, 64, 0);
  EXPECT_EQ(family_of(p).quant, Quant::column);
  p.weight.zero = ZeroKind::scaled;
  EXPECT_EQ(family_of(p).quant, Quant::group_zero);
  EXPECT_FALSE(family_of(p).fine_groups);
  p.weight.group_size = 32;
  EXPECT_TRUE(family_of(p).fine_groups);
  p.weight.zero = ZeroKind::none;
  EXPECT_EQ(family_of(p).quant, Quant::group);
  for (const KernelEntry* entry : kernel_index().kernels(p)) {
    EXPECT_EQ(why_unfit(entry->config, p), nullptr) << entry->id;
  }
  p.weight.group_size = 64;
  for (const KernelEntry* entry : kernel_index().kernels(p)) {
    EXPECT_FALSE(entry->config.fine_groups) << entry->id;
  }
}

TEST(Select, NoClusterThatTheDeviceCannotHold) {
  DeviceFacts device = h100_facts();
  for (auto& row : device.resident_clusters) {
    for (std::size_t size = 2; size <= kMaxClusterSize; ++size) row[size] = 0;
  }
  RandomProblems problems(15);
  for (int i = 0; i < 200; ++i) {
    const Problem p = problems.next();
    for (const Candidate& c : rank(p, kernel_index().kernels(p), device, 20)) {
      EXPECT_EQ(c.launch.cluster_size(), 1) << show(p);
    }
  }
}

TEST(Select, UnservedFamilyIsEmptyNotWrong) {
  const KernelIndex empty({});
  EXPECT_TRUE(empty.kernels(problem(1, 64, 64)).empty());
  EXPECT_EQ(empty.find("sm90_f16_i4_g_t128x128x64_coop"), nullptr);
  EXPECT_TRUE(rank(problem(1, 64, 64), {}, h100_facts(), 4).empty());
  EXPECT_EQ(describe(family_of(problem(1, 64, 64, 32))),
            "f16 x int4, group scales, groups of 16 or 32");
}

DeviceFacts ampere_facts(int arch, int num_sms, SharedLimits shared) {
  DeviceFacts facts;
  facts.arch = arch;
  facts.num_sms = num_sms;
  facts.shared = shared;
  facts.dram_bytes_per_us = arch == 80 ? 1.4e6 : 0.86e6;
  facts.resident_clusters[0][1] = num_sms;
  facts.resident_clusters[1][1] = 2 * num_sms;
  return facts;
}

TEST(SelectSm80, EveryLegalProblemHasACandidateThatFitsTheDevice) {
  for (const DeviceFacts& device :
       {ampere_facts(80, 108, {163 * 1024, 164 * 1024}), ampere_facts(86, 82, shared_limits(80)),
        ampere_facts(89, 128, shared_limits(80)), ampere_facts(120, 170, shared_limits(80))}) {
    RandomProblems problems(16);
    for (int i = 0; i < 500; ++i) {
      const Problem p = problems.next();
      const auto ranked = rank(p, kernel_index().kernels(p, device.arch), device, 6);
      ASSERT_FALSE(ranked.empty()) << show(p) << " arch " << device.arch;
      for (const Candidate& c : ranked) {
        const std::string id = config_id(c.entry->id, p.weight.group_size, c.launch);
        EXPECT_EQ(c.entry->config.arch, 80) << id;
        EXPECT_EQ(why_unfit(c.entry->config, c.launch, p, device, p.k % 8 == 0), nullptr) << id;
        EXPECT_LE(launch::smem_bytes(c.entry->config, c.launch, p.m), device.shared.per_cta) << id;
        EXPECT_EQ(c.launch.cluster_size(), 1) << id;
        EXPECT_TRUE(std::isfinite(c.estimate.total_us)) << id;
        if (p.batch_invariant) {
          EXPECT_TRUE(is_tiled(c.entry->config)) << id;
          EXPECT_EQ(multi_warps_k(c.entry->config), 1) << id;
        }
      }
    }
  }
}

TEST(SelectSm80, HopperTakesItsOwnKernelsWhereTheBuildHasThem) {
  const Problem p = problem(64, 4096, 4096);
  for (const KernelEntry* entry : kernel_index().kernels(p, 90)) {
    EXPECT_EQ(entry->config.arch, 90) << entry->id;
  }
  std::vector<KernelEntry> ampere_only;
  for (const KernelEntry& entry : registry().entries()) {
    if (entry.config.arch == 80) ampere_only.push_back(entry);
  }
  const KernelIndex index(ampere_only);
  EXPECT_FALSE(index.kernels(p, 90).empty());
  EXPECT_FALSE(rank(p, index.kernels(p, 90), h100_facts(), 1).empty());
}

TEST(SelectSm80, CodeRunsOnItsArchitecture) {
  EXPECT_TRUE(runs_on(90, 90));
  EXPECT_FALSE(runs_on(90, 100));  // sm_90a code is Hopper's alone
  EXPECT_FALSE(runs_on(90, 80));
  for (const int device : {80, 86, 87, 89, 90, 100, 120}) EXPECT_TRUE(runs_on(80, device));
  EXPECT_FALSE(runs_on(80, 75));
}

TEST(SelectSm80, ClustersAndRingsBeyondTheDeviceAreRefused) {
  KernelConfig c;
  c.arch = 80;
  c.schedule = Schedule::multistage;
  c.tile_n = 128;
  c.tile_m = 32;
  c.tile_k = 128;
  ASSERT_EQ(why_illegal(c), nullptr);
  const Problem p = problem(32, 4096, 4096);
  const DeviceFacts device = ampere_facts(86, 82, shared_limits(80));
  LaunchConfig l;
  l.stages = deepest_ring(c, p.m, device.shared);
  EXPECT_EQ(why_unfit(c, l, p, device, true), nullptr);
  ++l.stages;
  ASSERT_NE(why_unfit(c, l, p, device, true), nullptr);
  EXPECT_NE(std::string(why_unfit(c, l, p, device, true)).find("shared memory"), std::string::npos);
  EXPECT_EQ(why_unfit(c, l, p, ampere_facts(80, 108, {163 * 1024, 164 * 1024}), true), nullptr);
  l.stages = 2;
  l.cluster_k = 2;
  EXPECT_STREQ(why_unfit(c, l, p, h100_facts(), true), "clusters need arch 90");
  c.schedule = Schedule::streaming;
  c.tile_n = 32;
  c.tile_m = 8;
  c.tile_k = 64;
  EXPECT_STREQ(why_unfit(c, l, problem(8, 4096, 4096), h100_facts(), true),
               "clusters need arch 90");
}

TEST(Select, BatchInvarianceLeavesOutKernelsThatSumInAnotherOrder) {
  KernelConfig c;
  c.schedule = Schedule::warp_mma;
  c.tile_m = 16;
  c.tile_k = 128;
  ASSERT_EQ(why_illegal(c), nullptr);
  Problem p = problem(16, 4096, 4096);
  EXPECT_EQ(why_unfit(c, p), nullptr);
  p.batch_invariant = true;
  ASSERT_NE(why_unfit(c, p), nullptr);
  EXPECT_NE(std::string(why_unfit(c, p)).find("batch_invariant"), std::string::npos);
  c.schedule = Schedule::cooperative;
  EXPECT_EQ(why_unfit(c, p), nullptr);
  c.tile_n = 64;
  c.k_teams = 2;
  ASSERT_EQ(why_illegal(c), nullptr);
  ASSERT_NE(why_unfit(c, p), nullptr);
  EXPECT_NE(std::string(why_unfit(c, p)).find("teams"), std::string::npos);
  p.batch_invariant = false;
  EXPECT_EQ(why_unfit(c, p), nullptr);
}

TEST(KernelConfig, TeamsShareTheKBlocksOfCooperativeTilesAlone) {
  KernelConfig c;
  c.tile_n = 64;
  c.tile_m = 16;
  c.tile_k = 256;
  EXPECT_STREQ(why_illegal(c), "tile_n must give each consumer warpgroup a multiple of 64 rows");
  c.k_teams = 2;
  EXPECT_EQ(why_illegal(c), nullptr);
  EXPECT_EQ(rows_per_warpgroup(c), 64);
  EXPECT_EQ(storing_warpgroups(c), 1);
  c.tile_k = 64;
  EXPECT_STREQ(why_illegal(c), "k_teams: tile_k must give each team as many k-blocks");
  c.tile_k = 128;
  c.tile_m = 8;
  EXPECT_STREQ(why_illegal(c), "k_teams: tile_m must be 16 or more");
  c.tile_m = 16;
  c.schedule = Schedule::pingpong;
  EXPECT_STREQ(why_illegal(c), "k_teams needs the cooperative schedule");
  c.schedule = Schedule::cooperative;
  c.consumer_warpgroups = 3;
  EXPECT_STREQ(why_illegal(c), "k_teams must be 1, or 2 with two or four consumer warpgroups");
}

TEST(Select, ALaunchSmallerThanTheDeviceIsOfferedAloneAndBesideTheOneBefore) {
  KernelConfig c;
  c.tile_n = 64;
  c.tile_m = 32;
  c.tile_k = 256;
  c.consumer_warpgroups = 1;
  c.ctas_per_sm = 2;
  Problem p;
  p.m = 32, p.n = 64 * 64, p.k = 4096;
  p.weight.group_size = 128;
  const DeviceFacts device = h100_facts();
  int beside = 0, alone = 0;
  for (const LaunchConfig& l : launches(c, p, device)) {
    if (l.cluster_k != 2 || l.cluster_n * l.cluster_m > 1) continue;
    const bool two = launch::two_fit(c, l);
    (two ? beside : alone) += 1;
    const int resident = device.resident(two ? 2 : 1, l.cluster_size());
    EXPECT_EQ(launch::geometry(c, l, p.m, p.n, p.k, resident).grid_ctas, two ? 132 : 128);
  }
  EXPECT_EQ(beside, 1);
  EXPECT_EQ(alone, 1);
}

TEST(Select, LargerMulticastClustersCostMore) {
  KernelConfig c;
  c.tile_n = 256;
  c.tile_m = 32;
  c.tile_k = 128;
  c.consumer_warpgroups = 4;
  const Problem p = problem(32, 57344, 8192);
  LaunchConfig l;
  const double alone = estimate(c, l, p, h100_facts()).loop_us;
  l.cluster_n = 2;
  const double pair = estimate(c, l, p, h100_facts()).loop_us;
  l.cluster_n = 4;
  EXPECT_GT(pair, alone);
  EXPECT_GT(estimate(c, l, p, h100_facts()).loop_us, pair);
}

// The model's job is the order of candidates; these are orders that drafts measured on an H100.
TEST(Select, StreamingServesOnlyTheTokensOfItsTile) {
  KernelConfig c;
  c.schedule = Schedule::streaming;
  c.tile_n = 32;
  c.tile_m = 8;
  Problem p = problem(8, 4096, 4096);
  EXPECT_EQ(why_unfit(c, p), nullptr);
  LaunchConfig l;
  l.stages = deepest_ring(c, p.m);
  ASSERT_GE(l.stages, 2);
  EXPECT_EQ(why_unfit(c, l, p, h100_facts(), true), nullptr);
  // Two launches' rings share an SM, so that the next layer's weights stream early.
  EXPECT_LE(2 * (launch::smem_bytes(c, l, p.m) + kReservedSharedBytes), kSharedBytesPerSm);
  l.cluster_n = 2;
  EXPECT_NE(why_unfit(c, l, p, h100_facts(), true), nullptr);
  p.batch_invariant = true;
  EXPECT_NE(why_unfit(c, p), nullptr);
  p.batch_invariant = false;
  p.m = 9;
  EXPECT_NE(why_unfit(c, p), nullptr);
}

TEST(Select, BatchInvariantFoldedKernelsNeedStagesWithinAGroup) {
  KernelConfig c;
  c.tile_n = 128;
  c.tile_m = 64;
  c.tile_k = 128;
  ASSERT_TRUE(folds_scales(c));
  Problem p = problem(8, 4096, 4096);
  p.weight.group_size = 64;
  EXPECT_EQ(why_unfit(c, p), nullptr);
  p.batch_invariant = true;
  ASSERT_NE(why_unfit(c, p), nullptr);
  EXPECT_NE(std::string(why_unfit(c, p)).find("within a group"), std::string::npos);
  p.weight.group_size = 128;
  EXPECT_EQ(why_unfit(c, p), nullptr);
}

TEST(SelectSm80, BatchInvariantFoldedKernelsTakeAnyGroups) {
  KernelConfig c;
  c.arch = 80;
  c.schedule = Schedule::multistage;
  c.tile_n = 256;
  c.tile_m = 16;
  c.tile_k = 128;
  c.consumer_warpgroups = 1;
  ASSERT_EQ(why_illegal(c), nullptr);
  ASSERT_TRUE(folds_scales(c));
  Problem p = problem(8, 4096, 4096);
  p.weight.group_size = 64;
  p.batch_invariant = true;
  EXPECT_EQ(why_unfit(c, p), nullptr);  // units are settled for each group
  c.tile_n = 128;
  ASSERT_TRUE(folds_scales(c));
  ASSERT_NE(why_unfit(c, p), nullptr);
  EXPECT_NE(std::string(why_unfit(c, p)).find("K in one piece"), std::string::npos);
}

TEST(SelectModel, DecodeStreams) {
  for (const std::int64_t m : {1, 2, 4}) {  // at 8, some layers are faster with token tiles
    for (const auto& [n, k] : {std::pair{4096, 4096}, {6144, 4096}, {8192, 8192}, {8192, 28672}}) {
      const Problem p = problem(m, n, k);
      const auto best = rank(p, kernel_index().kernels(p), h100_facts(), 1);
      EXPECT_EQ(best[0].entry->config.schedule, Schedule::streaming)
          << show(p) << " " << config_id(best[0].entry->id, 128, best[0].launch);
    }
  }
}

TEST(SelectModel, FewTokensOnASmallLayerSplitK) {
  for (const std::int64_t m : {32, 64, 128}) {
    const Problem p = problem(m, 4096, 4096);
    const auto best = rank(p, kernel_index().kernels(p), h100_facts(), 1);
    EXPECT_GT(best[0].launch.cluster_k * best[0].launch.split_k + (best[0].launch.stream_k ? 1 : 0),
              1)
        << config_id(best[0].entry->id, 128, best[0].launch);
  }
}

TEST(SelectModel, ManyTokensTakeWideTokenTiles) {
  for (const std::int64_t m : {2048, 4096, 8192}) {
    const Problem p = problem(m, 28672, 4096);
    const auto best = rank(p, kernel_index().kernels(p), h100_facts(), 1);
    EXPECT_GE(best[0].entry->config.tile_m, 192)
        << config_id(best[0].entry->id, 128, best[0].launch);
    // 2·M·N·K at 650 to 860 TFLOP/s, what drafts and ceilings span.
    const double tflops =
        2.0 * static_cast<double>(p.m) * 28672 * 4096 / 1e6 / best[0].estimate.total_us;
    EXPECT_GT(tflops, 650);
    EXPECT_LT(tflops, 860);
  }
}

TEST(SelectModel, EstimatesComeNearTheDrafts) {
  struct Measured {
    std::int64_t m, n, k;
    double us;
  };
  // Best drafts on an H100, fp16 g128 with PDL.
  for (const Measured& d : {Measured{1, 4096, 4096, 4.6}, Measured{1, 8192, 8192, 13.6},
                            Measured{1, 57344, 8192, 83.5}, Measured{1, 8192, 28672, 42.1},
                            Measured{64, 4096, 4096, 10.2}, Measured{128, 4096, 4096, 12.9},
                            Measured{64, 8192, 8192, 21.0}, Measured{128, 8192, 8192, 29.3},
                            Measured{256, 4096, 14336, 46.8}, Measured{1024, 4096, 4096, 45.5},
                            Measured{1024, 4096, 14336, 151}, Measured{1024, 28672, 4096, 320}}) {
    const Problem p = problem(d.m, d.n, d.k);
    const double us = rank(p, kernel_index().kernels(p), h100_facts(), 1)[0].estimate.total_us;
    EXPECT_GT(us, d.us * 0.7) << show(p);
    EXPECT_LT(us, d.us * 1.4) << show(p);
  }
}

TEST(SelectModel, ClustersThatFindNoSmOfTheirOwnTakeTwiceAsLong) {
  KernelConfig c;
  c.tile_n = 128;
  c.tile_m = 32;
  c.tile_k = 256;
  c.ctas_per_sm = 2;
  ASSERT_EQ(why_illegal(c), nullptr);
  LaunchConfig l;
  l.cluster_k = 4;
  l.stages = 3;
  const DeviceFacts device = h100_facts();
  ASSERT_EQ(device.resident(1, 4), 30);
  // 30 clusters, and 32: 128 CTAs, though there are 132 SMs.
  const Estimate fit = estimate(c, l, problem(32, 30 * 128, 14336), device);
  const Estimate two_more = estimate(c, l, problem(32, 32 * 128, 14336), device);
  EXPECT_GT(two_more.loop_us, 1.5 * fit.loop_us);
}

TEST(SelectModel, PairsShareXWherePowerDecides) {
  KernelConfig c;
  c.tile_n = 128;
  c.tile_m = 256;
  c.tile_k = 64;
  LaunchConfig alone, pairs;
  pairs.cluster_n = 2;
  const auto gain = [&](std::int64_t m, std::int64_t n) {
    const Problem p = problem(m, n, n);
    return estimate(c, alone, p, h100_facts()).total_us /
           estimate(c, pairs, p, h100_facts()).total_us;
  };
  EXPECT_LT(gain(256, 8192), 1.0);
  EXPECT_GT(gain(4096, 8192), 1.0);
  // 86 and 172 us of work: 0.996 to 0.998 and 1.008 to 1.018 on an H200 (cea0035).
  EXPECT_LT(gain(2048, 4096), 1.0);
  EXPECT_GT(gain(4096, 4096), 1.0);
}

TEST(Select, AConfigurationOfAnotherMHoldsWhereItsTileStillSuits) {
  const DeviceFacts device = h100_facts();
  const Problem tuned = problem(128, 8192, 8192);
  const Candidate at_128 = rank(tuned, kernel_index().kernels(tuned), device, 1).front();
  const auto holds = [&](std::int64_t m) {
    const Problem here = problem(m, 8192, 8192);
    const auto first = rank(here, kernel_index().kernels(here), device, 1).front();
    return holds_here(at_128.entry->config, at_128.launch, here, device, first);
  };
  ASSERT_EQ(at_128.entry->config.tile_m, 128);
  EXPECT_TRUE(holds(128));
  EXPECT_TRUE(holds(120));
  EXPECT_FALSE(holds(64));
}

}  // namespace
}  // namespace mixgemm::select
