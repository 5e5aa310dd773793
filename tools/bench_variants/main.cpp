// SPDX-License-Identifier: Apache-2.0
// bench_variants: times every (kernel, launch) of a grid on some layers, checked, and prints the
// best of each problem beside what the plan picks. For tuning: screening times are short, so quote
// none of them; `mixgemm bench` measures what is quoted.
//
//   bench_variants --m 16,64 --layer llama8b.o --kernel '*_t128x64x*' --cluster 1x1,1x1x2 --stages
//   0,4
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "gpu/configurations.hpp"
#include "gpu/gemm_bench.hpp"

namespace mixgemm::bench {
namespace {

using Json = nlohmann::ordered_json;

struct Arguments {
  std::string shapes_file;
  std::vector<std::string> layers;
  std::vector<std::int64_t> tokens = {1, 16, 64, 256};
  std::string act = "fp16", weight = "int4", zero = "none";
  int group = 128;
  std::string pdl = "on";
  std::string kernel;
  std::vector<std::string> configs;
  int rounds = 1;
  std::vector<std::string> clusters;
  std::vector<int> stages, splits, rasters;
  bool stream_k = false;
  bool one_pass = false;
  int finalists = 3;
  std::size_t top = 5;
  double timeout_s = 30;
  bool baselines = false;
  std::string output;
};

LaunchGrid grid_of(const Arguments& arguments) {
  LaunchGrid grid;
  if (!arguments.clusters.empty()) {
    grid.clusters.clear();
    for (const std::string& text : arguments.clusters) grid.clusters.push_back(parse_cluster(text));
  }
  if (!arguments.stages.empty()) grid.stages = arguments.stages;
  if (!arguments.splits.empty()) grid.splits = arguments.splits;
  if (!arguments.rasters.empty()) grid.rasters = arguments.rasters;
  if (arguments.stream_k) grid.stream_k = {false, true};
  if (arguments.one_pass) grid.one_pass = {false, true};
  return grid;
}

std::vector<Shape> shapes_of(const Arguments& arguments) {
  const std::vector<Shape> all =
      arguments.shapes_file.empty() ? default_shapes() : load_shapes(arguments.shapes_file).value();
  if (arguments.layers.empty()) return all;
  std::vector<Shape> chosen;
  for (const std::string& name : arguments.layers) {
    const auto found = std::find_if(all.begin(), all.end(),
                                    [&](const Shape& shape) { return shape.layer == name; });
    if (found == all.end()) {
      throw Error(StatusCode::not_found, fmt::format("no layer named \"{}\"", name));
    }
    chosen.push_back(*found);
  }
  return chosen;
}

std::string line_of(const Json& row) {
  if (!row["ok"].get<bool>()) {
    return fmt::format("  FAILED     {}: {}", row["config"].get<std::string>(),
                       row["error"].get<std::string>());
  }
  const double us = row["us"], ideal = row["ideal_us"], floor = row["floor_us"];
  return fmt::format("  {:9.2f} us  /ideal {:5.2f}  /floor {:6.2f}  {}", us, us / ideal, us / floor,
                     row["config"].get<std::string>());
}

/// One problem, these configurations and no others, measured in full in turns; prints the fastest
/// time of each. Returns failures.
int compare(GemmBench& bench, const Arguments& arguments, const Shape& shape, std::int64_t m,
            const std::function<void(const Json&)>& keep) {
  std::vector<Json> best(arguments.configs.size());
  int failed = 0;
  for (int round = 0; round < arguments.rounds; ++round) {
    for (std::size_t i = 0; i < best.size(); ++i) {
      Json row =
          bench.measure({.m = m, .kernel = arguments.configs[i], .pdl = arguments.pdl == "on"});
      row["round"] = round;
      keep(row);
      const bool ok = row["ok"].get<bool>();
      if (!ok) ++failed;
      if (round == 0 || !ok || (best[i]["ok"].get<bool>() && row["us"] < best[i]["us"])) {
        best[i] = std::move(row);
      }
    }
  }
  fmt::print("{} {} M={}: {} rounds\n", shape.layer, arguments.act, m, arguments.rounds);
  for (const Json& row : best) fmt::print("{}\n", line_of(row));
  std::fflush(stdout);
  return failed;
}

/// One problem: the plan's pick, the sweep, the finalists measured in full. Returns failures.
int sweep(GemmBench& bench, const Arguments& arguments, const Shape& shape, std::int64_t m,
          const std::function<void(const Json&)>& keep) {
  Measurement what{.m = m, .pdl = arguments.pdl == "on"};
  const Json picked = bench.measure(what);
  keep(picked);

  const bool has_grid = !arguments.clusters.empty() || !arguments.stages.empty() ||
                        !arguments.splits.empty() || !arguments.rasters.empty() ||
                        arguments.stream_k || arguments.one_pass;
  const LaunchGrid grid = grid_of(arguments);
  const auto ids = configurations(bench.problem(m), arguments.kernel, has_grid ? &grid : nullptr);
  std::vector<Json> good, failed;
  what.protocol = kScreening;
  for (const std::string& id : ids) {
    what.kernel = id;
    Json row = bench.measure(what);
    row["protocol"] = "screening";
    keep(row);
    (row["ok"].get<bool>() ? good : failed).push_back(std::move(row));
  }
  const auto faster = [](const Json& a, const Json& b) {
    return a["us"].get<double>() < b["us"].get<double>();
  };
  std::sort(good.begin(), good.end(), faster);
  const std::size_t finalists =
      std::min(good.size(), static_cast<std::size_t>(arguments.finalists));
  what.protocol = {};
  for (std::size_t i = 0; i < finalists; ++i) {
    what.kernel = good[i]["config"].get<std::string>();
    Json row = bench.measure(what);
    keep(row);
    if (row["ok"].get<bool>()) good[i] = std::move(row);
  }
  std::sort(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(finalists), faster);

  fmt::print("{} {} M={}: {} configurations, {} failed; the plan picks\n{}\n", shape.layer,
             arguments.act, m, ids.size(), failed.size(), line_of(picked));
  for (std::size_t i = 0; i < std::min(good.size(), arguments.top); ++i) {
    fmt::print("{}{}\n", line_of(good[i]), i < finalists ? "" : "  (screened)");
  }
  for (std::size_t i = 0; i < std::min(failed.size(), arguments.top); ++i) {
    fmt::print("{}\n", line_of(failed[i]));
  }
  std::fflush(stdout);
  return static_cast<int>(failed.size()) + (picked["ok"].get<bool>() ? 0 : 1);
}

int run(const Arguments& arguments) {
  std::ofstream file;
  if (!arguments.output.empty()) {
    file.open(arguments.output, std::ios::app);
    if (!file) throw Error(StatusCode::io_error, fmt::format("cannot write {}", arguments.output));
  }
  const auto keep = [&](const Json& row) {
    if (file.is_open()) file << row.dump() << std::endl;  // flushed: a hang ends the process
  };
  const std::vector<Shape> shapes = shapes_of(arguments);
  GemmBench bench(arguments.timeout_s, arguments.baselines, [&](const Json& row) {
    keep(row);
    fmt::print("{}\n", line_of(row));
  });
  QuantSpec spec;
  spec.type = arguments.weight == "int8" ? WeightType::int8 : WeightType::int4;
  spec.zero = arguments.zero == "integer"  ? ZeroKind::integer
              : arguments.zero == "scaled" ? ZeroKind::scaled
                                           : ZeroKind::none;
  spec.group_size = arguments.group;
  spec.scale_type = arguments.act == "bf16" ? DataType::bf16 : DataType::f16;
  const std::int64_t max_m = *std::max_element(arguments.tokens.begin(), arguments.tokens.end());
  int failed = 0;
  for (const Shape& shape : shapes) {
    bench.load(shape, spec, max_m);
    const auto& measure = arguments.configs.empty() ? sweep : compare;
    for (const std::int64_t m : arguments.tokens) {
      failed += measure(bench, arguments, shape, m, keep);
    }
  }
  return failed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace mixgemm::bench

int main(int argc, char** argv) {
  mixgemm::bench::Arguments arguments;
  CLI::App app("Times (kernel x launch) grids on a GPU and checks every result.");
  app.add_option("--shapes", arguments.shapes_file,
                 "file like bench/shapes.json; default: built in");
  app.add_option("--layer", arguments.layers, "layers by name; default: all")->delimiter(',');
  app.add_option("--m", arguments.tokens, "token counts")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--act", arguments.act)->check(CLI::IsMember({"fp16", "bf16"}));
  app.add_option("--weight", arguments.weight)->check(CLI::IsMember({"int4", "int8"}));
  app.add_option("--group", arguments.group, "0 = per column")
      ->check(CLI::IsMember({0, 16, 32, 64, 128}));
  app.add_option("--zero", arguments.zero)->check(CLI::IsMember({"none", "integer", "scaled"}));
  app.add_option("--pdl", arguments.pdl)->check(CLI::IsMember({"on", "off"}));
  app.add_option("--kernel", arguments.kernel, "kernel ids, with shell wildcards; default: all");
  CLI::Option* const configs =
      app.add_option("--config", arguments.configs,
                     "configuration ids: these alone, each in full, instead of a sweep")
          ->delimiter(',');
  app.add_option("--rounds", arguments.rounds, "with --config: how often, in turns")
      ->needs(configs)
      ->check(CLI::PositiveNumber);
  app.add_option("--cluster", arguments.clusters, "NxM or NxMxK, e.g. 1x1,2x1,1x1x4")
      ->delimiter(',');
  app.add_option("--stages", arguments.stages, "ring depths; 0 = the deepest that fits")
      ->delimiter(',');
  app.add_option("--split", arguments.splits, "split_k, e.g. 1,2,4")->delimiter(',');
  app.add_option("--raster", arguments.rasters, "token tiles in a raster band")->delimiter(',');
  app.add_flag("--stream-k", arguments.stream_k, "with and without stream_k");
  app.add_flag("--one-pass", arguments.one_pass, "streaming: with and without one_pass");
  app.add_option("--finalists", arguments.finalists, "how many are measured in full")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--top", arguments.top, "how many to print");
  app.add_option("--timeout", arguments.timeout_s, "seconds for one measurement; 0 = none");
  app.add_flag("--baselines", arguments.baselines, "time cuBLASLt, too");
  app.add_option("-o,--output", arguments.output, "append all rows, one JSON object a line");
  app.footer(
      "Without --cluster, --stages, --split, --raster and --stream-k: the launches that the "
      "plan considers.");
  for (const char* const of_sweeps : {"--kernel", "--cluster", "--stages", "--split", "--raster",
                                      "--stream-k", "--one-pass", "--finalists", "--top"}) {
    configs->excludes(app.get_option(of_sweeps));
  }
  CLI11_PARSE(app, argc, argv);
  try {
    return mixgemm::bench::run(arguments);
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_variants: {}\n", error.what());
    return 2;
  }
}
