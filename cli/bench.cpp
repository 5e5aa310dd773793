// SPDX-License-Identifier: Apache-2.0
// mixgemm bench: measures layers and writes one JSON row a line (docs/measurement.md).
#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <memory>
#include <optional>

#include "bench_api.hpp"
#include "command.hpp"
#include "layers.hpp"

namespace mixgemm::cli {
namespace {

struct BenchOptions {
  bench::Options bench;
  std::string mode = "gemm";
  std::string shapes;
  std::vector<std::string> layers;
  std::vector<std::string> acts = {"fp16"};
  QuantSpec spec;
  std::optional<Device> device;
  std::string pdl = "on";
  bool no_baselines = false;
  std::string output;
  std::string compare, rows;
  std::optional<double> threshold;
  bool json = false;
};

/// Appends rows as they come, so that an interrupted run keeps what it measured.
class RowFile {
 public:
  explicit RowFile(const std::string& path) : path_(path) {
    if (path_.empty()) return;
    errno = 0;
    file_.open(path_, std::ios::app);
    check();
  }
  void append(const std::string& row) {
    if (path_.empty()) return;
    errno = 0;
    file_ << row << '\n' << std::flush;
    check();
  }

 private:
  void check() const {
    if (file_) return;
    throw Error(StatusCode::io_error,
                fmt::format("cannot write {}: {}", path_, std::strerror(errno)));
  }

