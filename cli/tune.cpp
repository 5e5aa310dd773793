// SPDX-License-Identifier: Apache-2.0
// mixgemm tune: measures which configuration is the fastest, problem by problem (docs/tuning.md).
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <memory>

#include "bench_api.hpp"
#include "command.hpp"
#include "layers.hpp"
#include "mixgemm/tuning.hpp"

namespace mixgemm::cli {
namespace {

struct TuneOptions {
  bench::TuneRun run;
  std::optional<Device> device;
  std::string shapes, model;
  std::vector<std::string> layers;
  std::vector<std::string> acts = {"fp16"};
  QuantSpec spec;
  std::optional<double> seconds;
  std::string pdl = "on";
  std::string output;
  bool json = false;
};

/// Each shape and format of a packed checkpoint once, under the first layer's name.
std::vector<bench::TuneLayer> layers_of_model(const std::string& path) {
  std::vector<bench::TuneLayer> layers;
  const auto checkpoint = PackedCheckpoint::open(path).value();
  for (const auto& info : checkpoint.layers()) {
    const auto same = [&](const bench::TuneLayer& l) {
      return l.shape.n == info.n && l.shape.k == info.k && l.spec.type == info.spec.type &&
             l.spec.zero == info.spec.zero && l.spec.group_size == info.spec.group_size;
    };
    if (std::any_of(layers.begin(), layers.end(), same)) continue;
    layers.push_back({{info.n, info.k, info.name}, info.spec});
  }
  if (layers.empty()) {
    throw Error(StatusCode::not_found, fmt::format("{} has no packed layer", path));
  }
  return layers;
}

std::vector<bench::TuneLayer> layers_of(const TuneOptions& options) {
  if (!options.model.empty()) {
    if (!options.shapes.empty() || !options.layers.empty()) {
      throw Error(StatusCode::invalid_argument,
                  "--model names the layers; --shapes and --layer must not be given with it");
    }
    return layers_of_model(options.model);
  }
  std::vector<bench::TuneLayer> layers;
  for (const auto& shape : select_shapes(options.shapes, options.layers)) {
    layers.push_back({shape, options.spec});
  }
  return layers;
}

/// What the file has already; nothing where it isn't there.
TuningCache load_or_empty(const std::string& path) {
  if (!std::filesystem::exists(path)) return {};
  return TuningCache::load(path).value();
}

constexpr const char* kLine = "{:<24} {:>5} {:>6} {:>10} {:>10} {:>7} {:>7}  {}\n";

std::string line_of(const bench::Shape& shape, const TuningEntry& e) {
  const bool model = e.model_us > 0;
  return fmt::format(kLine, shape.layer, act_name(e.problem.act), e.problem.m,
                     fmt::format("{:.2f}", e.us), model ? fmt::format("{:.2f}", e.model_us) : "-",
                     model ? fmt::format("{:.1f} %", 100 * (e.model_us / e.us - 1)) : "-",
                     fmt::format("{:.1f} %", 100 * e.noise), e.config);
}

int run_tune(TuneOptions options) {
  bench::TuneRun& run = options.run;
  run.layers = layers_of(options);
  run.acts = parse_acts(options.acts);
  run.device = device_or_default(options.device);
  run.pdl = options.pdl == "on";
  if (options.seconds) run.seconds = *options.seconds;
  if (run.tokens.empty()) {
    run.tokens = run.device == Device::cuda
                     ? std::vector<std::int64_t>{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048}
                     : std::vector<std::int64_t>{1, 8, 32, 64, 128, 256, 512};
  }
  const std::string path = options.output.empty() ? default_tuning_path() : options.output;
  if (path.empty()) {
    throw Error(StatusCode::invalid_argument,
                "-o must name the cache where neither HOME nor XDG_CACHE_HOME is set");
  }
  TuningCache cache = load_or_empty(path);

  const InterruptGuard interrupt;
  ProgressLine progress;
  bench::TuneCallbacks callbacks;
  callbacks.stop = [&] { return interrupt.requested(); };
  callbacks.progress = [&](double fraction, const std::string& what) {
    progress.update(fraction, what);
  };
  bool header = false;
  callbacks.entry = [&](const bench::Shape& shape, const TuningEntry& entry) {
    cache.save(path).throw_if_error();
    progress.clear();
    if (options.json) return;
    if (!header) {
      print(fmt::format(kLine, "layer", "act", "M", "tuned us", "model us", "gain", "noise",
                        "configuration"));
      header = true;
    }
    print(line_of(shape, entry));
  };
  callbacks.failed = [&](const bench::Shape& shape, const Problem& p, const Status& why) {
    progress.clear();
    fmt::print(stderr, "mixgemm tune: {} M={} not tuned: {}\n", shape.layer, p.m, why.message());
  };
  const auto summary = bench::run_tune(run, cache, callbacks).value();
  progress.clear();
  if (options.json) {
    print_json({{"cache", path},
                {"tuned", summary.tuned},
                {"known", summary.known},
                {"failed", summary.failed},
                {"interrupted", summary.stopped}});
  } else {
    print(fmt::format("{} tuned, {} known before, {} failed; {} has {} entries\n", summary.tuned,
                      summary.known, summary.failed, path, cache.entries().size()));
  }
  if (summary.stopped) {
    fmt::print(stderr, "mixgemm tune: interrupted; the same command goes on from here\n");
    return kExitInterrupted;
  }
  return summary.failed == 0 ? kExitOk : kExitFailure;
}

}  // namespace

void register_tune(CLI::App& app, Selected& selected) {
  auto options = std::make_shared<TuneOptions>();
  Command command(app, selected, "tune",
                  "Measure the fastest configuration of each layer and M, into a tuning cache");
  command.text("--model", options->model, "A packed checkpoint, whose layers are tuned");
  command.text("--shapes", options->shapes,
               "Layers to tune, as JSON like bench/shapes.json [that file's eight]");
  command.texts("--layer", options->layers, "Only these layers, by name");
  command.integers("--m", options->run.tokens, 1, 1 << 20,
                   "Tokens, e.g. 1,16,512 [cuda: 1,2,4, … 2048; cpu: 1,8,32,64,128,256,512]");
  command.texts("--act", options->acts, "Activation types: fp16, bf16 or both [fp16]");
  command.quant_spec(options->spec);
  command.device(options->device);
  command.choice("--pdl", options->pdl, {"on", "off"},
                 "cuda: programmatic dependent launch, on or off [on]");
  command.real("--seconds", options->seconds, "Time for one layer and M [2.5]");
  command.flag("--force", options->run.force, "Measure again what the cache already has");
  command.text("-o,--output", options->output,
               "The cache to extend [~/.cache/mixgemm/tuning.json, which plans consult]");
  command.json(options->json, "Print a summary as JSON instead of a running table");
  command.runs([=] { return run_tune(*options); });
}

}  // namespace mixgemm::cli
