// SPDX-License-Identifier: Apache-2.0
// What the importers share: one file per checkpoint format, each of which finds its layers in a
// safetensors file and reads one as a canonical weight.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "import/model_config.hpp"
#include "mixgemm/import.hpp"

namespace mixgemm {

/// One checkpoint format, for one file. Implementations are immutable once made.
class Importer {
 public:
  virtual ~Importer() = default;
  /// The weight of the layer at layers()[idx].
  virtual Result<CanonicalWeight> load(std::size_t idx, int num_threads) const = 0;

  /// In order of name.
  const std::vector<ImportedLayer>& layers() const { return layers_; }
  /// Names of the tensors that belong to a layer.
  const std::set<std::string, std::less<>>& claimed() const { return claimed_; }

 protected:
  explicit Importer(const SafetensorsFile& file) : file_(file) {}

  SafetensorsFile file_;
  std::vector<ImportedLayer> layers_;
  std::set<std::string, std::less<>> claimed_;
};

using ImporterResult = Result<std::unique_ptr<const Importer>>;

/// Each checks the quantization section and every layer's tensors.
ImporterResult import_gptq(const SafetensorsFile& file, ConfigSection config,
                           const ImportOptions& options);
ImporterResult import_awq(const SafetensorsFile& file, ConfigSection config,
                          const ImportOptions& options);
ImporterResult import_compressed_tensors(const SafetensorsFile& file, ConfigSection config,
                                         const ImportOptions& options);
ImporterResult import_hqq(const SafetensorsFile& file, ConfigSection config,
                          const ImportOptions& options);

// ------------------------------------------------------------------ layers and their tensors

/// Names of the layers that have a tensor NAME + `suffix`, sorted. Fails where another suffix of
/// `parts` stands without it: a tensor that belongs to no layer.
Result<std::vector<std::string>> find_layers(const SafetensorsFile& file, std::string_view suffix,
                                             std::initializer_list<std::string_view> parts);

/// A layer's tensor, which must be there, with one of these dtypes.
Result<TensorInfo> layer_tensor(const SafetensorsFile& file, const std::string& layer,
                                std::string_view suffix,
                                std::initializer_list<std::string_view> dtypes);
/// The tensor's shape must be `shape`; `rule` says why, e.g. "[G, N]".
Status check_shape(const TensorInfo& tensor, const std::vector<std::int64_t>& shape,
                   std::string_view rule);
/// The tensor must have two dimensions; `rule` says which, e.g. "[K, N/8]".
Status check_matrix(const TensorInfo& tensor, std::string_view rule);
/// N and K must be legal.
Status check_layer_size(const std::string& layer, std::int64_t n, std::int64_t k);
/// bits must be 4 or 8; `field` begins the message.
Result<WeightType> weight_type_of(std::int64_t bits, std::string_view field);

// ------------------------------------------------------------------ groups

/// How a checkpoint's groups along K become groups of a canonical weight. Groups of 256 are two of
/// 128 with the same scale; a group that spans K is a column.
struct Grouping {
  int group_size = 0;            ///< of the canonical weight: 0, 16, 32, 64 or 128
  std::int64_t source_size = 0;  ///< k in a group of the checkpoint
  std::int64_t source_groups = 1;
  std::int64_t repeat = 1;  ///< canonical groups that one of the checkpoint's becomes

  /// The checkpoint's group that canonical group g is part of.
  std::int64_t source_of(std::int64_t g) const { return g / repeat; }
};

/// size: as the config has it, −1 for one group over all of K. `field` begins the message.
Result<Grouping> plan_groups(std::int64_t k, std::int64_t size, std::string_view field);

/// The permutation that makes the groups of `g_idx` (group of each k) consecutive: columns in order
/// of their group, inside one in order of k. Empty where they are already. Every group must have
/// as many k as its size says.
Result<std::vector<std::int32_t>> permutation_of(const TensorView& g_idx, std::int64_t k,
                                                 const Grouping& groups);
/// permutation[j] = k → result[k] = j.
std::vector<std::int32_t> inverse(const std::vector<std::int32_t>& permutation);

// ------------------------------------------------------------------ codes in 32-bit words

// Output features or words of a row that a thread takes at a time: a cache line of 32-bit words.
constexpr std::int64_t kLineWords = 16;

/// What GPTQ and AWQ call the tensors of a layer: NAME.qweight and NAME.qzeros of 32-bit words, and
/// NAME.scales. T: TensorInfo or TensorView.
template <class T>
struct WordTensors {
  T qweight, qzeros, scales;

  std::uint64_t size_bytes() const {
    return qweight.size_bytes() + qzeros.size_bytes() + scales.size_bytes();
  }
};

/// They must be there, with the dtypes that belong to them.
Result<WordTensors<TensorInfo>> word_tensors(const SafetensorsFile& file, const std::string& layer);
Result<WordTensors<TensorView>> word_views(const SafetensorsFile& file, const std::string& layer);
/// The groups of a layer whose scales are [G, N] and whose zeros are [G, N·bits/32]; size and field
/// as in plan_groups().
Result<Grouping> word_groups(const WordTensors<TensorInfo>& tensors, const ImportedLayer& layer,
                             int codes_per_word, std::int64_t size, std::string_view field);

// ------------------------------------------------------------------ scales and codes

/// The format of a layer's scales in the canonical weight (ImportOptions::scale_type).
DataType scale_type_for(const TensorInfo& scales, const ImportOptions& options);

/// A matrix of 16- or 32-bit floats, [groups, rows] or [rows, groups], by strides.
struct FloatMatrix {
  TensorView tensor;
  std::int64_t row_stride = 0;
  std::int64_t group_stride = 0;

  double at(std::int64_t row, std::int64_t group) const;
  std::string where(std::int64_t row, std::int64_t group) const;
};

/// Fills weight.scales: finite, and exact unless the options name a scale type.
Status fill_scales(const FloatMatrix& scales, const Grouping& groups, const ImportOptions& options,
                   CanonicalWeight& weight);
/// A value rounded to a 16-bit type; fails where it isn't finite in it or, if `exact`, changes.
Result<std::uint16_t> to_scale_type(double value, DataType type, bool exact,
                                    std::string_view where);

/// The codes of a 32-bit word, lowest bits first: 8 of 4 bits or 4 of 8 bits.
inline void expand_word(std::uint32_t word, WeightType type, std::uint8_t* codes) {
  const int bits = bits_of(type);
  for (int i = 0; i < 32 / bits; ++i) {
    codes[i] = static_cast<std::uint8_t>(word >> (bits * i) & ((1u << bits) - 1u));
  }
}
inline int codes_per_word(WeightType type) { return 32 / bits_of(type); }

}  // namespace mixgemm
