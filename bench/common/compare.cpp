// SPDX-License-Identifier: Apache-2.0
// Two files of rows, problem by problem: what became slower, and whether the noise explains it.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "bench_api.hpp"
#include "common/fields.hpp"
#include "common/statistics.hpp"

namespace mixgemm::bench {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kMinNoise = 0.01;

/// What a row measures and where its time stands.
struct Kind {
  const char* name_key;
  const char* us;
  const char* us_min;
  const char* us_max;
};
constexpr Kind kGemm = {"layer", "us", "us_min", "us_max"};
constexpr Kind kChain = {"chain", "chain_us", "chain_us_min", "chain_us_max"};
constexpr Kind kHostCost = {"host_cost", "run_us", "run_us", "run_p90_us"};
const Kind& kind_of(const Json& row) {
  return row.contains("chain") ? kChain : row.contains("host_cost") ? kHostCost : kGemm;
}

double time_of(const Json& row) {
  return flag(row, "ok", true) ? number(row, kind_of(row).us) : -1;
}

/// Half the spread of the repeats, relative to their median.
double noise_of(const Json& row) {
  const Kind& kind = kind_of(row);
  const double us = number(row, kind.us), least = number(row, kind.us_min);
  const double most = number(row, kind.us_max);
  return us > 0 && least > 0 && most > 0 ? (most - least) / (2 * us) : 0;
}

/// What two rows must share to be compared.
std::string key_of(const Json& row) {
  const Kind& kind = kind_of(row);
  const int group = static_cast<int>(number(row, "group"));
  std::string key = fmt::format("{}{}{} M={:.0f} {} {} {}", &kind == &kGemm ? "" : kind.name_key,
                                &kind == &kGemm ? "" : " ", text(row, kind.name_key),
                                number(row, "m"), text(row, "act"), text(row, "weight"),
                                group == 0 ? std::string("per column") : fmt::format("g{}", group));
  if (text(row, "zero") != "none") key += fmt::format(" zero {}", text(row, "zero"));
  if (!flag(row, "pdl", false) && text(row, "device") != "cpu") key += " no PDL";
  if (number(row, "load_ms") > 0) key += fmt::format(" load {:.0f} ms", number(row, "load_ms"));
  if (!flag(row, "auto", false)) key += fmt::format(" {}", text(row, "config"));
  return key;
}

double mean_ratio(const std::vector<std::pair<const Json*, const Json*>>& pairs, const char* key) {
  std::vector<double> ratios;
  for (const auto& [before, after] : pairs) {
    const double a = number(*before, key), b = number(*after, key);
    if (a > 0 && b > 0) ratios.push_back(b / a);
  }
  return geometric_mean(ratios);
}

}  // namespace

Result<std::vector<Json>> load_rows(const std::string& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return Status(errno == ENOENT ? StatusCode::not_found : StatusCode::io_error,
                  fmt::format("{}: {}", path, std::strerror(errno)));
  }
  std::vector<Json> rows;
  int number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    if (line.find_first_not_of(" \t\r") == line.npos) continue;
    Json row = Json::parse(line, nullptr, false);
    if (!row.is_object()) {
      return Status(StatusCode::corrupt_data,
                    fmt::format("{}:{}: a row must be a JSON object", path, number));
    }
    rows.push_back(std::move(row));
  }
  if (file.bad()) return Status(StatusCode::io_error, fmt::format("{}: cannot be read", path));
  return rows;
}

