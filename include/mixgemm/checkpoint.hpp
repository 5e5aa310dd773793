// SPDX-License-Identifier: Apache-2.0
// Checkpoints on disk: safetensors files (read by mmap, written aside and renamed) and the packed
// checkpoint, which is a safetensors file whose metadata describes packed weights. The bytes are
// specified in docs/file_format.md.
//
//   auto in = SafetensorsFile::open("model_dir").value();
//   auto out = PackedCheckpointWriter::create("model.int4.safetensors").value();
//   for (...) out.declare_packed(name, n, k, spec) / out.declare_dense(name, dtype, shape);
//   for (...) out.write_packed(name, packed.view()) / out.write_dense(name, tensor);
//   out.finish();                                   // the file appears now, whole
//
//   auto checkpoint = PackedCheckpoint::open("model.int4.safetensors").value();
//   PackedWeight w = checkpoint.find(name).value();  // the memory is the mapping
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "mixgemm/export.hpp"
#include "mixgemm/status.hpp"
#include "mixgemm/types.hpp"
#include "mixgemm/weight.hpp"

namespace mixgemm {

/// What a safetensors header says of one tensor. Elements are little-endian, row-major, contiguous.
struct TensorInfo {
  std::string name;
  std::string dtype;  ///< as the format spells it: "F16", "BF16", "F32", "U8", "I64", ...
  std::vector<std::int64_t> shape;  ///< each ≥ 0; empty for a scalar
  std::uint64_t begin = 0;          ///< first byte, from the start of its file's data section
  std::uint64_t end = 0;            ///< one past the last byte
  int shard = 0;                    ///< which of SafetensorsFile::files() holds it

  std::uint64_t size_bytes() const { return end - begin; }
  std::int64_t num_elems() const;  ///< product of shape; 1 for a scalar
};

inline std::int64_t TensorInfo::num_elems() const {
  std::int64_t count = 1;
  for (const std::int64_t dim : shape) count *= dim;
  return count;
}

/// A tensor in memory. Copies share the memory, which stays valid as long as one of them lives and
/// nobody truncates the file underneath.
struct TensorView {
  TensorInfo info;
  const void* data = nullptr;  ///< aligned to the element size
  std::size_t bytes = 0;
  std::shared_ptr<const void> storage;  ///< the mapping, or a copy where the file is misaligned
};

/// Bits of one element of a safetensors dtype, e.g. 16 for "BF16"; nothing for an unknown dtype.
MIXGEMM_API std::optional<int> dtype_bits(std::string_view dtype);
/// "F16" → f16, "BF16" → bf16, "F32" → f32; nothing for any other.
MIXGEMM_API std::optional<DataType> data_type_of(std::string_view dtype);
/// f16 → "F16", bf16 → "BF16", f32 → "F32".
MIXGEMM_API std::string_view dtype_name(DataType type);

/// A checkpoint in safetensors format: one file, or shards with an index. Mapped read-only, never
/// copied. Immutable, cheap to copy, safe to use from several threads.
class MIXGEMM_API SafetensorsFile {
 public:
  /// Opens `path`, which is
  ///   - a .safetensors file, or
  ///   - an index (….safetensors.index.json) beside its shards, or
  ///   - a name whose index exists instead (model.safetensors → model.safetensors.index.json), or
  ///   - a directory with model.safetensors, its index, or exactly one other of either kind.
  /// Symbolic links are followed. Everything the header claims is checked here, before a byte of
  /// data is touched: see docs/file_format.md for the rules. Where the index and a shard disagree,
  /// the file is refused; tensors of a shard that the index doesn't list are left out.
  /// Fails with not_found, io_error, corrupt_data, or unsupported (unknown dtype).
  static Result<SafetensorsFile> open(const std::string& path);

  /// All tensors, in the order of their bytes, shard after shard.
  const std::vector<TensorInfo>& tensors() const;
  /// Description alone, or nullptr.
  const TensorInfo* info(std::string_view name) const;
  /// The tensor's memory. Fails with not_found; with invalid_argument for a zero-sized dimension;
  /// with io_error when the file has become shorter since it was opened.
  Result<TensorView> find(std::string_view name) const;
  /// __metadata__ of the file; of shards, the union (for a key that several have, the first's).
  const std::map<std::string, std::string>& metadata() const;
  /// Paths of the mapped files.
  const std::vector<std::string>& files() const;
  /// Sum of the files' sizes.
  std::uint64_t file_bytes() const;

  class Impl;

