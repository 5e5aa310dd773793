// SPDX-License-Identifier: Apache-2.0
// Quantizes a small weight to int4, multiplies, and compares with the oracle.
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "mixgemm/gemm.hpp"
#include "mixgemm/version.hpp"
#include "mixgemm/weight.hpp"

namespace {

// bf16 is the upper half of an fp32, so both ways are a shift.
std::uint16_t to_bf16(float value) {
  return static_cast<std::uint16_t>((std::bit_cast<std::uint32_t>(value) + 0x8000u) >> 16);
}
float from_bf16(std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t{bits} << 16); }

}  // namespace

int main() try {
  constexpr std::int64_t m = 4, n = 256, k = 512;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> w(n * k);          // [N, K]
  std::vector<std::uint16_t> x(m * k);  // [M, K], bf16
  std::vector<std::uint16_t> y(m * n);  // [M, N], bf16
  for (float& value : w) value = 0.05f * normal(random);
  for (std::uint16_t& value : x) value = to_bf16(normal(random));

  // Weight: quantize and pack once, when the model is loaded.
  mixgemm::QuantizeOptions quantize;
  quantize.spec = {.type = mixgemm::WeightType::int4,
                   .zero = mixgemm::ZeroKind::integer,
                   .group_size = 128,
                   .scale_type = mixgemm::DataType::bf16};
  const mixgemm::PackedWeight weight =
      mixgemm::quantize_packed(w.data(), mixgemm::DataType::f32, n, k, k, quantize).value();

  // Problem → Plan: once per shape.
  mixgemm::Problem problem;
  problem.m = m;
  problem.n = n;
  problem.k = k;
  problem.act = mixgemm::DataType::bf16;
  problem.weight = weight.view().spec;
  const mixgemm::Plan plan = mixgemm::plan(problem).value();
  std::printf("mixgemm %s\n%s", mixgemm::version(), plan.explain().c_str());

  // Plan → run: as often as you like, from any thread.
  mixgemm::RunArgs args;
  args.x = x.data();
  args.ldx = k;
  args.weight = weight.view();
  args.y = y.data();
  args.ldy = n;
  args.workspace_bytes = plan.workspace_bytes();
  // Workspace is 256-byte aligned, and std::aligned_alloc wants whole multiples of that.
  args.workspace = std::aligned_alloc(256, (args.workspace_bytes / 256 + 1) * 256);
  plan.run(args).throw_if_error();

  std::vector<double> reference(m * n);
  mixgemm::RunArgs oracle = args;
  oracle.y = reference.data();
  mixgemm::reference_gemm(problem, oracle).throw_if_error();
  std::free(args.workspace);

  double error = 0, norm = 0;
  for (std::int64_t i = 0; i < m * n; ++i) {
    error += std::pow(from_bf16(y[i]) - reference[i], 2);
    norm += std::pow(reference[i], 2);
  }
  const double relative = std::sqrt(error / norm);
  std::printf("relative error against fp64: %.2e\n", relative);
  return relative < 4e-3 ? 0 : 1;  // bf16 rounds to 8 bits
} catch (const mixgemm::Error& error) {
  std::fprintf(stderr, "cpp_minimal: %s\n", error.what());
  return 1;
}
