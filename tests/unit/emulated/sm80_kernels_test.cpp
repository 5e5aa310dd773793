// SPDX-License-Identifier: Apache-2.0
// The kernels for SM80 on the emulator, laid out by the launcher's own arithmetic, against the fp64
// product: ragged shapes, every family of quantization, K split in every way, X that 16-byte copies
// refuse.
#include <vector>

#include "kernel_case.hpp"
#include "sm80/gemm_multistage.cuh"
#include "sm80/gemm_streaming.cuh"

namespace mixgemm {
namespace {

using namespace emulated_test;

constexpr KernelConfig config(DataType act, WeightType weight, Quant quant, bool fine,
                              Schedule schedule, int tile_n, int tile_m, int tile_k,
                              int warpgroups = 2, int ctas_per_sm = 1) {
  return {.arch = 80,
          .act = act,
          .weight = weight,
          .quant = quant,
          .fine_groups = fine,
          .schedule = schedule,
          .tile_n = tile_n,
          .tile_m = tile_m,
          .tile_k = tile_k,
          .consumer_warpgroups = warpgroups,
          .ctas_per_sm = ctas_per_sm};
}

template <KernelConfig kKernel>
void call(const Params& p) {
  if constexpr (kKernel.schedule == Schedule::multistage) {
    gemm_multistage<Variant<kKernel>>(p);
  } else {
    gemm_warp_streaming<Variant<kKernel>>(p);
  }
}

template <KernelConfig kKernel>
constexpr Kernel kernel() {
  return {kKernel, call<kKernel>};
}

constexpr auto kMulti = Schedule::multistage;
constexpr auto kStream = Schedule::streaming;

/// Every tile at least once, and every family on both schedules; also a folded kernel whose warps
/// go through several groups of a stage, as none of the manifest does.
const Kernel kKernels[] = {
    kernel<config(kF16, kInt4, Quant::group, false, kMulti, 128, 32, 128)>(),
    kernel<config(kF16, kInt4, Quant::group, false, kMulti, 128, 16, 128, 1, 2)>(),
    kernel<config(kBf16, kInt8, Quant::group_zero, false, kMulti, 128, 16, 128, 1, 2)>(),
    kernel<config(kF16, kInt8, Quant::group, false, kMulti, 128, 64, 128)>(),
    kernel<config(kF16, kInt4, Quant::group, false, kMulti, 256, 16, 128, 1)>(),
    kernel<config(kBf16, kInt4, Quant::group_zero, false, kMulti, 128, 64, 128)>(),
    kernel<config(kF16, kInt8, Quant::group_zero, true, kMulti, 256, 64, 64, 1)>(),
    kernel<config(kF16, kInt4, Quant::column, false, kMulti, 256, 64, 64, 1, 2)>(),
    kernel<config(kBf16, kInt4, Quant::group, true, kMulti, 128, 128, 64, 1, 2)>(),
    kernel<config(kBf16, kInt8, Quant::group, false, kMulti, 256, 128, 64)>(),
    kernel<config(kF16, kInt4, Quant::group_zero, true, kMulti, 128, 64, 128)>(),
    kernel<config(kF16, kInt4, Quant::group, false, kStream, 32, 8, 64)>(),
    kernel<config(kBf16, kInt4, Quant::group_zero, false, kStream, 48, 16, 64)>(),
    kernel<config(kF16, kInt8, Quant::column, false, kStream, 32, 16, 64)>(),
    kernel<config(kBf16, kInt8, Quant::group_zero, true, kStream, 32, 16, 64)>(),
    kernel<config(kF16, kInt4, Quant::group_zero, true, kStream, 32, 8, 64)>(),
    kernel<config(kF16, kInt4, Quant::group, false, kStream, 32, 8, 128)>(),
    kernel<config(kBf16, kInt4, Quant::group, true, kStream, 32, 8, 128)>(),
};

Problem random_problem(Rng& rng, const KernelConfig& c) {
  const bool tiled = c.schedule == kMulti;
  const std::int64_t m =
      pick(rng, 0, 5) == 0 ? 1 : pick(rng, 1, tiled ? c.tile_m + c.tile_m / 2 : c.tile_m);
  const std::int64_t n = pick(rng, 1, tiled ? 2 * c.tile_n : 300);
  const std::int64_t k =
      pick(rng, 1, 6) * c.tile_k + (pick(rng, 0, 2) == 0 ? 0 : pick(rng, -c.tile_k + 1, 0));
  Problem p = random_family(rng, c);
  p.m = m;
  p.n = n;
  p.k = k;
  return p;
}

LaunchConfig random_launch(Rng& rng, const KernelConfig& c, const Problem& p) {
  LaunchConfig l;
  const int deepest = select::deepest_ring(c, p.m);
  l.stages = static_cast<int>(pick(rng, 2, deepest));
  l.raster_m = static_cast<int>(pick(rng, 1, 3));
  if (c.schedule == kStream) {
    l.one_pass = pick(rng, 0, 2) == 0;
    return l;
  }
  const std::int64_t k_tiles = (p.k + c.tile_k - 1) / c.tile_k;
  const std::int64_t way = pick(rng, 0, 2);
  if (way == 1) l.split_k = static_cast<int>(pick(rng, 1, std::min<std::int64_t>(k_tiles, 4)));
  if (way == 2) l.stream_k = true;
  return l;
}

class EmulatedKernel : public testing::TestWithParam<Kernel> {};

TEST_P(EmulatedKernel, IsRightForRandomProblems) {
  for (unsigned seed = 1; seed <= 8; ++seed) {
    Rng rng(seed);
    const Problem problem = random_problem(rng, GetParam().config);
    const LaunchConfig l = random_launch(rng, GetParam().config, problem);
    check(GetParam(), seed, problem, l, {.aligned = pick(rng, 0, 2) > 0}, rng);
    if (HasFailure()) return;
  }
}

class EmulatedTiledKernel : public EmulatedKernel {};

/// A stage that ends neither N nor K is copied in another way than the last ones are.
TEST_P(EmulatedTiledKernel, StagesEndWithTheProblem) {
  const KernelConfig& c = GetParam().config;
  unsigned seed = 100;
  for (const int beyond_k : {0, -1, 8, 64}) {
    for (const int beyond_n : {0, 1}) {
      Rng rng(++seed);
      Problem problem = random_problem(rng, c);
      problem.m = pick(rng, 0, 1) == 0 ? c.tile_m : c.tile_m + 1;
      problem.n = c.tile_n + beyond_n;
      problem.k = 3 * c.tile_k + beyond_k;
      LaunchConfig l;
      l.stages = 2 + static_cast<int>(seed % 2);
      check(GetParam(), seed, problem, l, {}, rng);
      if (HasFailure()) return;
    }
  }
}

class EmulatedFoldedKernel : public EmulatedKernel {};

/// The units in which a folded kernel sums change with the scales.
TEST_P(EmulatedFoldedKernel, ScalesMayLieFarApart) {
  const KernelConfig& c = GetParam().config;
  for (unsigned seed = 200; seed < 206; ++seed) {
    Rng rng(seed);
    Problem problem = random_problem(rng, c);
    problem.k = 5 * c.tile_k + pick(rng, -64, 64);
    problem.epilogue = {};
    const LaunchConfig l = random_launch(rng, c, problem);
    check(GetParam(), seed, problem, l,
          {.aligned = pick(rng, 0, 2) > 0, .scales = Scales::scattered}, rng);
    if (HasFailure()) return;
  }
}

std::vector<Kernel> kernels_that(bool (*hold)(const KernelConfig&)) {
  std::vector<Kernel> those;
  for (const Kernel& kernel : kKernels) {
    if (hold(kernel.config)) those.push_back(kernel);
  }
  return those;
}
INSTANTIATE_TEST_SUITE_P(Sm80, EmulatedKernel, testing::ValuesIn(kKernels), name_of);
INSTANTIATE_TEST_SUITE_P(Sm80, EmulatedTiledKernel,
                         testing::ValuesIn(kernels_that([](const KernelConfig& c) {
                           return c.schedule == kMulti;
                         })),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Sm80, EmulatedFoldedKernel, testing::ValuesIn(kernels_that(folds_scales)),
                         name_of);

}  // namespace
}  // namespace mixgemm
