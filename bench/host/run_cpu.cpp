// SPDX-License-Identifier: Apache-2.0
// The protocol's rows for the CPU backend.
#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "bench_api.hpp"
#include "host/cpu_layer.hpp"
#include "util/parallel.hpp"

namespace mixgemm::bench {
namespace {

/// Kernels to measure: the one that was asked for, or the plan's own choice (an empty name), and
/// with all_configs every other.
std::vector<std::string> choices(const Options& options) {
  if (!options.all_configs) return {options.kernel};
  std::vector<std::string> ids = {""};
  for (const auto& kernel : kernels()) {
    if (kernel.device == Device::cpu) ids.push_back(kernel.id);
  }
  return ids;
}

nlohmann::ordered_json row_of(const CpuLayer& layer, const Shape& shape,
                              const CpuLayer::Measured& measured, bool is_auto, int num_threads) {
  const Problem& problem = measured.plan.problem();
  const double us = measured.us.median;
  const auto thousandths = [](double value) { return std::round(1e3 * value) * 1e-3; };
  GemmRow row;
  const DeviceInfo processor = devices().front();
  row.gpu = processor.name;
  row.kernel = measured.plan.kernel_id();
  row.config = measured.plan.config_id();
  row.is_auto = is_auto;
  row.act = problem.act;
  row.spec = problem.weight;
  row.m = problem.m;
  row.n = problem.n;
  row.k = problem.k;
  row.layer = shape.layer;
  row.us = us;
  row.floor_us = layer.floor_us();
  row.rel_err = measured.rel_err;
  row.clock_mhz = processor.clock_mhz > 0 ? processor.clock_mhz : -1;
  row.ok = measured.rel_err <= CpuLayer::kMaxError;
  if (!row.ok) {
    row.error = fmt::format("relative error must be at most {}; got {}", CpuLayer::kMaxError,
                            measured.rel_err);
  }
  nlohmann::ordered_json json = to_json(row);
  json["us_min"] = thousandths(measured.us.min);
  json["us_max"] = thousandths(measured.us.max);
  json["device"] = "cpu";
  json["threads"] = num_threads > 0 ? num_threads : default_num_threads();
  json["bits_per_weight"] = layer.bits_per_weight();
  if (layer.blas()) {
    json["blas"] = layer.blas()->name();
    json["blas_f32_us"] = thousandths(measured.blas_us);
    json["speedup_over_blas"] = thousandths(measured.blas_us / us);
  }
  return json;
}

}  // namespace

Result<Summary> run_cpu(const Options& options, const Callbacks& callbacks) {
  if (options.mode != Mode::gemm) {
    return Status(StatusCode::unsupported, "mode must be gemm on the CPU; got another");
  }
  if (options.load_ms != 0) {
    return Status(StatusCode::invalid_argument,
                  fmt::format("load_ms must be 0 on the CPU; got {}", options.load_ms));
  }
  const auto& shapes = options.shapes.empty() ? default_shapes() : options.shapes;
  // Few token counts: large ones take seconds a call here.
  const auto tokens =
      options.tokens.empty() ? std::vector<std::int64_t>{1, 8, 64, 512} : options.tokens;
  Summary summary;
  double done = 0.0;
  const auto total = static_cast<double>(shapes.size() * options.acts.size() * tokens.size());
  const auto report = [&](const std::string& what) {
    if (callbacks.progress) callbacks.progress(done / total, what);
  };
  for (const Shape& shape : shapes) {
    for (const DataType act : options.acts) {
      const QuantSpec spec = {.type = options.weight,
                              .zero = options.zero,
                              .group_size = options.group,
                              .scale_type = act};
      CpuLayer layer(shape, spec, options.num_threads, options.baselines);
      report(fmt::format("{}: packing", shape.layer));
      if (Status status = layer.prepare(); !status.ok()) return status;
      for (const std::int64_t m : tokens) {
        report(fmt::format("{} M={}", shape.layer, m));
        for (const std::string& kernel : choices(options)) {
          const auto measured = layer.measure(m, kernel, CpuLayer::kSamples);
          // Among all kernels there are some that this problem or this machine doesn't allow.
          if (!measured.ok() && options.all_configs && !kernel.empty()) continue;
          if (!measured.ok()) return measured.status();
          const auto row = row_of(layer, shape, *measured, kernel.empty(), options.num_threads);
          ++summary.rows;
          if (!row.at("ok").get<bool>()) ++summary.failed;
          if (callbacks.row) callbacks.row(row);
        }
        done += 1.0;
      }
    }
  }
  return summary;
}

}  // namespace mixgemm::bench
