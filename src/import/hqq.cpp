// SPDX-License-Identifier: Apache-2.0
// HQQ checkpoints, as the hqq package writes a layer's state. A layer of shape [N, K] has
//   W_q    U8 [R/2, C] or [R, C]   codes of 4 or 8 bits of the weight as R rows of C: C =
//                                  group_size, R = N·K / group_size (no group_size: C = K, R = N).
//                                  4 bits: the high nibbles are the first R/2 rows, the low ones
//                                  the others
//   scale, zero  F16 [R, 1]
//   shape, nbits, group_size, axis, packing, …   as small tensors
// and w = (code − zero) · scale. Zeros are floats: where all of a layer are codes they are kept,
// else zero · scale is stored, rounded to the scale type.
#include <algorithm>
#include <cmath>

#include "import/errors.hpp"
#include "import/importer.hpp"
#include "util/parallel.hpp"

namespace mixgemm {
namespace {

// Bytes of codes a thread takes at a time.
constexpr std::int64_t kByteGrain = 1 << 16;

/// What belongs to a layer beside W_q, scale, zero and shape.
constexpr const char* kSettings[] = {
    ".nbits",         ".group_size",         ".axis",
    ".packing",       ".view_as_float",      ".unpack_view_dtype",
    ".compute_dtype", ".quant_scale",        ".quant_zero",
    ".offload_meta",  ".channel_wise",       ".optimize",
    ".round_zero",    ".encoded_state_dict", ".stores_quant_config"};

struct HqqSettings {
  std::int64_t bits = 4;
  std::int64_t group_size = -1;
  bool per_layer = false;  // layers may differ: their own tensors decide
};

class Hqq final : public Importer {
 public:
  Hqq(const SafetensorsFile& file, const HqqSettings& settings, const ImportOptions& options)
      : Importer(file), settings_(settings), options_(options) {}

  Status add(const std::string& name, const ConfigSection& params);
  Result<CanonicalWeight> load(std::size_t idx, int num_threads) const override;

 private:
  /// A setting that a layer has as a tensor of one number; `config` where it has none.
  Result<std::int64_t> setting(const std::string& layer, std::string_view suffix,
                               std::int64_t config, bool must_agree,
                               const ConfigSection& params) const;
  Status check_fixed_settings(const std::string& layer, const ConfigSection& params) const;
  Result<bool> zeros_are_codes(const FloatMatrix& zeros, std::int64_t rows, std::int64_t groups,
                               WeightType type) const;

  HqqSettings settings_;
  ImportOptions options_;
  std::vector<Grouping> groups_;  // of each layer
};

Result<std::int64_t> Hqq::setting(const std::string& layer, std::string_view suffix,
                                  std::int64_t config, bool must_agree,
                                  const ConfigSection& params) const {
  const std::string name = layer + std::string(suffix);
  if (file_.info(name) == nullptr) return config;
  const auto info = layer_tensor(file_, layer, suffix, {"I64", "I32", "U8", "F32"});
  if (!info.ok()) return info.status();
  if (info->num_elems() != 1) return check_shape(*info, {}, "[]");
  const auto view = file_.find(name);
  if (!view.ok()) return view.status();
  std::int64_t value = 0;
  if (info->dtype == "I64") {
    value = *static_cast<const std::int64_t*>(view->data);
  } else if (info->dtype == "I32") {
    value = *static_cast<const std::int32_t*>(view->data);
  } else if (info->dtype == "U8") {
    value = *static_cast<const std::uint8_t*>(view->data);
  } else {
    const float number = *static_cast<const float*>(view->data);
    value = std::isfinite(number) && std::abs(number) < 1e6f ? std::lround(number) : -2;
    if (static_cast<float>(value) != number) {
      return failure(StatusCode::unsupported, "tensor {}: must be an integer; got {}",
                     in_quotes(name), number);
    }
  }
  if (must_agree && value != config) {
    return failure(StatusCode::corrupt_data, "tensor {}: must be {} = {}; got {}", in_quotes(name),
                   params.field(suffix.substr(1)), config, value);
  }
  return value;
}

/// What this importer knows one value of.
Status Hqq::check_fixed_settings(const std::string& layer, const ConfigSection& params) const {
  struct Fixed {
    const char* suffix;
    std::int64_t wanted;
    const char* rule;
  };
  for (const Fixed& fixed : {Fixed{".axis", 1, "1: groups of axis 0 run across output features"},
                             Fixed{".view_as_float", 0, "0: codes must be stored as bytes"},
                             Fixed{".quant_scale", 0, "0: scales must not be quantized"},
                             Fixed{".quant_zero", 0, "0: zeros must not be quantized"},
                             Fixed{".channel_wise", 1, "1: there must be a scale a group"}}) {
    const auto value = setting(layer, fixed.suffix, fixed.wanted, false, params);
    if (!value.ok()) return value.status();
    if (*value == fixed.wanted) continue;
    return failure(StatusCode::unsupported, "tensor {}: must be {}; got {}",
                   in_quotes(layer + fixed.suffix), fixed.rule, *value);
  }
  return {};
}

Result<bool> Hqq::zeros_are_codes(const FloatMatrix& zeros, std::int64_t rows, std::int64_t groups,
                                  WeightType type) const {
  const double limit = 1 << bits_of(type);
  bool codes = true;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t group = 0; group < groups; ++group) {
      const double zero = zeros.at(row, group);
      if (!std::isfinite(zero)) {
        return failure(StatusCode::corrupt_data, "{}: must be finite; got {}",
                       zeros.where(row, group), zero);
      }
      codes = codes && zero >= 0.0 && zero < limit && zero == std::floor(zero);
    }
  }
  return codes;
}

