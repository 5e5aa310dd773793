// SPDX-License-Identifier: Apache-2.0
// PackedCheckpointWriter: headers and checksums on top of SafetensorsWriter.
#include <algorithm>
#include <cstring>
#include <unordered_map>
#include <utility>

#include "import/crc32c.hpp"
#include "import/errors.hpp"
#include "import/packed_header.hpp"
#include "layout/packed.hpp"
#include "mixgemm/checkpoint.hpp"

namespace mixgemm {
namespace {

/// Strips of a slice are gathered to pieces of about this size before they are written.
constexpr std::size_t kGatherBytes = std::size_t{1} << 20;

/// Where one part of a view lies: `rows` runs of row_bytes, pitch_bytes apart.
struct Rows {
  const std::uint8_t* data;
  std::size_t rows;
  std::size_t row_bytes;
  std::size_t pitch_bytes;
};

Rows rows_of(const PackedView& view, const PackedPart& part) {
  const auto strips = static_cast<std::size_t>(layout::num_strips(view.n));
  if (part.suffix == ".codes") {
    return {view.codes, strips,
            static_cast<std::size_t>(layout::strip_bytes(view.k, bits_of(view.spec.type))),
            static_cast<std::size_t>(view.codes_pitch_bytes)};
  }
  if (part.suffix == ".permutation") {
    const std::size_t bytes = static_cast<std::size_t>(view.k) * sizeof(std::int32_t);
    return {reinterpret_cast<const std::uint8_t*>(view.permutation), 1, bytes, bytes};
  }
  const std::size_t group_bytes =
      static_cast<std::size_t>(layout::kStripRows) * (part.dtype == "U8" ? 1 : 2);
  const void* data = part.suffix == ".scales" ? view.scales : view.zeros;
  return {static_cast<const std::uint8_t*>(data), strips,
          static_cast<std::size_t>(view.groups()) * group_bytes,
          static_cast<std::size_t>(view.groups_pitch) * group_bytes};
}

/// Calls body(data, bytes) over all bytes of `rows` in order, in large pieces; stops at a failure.
template <class Body>
Status for_each_piece(const Rows& rows, const Body& body) {
  if (rows.pitch_bytes == rows.row_bytes) return body(rows.data, rows.rows * rows.row_bytes);
  const std::size_t per_piece = std::max<std::size_t>(1, kGatherBytes / rows.row_bytes);
  std::vector<std::uint8_t> piece(std::min(per_piece, rows.rows) * rows.row_bytes);
  for (std::size_t begin = 0; begin < rows.rows; begin += per_piece) {
    const std::size_t count = std::min(per_piece, rows.rows - begin);
    for (std::size_t i = 0; i < count; ++i) {
      std::memcpy(piece.data() + i * rows.row_bytes, rows.data + (begin + i) * rows.pitch_bytes,
                  rows.row_bytes);
    }
    if (Status status = body(piece.data(), count * rows.row_bytes); !status.ok()) return status;
  }
  return {};
}

}  // namespace

class PackedCheckpointWriter::Impl {
 public:
  explicit Impl(SafetensorsWriter opened) : writer(std::move(opened)) {}

  std::string where(std::string_view name) const {
    return fmt::format("{}: layer {}", path, in_quotes(name));
  }

  /// begin(), once, and the checksums of what an earlier process wrote.
  Status begin();
  Status take_over(PackedLayerInfo& layer);
  Status take_over_dense(const std::string& name);