 private:
  explicit SafetensorsFile(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<const Impl> impl_;
};

/// Options of the writers.
struct WriteOptions {
  /// 0: one file. Otherwise model.safetensors becomes model-00001-of-0000S.safetensors, … of at
  /// most this many bytes of data each (a larger tensor gets a shard of its own), and
  /// model.safetensors.index.json, which appears last. One shard is written as one plain file.
  std::uint64_t max_shard_bytes = 0;
  /// Not empty: a later process may continue what this one leaves unfinished. The unfinished file
  /// is TARGET.partial; it and its journal, TARGET.partial.journal, stay when the writer goes
  /// without finish() or abandon(), however the process ends. A writer created later for the same
  /// target with equal declarations, metadata and key takes over every tensor that the journal
  /// lists and whose checksum is right; any difference begins anew. The key names what the bytes
  /// depend on: the source's state and the options. Only one process may write at a time.
  std::string resume_key = {};
};

/// Writes a safetensors file: declare every tensor, then write them in any order, whole or in
/// pieces, then finish(). The bytes go to a temporary file beside the target, which is flushed to
/// disk and renamed by finish(): the target appears whole or not at all, and what was there before
/// stays until then. Without finish() the temporary is removed. An existing target is replaced
/// unless it is a directory or write-protected; a link's target is replaced, not the link.
/// A call that breaks a rule changes nothing; after io_error every call but abandon() returns the
/// same failure. Not thread-safe.
class MIXGEMM_API SafetensorsWriter {
 public:
  /// Fails with io_error or not_found when the directory isn't there or isn't writable.
  static Result<SafetensorsWriter> create(const std::string& path,
                                          const WriteOptions& options = {});
  ~SafetensorsWriter();
  SafetensorsWriter(SafetensorsWriter&&) noexcept;
  SafetensorsWriter& operator=(SafetensorsWriter&&) noexcept;

  /// Announces a tensor. Fails on an empty or repeated name, a name that isn't UTF-8, an unknown
  /// dtype, a dimension < 1, more than 32 dimensions, and after begin().
  Status declare(const std::string& name, std::string_view dtype,
                 const std::vector<std::int64_t>& shape);
  /// Sets a __metadata__ entry. After begin() a value may only be replaced by one of equal length
  /// (so that a checksum can be filled in).
  Status set_metadata(const std::string& key, const std::string& value);
  /// Lays the file out and reserves its disk space: a full disk is reported here, before the long
  /// work. Called by the first write if not before.
  Status begin();
  /// Appends bytes to a declared tensor; pieces must add up to its size.
  Status append(const std::string& name, const void* data, std::size_t bytes);
  /// Writes a whole tensor: append() of exactly its size.
  Status write(const std::string& name, const void* data, std::size_t bytes);
  /// Writes the header, flushes, renames. Fails if a declared tensor is incomplete (names it).
  Status finish();
  /// Removes the temporary files now, those that resume_key would keep included.
  void abandon();

  // For writers with a resume_key, after begin():
  /// CRC-32C of a declared tensor that has been written whole, by this process or before.
  std::optional<std::uint32_t> written_crc(const std::string& name) const;
  /// Forgets what has been written of a tensor, so that it can be written again.
  Status rewrite(const std::string& name);

  class Impl;

