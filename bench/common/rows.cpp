// SPDX-License-Identifier: Apache-2.0
// Rows of bench/results, and the table for a person.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "bench_api.hpp"
#include "commit.hpp"
#include "layout/packed.hpp"

namespace mixgemm::bench {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kGemmLine =
    "{:<18} {:>5} {:>5} {:>9} {:>8} {:>8} {:>7} {:>7} {:>7} {:>9}  {}\n";
constexpr const char* kChainLine = "{:<18} {:>5} {:>5} {:>4} {:>9} {:>8}  {}\n";
constexpr const char* kHostCostLine = "{:<18} {:>5} {:>5} {:>8} {:>8} {:>9} {:>8}  {}\n";

/// Three decimals for times and rates: below the noise of any measurement here.
Json rounded(double value, double unit = 1e-3) {
  if (value < 0 || !std::isfinite(value)) return nullptr;
  return std::round(value / unit) * unit;
}

/// Errors span decades, so they keep four significant digits instead.
Json significant(double value) {
  if (value < 0 || !std::isfinite(value)) return nullptr;
  return std::stod(fmt::format("{:.4g}", value));
}

std::string cell(const Json& row, const char* key, const char* format) {
  const auto found = row.find(key);
  if (found == row.end() || !found->is_number()) return "-";
  return fmt::format(fmt::runtime(format), found->get<double>());
}

std::string ratio(const Json& row, const char* numerator, const char* denominator) {
  const auto a = row.find(numerator), b = row.find(denominator);
  if (a == row.end() || b == row.end() || !a->is_number() || !b->is_number()) return "-";
  return fmt::format("{:.2f}", a->get<double>() / b->get<double>());
}

}  // namespace

std::string_view act_name(DataType act) { return act == DataType::bf16 ? "bf16" : "fp16"; }

double code_bytes(std::int64_t n, std::int64_t k, WeightType weight) {
  return static_cast<double>(layout::num_strips(n)) *
         static_cast<double>(layout::strip_bytes(k, bits_of(weight)));
}

double bytes_moved(std::int64_t m, std::int64_t n, std::int64_t k, const QuantSpec& spec) {
  const double groups = static_cast<double>(num_groups(k, spec.group_size)) * 2 *
                        static_cast<double>(layout::num_strips(n)) * layout::kStripRows;
  return code_bytes(n, k, spec.type) + groups * (spec.zero == ZeroKind::none ? 1 : 2) +
         2.0 * static_cast<double>(m) * (static_cast<double>(k) + static_cast<double>(n));
}

double ideal_us(std::int64_t m, std::int64_t n, std::int64_t k, double floor_us) {
  const double flops =
      2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  return std::max(floor_us, flops / (kPeakTflops * 1e6));
}

std::string_view commit() { return kCommit; }

Json to_json(const GemmRow& row) {
  Json json;
  const bool timed = row.us > 0;
  const double flops =
      2.0 * static_cast<double>(row.m) * static_cast<double>(row.n) * static_cast<double>(row.k);
  json["gpu"] = row.gpu;
  json["kernel"] = row.kernel;
  json["config"] = row.config;
  json["auto"] = row.is_auto;
  json["act"] = act_name(row.act);
  json["weight"] = to_string(row.spec.type);
  json["group"] = row.spec.group_size;
  json["zero"] = to_string(row.spec.zero);
  json["pdl"] = row.pdl;
  json["m"] = row.m;
  json["n"] = row.n;
  json["k"] = row.k;
  json["layer"] = row.layer;
  json["us"] = rounded(timed ? row.us : -1);
  json["tflops"] = rounded(timed ? flops / row.us * 1e-6 : -1);
  json["gbps"] =
      rounded(timed ? bytes_moved(row.m, row.n, row.k, row.spec) / row.us * 1e-3 : -1, 0.1);
  json["floor_us"] = rounded(row.floor_us);
  json["cublas_us"] = rounded(row.cublas_us);
  json["ideal_us"] = rounded(row.ideal_us);
  json["rel_err"] = significant(row.rel_err);
  json["rel_err_cublas"] = significant(row.rel_err_cublas);
  json["clock_mhz"] = rounded(row.clock_mhz, 1);
  json["commit"] = commit();
  json["ok"] = row.ok;
  if (!row.error.empty()) json["error"] = row.error;
  return json;
}

std::string format_table(const std::vector<Json>& rows) {
  std::string gemms, chains, host_costs;
  for (const Json& row : rows) {
    std::string what = row.value("config", "");
    if (!row.value("ok", true)) {
      what = fmt::format("FAILED {}: {}", what, row.value("error", "error contract broken"));
    }
    if (row.contains("chain")) {
      chains +=
          fmt::format(fmt::runtime(kChainLine), row.value("chain", ""), cell(row, "m", "{:.0f}"),
                      row.value("act", ""), row.value("pdl", false) ? "on" : "off",
                      cell(row, "chain_us", "{:.2f}"), cell(row, "ratio", "{:.2f}"), what);
    } else if (row.contains("host_cost")) {
      host_costs += fmt::format(
          fmt::runtime(kHostCostLine), row.value("host_cost", ""), cell(row, "m", "{:.0f}"),
          row.value("act", ""), cell(row, "run_us", "{:.2f}"), cell(row, "run_p90_us", "{:.2f}"),
          cell(row, "empty_launch_us", "{:.2f}"), cell(row, "plan_us", "{:.2f}"), what);
    } else {
      gemms += fmt::format(
          fmt::runtime(kGemmLine), row.value("layer", ""), cell(row, "m", "{:.0f}"),
          row.value("act", ""), cell(row, "us", "{:.2f}"), cell(row, "tflops", "{:.1f}"),
          cell(row, "gbps", "{:.0f}"), ratio(row, "us", "ideal_us"), ratio(row, "us", "floor_us"),
          ratio(row, "us", "cublas_us"), cell(row, "rel_err", "{:.2e}"), what);
    }
  }
  if (!gemms.empty()) {
    gemms = fmt::format(fmt::runtime(kGemmLine), "layer", "M", "act", "us", "TFLOP/s", "GB/s",
                        "/ideal", "/floor", "/cublas", "rel_err", "configuration") +
            gemms;
  }
  if (!chains.empty()) {
    chains = fmt::format(fmt::runtime(kChainLine), "chain", "M", "act", "pdl", "us", "/floors",
                         "configurations") +
             chains;
  }
  if (!host_costs.empty()) {
    host_costs = fmt::format(fmt::runtime(kHostCostLine), "host cost of", "M", "act", "run us",
                             "90 % us", "empty us", "plan us", "configuration") +
                 host_costs;
  }
  return gemms + chains + host_costs;
}

}  // namespace mixgemm::bench
