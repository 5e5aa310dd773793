// SPDX-License-Identifier: Apache-2.0
// The oracle: every product in fp64 from the unrounded dequantized weight. Written for trust, not
// speed: it reads each code through the layout's bijection and shares nothing with the kernels.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "api/check.hpp"
#include "layout/packed.hpp"
#include "mixgemm/gemm.hpp"
#include "util/half.hpp"
#include "util/parallel.hpp"

namespace mixgemm {
namespace {

double dequantized(const PackedView& w, std::int64_t n, std::int64_t k) {
  const int bits = bits_of(w.spec.type);
  const auto place = layout::place_of(
      {static_cast<int>(n % layout::kStripRows), static_cast<int>(k % layout::kBlockK)}, bits);
  const std::uint8_t* cell = w.codes + n / layout::kStripRows * w.codes_pitch_bytes +
                             k / layout::kBlockK * layout::cell_bytes(bits);
  // Words are little-endian: bit b of word i is bit b % 8 of byte 4·i + b / 8.
  const unsigned byte = cell[4 * place.word + place.bit / 8];
  const double code = (byte >> (place.bit % 8)) & ((1u << bits) - 1u);

  const std::int64_t group = w.spec.group_size == 0 ? 0 : k / w.spec.group_size;
  const std::int64_t at = layout::scale_index(n, group, w.groups_pitch);
  const double scale = f32_from_bits(w.scales[at], w.spec.scale_type);
  switch (w.spec.zero) {
    case ZeroKind::none: return (code - implicit_zero(w.spec.type)) * scale;
    case ZeroKind::integer: return (code - static_cast<const std::uint8_t*>(w.zeros)[at]) * scale;
    case ZeroKind::scaled:
      return code * scale -
             f32_from_bits(static_cast<const std::uint16_t*>(w.zeros)[at], w.spec.scale_type);
  }
  return 0.0;
}

double activate(Activation activation, double v) {
  switch (activation) {
    case Activation::none: return v;
    case Activation::relu: return v < 0.0 ? 0.0 : v;
    case Activation::gelu:
      return 0.5 * v * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (v + 0.044715 * v * v * v)));
    case Activation::silu: return v / (1.0 + std::exp(-v));
  }
  return v;
}

/// Σ a·b in eight interleaved sums, which a compiler can keep in vectors.
double dot(const double* a, const double* b, std::int64_t size) {
  double sums[8] = {};
  std::int64_t i = 0;
  for (; i + 8 <= size; i += 8) {
    for (int j = 0; j < 8; ++j) sums[j] += a[i + j] * b[i + j];
  }
  double total = 0.0;
  for (; i < size; ++i) total += a[i] * b[i];
  for (double sum : sums) total += sum;
  return total;
}

}  // namespace

Status reference_gemm(const Problem& problem, const RunArgs& args) {
  if (Status status = check_problem(problem); !status) return status;
  if (Status status = check_reference_args(problem, args); !status) return status;

  const auto at_16bit = [&](const void* values, std::int64_t i) -> double {
    return f32_from_bits(static_cast<const std::uint16_t*>(values)[i], problem.act);
  };
  std::vector<double> x(static_cast<std::size_t>(problem.m * problem.k));
  for (std::int64_t m = 0; m < problem.m; ++m) {
    for (std::int64_t k = 0; k < problem.k; ++k) {
      x[static_cast<std::size_t>(m * problem.k + k)] = at_16bit(args.x, m * args.ldx + k);
    }
  }
  auto* y = static_cast<double*>(args.y);
  parallel_for(problem.n, 1, 0, [&](std::int64_t begin, std::int64_t end) {
    std::vector<double> w(static_cast<std::size_t>(problem.k));
    for (std::int64_t n = begin; n < end; ++n) {
      for (std::int64_t k = 0; k < problem.k; ++k) {
        const std::int64_t feature =
            args.weight.permutation == nullptr ? k : args.weight.permutation[k];
        w[static_cast<std::size_t>(feature)] = dequantized(args.weight, n, k);
      }
      const double bias = problem.epilogue.bias ? at_16bit(args.bias, n) : 0.0;
      for (std::int64_t m = 0; m < problem.m; ++m) {
        const double sum = dot(x.data() + m * problem.k, w.data(), problem.k);
        double value = activate(problem.epilogue.activation, args.alpha * sum + bias);
        if (problem.epilogue.residual) value += at_16bit(args.residual, m * args.ldr + n);
        y[m * args.ldy + n] = value;
      }
    }
  });
  return {};
}

}  // namespace mixgemm
