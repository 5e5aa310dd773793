// SPDX-License-Identifier: Apache-2.0
// Random problems for the CPU backend's tests: operands with poisoned surroundings, the oracle's
// answer, and the checks of what a product may have written.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "cpu/cpu_gemm.hpp"
#include "layout/packed.hpp"
#include "mixgemm/gemm.hpp"
#include "util/half.hpp"

namespace mixgemm::cpu_test {

using Rng = std::mt19937_64;

inline std::int64_t pick(Rng& rng, std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(rng);
}

/// A packed weight made straight from the layout's bijection, its padding filled with junk: codes
/// of all values, NaN scales in the rows beyond N. Also keeps the plain codes.
struct Weight {
  PackedView view;
  std::vector<std::uint8_t> plain;  ///< [N, K] codes
  std::vector<std::uint8_t> codes;
  std::vector<std::uint16_t> scales, scaled_zeros;
  std::vector<std::uint8_t> zeros;

  /// (q − z)·s or q·s − z of the view's element, from the plain codes.
  double dequantized(std::int64_t n, std::int64_t k) const {
    const double code = plain[static_cast<std::size_t>(n * view.k + k)];
    const std::int64_t group = view.spec.group_size == 0 ? 0 : k / view.spec.group_size;
    const auto at = static_cast<std::size_t>(((n / 16) * view.groups() + group) * 16 + n % 16);
    const double scale = f32_from_bits(scales[at], view.spec.scale_type);
    if (view.spec.zero == ZeroKind::none) return (code - implicit_zero(view.spec.type)) * scale;
    if (view.spec.zero == ZeroKind::integer) return (code - zeros[at]) * scale;
    return code * scale - f32_from_bits(scaled_zeros[at], view.spec.scale_type);
  }
};

inline Weight random_weight(Rng& rng, std::int64_t n, std::int64_t k, const QuantSpec& spec) {
  const int bits = bits_of(spec.type);
  const int levels = 1 << bits;
  Weight w;
  w.view.n = n;
  w.view.k = k;
  w.view.spec = spec;
  const std::int64_t strips = layout::num_strips(n);
  const std::int64_t pitch = layout::strip_bytes(k, bits);
  w.codes.resize(static_cast<std::size_t>(strips * pitch));
  for (auto& byte : w.codes) byte = static_cast<std::uint8_t>(rng());
  w.plain.resize(static_cast<std::size_t>(n * k));
  for (std::int64_t row = 0; row < n; ++row) {
    for (std::int64_t col = 0; col < k; ++col) {
      const auto place =
          layout::place_of({static_cast<int>(row % 16), static_cast<int>(col % 64)}, bits);
      const auto at = static_cast<std::size_t>(
          row / 16 * pitch + col / 64 * layout::cell_bytes(bits) + 4 * place.word + place.bit / 8);
      w.plain[static_cast<std::size_t>(row * k + col)] =
          static_cast<std::uint8_t>((w.codes[at] >> (place.bit % 8)) & (levels - 1));
    }
  }
  const std::int64_t groups = w.view.groups();
  const auto count = static_cast<std::size_t>(strips * groups * 16);
  w.scales.resize(count);
  if (spec.zero == ZeroKind::integer) w.zeros.resize(count);
  if (spec.zero == ZeroKind::scaled) w.scaled_zeros.resize(count);
  std::uniform_real_distribution<float> scale_of(0.5f, 1.5f);
  for (std::size_t i = 0; i < count; ++i) {
    const auto row = static_cast<std::int64_t>(i) / (groups * 16) * 16 + static_cast<int>(i % 16);
    const float scale = scale_of(rng) / static_cast<float>(levels);
    const auto zero = static_cast<int>(pick(rng, levels / 4, 3 * levels / 4));
    const bool padding = row >= n;
    const float nan = std::numeric_limits<float>::quiet_NaN();
    w.scales[i] = bits_from_f32(padding ? nan : scale, spec.scale_type);
    if (!w.zeros.empty()) w.zeros[i] = static_cast<std::uint8_t>(zero);
    if (!w.scaled_zeros.empty()) {
      const float scaled = scale * (static_cast<float>(zero) + 0.3f);
      w.scaled_zeros[i] = bits_from_f32(padding ? nan : scaled, spec.scale_type);
    }
  }
  w.view.codes = w.codes.data();
  w.view.scales = w.scales.data();
  if (!w.zeros.empty()) w.view.zeros = w.zeros.data();
  if (!w.scaled_zeros.empty()) w.view.zeros = w.scaled_zeros.data();
  w.view.codes_pitch_bytes = pitch;
  w.view.groups_pitch = groups;
  return w;
}

/// A matrix of 16-bit floats whose rows are further apart than they are wide; what lies between
/// them, before and behind is poison.
class Matrix {
 public:
  static constexpr std::int64_t kGuard = 96;        // elements before and behind
  static constexpr std::uint16_t kPoison = 0x7fdb;  // a NaN in both formats

