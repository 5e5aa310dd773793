// SPDX-License-Identifier: Apache-2.0
// Checkpoints of the compressed-tensors library, format pack-quantized. A layer has
//   weight_packed      I32 [N, ⌈K·bits/32⌉]   codes of consecutive k in a word, lowest bits first,
//                                             stored as code + 2^(bits−1)
//   weight_shape       I64 [2]                N and K
//   weight_scale       [N, G], [N, 1] per channel or [1] per tensor
//   weight_zero_point  I8 as weight_scale, or I32 [⌈N·bits/32⌉, G] packed along n like the codes
//   weight_g_idx       I32 [K]                the group of each k, with actorder "group"
// and w[n, k] = (code − zero[n, g]) · scale[n, g].
#include <regex.h>

#include <algorithm>
#include <cstring>

#include "import/errors.hpp"
#include "import/importer.hpp"
#include "util/parallel.hpp"

namespace mixgemm {
namespace {

// Output features a thread takes at a time.
constexpr std::int64_t kRowGrain = 16;

enum class Strategy { tensor, channel, group };

/// One entry of config_groups.
struct Scheme {
  std::string field;  // "config.json: quantization_config.config_groups.group_0."
  std::vector<std::string> targets;
  WeightType type = WeightType::int4;
  Strategy strategy = Strategy::group;
  std::int64_t group_size = -1;
  bool symmetric = true;
  bool has_g_idx = false;
};

Result<Scheme> read_scheme(ConfigSection groups, const std::string& name,
                           const std::string& model_format) {
  Scheme scheme;
  ConfigSection group = groups.section(name);
  if (!groups.status().ok()) return groups.status();
  scheme.field = group.field("");
  scheme.targets = group.texts("targets");
  const std::string format = group.text("format", model_format);
  if (!group.status().ok()) return group.status();
  if (format != "pack-quantized") {
    return failure(StatusCode::unsupported, "{} must be \"pack-quantized\"; got {}",
                   group.has("format") ? group.field("format") : "quantization_config.format",
                   in_quotes(format));
  }
  for (const char* activations : {"input_activations", "output_activations"}) {
    if (!group.has(activations)) continue;
    return failure(StatusCode::unsupported, "{} must be null: activations stay in 16 bits; got {}",
                   group.field(activations), group.shown(activations));
  }
  ConfigSection weights = group.section("weights");
  if (!group.status().ok()) return group.status();
  const std::string number = weights.text("type", "int");
  const std::int64_t bits = weights.integer("num_bits");
  scheme.symmetric = weights.boolean("symmetric", true);
  const std::int64_t group_size = weights.integer("group_size", -1);
  std::string strategy = weights.text("strategy", "");
  if (strategy.empty()) {  // as the library infers it
    strategy = !weights.has("group_size") ? "tensor" : group_size == -1 ? "channel" : "group";
  }
  std::string actorder;
  if (weights.shown("actorder") == "true" || weights.shown("actorder") == "false") {
    actorder = weights.boolean("actorder") ? "group" : "";
  } else {
    actorder = weights.text("actorder", "");
  }
  if (!weights.status().ok()) return weights.status();
  if (number != "int") {
    return failure(StatusCode::unsupported, "{} must be \"int\"; got {}", weights.field("type"),
                   in_quotes(number));
  }
  const auto type = weight_type_of(bits, weights.field("num_bits"));
  if (!type.ok()) return type.status();
  scheme.type = *type;
  if (strategy == "group") {
    scheme.strategy = Strategy::group;
    scheme.group_size = group_size;
    if (group_size < 1) {
      return failure(StatusCode::corrupt_data, "{} must be at least 1 with strategy group; got {}",
                     weights.field("group_size"), group_size);
    }
  } else if (strategy == "channel" || strategy == "tensor") {
    scheme.strategy = strategy == "channel" ? Strategy::channel : Strategy::tensor;
  } else {
    return failure(StatusCode::unsupported,
                   "{} must be \"group\", \"channel\" or \"tensor\"; got {}",
                   weights.field("strategy"), in_quotes(strategy));
  }
  // With "weight" and "static" the order served the quantizer alone, and columns are as ever.
  if (!(actorder.empty() || actorder == "group" || actorder == "dynamic" || actorder == "weight" ||
        actorder == "static")) {
    return failure(StatusCode::unsupported, "{} must be null, \"group\" or \"weight\"; got {}",
                   weights.field("actorder"), in_quotes(actorder));
  }
  scheme.has_g_idx = actorder == "group" || actorder == "dynamic";
  return scheme;
}

/// A target "re:PATTERN" of Python's re.match, by POSIX's extended expressions: of what the two
/// don't share, anything but an escaped punctuation mark is refused.
Result<bool> matches_pattern(const std::string& pattern, const std::string& name,
                             const std::string& field) {
  bool portable = pattern.find("(?") == std::string::npos &&
                  pattern.find("[[") == std::string::npos && pattern.size() <= 1024;
  for (const char quantifier : {'*', '+', '?', '}'}) {
    portable = portable && pattern.find(std::string{quantifier, '?'}) == std::string::npos;
    portable = portable && pattern.find(std::string{quantifier, '+'}) == std::string::npos;
    portable = portable && pattern.find(std::string{quantifier, '*'}) == std::string::npos;
  }
  // Counted repetitions may take time and memory without bound.
  portable = portable && pattern.find('{') == std::string::npos;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    if (pattern[i] != '\\') continue;
    ++i;
    portable = portable && i < pattern.size() &&
               std::string_view(".-_*+?()[]^$|/").find(pattern[i]) != std::string_view::npos;
  }
  regex_t regex;
  const std::string anchored = "^(" + pattern + ")";
  if (!portable || regcomp(&regex, anchored.c_str(), REG_EXTENDED | REG_NOSUB) != 0) {
    return failure(StatusCode::unsupported,
                   "{}targets: a pattern must be a plain regular expression; got {}", field,
                   in_quotes(pattern));
  }
  const bool matches = regexec(&regex, name.c_str(), 0, nullptr, 0) == 0;
  regfree(&regex);
  return matches;
}

/// The scheme of a layer: by name or pattern first, by class else. Which class a layer is of isn't
/// in the checkpoint, so several schemes with class names are ambiguous.
Result<const Scheme*> scheme_of(const std::vector<Scheme>& schemes, const std::string& layer) {
  if (schemes.size() == 1) return &schemes.front();
  const Scheme* by_class = nullptr;
  for (const Scheme& scheme : schemes) {
    for (const std::string& target : scheme.targets) {
      if (target == layer) return &scheme;
      if (target.starts_with("re:")) {
        const auto matches = matches_pattern(target.substr(3), layer, scheme.field);
        if (!matches.ok()) return matches.status();
        if (*matches) return &scheme;
      } else if (!target.empty() && target[0] >= 'A' && target[0] <= 'Z') {  // a class: "Linear"
        if (by_class != nullptr && by_class != &scheme) {
          return failure(StatusCode::unsupported,
                         "{}targets: only one of config_groups may name classes; got {}",
                         scheme.field, in_quotes(target));
        }
        by_class = &scheme;
      }
    }
  }
  if (by_class != nullptr) return by_class;
  return failure(StatusCode::corrupt_data,
                 "tensor {}: must be a target of one of the {} config_groups; got none",
                 in_quotes(layer + ".weight_packed"), schemes.size());
}

struct LayerState {
  const Scheme* scheme = nullptr;
  Grouping groups;
  std::vector<std::int32_t> permutation;
};

class CompressedTensors final : public Importer {
 public:
  CompressedTensors(const SafetensorsFile& file, std::vector<Scheme> schemes,
                    const ImportOptions& options)
      : Importer(file), schemes_(std::move(schemes)), options_(options) {}