Comparison compare_rows(const std::vector<Json>& before, const std::vector<Json>& after,
                        double threshold) {
  Comparison comparison;
  std::map<std::string, const Json*> old_rows;
  for (const Json& row : before) old_rows[key_of(row)] = &row;
  std::vector<std::pair<const Json*, const Json*>> pairs;
  std::map<std::string, bool> seen;
  std::vector<double> ratios;
  for (const Json& row : after) {
    RowChange change;
    change.problem = key_of(row);
    change.us = time_of(row);
    change.config = text(row, "config");
    const auto found = old_rows.find(change.problem);
    if (found == old_rows.end()) {
      change.verdict = "new";
      comparison.rows.push_back(std::move(change));
      continue;
    }
    seen[change.problem] = true;
    const Json& old = *found->second;
    pairs.emplace_back(&old, &row);
    if (text(old, "gpu") != text(row, "gpu")) comparison.same_device = false;
    change.old_us = time_of(old);
    change.old_config = text(old, "config");
    change.noise = std::max(kMinNoise, noise_of(old) + noise_of(row));
    if (change.us <= 0 || change.old_us <= 0) {
      change.verdict = change.us > 0 ? "fixed" : change.old_us > 0 ? "failed" : "same";
      comparison.failed += change.verdict == "failed";
    } else {
      ratios.push_back(change.ratio());
      const double by = std::max(change.ratio(), 1 / change.ratio()) - 1;
      change.verdict = by <= threshold      ? "same"
                       : by <= change.noise ? "noisy"
                       : change.ratio() > 1 ? "slower"
                                            : "faster";
      comparison.slower += change.verdict == "slower";
      comparison.faster += change.verdict == "faster";
      comparison.noisy += change.verdict == "noisy";
    }
    comparison.rows.push_back(std::move(change));
  }
  for (const auto& [problem, row] : old_rows) {
    if (seen.count(problem) != 0) continue;
    RowChange change;
    change.verdict = "gone";
    change.problem = problem;
    change.old_us = time_of(*row);
    change.old_config = text(*row, "config");
    comparison.rows.push_back(std::move(change));
  }
  comparison.ratio = geometric_mean(ratios);
  comparison.floor_ratio = mean_ratio(pairs, "floor_us");
  comparison.cublas_ratio = mean_ratio(pairs, "cublas_us");
  return comparison;
}

std::string format_comparison(const Comparison& c, double threshold, bool all) {
  constexpr const char* kLine = "{:<8} {:>9} {:>9} {:>7} {:>6}  {:<40} {}\n";
  std::string lines;
  int num_new = 0, num_gone = 0, num_same = 0;
  for (const RowChange& row : c.rows) {
    num_new += row.verdict == "new";
    num_gone += row.verdict == "gone";
    num_same += row.verdict == "same";
    const bool worth_a_line =
        row.verdict != "same" && row.verdict != "new" && row.verdict != "gone";
    if (!worth_a_line && !all) continue;
    const auto time = [](double us) { return us > 0 ? fmt::format("{:.2f}", us) : "-"; };
    const bool both = row.us > 0 && row.old_us > 0;
    const std::string config = both && row.config != row.old_config
                                   ? fmt::format("{} -> {}", row.old_config, row.config)
                               : row.us > 0 ? row.config
                                            : row.old_config;
    lines +=
        fmt::format(fmt::runtime(kLine), row.verdict, time(row.old_us), time(row.us),
                    both ? fmt::format("{:.3f}", row.ratio()) : "-",
                    both ? fmt::format("{:.1f} %", 100 * row.noise) : "-", row.problem, config);
  }
  std::string report;
  if (!lines.empty()) {
    report = fmt::format(fmt::runtime(kLine), "verdict", "us before", "us now", "ratio", "noise",
                         "problem", "configuration") +
             lines;
  }
  report += fmt::format(
      "{} slower, {} faster, {} beyond {:.0f} % within their noise, {} failed, {} the same, {} "
      "new, "
      "{} gone",
      c.slower, c.faster, c.noisy, 100 * threshold, c.failed, num_same, num_new, num_gone);
  if (c.ratio > 0) report += fmt::format("; geometric mean of time {:.3f}", c.ratio);
  if (c.floor_ratio > 0) report += fmt::format(", of the floor {:.3f}", c.floor_ratio);
  if (c.cublas_ratio > 0) report += fmt::format(", of cuBLAS {:.3f}", c.cublas_ratio);
  report += "\n";
  if (!c.same_device) {
    report += "the rows are of different devices: the verdicts are about those, too\n";
  }
  return report;
}

}  // namespace mixgemm::bench