  Matrix(std::int64_t rows, std::int64_t cols, std::int64_t ld)
      : rows_(rows),
        cols_(cols),
        ld_(ld),
        values_(static_cast<std::size_t>(rows * ld + 2 * kGuard), kPoison) {}

  std::uint16_t* data() { return values_.data() + kGuard; }
  const std::uint16_t* data() const { return values_.data() + kGuard; }
  std::int64_t ld() const { return ld_; }
  std::uint16_t at(std::int64_t m, std::int64_t n) const { return data()[m * ld_ + n]; }
  void set(std::int64_t m, std::int64_t n, float v, DataType type) {
    data()[m * ld_ + n] = bits_from_f32(v, type);
  }

  void fill_random(Rng& rng, DataType type, float mean = 0.0f) {
    std::normal_distribution<float> normal(mean, 1.0f);
    for (std::int64_t m = 0; m < rows_; ++m) {
      for (std::int64_t n = 0; n < cols_; ++n) set(m, n, normal(rng), type);
    }
  }

  /// Elements outside the matrix that no longer hold the poison.
  std::int64_t damaged() const {
    std::int64_t count = 0;
    for (std::size_t i = 0; i < values_.size(); ++i) {
      const auto at = static_cast<std::int64_t>(i) - kGuard;
      const bool inside = at >= 0 && at < rows_ * ld_ && at % ld_ < cols_;
      if (!inside && values_[i] != kPoison) ++count;
    }
    return count;
  }

 private:
  std::int64_t rows_, cols_, ld_;
  std::vector<std::uint16_t> values_;
};

/// A workspace of exactly the promised size, filled with NaN, guarded, 256-byte aligned.
class Workspace {
 public:
  explicit Workspace(std::size_t bytes) : bytes_(bytes), storage_(bytes + 512 + kGuard, kByte) {
    const auto address = reinterpret_cast<std::uintptr_t>(storage_.data());
    offset_ = (256 - address % 256) % 256;
  }
  void* data() { return storage_.data() + offset_; }
  std::size_t bytes() const { return bytes_; }
  bool intact() const {
    const auto outside = [&](std::size_t begin, std::size_t end) {
      return std::all_of(storage_.begin() + static_cast<std::ptrdiff_t>(begin),
                         storage_.begin() + static_cast<std::ptrdiff_t>(end),
                         [](std::uint8_t byte) { return byte == kByte; });
    };
    return outside(0, offset_) && outside(offset_ + bytes_, storage_.size());
  }

 private:
  static constexpr std::size_t kGuard = 1024;
  static constexpr std::uint8_t kByte = 0xff;  // 0xffffffff is a NaN
  std::size_t bytes_, offset_ = 0;
  std::vector<std::uint8_t> storage_;
};

inline std::string describe(const Problem& p) {
  std::ostringstream out;
  out << "m=" << p.m << " n=" << p.n << " k=" << p.k << " act=" << to_string(p.act) << ' '
      << to_string(p.weight.type) << " zero=" << to_string(p.weight.zero)
      << " group=" << p.weight.group_size << " scale=" << to_string(p.weight.scale_type)
      << " bias=" << p.epilogue.bias << " residual=" << p.epilogue.residual
      << " activation=" << to_string(p.epilogue.activation);
  return out.str();
}

/// A problem with its operands and the oracle's answer.
struct Case {
  Problem problem;
  Weight weight;
  Matrix x, bias, residual;
  float alpha = 1.0f;
  std::int64_t ldy;
  std::vector<double> expected;  ///< [M, N]

  Case(Rng& rng, const Problem& p, float x_mean = 0.0f)
      : problem(p),
        weight(random_weight(rng, p.n, p.k, p.weight)),
        x(p.m, p.k, p.k + pick(rng, 0, 5)),
        bias(1, p.n, p.n),
        residual(p.m, p.n, p.n + pick(rng, 0, 5)),
        ldy(p.n + pick(rng, 0, 5)) {
    x.fill_random(rng, p.act, x_mean);
    bias.fill_random(rng, p.act);
    residual.fill_random(rng, p.act);
    if (p.epilogue != Epilogue{}) alpha = 0.75f;
    solve();
  }

  void solve() {
    expected.assign(static_cast<std::size_t>(problem.m * problem.n), 0.0);
    RunArgs args = inputs();
    args.y = expected.data();
    args.ldy = problem.n;
    const Status status = reference_gemm(problem, args);
    ASSERT_TRUE(status.ok()) << status.message();
  }

  RunArgs inputs() const {
    RunArgs args;
    args.x = x.data();
    args.ldx = x.ld();
    args.weight = weight.view;
    args.alpha = alpha;
    if (problem.epilogue.bias) args.bias = bias.data();
    if (problem.epilogue.residual) {
      args.residual = residual.data();
      args.ldr = residual.ld();
    }
    return args;
  }