  std::string path_;
  std::ofstream file_;
};

/// CPU rows for a person: the dense product that stands beside them is fp32.
std::string cpu_table(const std::vector<Json>& rows) {
  Table table({"layer", "M", "N", "K", "act", "µs", "read W µs", "fp32 BLAS µs", "speed-up",
               "rel. error", "configuration"});
  const auto number = [](const Json& row, const char* key, const char* format) {
    return row.contains(key) && row[key].is_number()
               ? fmt::format(fmt::runtime(format), row[key].get<double>())
               : std::string("-");
  };
  for (const Json& row : rows) {
    table.add({row["layer"].get<std::string>(), row["m"].dump(), row["n"].dump(), row["k"].dump(),
               row["act"].get<std::string>(), number(row, "us", "{:.1f}"),
               number(row, "floor_us", "{:.1f}"), number(row, "blas_f32_us", "{:.1f}"),
               number(row, "speedup_over_blas", "{:.2f}×"), number(row, "rel_err", "{:.1e}"),
               (row["ok"].get<bool>() ? "" : "FAILED ") + row["config"].get<std::string>()});
  }
  return table.to_string("lrrrlrrrrrl");
}

/// Prints how `rows` stand to those of the file; the exit code says whether any is slower.
int compare(const BenchOptions& options, const std::vector<Json>& rows) {
  const double threshold = options.threshold.value_or(5) / 100;
  const auto before = bench::load_rows(options.compare).value();
  const auto comparison = bench::compare_rows(before, rows, threshold);
  if (options.json) {
    for (const auto& row : comparison.rows) {
      const auto time = [](double us) { return us > 0 ? Json(us) : Json(); };
      const Json json = {{"verdict", row.verdict},     {"problem", row.problem},
                         {"old_us", time(row.old_us)}, {"us", time(row.us)},
                         {"noise", row.noise},         {"old_config", row.old_config},
                         {"config", row.config}};
      print(json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
    }
  } else {
    print(bench::format_comparison(comparison, threshold, options.rows.empty()));
  }
  return comparison.slower + comparison.failed > 0 ? kExitMismatch : kExitOk;
}

int run_bench(BenchOptions options) {
  if (!options.rows.empty()) {
    if (options.compare.empty()) {
      throw Error(StatusCode::invalid_argument,
                  "--rows needs --compare, the rows to hold it against");
    }
    return compare(options, bench::load_rows(options.rows).value());
  }
  bench::Options& wanted = options.bench;
  wanted.mode = options.mode == "chain"       ? bench::Mode::chain
                : options.mode == "host-cost" ? bench::Mode::host_cost
                                              : bench::Mode::gemm;
  wanted.shapes = select_shapes(options.shapes, options.layers);
  wanted.acts = parse_acts(options.acts);
  wanted.weight = options.spec.type;
  wanted.group = options.spec.group_size;
  wanted.zero = options.spec.zero;
  wanted.pdl = options.pdl == "on";
  wanted.baselines = !options.no_baselines;

  RowFile file(options.output);
  ProgressLine progress;
  std::vector<Json> rows;
  bench::Callbacks callbacks;
  callbacks.progress = [&](double fraction, std::string_view what) {
    progress.update(fraction, std::string(what));
  };
  callbacks.row = [&](const Json& row) {
    // Layer names come from a file and may be any bytes.
    const std::string line = row.dump(-1, ' ', false, Json::error_handler_t::replace);
    file.append(line);
    progress.clear();
    if (options.json) print(line + "\n");
    rows.push_back(row);
  };
  const Device device = device_or_default(options.device);
  const bench::Summary summary = (device == Device::cuda ? bench::run_cuda(wanted, callbacks)
                                                         : bench::run_cpu(wanted, callbacks))
                                     .value();
  progress.clear();
  if (!options.json) {
    print(device == Device::cuda ? bench::format_table(rows) : cpu_table(rows));
  }
  if (summary.failed == 0) return options.compare.empty() ? kExitOk : compare(options, rows);
  throw Error(StatusCode::internal,
              fmt::format("{} of {} rows failed; they carry \"ok\": false and the reason",
                          summary.failed, summary.rows));
}

}  // namespace

void register_bench(CLI::App& app, Selected& selected) {
  auto options = std::make_shared<BenchOptions>();
  Command command(app, selected, "bench",
                  "Time layers of well-known models, with cold weights, beside a dense product");
  command.choice(
      "--mode", options->mode, {"gemm", "chain", "host-cost"},
      "gemm: each layer and M by itself; cuda only: chain of a decoder layer's products, "
      "host-cost of one call [gemm]");
  command.text("--shapes", options->shapes,
               "Layers to measure, as JSON like bench/shapes.json [that file's eight]");
  command.texts("--layer", options->layers, "Only these layers, by name");
  command.integers("--m", options->bench.tokens, 1, 1 << 20,
                   "Tokens, e.g. 1,16,512 [cpu: 1,8,64,512; cuda: 1,2,4, … 8192]");
  command.texts("--act", options->acts, "Activation types: fp16, bf16 or both [fp16]");
  command.quant_spec(options->spec);
  command.device(options->device);
  command.text("--kernel", options->bench.kernel,
               "A kernel or configuration id instead of the plan's choice");
  command.flag("--all-configs", options->bench.all_configs,
               "Every legal configuration instead of the plan's choice");
  command.choice("--pdl", options->pdl, {"on", "off"},
                 "cuda: programmatic dependent launch, on or off [on]");
  command.integer(
      "--load-ms", options->bench.load_ms, 0, 10000,
      "cuda: keep the GPU under each launch's load so long before timing it, for clocks "
      "as in steady work [0: from rest]");
  command.flag("--no-baselines", options->no_baselines, "Don't time the dense product");
  command.text("-o,--output", options->output, "Append the rows to this file, one a line");
  command.text("--compare", options->compare,
               "Hold the rows against those of this file; exit code 7 where one is slower");
  command.text("--rows", options->rows, "With --compare: these rows instead of a measurement");
  command.real("--threshold", options->threshold,
               "With --compare: changes that count, per cent, where above the noise [5]");
  command.threads(options->bench.num_threads);
  command.tuning();
  command.json(options->json, "Print the rows as JSON lines instead of a table");
  command.runs([=] { return run_bench(*options); });
}

}  // namespace mixgemm::cli
