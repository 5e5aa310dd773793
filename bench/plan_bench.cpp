// SPDX-License-Identifier: Apache-2.0
// What deciding costs the host: plan() of a problem seen before and of a new one, the cost model's
// ranking, and a look into a tuning cache. The budget is 200 ns and 50 µs.
#include <benchmark/benchmark.h>

#include <array>
#include <cstdint>

#include "fake_registry.hpp"
#include "mixgemm/gemm.hpp"
#include "mixgemm/tuning.hpp"
#include "mixgemm/version.hpp"
#include "select/select.hpp"
#include "tuning/active.hpp"

namespace mixgemm {
namespace {

constexpr std::array<std::array<std::int64_t, 2>, 8> kLayers = {{{6144, 4096},
                                                                 {4096, 4096},
                                                                 {28672, 4096},
                                                                 {4096, 14336},
                                                                 {10240, 8192},
                                                                 {8192, 8192},
                                                                 {57344, 8192},
                                                                 {8192, 28672}}};

/// The i-th of many problems: all layers, M over all magnitudes.
Problem problem(std::uint64_t i, Device device) {
  Problem p;
  p.m = 1 + static_cast<std::int64_t>((i * 2654435761u >> 7) % (std::uint64_t{1} << (i % 14)));
  p.n = kLayers[i % 8][0];
  p.k = kLayers[i % 8][1];
  p.device = device;
  return p;
}

void plan_seen_before(benchmark::State& state) {
  const Problem p = problem(5, Device::cpu);
  for (auto _ : state) benchmark::DoNotOptimize(plan(p));
}
BENCHMARK(plan_seen_before)->ThreadRange(1, 2);

void plan_unseen_on_the_cpu(benchmark::State& state) {
  Problem p = problem(5, Device::cpu);
  for (auto _ : state) {
    p.n = p.n % (1 << 30) + 1;
    benchmark::DoNotOptimize(plan(p));
  }
}
BENCHMARK(plan_unseen_on_the_cpu);

/// What an unseen problem costs on CUDA, but for the driver's answers, which are remembered.
void rank_unseen_on_cuda(benchmark::State& state) {
  static const FakeRegistry registry;
  static const select::KernelIndex index(registry.entries());
  const select::DeviceFacts device = select::h100_facts();
  std::uint64_t i = 0;
  for (auto _ : state) {
    const Problem p = problem(i++, Device::cuda);
    benchmark::DoNotOptimize(select::rank(p, index.kernels(p), device, 6));
  }
  state.counters["kernels"] = static_cast<double>(index.kernels(problem(0, Device::cuda)).size());
}
BENCHMARK(rank_unseen_on_cuda);

/// In a cache of 8 layers × 14 M × 2 types × 5 formats.
void look_into_a_cache(benchmark::State& state) {
  const TuningDevice device = {Device::cuda, "NVIDIA H100 80GB HBM3", 90, 132};
  TuningCache cache;
  for (const auto& [n, k] : kLayers) {
    for (int e = 0; e < 14; ++e) {
      for (const DataType act : {DataType::f16, DataType::bf16}) {
        for (const int group : {0, 16, 32, 64, 128}) {
          TuningEntry entry;
          entry.device = device;
          entry.library = version();
          entry.problem.m = std::int64_t{1} << e;
          entry.problem.n = n, entry.problem.k = k;
          entry.problem.act = act;
          entry.problem.weight.group_size = group;
          entry.problem.device = Device::cuda;
          entry.config = "sm90_f16_i4_g_t128x64x128_coop@g128_c1x1_s4";
          entry.us = 1;
          cache.add(entry);
        }
      }
    }
  }
  if (!set_tuning("off").ok()) state.SkipWithError("set_tuning");
  add_tuning(cache, "a benchmark");
  std::uint64_t i = 0;
  for (auto _ : state) benchmark::DoNotOptimize(tuning::lookup(device, problem(i++, Device::cuda)));
  state.counters["entries"] = static_cast<double>(cache.entries().size());
}
BENCHMARK(look_into_a_cache);

}  // namespace
}  // namespace mixgemm

BENCHMARK_MAIN();