  /// Runs a method into a poisoned Y and checks that nothing but Y[M, N] was written.
  Matrix run(cpu::Method method, int num_threads) const {
    Matrix y(problem.m, problem.n, ldy);
    Workspace workspace(cpu::workspace_bytes(problem, method));
    RunArgs args = inputs();
    args.y = y.data();
    args.ldy = ldy;
    args.workspace = workspace.data();
    args.workspace_bytes = workspace.bytes();
    const Status status = cpu::gemm(problem, args, method, num_threads);
    EXPECT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(y.damaged(), 0) << "elements outside Y were written";
    EXPECT_TRUE(workspace.intact()) << "bytes outside the workspace were written";
    return y;
  }

  /// ‖y − expected‖ / ‖expected‖
  double relative_error(const Matrix& y) const {
    double difference = 0.0, size = 0.0;
    for (std::int64_t m = 0; m < problem.m; ++m) {
      for (std::int64_t n = 0; n < problem.n; ++n) {
        const double e = expected[static_cast<std::size_t>(m * problem.n + n)];
        const double d = f32_from_bits(y.at(m, n), problem.act) - e;
        difference += d * d;
        size += e * e;
      }
    }
    return size > 0.0 ? std::sqrt(difference / size) : std::sqrt(difference);
  }

  /// The error of the plain way: a dense weight rounded to the activation type, products summed in
  /// fp32, one rounding at the end.
  double plain_error() const {
    Matrix y(problem.m, problem.n, problem.n);
    std::vector<float> w(static_cast<std::size_t>(problem.k));
    for (std::int64_t n = 0; n < problem.n; ++n) {
      for (std::int64_t k = 0; k < problem.k; ++k) {
        const auto value = static_cast<float>(weight.dequantized(n, k));
        w[static_cast<std::size_t>(k)] =
            f32_from_bits(bits_from_f32(value, problem.act), problem.act);
      }
      for (std::int64_t m = 0; m < problem.m; ++m) {
        float sum = 0.0f;
        for (std::int64_t k = 0; k < problem.k; ++k) {
          sum += f32_from_bits(x.at(m, k), problem.act) * w[static_cast<std::size_t>(k)];
        }
        y.set(m, n, finished(sum, m, n), problem.act);
      }
    }
    return relative_error(y);
  }

  /// Fails unless every element is the oracle's, correctly rounded but for the error that an fp32
  /// sum of these products may have.
  void expect_elements_close(const Matrix& y) const {
    const double unit = problem.act == DataType::f16 ? 0x1p-11 : 0x1p-8;
    const double smallest = problem.act == DataType::f16 ? 0x1p-25 : 0x1p-134;
    for (std::int64_t n = 0; n < problem.n; ++n) {
      for (std::int64_t m = 0; m < problem.m; ++m) {
        double magnitude = 1.0;  // bias, residual and activation are of this order
        for (std::int64_t k = 0; k < problem.k; ++k) {
          magnitude += std::abs(f32_from_bits(x.at(m, k), problem.act) * weight.dequantized(n, k));
        }
        const double e = expected[static_cast<std::size_t>(m * problem.n + n)];
        const double got = f32_from_bits(y.at(m, n), problem.act);
        const double bound = std::abs(e) * unit + smallest + 2e-6 * magnitude;
        ASSERT_LE(std::abs(got - e), bound)
            << "at m=" << m << " n=" << n << ": " << got << " for " << e;
      }
    }
  }

 private:
  float finished(float sum, std::int64_t m, std::int64_t n) const {
    float v = alpha * sum;
    if (problem.epilogue.bias) v += f32_from_bits(bias.at(0, n), problem.act);
    switch (problem.epilogue.activation) {
      case Activation::none: break;
      case Activation::relu: v = std::max(v, 0.0f); break;
      case Activation::silu: v = v / (1.0f + std::exp(-v)); break;
      case Activation::gelu:
        v = 0.5f * v * (1.0f + std::tanh(0.7978845608f * (v + 0.044715f * v * v * v)));
        break;
    }
    if (problem.epilogue.residual) v += f32_from_bits(residual.at(m, n), problem.act);
    return v;
  }
};

inline QuantSpec random_spec(Rng& rng, DataType scale_type) {
  constexpr int kGroupSizes[] = {0, 16, 32, 64, 128};
  QuantSpec spec;
  spec.type = pick(rng, 0, 1) ? WeightType::int4 : WeightType::int8;
  spec.zero = static_cast<ZeroKind>(pick(rng, 0, 2));
  spec.group_size = kGroupSizes[pick(rng, 0, 4)];
  spec.scale_type = scale_type;
  return spec;
}

inline DataType random_type(Rng& rng) { return pick(rng, 0, 1) ? DataType::f16 : DataType::bf16; }

inline Epilogue random_epilogue(Rng& rng) {
  Epilogue e;
  if (pick(rng, 0, 2) == 0) return e;
  e.bias = pick(rng, 0, 1) != 0;
  e.residual = pick(rng, 0, 1) != 0;
  e.activation = static_cast<Activation>(pick(rng, 0, 3));
  return e;
}

}  // namespace mixgemm::cpu_test
