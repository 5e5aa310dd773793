// SPDX-License-Identifier: Apache-2.0
// GPTQ checkpoints, as AutoGPTQ and GPTQModel write them. A layer of K inputs and N outputs has
//   qweight  I32 [K·bits/32, N]   codes of consecutive k in a word, lowest bits first
//   qzeros   I32 [G, N·bits/32]   zeros of consecutive n likewise; version 1 stores zero − 1
//   scales   F16 [G, N]
//   g_idx    I32 [K]              the group of each k, optional without desc_act
// and w[n, k] = (code − zero[g, n]) · scale[g, n] with g = g_idx[k], else k / group_size.
#include <algorithm>
#include <cstring>

#include "import/errors.hpp"
#include "import/importer.hpp"
#include "util/parallel.hpp"

namespace mixgemm {
namespace {

struct GptqSettings {
  WeightType type = WeightType::int4;
  std::int64_t group_size = -1;
  bool sym = true;
  bool desc_act = false;
  int zero_offset = 1;  // added to a stored zero: 1 in version 1, 0 in version 2
};

Result<GptqSettings> read_gptq_settings(ConfigSection& config) {
  GptqSettings settings;
  const std::int64_t bits = config.integer("bits");
  settings.group_size = config.integer("group_size");
  settings.sym = config.boolean("sym", true);
  settings.desc_act = config.boolean("desc_act", false);
  std::string format = config.text("checkpoint_format", "");
  if (format.empty()) format = config.text("format", "gptq");
  const std::string pack_dtype = config.text("pack_dtype", "int32");
  if (!config.status().ok()) return config.status();
  const auto type = weight_type_of(bits, config.field("bits"));
  if (!type.ok()) return type.status();
  settings.type = *type;
  if (format != "gptq" && format != "gptq_v2") {
    return failure(StatusCode::unsupported, "{} must be \"gptq\" or \"gptq_v2\"; got {}",
                   config.field("checkpoint_format"), in_quotes(format));
  }
  settings.zero_offset = format == "gptq" ? 1 : 0;
  if (pack_dtype != "int32") {
    return failure(StatusCode::unsupported, "{} must be \"int32\"; got {}",
                   config.field("pack_dtype"), in_quotes(pack_dtype));
  }
  if (config.has("dynamic") && config.shown("dynamic") != "{}") {
    return failure(StatusCode::unsupported,
                   "{} must be empty: settings that differ by layer aren't read; got {}",
                   config.field("dynamic"), config.shown("dynamic"));
  }
  return settings;
}

class Gptq final : public Importer {
 public:
  Gptq(const SafetensorsFile& file, const GptqSettings& settings, const ImportOptions& options)
      : Importer(file), settings_(settings), options_(options) {}

  Status add(const std::string& name, const ConfigSection& config);
  Result<CanonicalWeight> load(std::size_t idx, int num_threads) const override;

 private:
  Status fill_zeros(const TensorView& qzeros, const Grouping& groups,
                    CanonicalWeight& weight) const;

