// SPDX-License-Identifier: Apache-2.0
// Checkpoints that other tools quantized: found, checked, and read layer by layer as canonical
// weights. What each format is and how it maps: docs/checkpoints.md.
//
//   auto model = ModelCheckpoint::open("model_dir").value();
//   for (const ImportedLayer& layer : model.layers()) {
//     CanonicalWeight weight = model.load(layer.name).value();  // pack(weight), then multiply
//   }
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "mixgemm/checkpoint.hpp"
#include "mixgemm/export.hpp"
#include "mixgemm/status.hpp"
#include "mixgemm/types.hpp"
#include "mixgemm/weight.hpp"

namespace mixgemm {

/// Who wrote a checkpoint's weights. dense: nobody quantized them.
enum class CheckpointFormat : std::uint8_t {
  dense = 0,
  gptq = 1,
  awq = 2,
  compressed_tensors = 3,
  hqq = 4,
};

/// "dense", "gptq", "awq", "compressed-tensors", "hqq".
MIXGEMM_API std::string_view to_string(CheckpointFormat format);

/// Options of ModelCheckpoint.
struct ImportOptions {
  /// Format of scales (and scaled zeros): f16 or bf16. Not given: that of the checkpoint's scales,
  /// f16 where they are F32; then a scale that isn't exact in it is an error. Given: scales are
  /// rounded to it, and one that doesn't fit is an error.
  std::optional<DataType> scale_type;
};

/// A quantized layer of a checkpoint: what its canonical weight will be.
struct ImportedLayer {
  std::string name;  ///< its tensors' common prefix, e.g. "model.layers.0.mlp.up_proj"
  std::int64_t n = 0;
  std::int64_t k = 0;
  QuantSpec spec;
  /// permuted: the checkpoint's groups aren't runs of consecutive input features (activation
  /// order).
  ColumnOrder columns = ColumnOrder::natural;
  std::uint64_t source_bytes = 0;  ///< of the tensors that it consists of
};

/// A model's checkpoint: a directory or file as SafetensorsFile::open() takes it, with the
/// config.json beside it, whose quantization section decides the format. Where the section and the
/// tensors disagree, the checkpoint is refused. Immutable, cheap to copy, safe to use from several
/// threads.
class MIXGEMM_API ModelCheckpoint {
 public:
  /// Opens `path` and checks config and tensors against each other; of the data, only group indices
  /// and HQQ's zeros are read. Fails with what SafetensorsFile::open() fails with; with
  /// corrupt_data where config or tensors contradict each other or themselves; with unsupported for
  /// an unknown quant_method and for what the canonical weight can't hold (3 bits, groups across
  /// rows, …). Every message names the tensor or the field, the rule and the value.
  static Result<ModelCheckpoint> open(const std::string& path, const ImportOptions& options = {});
  /// The same for an opened file and the text of its config.json; empty: there is none.
  static Result<ModelCheckpoint> from(const SafetensorsFile& file, std::string_view config,
                                      const ImportOptions& options = {});

  CheckpointFormat format() const;
  /// Quantized layers, in order of name; none for a dense checkpoint.
  const std::vector<ImportedLayer>& layers() const;
  /// One of them, or nullptr.
  const ImportedLayer* info(std::string_view name) const;
  /// The layer's weight, exact: dequantize() gives what the format's definition gives. HQQ's zeros
  /// that aren't codes are the exception: zero · scale is rounded to the scale type. Memory: the
  /// weight, one byte a code. Fails with not_found; with corrupt_data on a scale or zero that isn't
  /// finite or in range, or that contradicts the config (names tensor, row and group).
  Result<CanonicalWeight> load(std::string_view name, int num_threads = 0) const;
  /// Tensors that belong to no quantized layer: biases, norms, embeddings, dense weights.
  const std::vector<TensorInfo>& others() const;
  const SafetensorsFile& file() const;

  class Impl;

 private:
  explicit ModelCheckpoint(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<const Impl> impl_;
};

}  // namespace mixgemm
