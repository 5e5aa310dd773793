// SPDX-License-Identifier: Apache-2.0
// The streaming kernel for Hopper on the emulator: rings of bulk copies, boxes and cp.async that
// meet at one mbarrier, few and many passes, clusters that split K, PDL.
#include <vector>

#include "kernel_case.hpp"
#include "sm90/gemm_streaming.cuh"

namespace mixgemm {
namespace {

using namespace emulated_test;

template <KernelConfig kKernel>
void call(const Params& p) {
  gemm_streaming<Variant<kKernel>>(p);
}

template <DataType kAct, WeightType kWeight, Quant kQuant, bool kFine, int kTileN, int kTileM,
          int kTileK, int kWarpgroups = 2>
constexpr Kernel kernel() {
  constexpr KernelConfig kKernel = {.act = kAct,
                                    .weight = kWeight,
                                    .quant = kQuant,
                                    .fine_groups = kFine,
                                    .schedule = Schedule::streaming,
                                    .tile_n = kTileN,
                                    .tile_m = kTileM,
                                    .tile_k = kTileK,
                                    .consumer_warpgroups = kWarpgroups};
  return {kKernel, call<kKernel>};
}

/// Both types of each, every quantization, one and two chains of MMAs, rows of X that take a part
/// of a warp's lanes, all of them and several turns, 4 to 16 warps.
const Kernel kKernels[] = {
    kernel<kF16, kInt4, Quant::group, false, 32, 16, 128>(),
    kernel<kF16, kInt4, Quant::group_zero, false, 16, 8, 256, 4>(),
    kernel<kF16, kInt4, Quant::group_zero, true, 32, 8, 128, 1>(),
    kernel<kF16, kInt8, Quant::column, false, 32, 16, 256, 1>(),
    kernel<kF16, kInt8, Quant::group, true, 16, 24, 64, 1>(),
    kernel<kBf16, kInt4, Quant::group, false, 48, 16, 128>(),
    kernel<kBf16, kInt4, Quant::group, true, 48, 8, 128>(),
    kernel<kBf16, kInt8, Quant::group_zero, false, 32, 8, 128>(),
};

Problem random_problem(Rng& rng, const KernelConfig& c) {
  Problem p = random_family(rng, c);
  p.m = pick(rng, 0, 3) == 0 ? 1 : pick(rng, 1, c.tile_m);
  p.n = pick(rng, 1, 4 * c.tile_n);
  // Up to three times around a ring of two, of each warp's; or warps without a share of K.
  p.k = pick(rng, 0, 2) == 0 ? pick(rng, 1, 1024)
                             : streaming_warps(c) * pick(rng, 1, 6) * c.tile_k - pick(rng, 0, 200);
  return p;
}

LaunchConfig random_launch(Rng& rng, const KernelConfig& c, const Problem& p) {
  LaunchConfig l;
  const int deepest = select::deepest_ring(c, p.m);
  l.stages = static_cast<int>(pick(rng, 2, std::min(deepest, 4)));
  l.one_pass = pick(rng, 0, 2) == 0;
  l.cluster_k = 1 << std::max<std::int64_t>(0, pick(rng, -2, 2));
  while (l.cluster_k > (p.k + c.tile_k - 1) / c.tile_k) l.cluster_k /= 2;
  return l;
}

class EmulatedStreaming : public testing::TestWithParam<Kernel> {};

TEST_P(EmulatedStreaming, IsRightForRandomProblems) {
  for (unsigned seed = 1; seed <= 16 / kFewer; ++seed) {
    Rng rng(seed);
    const Problem problem = random_problem(rng, GetParam().config);
    const LaunchConfig l = random_launch(rng, GetParam().config, problem);
    How how;
    how.aligned = pick(rng, 0, 3) > 0;
    how.pdl = pick(rng, 0, 1) == 0;
    how.resident = static_cast<unsigned>(pick(rng, 1, 2));
    check(GetParam(), seed, problem, l, how, rng);
    if (HasFailure()) return;
  }
}

TEST_P(EmulatedStreaming, ScalesMayLieFarApart) {
  for (unsigned seed = 200; seed < 200 + 6 / kFewer; ++seed) {
    Rng rng(seed);
    Problem problem = random_problem(rng, GetParam().config);
    problem.epilogue = {};
    const LaunchConfig l = random_launch(rng, GetParam().config, problem);
    check(GetParam(), seed, problem, l, {.scales = Scales::of_either_sign}, rng);
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Sm90, EmulatedStreaming, testing::ValuesIn(kKernels), name_of);

}  // namespace
}  // namespace mixgemm
