// SPDX-License-Identifier: Apache-2.0
// cpu_bench [--n N] [--k K] [--m M,M,...] [--weight int4|int8] [--group G] [--zero KIND]
//           [--act f16|bf16] [--threads T] [--seconds S] [--warm]
//
// Times the CPU methods against a dense fp32 product by the machine's BLAS, one JSON row a line.
// Weights rotate through copies of 256 MB in all, so that they come from memory as a model's layers
// do (--warm: one copy). Ours and the BLAS take turns, and the best time of each counts: on a
// machine that others use as well, noise only ever adds. For one row the BLAS may choose sgemv.
#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "bench_api.hpp"
#include "cpu/blas.hpp"
#include "cpu/cpu_gemm.hpp"
#include "host/measure.hpp"
#include "layout/packed.hpp"
#include "util/half.hpp"
#include "util/parallel.hpp"

namespace mixgemm {
namespace {

using SgemvFunction = void (*)(const char* trans, const std::int64_t* m, const std::int64_t* n,
                               const float* alpha, const float* a, const std::int64_t* lda,
                               const float* x, const std::int64_t* incx, const float* beta,
                               float* y, const std::int64_t* incy, std::size_t trans_length);

struct Arguments {
  std::int64_t n = 4096, k = 4096;
  std::vector<std::int64_t> tokens = {1, 2, 4, 8, 16, 64, 512};
  QuantSpec spec;
  DataType act = DataType::f16;
  int threads = 0;
  double seconds = 1.0;  // per method and row
  bool warm = false;
};

template <class Enum>
Enum parse_enum(std::string_view text, int count, const char* option) {
  for (int i = 0; i < count; ++i) {
    if (to_string(static_cast<Enum>(i)) == text) return static_cast<Enum>(i);
  }
  fmt::print(stderr, "cpu_bench: {} doesn't know \"{}\"\n", option, text);
  std::exit(2);
}

Arguments parse(int argc, char** argv) {
  Arguments a;
  for (int i = 1; i < argc; ++i) {
    const std::string_view option = argv[i];
    if (option == "--warm") {
      a.warm = true;
      continue;
    }
    if (i + 1 == argc) {
      fmt::print(stderr, "cpu_bench: {} is unknown or lacks its value\n", option);
      std::exit(2);
    }
    const std::string value = argv[++i];
    if (option == "--n") {
      a.n = std::stoll(value);
    } else if (option == "--k") {
      a.k = std::stoll(value);
    } else if (option == "--m") {
      a.tokens.clear();
      for (std::size_t at = 0; at < value.size();) {
        std::size_t used = 0;
        a.tokens.push_back(std::stoll(value.substr(at), &used));
        at += used + 1;
      }
    } else if (option == "--weight") {
      a.spec.type = parse_enum<WeightType>(value, 2, "--weight");
    } else if (option == "--zero") {
      a.spec.zero = parse_enum<ZeroKind>(value, 3, "--zero");
    } else if (option == "--act") {
      a.act = a.spec.scale_type = parse_enum<DataType>(value, 2, "--act");
    } else if (option == "--group") {
      a.spec.group_size = std::stoi(value);
    } else if (option == "--threads") {
      a.threads = std::stoi(value);
    } else if (option == "--seconds") {
      a.seconds = std::stod(value);
    } else {
      fmt::print(stderr, "cpu_bench: unknown option {}\n", option);
      std::exit(2);
    }
  }
  return a;
}

/// Packed weights of random codes, one behind the other; speed doesn't depend on the values.
struct PackedCopies {
  std::vector<std::uint8_t> codes;
  std::vector<std::uint16_t> scales, scaled_zeros;
  std::vector<std::uint8_t> zeros;
  std::vector<PackedView> views;