Status Hqq::add(const std::string& name, const ConfigSection& params) {
  const auto w_q = layer_tensor(file_, name, ".W_q", {"U8"});
  if (!w_q.ok()) return w_q.status();
  const auto scale = layer_tensor(file_, name, ".scale", {"F16", "BF16", "F32"});
  if (!scale.ok()) return scale.status();
  const auto zero = layer_tensor(file_, name, ".zero", {"F16", "BF16", "F32"});
  if (!zero.ok()) return zero.status();
  const auto shape = layer_tensor(file_, name, ".shape", {"I64", "I32"});
  if (!shape.ok()) return shape.status();
  if (Status s = check_shape(*shape, {2}, "[2]"); !s.ok()) return s;
  const auto shape_view = file_.find(shape->name);
  if (!shape_view.ok()) return shape_view.status();
  const auto dim = [&](int i) -> std::int64_t {
    if (shape->dtype == "I64") return static_cast<const std::int64_t*>(shape_view->data)[i];
    return static_cast<const std::int32_t*>(shape_view->data)[i];
  };
  ImportedLayer layer;
  layer.name = name;
  layer.n = dim(0);
  layer.k = dim(1);
  if (Status s = check_layer_size(name, layer.n, layer.k); !s.ok()) return s;
  if (Status s = check_fixed_settings(name, params); !s.ok()) return s;
  const bool must_agree = !settings_.per_layer;
  const auto bits = setting(name, ".nbits", settings_.bits, must_agree, params);
  if (!bits.ok()) return bits.status();
  const auto type = weight_type_of(*bits, fmt::format("layer {}: nbits", in_quotes(name)));
  if (!type.ok()) return type.status();
  const auto group_size = setting(name, ".group_size", settings_.group_size, must_agree, params);
  if (!group_size.ok()) return group_size.status();
  const auto groups = plan_groups(layer.k, *group_size, params.field("group_size"));
  if (!groups.ok()) return groups.status();
  if (layer.k % groups->source_size != 0 || *group_size > layer.k) {
    return failure(StatusCode::unsupported,
                   "layer {}: K must be a multiple of group_size = {}, or groups run across output "
                   "features; got {}",
                   in_quotes(name), *group_size, layer.k);
  }
  const std::int64_t rows = layer.n * groups->source_groups;
  if (*type == WeightType::int4 && rows % 2 != 0) {
    return failure(StatusCode::corrupt_data,
                   "layer {}: the number of groups must be even, two codes in a byte; got {}",
                   in_quotes(name), rows);
  }
  const std::int64_t packed_rows = *type == WeightType::int4 ? rows / 2 : rows;
  if (Status s = check_shape(*w_q, {packed_rows, groups->source_size},
                             "[N·K / group_size · bits/8, group_size]");
      !s.ok()) {
    return s;
  }
  for (const TensorInfo& tensor : {*scale, *zero}) {
    if (Status s = check_shape(tensor, {rows, 1}, "[N·K / group_size, 1]"); !s.ok()) return s;
  }
  const auto zeros = file_.find(zero->name);
  if (!zeros.ok()) return zeros.status();
  const auto codes =
      zeros_are_codes({*zeros, groups->source_groups, 1}, layer.n, groups->source_groups, *type);
  if (!codes.ok()) return codes.status();
  layer.spec = {*type, *codes ? ZeroKind::integer : ZeroKind::scaled, groups->group_size,
                scale_type_for(*scale, options_)};
  layer.source_bytes = w_q->size_bytes() + scale->size_bytes() + zero->size_bytes();
  for (const char* part : {".W_q", ".scale", ".zero", ".shape"}) claimed_.insert(name + part);
  for (const char* part : kSettings) claimed_.insert(name + part);
  layers_.push_back(std::move(layer));
  groups_.push_back(*groups);
  return {};
}

