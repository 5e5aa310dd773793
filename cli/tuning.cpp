// SPDX-License-Identifier: Apache-2.0
// mixgemm tuning: caches as files: merged, compared, checked (docs/tuning.md).
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <set>

#include "command.hpp"
#include "common/statistics.hpp"
#include "mixgemm/gemm.hpp"
#include "mixgemm/tuning.hpp"
#include "mixgemm/version.hpp"

namespace mixgemm::cli {
namespace {

struct TuningOptions {
  std::string action;
  std::vector<std::string> files;
  std::string output;
  double threshold = 5;
  std::optional<double> asked_threshold;
  bool json = false;
};

std::string describe(const Problem& p) {
  return fmt::format("{} {} N={} K={} M={}{}", act_name(p.act), cli::describe(p.weight), p.n, p.k,
                     p.m, p.batch_invariant ? " batch-invariant" : "");
}

int merge(const TuningOptions& options) {
  if (options.output.empty()) {
    throw Error(StatusCode::invalid_argument, "merge must be told where to write, by -o");
  }
  TuningCache all;
  for (const auto& file : options.files) all.merge(TuningCache::load(file).value());
  all.save(options.output).throw_if_error();
  if (options.json) {
    print_json({{"output", options.output}, {"entries", all.entries().size()}});
  } else {
    print(fmt::format("{}: {} entries\n", options.output, all.entries().size()));
  }
  return kExitOk;
}

int diff(const TuningOptions& options) {
  if (options.files.size() != 2) {
    throw Error(StatusCode::invalid_argument,
                fmt::format("diff compares two caches, OLD and NEW; got {}", options.files.size()));
  }
  const auto before = TuningCache::load(options.files[0]).value();
  const auto after = TuningCache::load(options.files[1]).value();
  Table table({"", "problem", "µs before", "after", "ratio", "configuration"});
  Json rows = Json::array();
  const auto show = [&](const char* what, const TuningEntry* a, const TuningEntry* b) {
    const TuningEntry& any = b != nullptr ? *b : *a;
    std::string config = any.config;
    if (a != nullptr && b != nullptr && a->config != b->config) {
      config = a->config + " → " + b->config;
    }
    table.add({what, describe(any.problem), a != nullptr ? fmt::format("{:.2f}", a->us) : "-",
               b != nullptr ? fmt::format("{:.2f}", b->us) : "-",
               a != nullptr && b != nullptr ? fmt::format("{:.3f}", b->us / a->us) : "-", config});
    rows.push_back({{"what", what},
                    {"device", any.device.name},
                    {"problem", describe(any.problem)},
                    {"us_before", a != nullptr ? Json(a->us) : Json()},
                    {"us_after", b != nullptr ? Json(b->us) : Json()},
                    {"config_before", a != nullptr ? Json(a->config) : Json()},
                    {"config_after", b != nullptr ? Json(b->config) : Json()}});
  };
  // Another library's times of a problem are what a diff across versions wants to compare.
  const auto partner = [](const TuningCache& in, const TuningEntry& e) -> const TuningEntry* {
    if (const auto* same = in.find(e.device, e.library, e.problem)) return same;
    for (const TuningEntry& other : in.entries()) {
      if (in.find(e.device, other.library, e.problem) == &other) return &other;
    }
    return nullptr;
  };
  for (const TuningEntry& e : before.entries()) {
    if (partner(after, e) == nullptr) show("gone", &e, nullptr);
  }
  for (const TuningEntry& e : after.entries()) {
    const TuningEntry* old = partner(before, e);
    if (old == nullptr) {
      show("new", nullptr, &e);
      continue;
    }
    const double change = e.us / old->us - 1;
    const double noise = std::max(options.threshold / 100, e.noise + old->noise);
    if (std::abs(change) > noise) {
      show(change > 0 ? "slower" : "faster", old, &e);
    } else if (old->config != e.config) {
      show("changed", old, &e);
    }
  }
  if (options.json) {
    print_json({{"differences", rows}});
  } else if (rows.empty()) {
    print("no difference\n");
  } else {
    print(table.to_string("llrrrl"));
  }
  return kExitOk;
}

int validate(const TuningOptions& options) {
  std::set<std::string> known;
  bool cuda = false;
  for (const auto& kernel : kernels()) {
    known.insert(kernel.id);
    cuda = cuda || kernel.device == Device::cuda;
  }
  Json list = Json::array();
  std::string text;
  for (const auto& file : options.files) {
    const auto cache = TuningCache::load(file).value();
    std::map<std::pair<std::string, std::string>, std::size_t> tables;
    std::size_t foreign = 0, unknown = 0;
    std::vector<double> ratios;  // the cost model's picks ÷ the tuned ones
    for (const TuningEntry& e : cache.entries()) {
      ++tables[{e.device.name, e.library}];
      if (!tuning_is_current(e.library)) ++foreign;
      if (e.model_us > 0) ratios.push_back(e.model_us / e.us);
      // A CPU-only build can't tell which CUDA kernels there are.
      const bool checkable = e.device.device == Device::cpu || cuda;
      if (checkable && known.count(e.config.substr(0, e.config.find('@'))) == 0) ++unknown;
    }
    text += fmt::format("{}: format version {}, {} entries\n", file, kTuningFormatVersion,
                        cache.entries().size());
    for (const auto& [table, count] : tables) {
      text += fmt::format(
          "  {}, library {}: {} entries{}\n", table.first, table.second, count,
          tuning_is_current(table.second) ? "" : fmt::format(", not used: this is {}", version()));
    }
    if (unknown > 0) {
      text += fmt::format("  {} name a kernel that this build doesn't have\n", unknown);
    }
    const double mean = bench::geometric_mean(ratios);
    const double worst = ratios.empty() ? 0 : *std::max_element(ratios.begin(), ratios.end());
    if (!ratios.empty()) {
      text += fmt::format(
          "  time of the cost model's pick ÷ the tuned one: geometric mean {:.3f}, worst {:.2f}, "
          "over {} problems\n",
          mean, worst, ratios.size());
    }
    list.push_back({{"file", file},
                    {"entries", cache.entries().size()},
                    {"model_over_tuned", ratios.empty() ? Json() : Json(mean)},
                    {"model_over_tuned_worst", ratios.empty() ? Json() : Json(worst)},
                    {"foreign", foreign},
                    {"unknown_kernel", unknown}});
  }
  if (options.json) {
    print_json({{"caches", list}});
  } else {
    print(text);
  }
  return kExitOk;
}

int run_tuning(TuningOptions options) {
  if (options.asked_threshold) options.threshold = *options.asked_threshold;
  if (options.action == "merge") return merge(options);
  if (options.action == "diff") return diff(options);
  return validate(options);
}

}  // namespace

void register_tuning(CLI::App& app, Selected& selected) {
  auto options = std::make_shared<TuningOptions>();
  Command command(app, selected, "tuning", "Merge, compare and check tuning caches");
  command.action("action", options->action, {"merge", "diff", "validate"},
                 "merge FILES -o OUT (later ones win), diff OLD NEW, validate FILES");
  command.operands("files", options->files, "Tuning caches");
  command.text("-o,--output", options->output, "merge: the cache to write");
  command.real("--threshold", options->asked_threshold,
               "diff: changes of time to show, per cent, where above the noise [5]");
  command.json(options->json);
  command.runs([=] { return run_tuning(*options); });
}

}  // namespace mixgemm::cli