  PackedCopies(const Arguments& a, std::mt19937_64& rng) {
    PackedView v;
    v.n = a.n;
    v.k = a.k;
    v.spec = a.spec;
    const int bits = bits_of(a.spec.type);
    v.codes_pitch_bytes = layout::strip_bytes(a.k, bits);
    v.groups_pitch = v.groups();
    const std::int64_t bytes = layout::num_strips(a.n) * v.codes_pitch_bytes;
    const std::int64_t num_scales = layout::num_strips(a.n) * v.groups_pitch * 16;
    const std::int64_t copies = a.warm ? 1 : std::max<std::int64_t>(2, (256 << 20) / bytes);
    codes.resize(static_cast<std::size_t>(bytes * copies));
    for (std::size_t i = 0; i + 8 <= codes.size(); i += 8) {
      const std::uint64_t random = rng();
      std::copy_n(reinterpret_cast<const std::uint8_t*>(&random), 8, codes.data() + i);
    }
    const auto count = static_cast<std::size_t>(num_scales * copies);
    scales.assign(count, bits_from_f32(0.01f, a.spec.scale_type));
    if (a.spec.zero == ZeroKind::integer) {
      zeros.assign(count, static_cast<std::uint8_t>(implicit_zero(a.spec.type)));
    }
    if (a.spec.zero == ZeroKind::scaled) {
      scaled_zeros.assign(count, bits_from_f32(0.08f, a.spec.scale_type));
    }
    for (std::int64_t i = 0; i < copies; ++i) {
      v.codes = codes.data() + i * bytes;
      v.scales = scales.data() + i * num_scales;
      if (!zeros.empty()) v.zeros = zeros.data() + i * num_scales;
      if (!scaled_zeros.empty()) v.zeros = scaled_zeros.data() + i * num_scales;
      views.push_back(v);
    }
  }
};

using Clock = std::chrono::steady_clock;

double us_of(const std::function<void()>& call) {
  const auto begin = Clock::now();
  call();
  return std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
}

/// Best time of each contestant, µs: they take turns, `seconds` each and three turns at least.
std::vector<double> best_us(const std::vector<std::function<void()>>& contestants, double seconds) {
  std::vector<double> best(contestants.size(), std::numeric_limits<double>::infinity());
  for (const auto& call : contestants) call();
  const auto begin = Clock::now();
  const double budget_us = seconds * 1e6 * static_cast<double>(contestants.size());
  for (int turn = 0;
       turn < 3 ||
       std::chrono::duration<double, std::micro>(Clock::now() - begin).count() < budget_us;
       ++turn) {
    for (std::size_t i = 0; i < contestants.size(); ++i) {
      bench::wait_until_idle();
      for (int repeat = 0; repeat < 5; ++repeat) best[i] = std::min(best[i], us_of(contestants[i]));
    }
  }
  return best;
}

int run(const Arguments& a) {
  const cpu::Blas& blas = cpu::blas();
  std::mt19937_64 rng(1);
  const PackedCopies packed(a, rng);
  const auto dense_size = static_cast<std::size_t>(a.n * a.k);
  const std::size_t dense_copies =
      a.warm ? 1 : std::max<std::size_t>(2, (std::size_t{256} << 20) / (4 * dense_size));
  std::vector<float> dense(blas.sgemm ? dense_size * dense_copies : 0);
  for (auto& w : dense) w = static_cast<float>(rng() % 1024) * 1e-4f - 0.05f;
  const auto sgemv =
      blas.library ? reinterpret_cast<SgemvFunction>(dlsym(blas.library, "sgemv_")) : nullptr;

  for (const std::int64_t m : a.tokens) {
    std::vector<std::uint16_t> x(static_cast<std::size_t>(m * a.k)),
        y(static_cast<std::size_t>(m * a.n));
    std::vector<float> x32(x.size()), y32(y.size());
    for (std::size_t i = 0; i < x.size(); ++i) {
      x[i] = bits_from_f32(static_cast<float>(rng() % 2048) * 1e-3f - 1.0f, a.act);
      x32[i] = f32_from_bits(x[i], a.act);
    }
    Problem problem;
    problem.m = m;
    problem.n = a.n;
    problem.k = a.k;
    problem.act = a.act;
    problem.weight = a.spec;
    std::size_t next_packed = 0, next_dense = 0;
    std::vector<float> workspace(std::max(cpu::workspace_bytes(problem, cpu::Method::simd),
                                          cpu::workspace_bytes(problem, cpu::Method::blas)) /
                                     sizeof(float) +
                                 64);
    auto* aligned = reinterpret_cast<void*>(
        (reinterpret_cast<std::uintptr_t>(workspace.data()) + 255) & ~std::uintptr_t{255});
    const auto ours = [&](cpu::Method method) {
      RunArgs args;
      args.x = x.data();
      args.ldx = a.k;
      args.y = y.data();
      args.ldy = a.n;
      args.workspace = aligned;
      args.weight = packed.views[next_packed++ % packed.views.size()];
      if (!cpu::gemm(problem, args, method, a.threads)) std::abort();
    };
    std::vector<std::function<void()>> contestants = {[&] { ours(cpu::Method::simd); }};
    if (blas.sgemm) {
      contestants.emplace_back([&] { ours(cpu::Method::blas); });
      contestants.emplace_back([&] {
        const float one = 1.0f, zero = 0.0f;
        const float* w = dense.data() + next_dense++ % dense_copies * dense_size;
        blas.sgemm("T", "N", &a.n, &m, &a.k, &one, w, &a.k, x32.data(), &a.k, &zero, y32.data(),
                   &a.n, 1, 1);
      });
    }
    if (sgemv && m == 1) {
      contestants.emplace_back([&] {
        const float one = 1.0f, zero = 0.0f;
        const std::int64_t step = 1;
        const float* w = dense.data() + next_dense++ % dense_copies * dense_size;
        sgemv("T", &a.k, &a.n, &one, w, &a.k, x32.data(), &step, &zero, y32.data(), &step, 1);
      });
    }
    const std::vector<double> us = best_us(contestants, a.seconds);

    const cpu::Method chosen = cpu::choose(problem);
    nlohmann::ordered_json row;
    row["m"] = m;
    row["n"] = a.n;
    row["k"] = a.k;
    row["act"] = to_string(a.act);
    row["weight"] = to_string(a.spec.type);
    row["group"] = a.spec.group_size;
    row["zero"] = to_string(a.spec.zero);
    row["simd"] = cpu::simd_target();
    row["blas"] = cpu::blas_description();
    row["threads"] = a.threads ? a.threads : default_num_threads();
    row["warm"] = a.warm;
    row["method"] = cpu::to_string(chosen);
    const double chosen_us = chosen == cpu::Method::simd ? us[0] : us[1];
    row["us"] = chosen_us;
    row["simd_us"] = us[0];
    if (blas.sgemm) {
      const double dense_us = *std::min_element(us.begin() + 2, us.end());
      row["panels_us"] = us[1];
      row["dense_blas_us"] = dense_us;
      row["speedup"] = dense_us / chosen_us;
    }
    row["gflops"] = 2e-3 * static_cast<double>(m * a.n * a.k) / chosen_us;
    row["commit"] = bench::commit();
    fmt::print("{}\n", row.dump());
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace
}  // namespace mixgemm

int main(int argc, char** argv) { return mixgemm::run(mixgemm::parse(argc, argv)); }