  Status add(const std::string& name);
  Result<CanonicalWeight> load(std::size_t idx, int num_threads) const override;

 private:
  Status read_shape(ImportedLayer& layer) const;
  Status add_g_idx(ImportedLayer& layer, LayerState& state);
  Status check_zero_point(const ImportedLayer& layer, const LayerState& state) const;
  Status fill_zeros(const ImportedLayer& layer, const LayerState& state,
                    CanonicalWeight& weight) const;

  std::vector<Scheme> schemes_;
  ImportOptions options_;
  std::vector<LayerState> states_;
};

Status CompressedTensors::read_shape(ImportedLayer& layer) const {
  const auto shape = layer_tensor(file_, layer.name, ".weight_shape", {"I64", "I32"});
  if (!shape.ok()) return shape.status();
  if (Status s = check_shape(*shape, {2}, "[2]"); !s.ok()) return s;
  const auto view = file_.find(shape->name);
  if (!view.ok()) return view.status();
  const auto at = [&](int i) -> std::int64_t {
    if (shape->dtype == "I64") return static_cast<const std::int64_t*>(view->data)[i];
    return static_cast<const std::int32_t*>(view->data)[i];
  };
  layer.n = at(0);
  layer.k = at(1);
  return check_layer_size(layer.name, layer.n, layer.k);
}

Status CompressedTensors::add_g_idx(ImportedLayer& layer, LayerState& state) {
  const std::string name = layer.name + ".weight_g_idx";
  if (file_.info(name) == nullptr) {
    if (!state.scheme->has_g_idx) return {};
    return failure(StatusCode::corrupt_data,
                   "layer {}: must have a tensor {} where {}weights.actorder is \"group\"; it is "
                   "missing",
                   in_quotes(layer.name), in_quotes(name), state.scheme->field);
  }
  const auto g_idx = layer_tensor(file_, layer.name, ".weight_g_idx", {"I32", "I64"});
  if (!g_idx.ok()) return g_idx.status();
  if (Status s = check_shape(*g_idx, {layer.k}, "[K]"); !s.ok()) return s;
  const auto view = file_.find(name);
  if (!view.ok()) return view.status();
  layer.source_bytes += g_idx->size_bytes();
  // The library's placeholder for "columns are in order".
  bool placeholder = g_idx->dtype == "I32";
  for (std::int64_t i = 0; placeholder && i < layer.k; ++i) {
    placeholder = static_cast<const std::int32_t*>(view->data)[i] == -1;
  }
  if (placeholder) return {};
  auto permutation = permutation_of(*view, layer.k, state.groups);
  if (!permutation.ok()) return permutation.status();
  if (!permutation->empty() && !state.scheme->has_g_idx) {
    return failure(StatusCode::corrupt_data,
                   "tensor {}: must be k / group_size where {}weights.actorder isn't \"group\"; "
                   "got another order",
                   in_quotes(name), state.scheme->field);
  }
  state.permutation = *std::move(permutation);
  if (!state.permutation.empty()) layer.columns = ColumnOrder::permuted;
  return {};
}

/// Dtype and shape of the zero points: unpacked like the scales, or packed along n.
Status CompressedTensors::check_zero_point(const ImportedLayer& layer,
                                           const LayerState& state) const {
  const auto zeros = layer_tensor(file_, layer.name, ".weight_zero_point", {"I8", "I32"});
  if (!zeros.ok()) return zeros.status();
  if (zeros->dtype == "I8") {
    if (state.scheme->strategy == Strategy::tensor) return check_shape(*zeros, {1}, "[1]");
    return check_shape(*zeros, {layer.n, state.groups.source_groups}, "[N, G]");
  }
  const int per_word = codes_per_word(state.scheme->type);
  return check_shape(*zeros, {(layer.n + per_word - 1) / per_word, state.groups.source_groups},
                     "[⌈N·bits/32⌉, G]");
}

Status CompressedTensors::add(const std::string& name) {
  const auto scheme = scheme_of(schemes_, name);
  if (!scheme.ok()) return scheme.status();
  LayerState state;
  state.scheme = *scheme;
  ImportedLayer layer;
  layer.name = name;
  if (Status s = read_shape(layer); !s.ok()) return s;
  const auto packed = layer_tensor(file_, name, ".weight_packed", {"I32"});
  if (!packed.ok()) return packed.status();
  const int per_word = codes_per_word(state.scheme->type);
  if (Status s =
          check_shape(*packed, {layer.n, (layer.k + per_word - 1) / per_word}, "[N, ⌈K·bits/32⌉]");
      !s.ok()) {
    return s;
  }
  const auto groups =
      plan_groups(layer.k, state.scheme->group_size, state.scheme->field + "weights.group_size");
  if (!groups.ok()) return groups.status();
  state.groups = *groups;
  const auto scale = layer_tensor(file_, name, ".weight_scale", {"F16", "BF16", "F32"});
  if (!scale.ok()) return scale.status();
  const Status shaped = state.scheme->strategy == Strategy::tensor
                            ? check_shape(*scale, {1}, "[1]")
                            : check_shape(*scale, {layer.n, groups->source_groups}, "[N, G]");
  if (!shaped.ok()) return shaped;
  layer.source_bytes = packed->size_bytes() + scale->size_bytes();
  const bool has_zeros = file_.info(name + ".weight_zero_point") != nullptr;
  if (has_zeros || !state.scheme->symmetric) {
    if (Status s = check_zero_point(layer, state); !s.ok()) return s;
    layer.source_bytes += file_.info(name + ".weight_zero_point")->size_bytes();
  }
  if (Status s = add_g_idx(layer, state); !s.ok()) return s;
  layer.spec = {state.scheme->type, state.scheme->symmetric ? ZeroKind::none : ZeroKind::integer,
                groups->group_size, scale_type_for(*scale, options_)};
  for (const char* part : {".weight_packed", ".weight_shape", ".weight_scale", ".weight_zero_point",
                           ".weight_g_idx"}) {
    claimed_.insert(name + part);
  }
  layers_.push_back(std::move(layer));
  states_.push_back(std::move(state));
  return {};
}

Status CompressedTensors::fill_zeros(const ImportedLayer& layer, const LayerState& state,
                                     CanonicalWeight& weight) const {
  const std::string name = layer.name + ".weight_zero_point";
  if (file_.info(name) == nullptr) return {};  // symmetric
  const auto tensor = file_.find(name);
  if (!tensor.ok()) return tensor.status();
  const int bits = bits_of(state.scheme->type);
  const int offset = implicit_zero(state.scheme->type);
  const int per_word = codes_per_word(state.scheme->type);
  const std::int64_t source_groups = state.groups.source_groups;
  const auto zero_at = [&](std::int64_t row, std::int64_t group) -> int {
    if (tensor->info.dtype == "I8") {
      const std::int64_t i = tensor->info.shape.size() == 1 ? 0 : row * source_groups + group;
      return static_cast<const std::int8_t*>(tensor->data)[i] + offset;
    }
    const std::uint32_t word =
        static_cast<const std::uint32_t*>(tensor->data)[row / per_word * source_groups + group];
    return static_cast<int>(word >> (bits * (row % per_word)) & ((1u << bits) - 1u));
  };
  const bool symmetric = state.scheme->symmetric;
  const int low = symmetric ? offset : 0;
  const int high = symmetric ? offset : (1 << bits) - 1;
  const std::int64_t num_groups = weight.groups();
  if (!symmetric) weight.zeros.resize(static_cast<std::size_t>(weight.n * num_groups));
  for (std::int64_t row = 0; row < weight.n; ++row) {
    for (std::int64_t g = 0; g < num_groups; ++g) {
      const std::int64_t group = state.groups.source_of(g);
      const int zero = zero_at(row, group);
      if (zero < low || zero > high) {
        return failure(StatusCode::corrupt_data,
                       "tensor {}: row {}, group {}: a zero point must be in {} … {}{}; got {}",
                       in_quotes(name), row, group, low - offset, high - offset,
                       symmetric ? " where symmetric is true" : "", zero - offset);
      }
      if (!symmetric) {
        weight.zeros[static_cast<std::size_t>(row * num_groups + g)] =
            static_cast<std::uint8_t>(zero);
      }
    }
  }
  return {};
}

Result<CanonicalWeight> CompressedTensors::load(std::size_t idx, int num_threads) const {
  const ImportedLayer& layer = layers_[idx];
  const LayerState& state = states_[idx];
  const auto packed = file_.find(layer.name + ".weight_packed");
  if (!packed.ok()) return packed.status();
  const auto scale = file_.find(layer.name + ".weight_scale");
  if (!scale.ok()) return scale.status();
  CanonicalWeight weight;
  weight.n = layer.n;
  weight.k = layer.k;
  weight.spec = layer.spec;
  weight.permutation = state.permutation;
  const bool per_tensor = state.scheme->strategy == Strategy::tensor;
  const FloatMatrix scales{*scale, per_tensor ? 0 : state.groups.source_groups, per_tensor ? 0 : 1};
  if (Status s = fill_scales(scales, state.groups, options_, weight); !s.ok()) return s;
  if (Status s = fill_zeros(layer, state, weight); !s.ok()) return s;

  weight.codes.resize(static_cast<std::size_t>(layer.n * layer.k));
  const auto* words = static_cast<const std::uint32_t*>(packed->data);
  const WeightType type = state.scheme->type;
  const int per_word = codes_per_word(type);
  const std::int64_t words_per_row = (layer.k + per_word - 1) / per_word;
  const std::vector<std::int32_t> column = inverse(weight.permutation);
  parallel_for(layer.n, kRowGrain, num_threads, [&](std::int64_t begin, std::int64_t end) {
    std::uint8_t codes[8];
    for (std::int64_t n = begin; n < end; ++n) {
      std::uint8_t* row = weight.codes.data() + n * layer.k;
      for (std::int64_t at = 0; at < words_per_row; ++at) {
        expand_word(words[n * words_per_row + at], type, codes);
        const std::int64_t k = at * per_word;
        const auto count = static_cast<int>(std::min<std::int64_t>(per_word, layer.k - k));
        if (column.empty()) {
          std::memcpy(row + k, codes, static_cast<std::size_t>(count));
          continue;
        }
        for (int i = 0; i < count; ++i) row[column[static_cast<std::size_t>(k + i)]] = codes[i];
      }
    }
  });
  return weight;
}

}  // namespace

