// SPDX-License-Identifier: Apache-2.0
// AWQ checkpoints in AutoAWQ's "gemm" layout. A layer of K inputs and N outputs has
//   qweight  I32 [K, N/8]   the codes of eight consecutive n in a word
//   qzeros   I32 [G, N/8]   zeros likewise
//   scales   F16 [G, N]
// where nibble i of a word, from the lowest, belongs to n = 8·word + kOrder[i]; and
// w[n, k] = (code − zero[g, n]) · scale[g, n], g = k / group_size.
#include <algorithm>

#include "import/errors.hpp"
#include "import/importer.hpp"
#include "util/parallel.hpp"

namespace mixgemm {
namespace {

constexpr int kPerWord = 8;
constexpr int kOrder[kPerWord] = {0, 2, 4, 6, 1, 3, 5, 7};

class Awq final : public Importer {
 public:
  Awq(const SafetensorsFile& file, std::int64_t group_size, const ImportOptions& options)
      : Importer(file), group_size_(group_size), options_(options) {}

  Status add(const std::string& name, const ConfigSection& config, std::string_view group_key);
  Result<CanonicalWeight> load(std::size_t idx, int num_threads) const override;

 private:
  std::int64_t group_size_;
  ImportOptions options_;
  std::vector<Grouping> groups_;  // of each layer
};

Status Awq::add(const std::string& name, const ConfigSection& config, std::string_view group_key) {
  const auto tensors = word_tensors(file_, name);
  if (!tensors.ok()) return tensors.status();
  const TensorInfo& qweight = tensors->qweight;
  if (Status s = check_matrix(qweight, "[K, N/8]"); !s.ok()) return s;
  ImportedLayer layer;
  layer.name = name;
  layer.k = qweight.shape[0];
  if (__builtin_mul_overflow(qweight.shape[1], kPerWord, &layer.n)) layer.n = -1;
  if (Status s = check_layer_size(name, layer.n, layer.k); !s.ok()) return s;
  const auto groups = word_groups(*tensors, layer, kPerWord, group_size_, config.field(group_key));
  if (!groups.ok()) return groups.status();
  layer.spec = {WeightType::int4, ZeroKind::integer, groups->group_size,
                scale_type_for(tensors->scales, options_)};
  layer.source_bytes = tensors->size_bytes();
  for (const char* part : {".qweight", ".qzeros", ".scales"}) claimed_.insert(name + part);
  layers_.push_back(std::move(layer));
  groups_.push_back(*groups);
  return {};
}

Result<CanonicalWeight> Awq::load(std::size_t idx, int num_threads) const {
  const ImportedLayer& layer = layers_[idx];
  const Grouping& groups = groups_[idx];
  const auto tensors = word_views(file_, layer.name);
  if (!tensors.ok()) return tensors.status();
  CanonicalWeight weight;
  weight.n = layer.n;
  weight.k = layer.k;
  weight.spec = layer.spec;
  if (Status s = fill_scales({tensors->scales, 1, layer.n}, groups, options_, weight); !s.ok())
    return s;

  const std::int64_t words_per_row = layer.n / kPerWord;
  const std::int64_t num_groups = weight.groups();
  weight.codes.resize(static_cast<std::size_t>(layer.n * layer.k));
  weight.zeros.resize(static_cast<std::size_t>(layer.n * num_groups));
  const auto* code_words = static_cast<const std::uint32_t*>(tensors->qweight.data);
  const auto* zero_words = static_cast<const std::uint32_t*>(tensors->qzeros.data);
  const auto nibble = [](std::uint32_t word, int i) {
    return static_cast<std::uint8_t>(word >> (4 * i) & 15u);
  };
  parallel_for(words_per_row, kLineWords, num_threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t k = 0; k < layer.k; ++k) {
      for (std::int64_t at = begin; at < end; ++at) {
        const std::uint32_t word = code_words[k * words_per_row + at];
        std::uint8_t* rows = weight.codes.data() + at * kPerWord * layer.k + k;
        for (int i = 0; i < kPerWord; ++i) rows[kOrder[i] * layer.k] = nibble(word, i);
      }
    }
    for (std::int64_t g = 0; g < num_groups; ++g) {
      for (std::int64_t at = begin; at < end; ++at) {
        const std::uint32_t word = zero_words[groups.source_of(g) * words_per_row + at];
        std::uint8_t* rows = weight.zeros.data() + at * kPerWord * num_groups + g;
        for (int i = 0; i < kPerWord; ++i) rows[kOrder[i] * num_groups] = nibble(word, i);
      }
    }
  });
  return weight;
}

}  // namespace

ImporterResult import_awq(const SafetensorsFile& file, ConfigSection config,
                          const ImportOptions& options) {
  // AutoAWQ's own names, and those it is given in a transformers config.
  const char* bits_key = config.has("w_bit") ? "w_bit" : "bits";
  const char* group_key = config.has("q_group_size") ? "q_group_size" : "group_size";
  const std::int64_t bits = config.integer(bits_key);
  const std::int64_t group_size = config.integer(group_key);
  const bool zero_point = config.boolean("zero_point", true);
  const char* version_key = config.has("version") ? "version" : "format";
  std::string version = config.text(version_key, "gemm");
  if (!config.status().ok()) return config.status();
  if (bits != 4) {
    return failure(StatusCode::unsupported, "{} must be 4; got {}", config.field(bits_key), bits);
  }
  std::transform(version.begin(), version.end(), version.begin(), [](char c) {
    return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  });
  if (version != "gemm") {
    return failure(StatusCode::unsupported, "{} must be \"gemm\"; got {}",
                   config.field(version_key), in_quotes(version));
  }
  if (!zero_point) {
    return failure(StatusCode::unsupported, "{} must be true: the layout has zeros; got false",
                   config.field("zero_point"));
  }
  const auto names = find_layers(file, ".qweight", {".qzeros"});
  if (!names.ok()) return names.status();
  auto importer = std::make_unique<Awq>(file, group_size, options);
  for (const std::string& name : *names) {
    if (file.info(name + ".g_idx") != nullptr) {
      return failure(StatusCode::corrupt_data,
                     "tensor {}: must not be there: AWQ has no order of columns",
                     in_quotes(name + ".g_idx"));
    }
    if (Status s = importer->add(name, config, group_key); !s.ok()) return s;
  }
  return std::unique_ptr<const Importer>(std::move(importer));
}

}  // namespace mixgemm
