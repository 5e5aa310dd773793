// SPDX-License-Identifier: Apache-2.0
// One launch of a kernel on the emulator, laid out by the launcher's own arithmetic, against the
// fp64 product.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <ostream>
#include <string>
#include <vector>

#include "../cpu/cpu_case.hpp"
#include "cuda_keywords.hpp"
#include "emulator.hpp"
#include "epilogues/standard.cuh"
#include "launch/geometry.hpp"
#include "ptx/tma.cuh"
#include "registry.hpp"
#include "select/config_id.hpp"
#include "select/select.hpp"

namespace mixgemm::emulated_test {

using cpu_test::Case;
using cpu_test::Matrix;
using cpu_test::pick;
using cpu_test::Rng;

struct Kernel {
  KernelConfig config;
  void (*call)(const Params&);
};
inline void PrintTo(const Kernel& kernel, std::ostream* out) {
  *out << kernel_id(kernel.config).view();
}
inline std::string name_of(const testing::TestParamInfo<Kernel>& info) {
  return std::string(kernel_id(info.param.config).view());
}

// ThreadSanitizer, which finds nothing where one thread runs and takes fifteen times as long, sees
// fewer problems.
#ifdef __SANITIZE_THREAD__
constexpr unsigned kFewer = 4;
#else
constexpr unsigned kFewer = 1;
#endif

/// What a kernel template takes.
template <KernelConfig kKernel>
struct Variant {
  static constexpr KernelConfig config = kKernel;
  using Epilogue = StandardEpilogue;
};

constexpr auto kF16 = DataType::f16;
constexpr auto kBf16 = DataType::bf16;
constexpr auto kInt4 = WeightType::int4;
constexpr auto kInt8 = WeightType::int8;

/// Types, quantization and epilogue at random, as the kernel serves them; not M, N and K.
inline Problem random_family(Rng& rng, const KernelConfig& c) {
  Problem p;
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

/// Integer zeros as the 16-bit floats that to_cuda() makes of them.
inline std::vector<std::uint16_t> device_zeros(const cpu_test::Weight& w) {
  std::vector<std::uint16_t> zeros = w.scaled_zeros;
  for (const std::uint8_t zero : w.zeros) {
    zeros.push_back(bits_from_f32(static_cast<float>(zero), w.view.spec.scale_type));
  }
  return zeros;
}

enum class Scales {
  alike,
  scattered,       ///< up to 2¹⁸ apart in a row
  of_either_sign,  ///< that, some negative or zero, and in bf16 above 2
  in_steps,  ///< those of a group alike, of different groups up to 2¹⁸ apart (bf16: 2²⁶)
};

/// Gives the groups of each row scales that lie far apart.
inline void scatter_scales(Rng& rng, cpu_test::Weight& w, Scales how) {
  const bool wide = how != Scales::scattered && w.view.spec.scale_type == kBf16;
  const auto power = [&] { return static_cast<int>(pick(rng, -12, wide ? 14 : 6)); };
  std::vector<int> of_group(static_cast<std::size_t>(w.view.groups()));
  // A third as they were, so that the first units come back; or all alike: units change once.
  for (int& p : of_group) p = pick(rng, 0, 2) == 0 ? 0 : power();
  if (pick(rng, 0, 2) == 0) std::fill(of_group.begin(), of_group.end(), power());
  for (std::size_t i = 0; i < w.scales.size(); ++i) {
    std::uint16_t& scale = w.scales[i];
    const std::size_t group = i / layout::kStripRows % of_group.size();
    float factor = std::ldexp(1.0f, how == Scales::in_steps ? of_group[group] : power());
    if (how == Scales::of_either_sign) {
      const std::int64_t which = pick(rng, 0, 5);
      factor *= which == 0 ? 0.0f : which < 3 ? -1.0f : 1.0f;
    }
    scale = bits_from_f32(factor * f32_from_bits(scale, w.view.spec.scale_type),
                          w.view.spec.scale_type);
  }
}

/// Fails unless every element is the oracle's but for weights that were rounded to 16 bits, and for
/// `of_largest` of the row's largest scale in each of them.
inline void expect_rounded_weights(const Case& one, const Matrix& y, double of_largest) {
  const double unit = one.problem.act == kF16 ? 0x1p-11 : 0x1p-8;
  const std::int64_t groups = one.weight.view.groups();
  for (std::int64_t n = 0; n < one.problem.n; ++n) {
    double largest = 0.0;
    for (std::int64_t g = 0; g < groups; ++g) {
      const auto at = static_cast<std::size_t>((n / 16 * groups + g) * 16 + n % 16);
      const double scale = f32_from_bits(one.weight.scales[at], one.problem.act);
      largest = std::max(largest, std::abs(scale));
    }
    for (std::int64_t m = 0; m < one.problem.m; ++m) {
      double products = 1e-3, x_sum = 0.0;
      for (std::int64_t k = 0; k < one.problem.k; ++k) {
        const double x = std::abs(f32_from_bits(one.x.at(m, k), one.problem.act));
        products += x * std::abs(one.weight.dequantized(n, k));
        x_sum += x;
      }
      const double expected = one.expected[static_cast<std::size_t>(m * one.problem.n + n)];
      ASSERT_NEAR(f32_from_bits(y.at(m, n), one.problem.act), expected,
                  unit * (products + std::abs(expected)) + (0x1p-25 + of_largest * largest) * x_sum)
          << "m=" << m << " n=" << n;
    }
  }
}

/// What the kernel before leaves for this one: NaN until it completes.
class FromBefore {
 public:
  void add(Matrix& matrix, std::int64_t rows, std::int64_t cols) {
    parts_.push_back({&matrix, rows, cols, {}});
    Part& part = parts_.back();
    for (std::int64_t i = 0; i < rows * cols; ++i) {
      std::uint16_t& element = matrix.data()[i / cols * matrix.ld() + i % cols];
      part.values.push_back(element);
      element = Matrix::kPoison;
    }
  }
  void complete() {
    for (Part& part : parts_) {
      for (std::int64_t i = 0; i < part.rows * part.cols; ++i) {
        part.matrix->data()[i / part.cols * part.matrix->ld() + i % part.cols] =
            part.values[static_cast<std::size_t>(i)];
      }
    }
  }

 private:
  struct Part {
    Matrix* matrix;
    std::int64_t rows, cols;
    std::vector<std::uint16_t> values;
  };
  std::vector<Part> parts_;
};

struct How {
  bool aligned = true;  ///< X takes 16-byte copies
  Scales scales = Scales::alike;
  bool pdl = false;
  unsigned resident = 1;   ///< clusters at work at once
  int least_clusters = 1;  ///< that the launch is laid out for
  int most_clusters = 7;
};

/// One launch of a kernel, checked.
inline void check(const Kernel& kernel, unsigned seed, const Problem& problem,
                  const LaunchConfig& l, const How& how, Rng& rng) {
  const KernelConfig& c = kernel.config;
  const std::string name = "seed " + std::to_string(seed) + " " + cpu_test::describe(problem) +
                           " " +
                           select::config_id(kernel_id(c).view(), problem.weight.group_size, l) +
                           (how.aligned ? " aligned" : "") + (how.pdl ? " pdl" : "");
  SCOPED_TRACE(name);
  select::DeviceFacts device = select::h100_facts();
  ASSERT_EQ(select::why_unfit(c, problem), nullptr);
  ASSERT_EQ(select::why_unfit(c, l, problem, device, how.aligned), nullptr)
      << select::why_unfit(c, l, problem, device, how.aligned);

  Problem on_cpu = problem;
  on_cpu.device = Device::cpu;
  Case one(rng, on_cpu);
  if (how.scales != Scales::alike) scatter_scales(rng, one.weight, how.scales);
  const auto padded = [&](std::int64_t width) {
    return how.aligned ? (width + 7) / 8 * 8 + 8 : width + 1 + width % 2;
  };
  one.x = Matrix(problem.m, problem.k, padded(problem.k));
  one.x.fill_random(rng, problem.act);
  one.residual = Matrix(problem.m, problem.n, padded(problem.n));
  one.residual.fill_random(rng, problem.act);
  one.solve();
  Matrix y(problem.m, problem.n, padded(problem.n));
  const std::vector<std::uint16_t> zeros = device_zeros(one.weight);

  const launch::Geometry g =
      launch::geometry(c, l, problem.m, problem.n, problem.k,
                       static_cast<int>(pick(rng, how.least_clusters, how.most_clusters)));
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
  p.pdl = how.pdl;
  if (c.arch == 90) {
    if (p.x_by_tma) {
      p.x_map = ptx::encode_tensor_map(launch::x_map(c, l, problem, p.x, one.x.ld()));
    }
    p.codes_map = ptx::encode_tensor_map(launch::codes_map(c, l, view));
    p.scales_map = ptx::encode_tensor_map(launch::groups_map(c, view, view.scales));
    p.zeros_map = ptx::encode_tensor_map(launch::groups_map(c, view, zeros.data()));
  }

  emulator::forget_memory();
  for (std::int64_t m = 0; m < problem.m; ++m) {
    emulator::register_memory(one.x.data() + m * p.ldx, static_cast<std::size_t>(problem.k) * 2);
  }
  using emulator::Holds;
  emulator::register_memory(one.weight.codes.data(), one.weight.codes.size(), Holds::weights);
  emulator::register_memory(one.weight.scales.data(), one.weight.scales.size() * 2, Holds::weights);
  emulator::register_memory(zeros.data(), zeros.size() * 2, Holds::weights);

  emulator::Launch launch;
  launch.ctas = static_cast<unsigned>(g.grid_z);
  launch.cluster = {static_cast<unsigned>(l.cluster_n), static_cast<unsigned>(l.cluster_m),
                    static_cast<unsigned>(l.cluster_k)};
  launch.resident = how.resident;
  launch.threads = static_cast<unsigned>(g.threads);
  launch.smem_bytes = static_cast<std::size_t>(g.smem_bytes);
  launch.landing =
      pick(rng, 0, 1) == 0 ? emulator::Landing::at_once : emulator::Landing::at_the_wait;
  launch.seed = seed;
  launch.name = name;
  if (c.arch == 90 && select::is_tiled(c)) {  // whose shared memory begins on 1024 bytes
    launch.window = dynamic_smem;
    launch.window_address = 1024 * static_cast<std::uint32_t>(pick(rng, 1, 64));
  }
  FromBefore before;
  if (how.pdl) {
    before.add(one.x, problem.m, problem.k);
    before.add(one.residual, problem.m, problem.n);
    before.add(one.bias, 1, problem.n);
    const Matrix untouched = y;
    const std::vector<std::uint8_t> scratch(
        static_cast<const std::uint8_t*>(p.workspace),
        static_cast<const std::uint8_t*>(p.workspace) + g.workspace_bytes);
    launch.before_completes = [&, untouched, scratch] {
      before.complete();
      for (std::int64_t i = 0; i < (problem.m - 1) * y.ld() + problem.n; ++i) {
        if (y.data()[i] != untouched.data()[i]) emulator::fail("Y was written too early");
      }
      if (!std::equal(scratch.begin(), scratch.end(),
                      static_cast<const std::uint8_t*>(p.workspace))) {
        emulator::fail("the workspace was written too early");
      }
    };
  }
  emulator::run(launch, [&] { kernel.call(p); });

  EXPECT_EQ(y.damaged(), 0) << "elements outside Y were written";
  EXPECT_TRUE(workspace.intact()) << "bytes outside the workspace were written";
  EXPECT_LE(one.relative_error(y), 1.1 * one.plain_error() + 2e-4);
  if (how.scales != Scales::alike) {
    // The groups of an SM90 stage share a unit, in which fp16 has its subnormals.
    const bool shared = c.arch == 90 && c.act == kF16 && folds_scales(c) &&
                        c.tile_k > std::max(1, problem.weight.group_size);
    expect_rounded_weights(one, y, shared ? 0x1p-13 : 0.0);
  }
  if (g.stream_tiles > 0) {  // as the next launch must find them
    const auto* const flags = static_cast<const std::uint64_t*>(workspace.data());
    for (std::int64_t i = 0; i < 4 * g.grid_ctas; ++i) {
      EXPECT_NE(flags[i], p.flag_tag) << "flag " << i << " is still set";
    }
  }
}

}  // namespace mixgemm::emulated_test