  SafetensorsWriter writer;
  std::string path;
  std::unordered_map<std::string, PackedLayerInfo> layers;  // size_bytes ≠ 0: written
  std::unordered_map<std::string, bool> dense;              // whether written
  bool begun = false;
};

namespace {

std::string packed_key(std::string_view name) {
  return fmt::format("{}{}", kPackedKeyPrefix, name);
}
std::string dense_key(std::string_view name) { return fmt::format("{}{}", kDenseKeyPrefix, name); }

/// The view must be what was declared, and readable.
Status check_view(const PackedLayerInfo& layer, const PackedView& view, const std::string& where) {
  if (view.device != Device::cpu) {
    return failure(StatusCode::invalid_argument, "{}: the view must be on the cpu; got {}", where,
                   to_string(view.device));
  }
  if (view.n != layer.n || view.k != layer.k || !(view.spec == layer.spec)) {
    const auto text = [](std::int64_t n, std::int64_t k, const QuantSpec& spec) {
      return fmt::format("n {}, k {}, {}, zero {}, group_size {}, scale_type {}", n, k,
                         to_string(spec.type), to_string(spec.zero), spec.group_size,
                         to_string(spec.scale_type));
    };
    return failure(StatusCode::invalid_argument, "{}: must be written as declared, {}; got {}",
                   where, text(layer.n, layer.k, layer.spec), text(view.n, view.k, view.spec));
  }
  const bool permuted = layer.columns == ColumnOrder::permuted;
  if (permuted != (view.permutation != nullptr)) {
    return failure(StatusCode::invalid_argument,
                   "{}: must be written as declared, {} a permutation; got a view {} one", where,
                   permuted ? "with" : "without", permuted ? "without" : "with");
  }
  for (const PackedPart& part : packed_parts(layer)) {
    const Rows rows = rows_of(view, part);
    const std::string name = fmt::format("{}{}", where, part.suffix);
    if (rows.data == nullptr) {
      return failure(StatusCode::invalid_argument, "{}: must not be a null pointer", name);
    }
    if (rows.pitch_bytes < rows.row_bytes) {
      return failure(StatusCode::invalid_argument,
                     "{}: the pitch must be at least {} bytes, a strip; got {}", name,
                     rows.row_bytes, rows.pitch_bytes);
    }
    if (part.suffix == ".codes") continue;  // every bit pattern is a code
    const std::size_t elem_bytes = part.dtype == "U8" ? 1 : part.dtype == "I32" ? 4 : 2;
    Status values = for_each_piece(rows, [&](const void* data, std::size_t bytes) {
      return check_values(part.suffix, view.spec, data, bytes / elem_bytes, where);
    });
    if (!values.ok()) return {StatusCode::invalid_argument, values.message()};
  }
  return {};
}

}  // namespace

Status PackedCheckpointWriter::Impl::take_over(PackedLayerInfo& layer) {
  PackedLayerInfo found = layer;
  const std::vector<PackedPart> parts = packed_parts(layer);
  std::size_t num_written = 0;
  for (const PackedPart& part : parts) {
    const auto crc = writer.written_crc(fmt::format("{}{}", layer.name, part.suffix));
    if (!crc) continue;
    ++num_written;
    stored_crc(found, part.suffix) = *crc;
    std::uint64_t elems = 1;
    for (const std::int64_t dim : part.shape) elems *= static_cast<std::uint64_t>(dim);
    found.size_bytes += elems * static_cast<std::uint64_t>(*dtype_bits(part.dtype)) / 8;
  }
  if (num_written == parts.size()) {
    layer = found;
    return writer.set_metadata(packed_key(layer.name), format_packed_header(layer));
  }
  for (const PackedPart& part : parts) {  // a layer is written whole or again
    if (Status s = writer.rewrite(fmt::format("{}{}", layer.name, part.suffix)); !s.ok()) return s;
  }
  return {};
}

Status PackedCheckpointWriter::Impl::take_over_dense(const std::string& name) {
  const auto crc = writer.written_crc(name);
  if (!crc) return {};
  dense[name] = true;
  return writer.set_metadata(dense_key(name), format_crc(*crc));
}

Status PackedCheckpointWriter::Impl::begin() {
  if (begun) return {};
  if (Status s = writer.begin(); !s.ok()) return s;
  begun = true;
  for (auto& [name, layer] : layers) {
    if (Status s = take_over(layer); !s.ok()) return s;
  }
  for (const auto& [name, written] : dense) {
    if (Status s = take_over_dense(name); !s.ok()) return s;
  }
  return {};
}

PackedCheckpointWriter::PackedCheckpointWriter(std::unique_ptr<Impl> impl)
    : impl_(std::move(impl)) {}
PackedCheckpointWriter::~PackedCheckpointWriter() = default;
PackedCheckpointWriter::PackedCheckpointWriter(PackedCheckpointWriter&&) noexcept = default;
PackedCheckpointWriter& PackedCheckpointWriter::operator=(PackedCheckpointWriter&&) noexcept =
    default;

Result<PackedCheckpointWriter> PackedCheckpointWriter::create(const std::string& path,
                                                              const WriteOptions& options) {
  auto writer = SafetensorsWriter::create(path, options);
  if (!writer.ok()) return writer.status();
  auto impl = std::make_unique<Impl>(*std::move(writer));
  impl->path = path;
  Status status =
      impl->writer.set_metadata(std::string(kVersionKey), std::to_string(kPackedFormatVersion));
  if (!status.ok()) return status;
  return PackedCheckpointWriter(std::move(impl));
}

Status PackedCheckpointWriter::declare_packed(const std::string& name, std::int64_t n,
                                              std::int64_t k, const QuantSpec& spec,
                                              ColumnOrder columns) {
  if (Status s = check_packed_shape(n, k, spec, impl_->where(name)); !s.ok()) return s;
  PackedLayerInfo layer;
  layer.name = name;
  layer.n = n;
  layer.k = k;
  layer.spec = spec;
  layer.columns = columns;
  for (const PackedPart& part : packed_parts(layer)) {
    Status status =
        impl_->writer.declare(fmt::format("{}{}", name, part.suffix), part.dtype, part.shape);
    if (!status.ok()) return status;
  }
  Status status = impl_->writer.set_metadata(packed_key(name), format_packed_header(layer));
  if (status.ok()) impl_->layers.emplace(name, std::move(layer));
  return status;
}

Status PackedCheckpointWriter::declare_dense(const std::string& name, std::string_view dtype,
                                             const std::vector<std::int64_t>& shape) {
  if (Status s = impl_->writer.declare(name, dtype, shape); !s.ok()) return s;
  Status status = impl_->writer.set_metadata(dense_key(name), format_crc(0));
  if (status.ok()) impl_->dense.emplace(name, false);
  return status;
}

Status PackedCheckpointWriter::set_metadata(const std::string& key, const std::string& value) {
  if (key.starts_with(kReservedPrefix)) {
    return failure(StatusCode::invalid_argument,
                   "{}: metadata keys that begin with \"{}\" are reserved; got {}", impl_->path,
                   kReservedPrefix, in_quotes(key));
  }
  return impl_->writer.set_metadata(key, value);
}

Status PackedCheckpointWriter::begin() {
  return impl_->begun ? impl_->writer.begin() : impl_->begin();  // the former says what's wrong
}

Status PackedCheckpointWriter::write_packed(const std::string& name, const PackedView& view) {
  const auto it = impl_->layers.find(name);
  if (it == impl_->layers.end()) {
    return failure(StatusCode::not_found, "{}: must be declared before it is written",
                   impl_->where(name));
  }
  PackedLayerInfo& layer = it->second;
  if (layer.size_bytes != 0) {
    return failure(StatusCode::invalid_argument, "{}: must be written once", impl_->where(name));
  }
  if (Status s = check_view(layer, view, impl_->where(name)); !s.ok()) return s;
  if (Status s = impl_->begin(); !s.ok()) return s;
  if (layer.size_bytes != 0) return {};  // by an earlier process
  for (const PackedPart& part : packed_parts(layer)) {
    const std::string tensor = fmt::format("{}{}", name, part.suffix);
    std::uint32_t crc = 0;
    Status status = for_each_piece(rows_of(view, part), [&](const void* data, std::size_t bytes) {
      crc = crc32c(crc, data, bytes);
      layer.size_bytes += bytes;
      return impl_->writer.append(tensor, data, bytes);
    });
    if (!status.ok()) return status;
    stored_crc(layer, part.suffix) = crc;
  }
  return impl_->writer.set_metadata(packed_key(name), format_packed_header(layer));
}

Status PackedCheckpointWriter::write_dense(const std::string& name, const TensorView& tensor) {
  return write_dense(name, tensor.data, tensor.bytes);
}

Status PackedCheckpointWriter::write_dense(const std::string& name, const void* data,
                                           std::size_t bytes) {
  const auto it = impl_->dense.find(name);
  if (it == impl_->dense.end()) {
    return failure(StatusCode::not_found, "{}: tensor {} must be declared before it is written",
                   impl_->path, in_quotes(name));
  }
  if (Status s = impl_->begin(); !s.ok()) return s;
  if (Status s = impl_->writer.write(name, data, bytes); !s.ok()) return s;
  it->second = true;
  return impl_->writer.set_metadata(dense_key(name), format_crc(crc32c(0, data, bytes)));
}

bool PackedCheckpointWriter::is_written(const std::string& name) const {
  const auto layer = impl_->layers.find(name);
  if (layer != impl_->layers.end()) return layer->second.size_bytes != 0;
  const auto tensor = impl_->dense.find(name);
  return tensor != impl_->dense.end() && tensor->second;
}

Status PackedCheckpointWriter::finish() { return impl_->writer.finish(); }
void PackedCheckpointWriter::abandon() { impl_->writer.abandon(); }

}  // namespace mixgemm