 private:
  explicit SafetensorsWriter(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// The header of one packed weight in a file (docs/file_format.md).
struct PackedLayerInfo {
  std::string name;
  int format_version = kPackedFormatVersion;
  std::int64_t n = 0;
  std::int64_t k = 0;
  QuantSpec spec;
  ColumnOrder columns = ColumnOrder::natural;
  std::uint32_t codes_crc = 0;        ///< CRC-32C of the tensor name.codes
  std::uint32_t scales_crc = 0;       ///< … name.scales
  std::uint32_t zeros_crc = 0;        ///< … name.zeros; 0 when there is none
  std::uint32_t permutation_crc = 0;  ///< … name.permutation; 0 when there is none
  std::uint64_t size_bytes = 0;       ///< codes + scales + zeros + permutation

  /// Bits per weight, scales, zeros, permutation and padding included.
  double bits_per_weight() const {
    return 8.0 * static_cast<double>(size_bytes) /
           (static_cast<double>(n) * static_cast<double>(k));
  }
};

/// Options of PackedCheckpoint::open().
struct PackedOpenOptions {
  /// find() checks checksums and value ranges of a weight the first time it is asked for (one pass
  /// over its bytes). Off: only headers and sizes are checked.
  bool verify_on_find = true;
};

/// A packed checkpoint: packed weights that can be multiplied straight from the mapping, and dense
/// tensors passed through unchanged (biases, norms, embeddings). Immutable, cheap to copy, safe to
/// use from several threads.
class MIXGEMM_API PackedCheckpoint {
 public:
  /// Opens what SafetensorsFile::open() accepts and checks every packed header against its tensors.
  /// Fails additionally with version_mismatch for another format version, with corrupt_data when
  /// the file is no packed checkpoint or a header contradicts itself or its tensors. The message
  /// names layer, field, rule and value.
  static Result<PackedCheckpoint> open(const std::string& path,
                                       const PackedOpenOptions& options = {});
  /// The same for an opened file.
  static Result<PackedCheckpoint> from(const SafetensorsFile& file,
                                       const PackedOpenOptions& options = {});
  /// Whether the file claims to be a packed checkpoint, of whatever version.
  static bool is_packed(const SafetensorsFile& file);

  /// Packed weights, in order of name.
  const std::vector<PackedLayerInfo>& layers() const;
  /// Their names.
  std::vector<std::string> names() const;
  /// Description of one, or nullptr.
  const PackedLayerInfo* info(std::string_view name) const;
  /// A packed weight whose memory is the mapping, which it keeps alive. Where another program saved
  /// the file again and a tensor isn't 16-byte aligned, its memory is an aligned copy instead.
  /// Fails with not_found; with corrupt_data on a wrong checksum, a scale or zero that isn't
  /// finite, an integer zero that isn't a code, or a wrong permutation.
  Result<PackedWeight> find(std::string_view name) const;

  /// Dense tensors: those of the file that belong to no packed weight.
  const std::vector<TensorInfo>& dense() const;
  /// A dense tensor. Its checksum, where the file has one, is checked by verify() alone.
  Result<TensorView> find_dense(std::string_view name) const;

  /// Checks every checksum and value range, dense tensors included; the first failure is returned.
  Status verify(const Progress& progress = {}) const;

  /// Metadata that isn't mixgemm's own.
  const std::map<std::string, std::string>& metadata() const;
  const SafetensorsFile& file() const;

  class Impl;

 private:
  explicit PackedCheckpoint(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<const Impl> impl_;
};

/// Writes a packed checkpoint; the same protocol and guarantees as SafetensorsWriter. Declare
/// everything first: N, K and spec fix a packed weight's size.
class MIXGEMM_API PackedCheckpointWriter {
 public:
  static Result<PackedCheckpointWriter> create(const std::string& path,
                                               const WriteOptions& options = {});
  ~PackedCheckpointWriter();
  PackedCheckpointWriter(PackedCheckpointWriter&&) noexcept;
  PackedCheckpointWriter& operator=(PackedCheckpointWriter&&) noexcept;

  /// Announces a packed weight, stored as the tensors name.codes, name.scales, name.zeros and, for
  /// permuted columns, name.permutation. Fails on N or K < 1, an unknown group size or a scale type
  /// other than f16 and bf16.
  Status declare_packed(const std::string& name, std::int64_t n, std::int64_t k,
                        const QuantSpec& spec, ColumnOrder columns = ColumnOrder::natural);
  /// Announces a dense tensor.
  Status declare_dense(const std::string& name, std::string_view dtype,
                       const std::vector<std::int64_t>& shape);
  /// Free metadata; keys that begin with "mixgemm." are reserved. Before the first write only.
  Status set_metadata(const std::string& key, const std::string& value);
  /// Lays the file out and reserves its disk space; called by the first write if not before.
  Status begin();

  /// Writes a declared weight. The view may be a slice: only its own bytes are written. Fails on a
  /// view that isn't on the CPU or differs from the declaration, on scales or zeros that aren't
  /// finite, on integer zeros that aren't codes, and on a wrong permutation. Any order.
  Status write_packed(const std::string& name, const PackedView& view);
  /// Writes a declared dense tensor: tensor.bytes must be its size. tensor.info isn't looked at.
  Status write_dense(const std::string& name, const TensorView& tensor);
  Status write_dense(const std::string& name, const void* data, std::size_t bytes);
  /// Whether a declared weight or dense tensor has been written, which after begin() may be true
  /// from the start where options.resume_key continues an earlier process's work.
  bool is_written(const std::string& name) const;

  /// Writes headers and checksums, flushes, renames. Fails if a declared tensor wasn't written.
  Status finish();
  /// Removes the temporary files now, those that resume_key would keep included.
  void abandon();

  class Impl;

 private:
  explicit PackedCheckpointWriter(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace mixgemm
