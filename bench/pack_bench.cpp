// SPDX-License-Identifier: Apache-2.0
// Throughput of pack, unpack and quantize on one core, over a 4096 × 4096 layer. "source" counts
// the 2 bytes a weight has as fp16, the unit in which packing is asked to reach 1 GB/s per core;
// "extra_KB" is the memory that quantizing takes beside its input and its result.
#include <benchmark/benchmark.h>
#include <malloc.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "mixgemm/weight.hpp"

namespace {

using namespace mixgemm;

constexpr std::int64_t kRows = 4096;
constexpr std::int64_t kColumns = 4096;

/// Weights as fp16 bits: random signs and mantissas between 2^-7 and 2^-4.
const std::vector<std::uint16_t>& dense() {
  static const std::vector<std::uint16_t> weights = [] {
    std::mt19937 rng(1);
    std::vector<std::uint16_t> w(kRows * kColumns);
    for (auto& bits : w) bits = static_cast<std::uint16_t>((rng() & 0x8fff) | 0x2000);
    return w;
  }();
  return weights;
}

QuantSpec spec_of(const benchmark::State& state) {
  return {state.range(0) == 4 ? WeightType::int4 : WeightType::int8,
          state.range(2) != 0 ? ZeroKind::integer : ZeroKind::none,
          static_cast<int>(state.range(1)), DataType::f16};
}

QuantizeOptions options_of(const benchmark::State& state, bool search_clip) {
  QuantizeOptions options;
  options.spec = spec_of(state);
  options.search_clip = search_clip;
  options.num_threads = 1;
  return options;
}

CanonicalWeight canonical(const benchmark::State& state) {
  return quantize(dense().data(), DataType::f16, kRows, kColumns, kColumns,
                  options_of(state, false))
      .value();
}

void report(benchmark::State& state) {
  state.SetItemsProcessed(state.iterations() * kRows * kColumns);
  state.counters["source"] = benchmark::Counter(
      static_cast<double>(state.iterations() * kRows * kColumns) * sizeof(std::uint16_t),
      benchmark::Counter::kIsRate, benchmark::Counter::kIs1000);
}

void pack_codes(benchmark::State& state) {
  const CanonicalWeight weight = canonical(state);
  for (auto _ : state) benchmark::DoNotOptimize(pack(weight, 1).value().view().codes);
  report(state);
}

void unpack_codes(benchmark::State& state) {
  const PackedWeight packed = pack(canonical(state)).value();
  for (auto _ : state) benchmark::DoNotOptimize(unpack(packed.view(), 1).value().codes.data());
  report(state);
}

/// Bytes that malloc has handed out.
std::size_t allocated() {
  const struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
}

/// Peak of what quantizing and packing has allocated, less the result.
std::size_t extra_bytes(QuantizeOptions options) {
  const std::size_t before = allocated();
  std::size_t peak = before;
  options.progress = [&](double) { peak = std::max(peak, allocated()); };
  const auto packed =
      quantize_packed(dense().data(), DataType::f16, kRows, kColumns, kColumns, options).value();
  return peak - before - packed.size_bytes();
}

void quantize_codes(benchmark::State& state) {
  const QuantizeOptions options = options_of(state, state.range(3) != 0);
  dense();  // made before anything is measured
  state.counters["extra_KB"] = static_cast<double>(extra_bytes(options)) / 1024.0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(
        quantize_packed(dense().data(), DataType::f16, kRows, kColumns, kColumns, options)
            .value()
            .view()
            .codes);
  }
  report(state);
}

BENCHMARK(pack_codes)
    ->ArgNames({"bits", "group", "zeros"})
    ->ArgsProduct({{4, 8}, {16, 128}, {0, 1}});
BENCHMARK(unpack_codes)
    ->ArgNames({"bits", "group", "zeros"})
    ->ArgsProduct({{4, 8}, {16, 128}, {0, 1}});
BENCHMARK(quantize_codes)
    ->ArgNames({"bits", "group", "zeros", "search"})
    ->ArgsProduct({{4, 8}, {128}, {0, 1}, {0, 1}})
    ->Unit(benchmark::kMillisecond);

}  // namespace

BENCHMARK_MAIN();
