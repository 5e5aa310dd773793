// SPDX-License-Identifier: Apache-2.0
// The tiled kernel for Hopper on the emulator: its three schedules, boxes and multicasts into a
// ring, wgmma from registers, clusters along n, m and k, tiles cut along K, PDL.
#include <vector>

#include "kernel_case.hpp"
#include "sm90/gemm_tiled.cuh"

namespace mixgemm {
namespace {

using namespace emulated_test;

template <KernelConfig kKernel>
void call(const Params& p) {
  gemm_tiled<Variant<kKernel>>(p);
}

template <DataType kAct, WeightType kWeight, Quant kQuant, bool kFine, Schedule kSchedule,
          int kTileN, int kTileM, int kTileK, int kWarpgroups = 2, int kCtasPerSm = 1,
          int kTeams = 1>
constexpr Kernel kernel() {
  constexpr KernelConfig kKernel = {.act = kAct,
                                    .weight = kWeight,
                                    .quant = kQuant,
                                    .fine_groups = kFine,
                                    .schedule = kSchedule,
                                    .tile_n = kTileN,
                                    .tile_m = kTileM,
                                    .tile_k = kTileK,
                                    .consumer_warpgroups = kWarpgroups,
                                    .k_teams = kTeams,
                                    .ctas_per_sm = kCtasPerSm};
  return {kKernel, call<kKernel>};
}

constexpr auto kCoop = Schedule::cooperative;
constexpr auto kPingpong = Schedule::pingpong;
constexpr auto kWarpMma = Schedule::warp_mma;

/// Every schedule with every quantization that it treats in a way of its own; folded scales of both
/// types; 1 to 4 consumer warpgroups, one and two row blocks, stages of 64 to 256 k.
const Kernel kKernels[] = {
    kernel<kF16, kInt4, Quant::group, false, kCoop, 128, 32, 64>(),
    kernel<kF16, kInt4, Quant::group, false, kCoop, 128, 64, 128>(),
    kernel<kF16, kInt4, Quant::group, false, kCoop, 64, 16, 64, 1, 2>(),
    kernel<kF16, kInt4, Quant::group, false, kPingpong, 64, 32, 64>(),
    kernel<kF16, kInt4, Quant::group_zero, true, kCoop, 256, 32, 64, 4>(),
    kernel<kF16, kInt4, Quant::group_zero, false, kWarpMma, 128, 16, 128, 1, 2>(),
    kernel<kF16, kInt8, Quant::group, false, kCoop, 128, 8, 256>(),
    kernel<kF16, kInt8, Quant::column, false, kCoop, 128, 96, 64>(),
    kernel<kF16, kInt4, Quant::group, false, kCoop, 64, 32, 256, 2, 1, 2>(),
    kernel<kF16, kInt4, Quant::group, false, kCoop, 128, 64, 256, 4, 1, 2>(),
    kernel<kBf16, kInt8, Quant::group_zero, false, kCoop, 64, 16, 128, 2, 1, 2>(),
    kernel<kBf16, kInt4, Quant::group, false, kCoop, 128, 16, 128>(),
    kernel<kBf16, kInt4, Quant::group, false, kCoop, 64, 16, 256, 2, 1, 2>(),
    kernel<kBf16, kInt4, Quant::group, false, kCoop, 256, 16, 128>(),
    kernel<kBf16, kInt4, Quant::group_zero, false, kCoop, 128, 24, 128>(),
    kernel<kBf16, kInt8, Quant::group, true, kPingpong, 64, 64, 64>(),
    kernel<kBf16, kInt4, Quant::group, false, kPingpong, 64, 16, 64>(),
    kernel<kBf16, kInt8, Quant::group, false, kWarpMma, 128, 32, 64>(),
    kernel<kBf16, kInt8, Quant::group_zero, false, kCoop, 192, 48, 64, 3>(),
};

Problem random_problem(Rng& rng, const KernelConfig& c) {
  Problem p = random_family(rng, c);
  p.m = pick(rng, 0, 5) == 0 ? 1 : pick(rng, 1, 5 * c.tile_m / 2);
  p.n = pick(rng, 1, 5 * c.tile_n / 2);
  // Mostly more stages than the ring has.
  p.k = pick(rng, 1, 640 / c.tile_k) * c.tile_k - (pick(rng, 0, 1) == 0 ? 0 : pick(rng, 1, 63));
  return p;
}

/// A launch that the kernel and the problem allow, K split in one of the ways or not at all.
LaunchConfig random_launch(Rng& rng, const KernelConfig& c, const Problem& p, bool aligned) {
  const select::DeviceFacts device = select::h100_facts();
  for (;;) {
    LaunchConfig l;
    l.stages = static_cast<int>(pick(rng, 2, std::min(5, max_stages(c))));
    l.raster_m = static_cast<int>(pick(rng, 1, 3));
    l.cluster_n = static_cast<int>(pick(rng, 1, 2));
    l.cluster_m = static_cast<int>(pick(rng, 1, 2));
    switch (pick(rng, 0, 3)) {
      case 0: break;
      case 1: l.cluster_k = static_cast<int>(pick(rng, 2, 4)); break;
      case 2: l.split_k = static_cast<int>(pick(rng, 2, 4)); break;
      case 3: l.stream_k = true; break;
    }
    if (select::why_unfit(c, l, p, device, aligned) == nullptr) return l;
  }
}

class EmulatedTiled : public testing::TestWithParam<Kernel> {
 protected:
  void check_one(unsigned seed, const Problem& problem, Rng& rng, Scales scales) {
    How how;
    how.aligned = pick(rng, 0, 3) > 0;
    how.scales = scales;
    how.pdl = pick(rng, 0, 1) == 0;
    how.resident = static_cast<unsigned>(pick(rng, 1, 3));
    const LaunchConfig l = random_launch(rng, GetParam().config, problem, how.aligned);
    check(GetParam(), seed, problem, l, how, rng);
  }
};

TEST_P(EmulatedTiled, IsRightForRandomProblems) {
  for (unsigned seed = 1; seed <= 12 / kFewer; ++seed) {
    Rng rng(seed);
    const Problem problem = random_problem(rng, GetParam().config);
    check_one(seed, problem, rng, Scales::alike);
    if (HasFailure()) return;
  }
}

/// The units in which a folded kernel sums change with the scales.
TEST_P(EmulatedTiled, ScalesMayLieFarApart) {
  constexpr Scales kWays[] = {Scales::scattered, Scales::of_either_sign, Scales::in_steps};
  for (unsigned seed = 200; seed < 200 + 9 / kFewer; ++seed) {
    Rng rng(seed);
    Problem problem = random_problem(rng, GetParam().config);
    problem.epilogue = {};
    check_one(seed, problem, rng, kWays[seed % 3]);
    if (HasFailure()) return;
  }
}

class EmulatedTwoPerSm : public EmulatedTiled {};

/// CTAs that only fill up the SMs wait, let go of their cluster, and leave: K split in clusters,
/// through the workspace, not at all.
TEST_P(EmulatedTwoPerSm, CtasWithoutATileLeave) {
  const KernelConfig& c = GetParam().config;
  unsigned seed = 400;
  for (const auto& [cluster_k, split_k] : {std::pair{2, 1}, {1, 2}, {1, 1}}) {
    Rng rng(++seed);
    Problem problem = random_family(rng, c);
    problem.m = c.tile_m;
    problem.n = 3 * c.tile_n;
    problem.k = 4 * c.tile_k;
    LaunchConfig l;
    l.stages = 2;
    l.cluster_k = cluster_k;
    l.split_k = split_k;
    const int at_work = 3 * split_k;
    How how;
    how.pdl = true;
    how.least_clusters = how.most_clusters = 4 * at_work - 2;  // half of them: less than twice
    const launch::Geometry g =
        launch::geometry(c, l, problem.m, problem.n, problem.k, how.most_clusters);
    ASSERT_EQ(g.clusters, 2 * at_work - 1);
    check(GetParam(), seed, problem, l, how, rng);
    if (HasFailure()) return;
  }
}

class EmulatedPingpong : public EmulatedTiled {};

/// A warpgroup passes over the other's stages, several times around the ring, and comes back.
TEST_P(EmulatedPingpong, TurnsGoAroundTheRing) {
  const KernelConfig& c = GetParam().config;
  unsigned seed = 300;
  for (const int stages : {2, 3}) {
    for (int k_tiles = 3; k_tiles <= 9; k_tiles += kFewer) {
      Rng rng(++seed);
      Problem problem = random_family(rng, c);
      problem.m = 2 * c.tile_m + 1;
      problem.n = 2 * c.tile_n + 1;
      problem.k = k_tiles * c.tile_k;
      LaunchConfig l;
      l.stages = stages;
      const bool in_steps = seed % 2 == 0;  // each warpgroup's units are its own
      if (in_steps) problem.epilogue = {};
      check(GetParam(), seed, problem, l,
            {.scales = in_steps ? Scales::in_steps : Scales::alike, .most_clusters = 2}, rng);
      if (HasFailure()) return;
    }
  }
}

std::vector<Kernel> kernels_that(bool (*hold)(const KernelConfig&)) {
  std::vector<Kernel> those;
  for (const Kernel& kernel : kKernels) {
    if (hold(kernel.config)) those.push_back(kernel);
  }
  return those;
}

INSTANTIATE_TEST_SUITE_P(Sm90, EmulatedTiled, testing::ValuesIn(kKernels), name_of);
INSTANTIATE_TEST_SUITE_P(Sm90, EmulatedTwoPerSm,
                         testing::ValuesIn(kernels_that([](const KernelConfig& c) {
                           return c.ctas_per_sm == 2;
                         })),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Sm90, EmulatedPingpong,
                         testing::ValuesIn(kernels_that([](const KernelConfig& c) {
                           return c.schedule == kPingpong;
                         })),
                         name_of);

}  // namespace
}  // namespace mixgemm
