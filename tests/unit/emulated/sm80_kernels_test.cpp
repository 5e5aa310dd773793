// SPDX-License-Identifier: Apache-2.0
// The kernels for SM80 on the emulator, laid out by the launcher's own arithmetic, against the fp64
// product: ragged shapes, every family of quantization, K split in every way, X that 16-byte copies
// refuse.
#include <gtest/gtest.h>

#include <cmath>
#include <ostream>
#include <string>
#include <vector>

#include "../cpu/cpu_case.hpp"
#include "cuda_keywords.hpp"
#include "emulator.hpp"
#include "launch/geometry.hpp"
#include "registry.hpp"
#include "select/config_id.hpp"
#include "select/select.hpp"
#include "sm80/gemm_multistage.cuh"
#include "sm80/gemm_streaming.cuh"

namespace mixgemm {
namespace {

using cpu_test::Case;
using cpu_test::Matrix;
using cpu_test::pick;
using cpu_test::Rng;

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
struct Variant {
  static constexpr KernelConfig config = kKernel;
  using Epilogue = StandardEpilogue;
};

template <KernelConfig kKernel>
void call(const Params& p) {
  if constexpr (kKernel.schedule == Schedule::multistage) {
    gemm_multistage<Variant<kKernel>>(p);
  } else {
    gemm_warp_streaming<Variant<kKernel>>(p);
  }
}

struct Kernel {
  KernelConfig config;
  void (*call)(const Params&);
};
void PrintTo(const Kernel& kernel, std::ostream* out) { *out << kernel_id(kernel.config).view(); }

template <KernelConfig kKernel>
constexpr Kernel kernel() {
  return {kKernel, call<kKernel>};
}

constexpr auto kF16 = DataType::f16;
constexpr auto kBf16 = DataType::bf16;
constexpr auto kInt4 = WeightType::int4;
constexpr auto kInt8 = WeightType::int8;
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
  Problem p;
  const bool tiled = c.schedule == kMulti;
  p.m = pick(rng, 0, 5) == 0 ? 1 : pick(rng, 1, tiled ? c.tile_m + c.tile_m / 2 : c.tile_m);
  p.n = pick(rng, 1, tiled ? 2 * c.tile_n : 300);
  p.k = pick(rng, 1, 6) * c.tile_k + (pick(rng, 0, 2) == 0 ? 0 : pick(rng, -c.tile_k + 1, 0));
  p.act = p.weight.scale_type = c.act;
  p.weight.type = c.weight;
  p.weight.zero = c.quant != Quant::group_zero ? ZeroKind::none
                  : pick(rng, 0, 1) == 0       ? ZeroKind::integer
                                               : ZeroKind::scaled;
  p.weight.group_size = c.quant == Quant::column ? 0
                        : c.fine_groups          ? 16 << pick(rng, 0, 1)
                                                 : 64 << pick(rng, 0, 1);
  if (c.quant == Quant::group_zero && !c.fine_groups && pick(rng, 0, 3) == 0) {
    p.weight.group_size = 0;
  }
  p.epilogue.bias = pick(rng, 0, 1) == 1;
  p.epilogue.residual = pick(rng, 0, 1) == 1;
  p.epilogue.activation = static_cast<Activation>(pick(rng, 0, 3));
  p.device = Device::cuda;
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

/// Integer zeros as the 16-bit floats that to_cuda() makes of them.
std::vector<std::uint16_t> device_zeros(const cpu_test::Weight& w) {
  std::vector<std::uint16_t> zeros = w.scaled_zeros;
  for (const std::uint8_t zero : w.zeros) {
    zeros.push_back(bits_from_f32(static_cast<float>(zero), w.view.spec.scale_type));
  }
  return zeros;
}

/// Gives the groups of each row scales that lie up to 2¹⁸ apart.
void scatter_scales(Rng& rng, cpu_test::Weight& w) {
  for (std::uint16_t& scale : w.scales) {
    const float factor = std::ldexp(1.0f, static_cast<int>(pick(rng, -12, 6)));
    scale = bits_from_f32(factor * f32_from_bits(scale, w.view.spec.scale_type),
                          w.view.spec.scale_type);
  }
}

/// Fails unless every element is the oracle's but for weights that were rounded to 16 bits.
void expect_rounded_weights(const Case& one, const Matrix& y) {
  for (std::int64_t m = 0; m < one.problem.m; ++m) {
    for (std::int64_t n = 0; n < one.problem.n; ++n) {
      double products = 1e-3, x_sum = 0.0;
      for (std::int64_t k = 0; k < one.problem.k; ++k) {
        const double x = std::abs(f32_from_bits(one.x.at(m, k), one.problem.act));
        products += x * std::abs(one.weight.dequantized(n, k));
        x_sum += x;
      }
      const double expected = one.expected[static_cast<std::size_t>(m * one.problem.n + n)];
      ASSERT_NEAR(f32_from_bits(y.at(m, n), one.problem.act), expected,
                  0x1p-11 * (products + std::abs(expected)) + 0x1p-25 * x_sum)
          << "m=" << m << " n=" << n;
    }
  }
}

enum class Scales { alike, scattered };

/// One launch of a kernel, checked. X takes 16-byte copies if it is aligned.
void check(const Kernel& kernel, unsigned seed, const Problem& problem, const LaunchConfig& l,
           bool aligned, Rng& rng, Scales scales = Scales::alike) {
  const KernelConfig& c = kernel.config;
  SCOPED_TRACE("seed " + std::to_string(seed) + " " + cpu_test::describe(problem) + " " +
               select::config_id(kernel_id(c).view(), problem.weight.group_size, l) +
               (aligned ? " aligned" : ""));
  select::DeviceFacts device = select::h100_facts();
  ASSERT_EQ(select::why_unfit(c, problem), nullptr);
  ASSERT_EQ(select::why_unfit(c, l, problem, device, true), nullptr)
      << select::why_unfit(c, l, problem, device, true);

  Problem on_cpu = problem;
  on_cpu.device = Device::cpu;
  Case one(rng, on_cpu);
  if (scales == Scales::scattered) scatter_scales(rng, one.weight);
  const auto padded = [&](std::int64_t width) {
    return aligned ? (width + 7) / 8 * 8 + 8 : width + 1 + width % 2;
  };
  one.x = Matrix(problem.m, problem.k, padded(problem.k));
  one.x.fill_random(rng, problem.act);
  one.residual = Matrix(problem.m, problem.n, padded(problem.n));
  one.residual.fill_random(rng, problem.act);
  one.solve();
  Matrix y(problem.m, problem.n, padded(problem.n));
  const std::vector<std::uint16_t> zeros = device_zeros(one.weight);

  const launch::Geometry g =
      launch::geometry(c, l, problem.m, problem.n, problem.k, static_cast<int>(pick(rng, 1, 7)));
  ASSERT_TRUE(g.fits());
  cpu_test::Workspace workspace(static_cast<std::size_t>(g.workspace_bytes));
  Params p = launch::params_template(c, l, problem, g);
  const PackedView& view = one.weight.view;
  p.x = one.x.data();
  p.codes = view.codes;
  p.scales = view.scales;
  p.zeros = zeros.data();
  p.y = y.data();
  p.bias = problem.epilogue.bias ? one.bias.data() : nullptr;
  p.residual = problem.epilogue.residual ? one.residual.data() : nullptr;
  p.workspace = workspace.data();
  p.flag_tag = 0x1234567890abcdef;
  p.ldx = problem.m == 1 ? 0 : one.x.ld();
  p.ldy = y.ld();
  p.ldr = one.residual.ld();
  p.codes_pitch_bytes = view.codes_pitch_bytes;
  p.groups_pitch = view.groups_pitch;
  p.alpha = one.alpha;
  p.x_by_tma = launch::x_by_tma(problem.m, p.x, one.x.ld());
  p.y_vectors = launch::rows_take_vectors(problem.m, problem.n, p.y, p.ldy);
  p.r_vectors = launch::rows_take_vectors(problem.m, problem.n, p.residual, p.ldr);

  emulator::forget_memory();
  for (std::int64_t m = 0; m < problem.m; ++m) {
    emulator::register_memory(one.x.data() + m * p.ldx, static_cast<std::size_t>(problem.k) * 2);
  }
  emulator::register_memory(one.weight.codes.data(), one.weight.codes.size());
  emulator::register_memory(one.weight.scales.data(), one.weight.scales.size() * 2);
  emulator::register_memory(zeros.data(), zeros.size() * 2);

  emulator::Launch launch;
  launch.ctas = static_cast<unsigned>(g.grid_z);
  launch.threads = static_cast<unsigned>(g.threads);
  launch.smem_bytes = static_cast<std::size_t>(g.smem_bytes);
  launch.landing =
      pick(rng, 0, 1) == 0 ? emulator::Landing::at_once : emulator::Landing::at_the_wait;
  launch.seed = seed;
  emulator::run(launch, [&] { kernel.call(p); });

  EXPECT_EQ(y.damaged(), 0) << "elements outside Y were written";
  EXPECT_TRUE(workspace.intact()) << "bytes outside the workspace were written";
  EXPECT_LE(one.relative_error(y), 1.1 * one.plain_error() + 2e-4);
  if (scales == Scales::scattered) expect_rounded_weights(one, y);
  if (g.stream_tiles > 0) {  // as the next launch must find them
    const auto* const flags = static_cast<const std::uint64_t*>(workspace.data());
    for (std::int64_t i = 0; i < g.grid_ctas; ++i) {
      EXPECT_NE(flags[4 * i], p.flag_tag) << "flag " << i << " is still set";
    }
  }
}

class EmulatedKernel : public testing::TestWithParam<Kernel> {};

TEST_P(EmulatedKernel, IsRightForRandomProblems) {
  for (unsigned seed = 1; seed <= 8; ++seed) {
    Rng rng(seed);
    const Problem problem = random_problem(rng, GetParam().config);
    const LaunchConfig l = random_launch(rng, GetParam().config, problem);
    check(GetParam(), seed, problem, l, pick(rng, 0, 2) > 0, rng);
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
      check(GetParam(), seed, problem, l, true, rng);
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
    check(GetParam(), seed, problem, l, pick(rng, 0, 2) > 0, rng, Scales::scattered);
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
std::string name_of(const testing::TestParamInfo<Kernel>& info) {
  return std::string(kernel_id(info.param.config).view());
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