Result<CanonicalWeight> Hqq::load(std::size_t idx, int num_threads) const {
  const ImportedLayer& layer = layers_[idx];
  const Grouping& groups = groups_[idx];
  const auto w_q = file_.find(layer.name + ".W_q");
  if (!w_q.ok()) return w_q.status();
  const auto scale = file_.find(layer.name + ".scale");
  if (!scale.ok()) return scale.status();
  const auto zero = file_.find(layer.name + ".zero");
  if (!zero.ok()) return zero.status();
  CanonicalWeight weight;
  weight.n = layer.n;
  weight.k = layer.k;
  weight.spec = layer.spec;
  const FloatMatrix scales{*scale, groups.source_groups, 1};
  const FloatMatrix zeros{*zero, groups.source_groups, 1};
  if (Status s = fill_scales(scales, groups, options_, weight); !s.ok()) return s;
  const std::int64_t num_groups = weight.groups();
  const auto per_group = static_cast<std::size_t>(layer.n * num_groups);
  const bool integer = layer.spec.zero == ZeroKind::integer;
  if (integer) weight.zeros.resize(per_group);
  if (!integer) weight.scaled_zeros.resize(per_group);
  for (std::int64_t row = 0; row < layer.n; ++row) {
    for (std::int64_t g = 0; g < num_groups; ++g) {
      const std::int64_t source = groups.source_of(g);
      const auto at = static_cast<std::size_t>(row * num_groups + g);
      if (integer) {
        weight.zeros[at] = static_cast<std::uint8_t>(zeros.at(row, source));
        continue;
      }
      const double shift = zeros.at(row, source) * scales.at(row, source);
      const auto bits = to_scale_type(shift, layer.spec.scale_type, false, "");
      if (!bits.ok()) {
        return to_scale_type(shift, layer.spec.scale_type, false,
                             zeros.where(row, source) + ": zero · scale")
            .status();
      }
      weight.scaled_zeros[at] = *bits;
    }
  }

  // Rows of groups follow each other as the weight's rows do, so both are one run of codes.
  weight.codes.resize(static_cast<std::size_t>(layer.n * layer.k));
  const auto* bytes = static_cast<const std::uint8_t*>(w_q->data);
  const std::int64_t count = layer.n * layer.k;
  std::uint8_t* codes = weight.codes.data();
  if (layer.spec.type == WeightType::int8) {
    std::copy(bytes, bytes + count, codes);
    return weight;
  }
  parallel_for(count / 2, kByteGrain, num_threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      codes[i] = static_cast<std::uint8_t>(bytes[i] >> 4);
      codes[count / 2 + i] = static_cast<std::uint8_t>(bytes[i] & 15u);
    }
  });
  return weight;
}

}  // namespace

ImporterResult import_hqq(const SafetensorsFile& file, ConfigSection config,
                          const ImportOptions& options) {
  ConfigSection quant = config.section("quant_config", true);
  ConfigSection params = quant.section("weight_quant_params", true);
  HqqSettings settings;
  // transformers keeps settings by layer in dynamic_config, or one for all in quant_config.
  settings.per_layer = config.has("dynamic_config") || !quant.has("weight_quant_params");
  settings.bits =
      params.integer("nbits", settings.per_layer ? std::optional<std::int64_t>(4) : std::nullopt);
  settings.group_size = params.integer("group_size", -1);
  const std::int64_t axis = params.integer("axis", 1);
  quant.merge(params);
  config.merge(quant);
  if (!config.status().ok()) return config.status();
  if (!settings.per_layer) {
    const auto type = weight_type_of(settings.bits, params.field("nbits"));
    if (!type.ok()) return type.status();
  }
  if (axis != 1) {
    return failure(StatusCode::unsupported,
                   "{} must be 1: groups of axis 0 run across output features; got {}",
                   params.field("axis"), axis);
  }
  for (const char* key : {"scale_quant_params", "zero_quant_params"}) {
    if (!quant.has(key)) continue;
    return failure(StatusCode::unsupported, "{} must be null; got {}", quant.field(key),
                   quant.shown(key));
  }
  const auto names = find_layers(file, ".W_q", {".zero"});
  if (!names.ok()) return names.status();
  auto importer = std::make_unique<Hqq>(file, settings, options);
  for (const std::string& name : *names) {
    if (settings.per_layer && file.info(name + ".nbits") == nullptr) {
      return failure(StatusCode::corrupt_data,
                     "layer {}: must have a tensor {} where the config has no weight_quant_params "
                     "for all layers; it is missing",
                     in_quotes(name), in_quotes(name + ".nbits"));
    }
    if (Status s = importer->add(name, params); !s.ok()) return s;
  }
  return std::unique_ptr<const Importer>(std::move(importer));
}

}  // namespace mixgemm