  GptqSettings settings_;
  ImportOptions options_;
  std::vector<Grouping> groups_;                         // of each layer
  std::vector<std::vector<std::int32_t>> permutations_;  // of each layer, or empty
};

Status Gptq::add(const std::string& name, const ConfigSection& config) {
  const auto tensors = word_tensors(file_, name);
  if (!tensors.ok()) return tensors.status();
  const TensorInfo& qweight = tensors->qweight;
  const int per_word = codes_per_word(settings_.type);
  if (Status s = check_matrix(qweight, "[K·bits/32, N]"); !s.ok()) return s;
  ImportedLayer layer;
  layer.name = name;
  layer.n = qweight.shape[1];
  if (__builtin_mul_overflow(qweight.shape[0], per_word, &layer.k)) layer.k = -1;
  if (Status s = check_layer_size(name, layer.n, layer.k); !s.ok()) return s;
  if (layer.n % per_word != 0) {
    return failure(StatusCode::corrupt_data,
                   "layer {}: N must be a multiple of {}, the zeros in a word; got {}",
                   in_quotes(name), per_word, layer.n);
  }
  const auto groups =
      word_groups(*tensors, layer, per_word, settings_.group_size, config.field("group_size"));
  if (!groups.ok()) return groups.status();
  layer.source_bytes = tensors->size_bytes();
  std::vector<std::int32_t> permutation;
  if (file_.info(name + ".g_idx") != nullptr) {
    const auto g_idx = layer_tensor(file_, name, ".g_idx", {"I32", "I64"});
    if (!g_idx.ok()) return g_idx.status();
    if (Status s = check_shape(*g_idx, {layer.k}, "[K]"); !s.ok()) return s;
    const auto view = file_.find(g_idx->name);
    if (!view.ok()) return view.status();
    auto found = permutation_of(*view, layer.k, *groups);
    if (!found.ok()) return found.status();
    permutation = *std::move(found);
    layer.source_bytes += g_idx->size_bytes();
    if (!permutation.empty() && !settings_.desc_act) {
      return failure(StatusCode::corrupt_data,
                     "tensor {}: must be k / group_size where {} is false; got another order",
                     in_quotes(g_idx->name), config.field("desc_act"));
    }
  } else if (settings_.desc_act) {
    return failure(StatusCode::corrupt_data,
                   "layer {}: must have a tensor {} where {} is true; it is missing",
                   in_quotes(name), in_quotes(name + ".g_idx"), config.field("desc_act"));
  }
  layer.columns = permutation.empty() ? ColumnOrder::natural : ColumnOrder::permuted;
  layer.spec = {settings_.type, settings_.sym ? ZeroKind::none : ZeroKind::integer,
                groups->group_size, scale_type_for(tensors->scales, options_)};
  for (const char* part : {".qweight", ".qzeros", ".scales", ".g_idx"})
    claimed_.insert(name + part);
  layers_.push_back(std::move(layer));
  groups_.push_back(*groups);
  permutations_.push_back(std::move(permutation));
  return {};
}

Status Gptq::fill_zeros(const TensorView& qzeros, const Grouping& groups,
                        CanonicalWeight& weight) const {
  const auto* words = static_cast<const std::uint32_t*>(qzeros.data);
  const int per_word = codes_per_word(settings_.type);
  const int bits = bits_of(settings_.type);
  const std::uint32_t mask = (1u << bits) - 1u;
  const std::int64_t num_groups = weight.groups();
  const auto zero_at = [&](std::int64_t row, std::int64_t group) {
    const std::uint32_t word = words[group * (weight.n / per_word) + row / per_word];
    // A stored 15 means zero 0 in version 1: it was written as 0 − 1, and readers wrap likewise.
    return ((word >> (bits * (row % per_word))) +
            static_cast<std::uint32_t>(settings_.zero_offset)) &
           mask;
  };
  if (weight.spec.zero == ZeroKind::none) {
    const auto implicit = static_cast<std::uint32_t>(implicit_zero(settings_.type));
    for (std::int64_t group = 0; group < groups.source_groups; ++group) {
      for (std::int64_t row = 0; row < weight.n; ++row) {
        if (zero_at(row, group) == implicit) continue;
        return failure(StatusCode::corrupt_data,
                       "tensor {}: row {}, group {}: the zero of a symmetric checkpoint (sym true) "
                       "must be {}; got {}",
                       in_quotes(qzeros.info.name), row, group, implicit, zero_at(row, group));
      }
    }
    return {};
  }
  weight.zeros.resize(static_cast<std::size_t>(weight.n * num_groups));
  for (std::int64_t row = 0; row < weight.n; ++row) {
    for (std::int64_t g = 0; g < num_groups; ++g) {
      weight.zeros[static_cast<std::size_t>(row * num_groups + g)] =
          static_cast<std::uint8_t>(zero_at(row, groups.source_of(g)));
    }
  }
  return {};
}

Result<CanonicalWeight> Gptq::load(std::size_t idx, int num_threads) const {
  const ImportedLayer& layer = layers_[idx];
  const Grouping& groups = groups_[idx];
  const auto tensors = word_views(file_, layer.name);
  if (!tensors.ok()) return tensors.status();
  CanonicalWeight weight;
  weight.n = layer.n;
  weight.k = layer.k;
  weight.spec = layer.spec;
  weight.permutation = permutations_[idx];
  if (Status s = fill_scales({tensors->scales, 1, layer.n}, groups, options_, weight); !s.ok())
    return s;
  if (Status s = fill_zeros(tensors->qzeros, groups, weight); !s.ok()) return s;

  weight.codes.resize(static_cast<std::size_t>(layer.n * layer.k));
  const auto* words = static_cast<const std::uint32_t*>(tensors->qweight.data);
  const int per_word = codes_per_word(settings_.type);
  const std::vector<std::int32_t> column = inverse(weight.permutation);
  parallel_for(layer.n, kLineWords, num_threads, [&](std::int64_t begin, std::int64_t end) {
    std::uint8_t codes[8];
    for (std::int64_t word_row = 0; word_row < layer.k / per_word; ++word_row) {
      const std::int64_t k = word_row * per_word;
      for (std::int64_t n = begin; n < end; ++n) {
        expand_word(words[word_row * layer.n + n], settings_.type, codes);
        std::uint8_t* row = weight.codes.data() + n * layer.k;
        if (column.empty()) {
          std::memcpy(row + k, codes, static_cast<std::size_t>(per_word));
          continue;
        }
        for (int i = 0; i < per_word; ++i) row[column[static_cast<std::size_t>(k + i)]] = codes[i];
      }
    }
  });
  return weight;
}

}  // namespace

ImporterResult import_gptq(const SafetensorsFile& file, ConfigSection config,
                           const ImportOptions& options) {
  const auto settings = read_gptq_settings(config);
  if (!settings.ok()) return settings.status();
  const auto names = find_layers(file, ".qweight", {".qzeros", ".g_idx"});
  if (!names.ok()) return names.status();
  auto importer = std::make_unique<Gptq>(file, *settings, options);
  for (const std::string& name : *names) {
    if (Status s = importer->add(name, config); !s.ok()) return s;
  }
  return std::unique_ptr<const Importer>(std::move(importer));
}

}  // namespace mixgemm