ImporterResult import_compressed_tensors(const SafetensorsFile& file, ConfigSection config,
                                         const ImportOptions& options) {
  const std::string format = config.text("format", "pack-quantized");
  ConfigSection groups = config.section("config_groups");
  ConfigSection sparsity = config.section("sparsity_config", true);
  const std::string sparse = sparsity.text("format", "dense");
  config.merge(sparsity);
  if (!config.status().ok()) return config.status();
  if (sparse != "dense") {
    return failure(StatusCode::unsupported, "{} must be \"dense\"; got {}",
                   sparsity.field("format"), in_quotes(sparse));
  }
  if (config.has("transform_config") && config.shown("transform_config") != "{}") {
    return failure(StatusCode::unsupported,
                   "{} must be empty: activations aren't transformed; got {}",
                   config.field("transform_config"), config.shown("transform_config"));
  }
  std::vector<Scheme> schemes;
  for (const std::string& name : groups.keys()) {
    auto scheme = read_scheme(groups, name, format);
    if (!scheme.ok()) return scheme.status();
    schemes.push_back(*std::move(scheme));
  }
  if (schemes.empty()) {
    return failure(StatusCode::corrupt_data, "{} must have at least one group; got none",
                   config.field("config_groups"));
  }
  const auto names =
      find_layers(file, ".weight_packed",
                  {".weight_shape", ".weight_scale", ".weight_zero_point", ".weight_g_idx"});
  if (!names.ok()) return names.status();
  auto importer = std::make_unique<CompressedTensors>(file, std::move(schemes), options);
  for (const std::string& name : *names) {
    if (Status s = importer->add(name); !s.ok()) return s;
  }
  return std::unique_ptr<const Importer>(std::move(importer));
}

}  // namespace mixgemm
