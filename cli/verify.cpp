// SPDX-License-Identifier: Apache-2.0
// mixgemm verify: is a packed checkpoint sound, and is it the checkpoint it was made from?
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>

#include "command.hpp"
#include "mixgemm/import.hpp"

namespace mixgemm::cli {
namespace {

struct VerifyOptions {
  std::string file;
  std::string against;
  std::optional<double> max_error;
  int num_threads = 0;
  bool json = false;
};

/// Rounding to 4 bits leaves about 0.1, to 8 bits about 0.007; a wrong layer, order or scale leaves
/// about 1 or more.
double default_max_error(WeightType type) { return type == WeightType::int4 ? 0.3 : 0.03; }

struct LayerResult {
  std::string name;
  double error = 0.0;
  double limit = 0.0;
};

struct Comparison {
  std::vector<LayerResult> layers;
  std::vector<std::string> different_dense;
  std::int64_t num_same_dense = 0;
  std::int64_t num_dropped = 0;  ///< source tensors that the packed file doesn't have
};

/// What a packed layer must dequantize to, [N, K], and how far off it may be: rounding where the
/// source is dense, nothing where it was quantized already.
class Source {
 public:
  explicit Source(const std::string& path)
      : path_(path), model_(ModelCheckpoint::open(path).value()) {}

  bool dense() const { return model_.format() == CheckpointFormat::dense; }
  const SafetensorsFile& file() const { return model_.file(); }
  /// Tensors that a packed checkpoint either consumes as one layer each or copies.
  std::size_t num_tensors() const { return model_.layers().size() + model_.others().size(); }

  std::vector<float> weight(const PackedLayerInfo& layer) {
    if (dense()) {
      const TensorView original = find_source_weight(model_.file(), layer).value();
      return to_f32(original, *data_type_of(original.info.dtype));
    }
    const ImportedLayer* imported = model_.info(layer.name);
    if (imported != nullptr && imported->spec.scale_type != layer.spec.scale_type) {
      // Converted with --scale-type: the source's scales were rounded to it.
      model_ = ModelCheckpoint::open(path_, {.scale_type = layer.spec.scale_type}).value();
    }
    const CanonicalWeight weight = model_.load(layer.name).value();
    if (weight.n != layer.n || weight.k != layer.k) {
      throw Error(StatusCode::invalid_argument,
                  fmt::format("layer {} of {} must have the shape [{}, {}]; got [{}, {}]",
                              layer.name, path_, layer.n, layer.k, weight.n, weight.k));
    }
    return dequantize(weight).value();
  }
  double max_error(WeightType type) const { return dense() ? default_max_error(type) : 0.0; }

 private:
  std::string path_;
  ModelCheckpoint model_;
};

Comparison compare_with(const PackedCheckpoint& checkpoint, Source& origin,
                        const VerifyOptions& options) {
  const SafetensorsFile& source = origin.file();
  Comparison result;
  ProgressLine progress;
  std::size_t used = 0;
  for (const PackedLayerInfo& layer : checkpoint.layers()) {
    progress.update(static_cast<double>(used) / static_cast<double>(checkpoint.layers().size()),
                    layer.name);
    const auto expected = origin.weight(layer);
    const PackedWeight packed = checkpoint.find(layer.name).value();
    const auto weight = dequantize(unpack(packed.view(), options.num_threads).value()).value();
    result.layers.push_back({layer.name, relative_error(weight, expected),
                             options.max_error.value_or(origin.max_error(layer.spec.type))});
    ++used;
  }
  for (const TensorInfo& tensor : checkpoint.dense()) {
    const TensorInfo* original = source.info(tensor.name);
    bool same =
        original != nullptr && original->dtype == tensor.dtype && original->shape == tensor.shape;
    if (same && tensor.size_bytes() > 0) {
      const TensorView a = checkpoint.find_dense(tensor.name).value();
      const TensorView b = source.find(tensor.name).value();
      same = std::memcmp(a.data, b.data, a.bytes) == 0;
    }
    if (original != nullptr) ++used;
    if (same) {
      ++result.num_same_dense;
    } else {
      result.different_dense.push_back(tensor.name);
    }
  }
  result.num_dropped = static_cast<std::int64_t>(origin.num_tensors() - used);
  return result;
}

int run_verify(const VerifyOptions& options) {
  const auto checkpoint = PackedCheckpoint::open(options.file, {.verify_on_find = false}).value();
  if (checkpoint.layers().empty()) {
    throw Error(
        StatusCode::corrupt_data,
        fmt::format("{}: a packed checkpoint to verify must have at least one packed layer; "
                    "this file has none, only {} dense tensors",
                    options.file, checkpoint.dense().size()));
  }
  std::optional<Source> source;
  if (!options.against.empty()) source.emplace(options.against);
  {
    ProgressLine progress;
    checkpoint.verify([&](double fraction) { progress.update(fraction, "checksums"); })
        .throw_if_error();
  }
  Json report = {{"file", options.file},
                 {"num_layers", checkpoint.layers().size()},
                 {"num_dense", checkpoint.dense().size()},
                 {"sound", true}};
  std::string text =
      fmt::format("{}: {} packed layers and {} dense tensors, headers and checksums good\n",
                  options.file, checkpoint.layers().size(), checkpoint.dense().size());
  int exit_code = kExitOk;
  if (source) {
    const Comparison result = compare_with(checkpoint, *source, options);
    Table table({"layer", "relative error", "allowed", ""});
    Json layers = Json::array();
    // Written so that a NaN counts as wrong.
    const auto good = [](const LayerResult& layer) { return layer.error <= layer.limit; };
    for (const LayerResult& layer : result.layers) {
      table.add({layer.name, fmt::format("{:.5f}", layer.error), fmt::format("{:.3f}", layer.limit),
                 good(layer) ? "" : "too large"});
      layers.push_back({{"name", layer.name},
                        {"rel_err", layer.error},
                        {"allowed", layer.limit},
                        {"good", good(layer)}});
    }
    if (!std::all_of(result.layers.begin(), result.layers.end(), good) ||
        !result.different_dense.empty()) {
      exit_code = kExitMismatch;
    }
    report["against"] = options.against;
    report["layers"] = layers;
    report["different_dense"] = result.different_dense;
    report["num_dropped"] = result.num_dropped;
    report["matches"] = exit_code == kExitOk;
    text += table.to_string("lrrl");
    for (const auto& name : result.different_dense) {
      text += fmt::format("dense tensor {} differs from the source\n", name);
    }
    text += fmt::format("{} dense tensors identical; {} tensors of {} left out\n",
                        result.num_same_dense, result.num_dropped, options.against);
    text += exit_code == kExitOk ? "matches\n" : "does NOT match\n";
  }
  if (options.json) {
    print_json(report);
  } else {
    print(text);
  }
  return exit_code;
}

}  // namespace

void register_verify(CLI::App& app, Selected& selected) {
  auto options = std::make_shared<VerifyOptions>();
  Command command(app, selected, "verify",
                  "Check a packed checkpoint: headers, checksums, and against its source");
  command.operand("file", options->file, "A packed checkpoint");
  command.text("--against", options->against, "The checkpoint it was made from");
  command.real("--max-error", options->max_error,
               "Largest relative error of a weight [0.3 for int4, 0.03 for int8; 0 where the "
               "source was quantized already]");
  command.threads(options->num_threads);
  command.json(options->json);
  command.runs([=] { return run_verify(*options); });
}

}  // namespace mixgemm::cli
