// SPDX-License-Identifier: Apache-2.0
// PackedCheckpoint: packed weights found in a safetensors file, checked, and viewed in place.
#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "import/aligned_copy.hpp"
#include "import/crc32c.hpp"
#include "import/errors.hpp"
#include "import/packed_header.hpp"
#include "layout/packed.hpp"
#include "mixgemm/checkpoint.hpp"
#include "util/join.hpp"
#include "util/parallel.hpp"

namespace mixgemm {
namespace {

/// What kernels and vector loads ask of codes, scales and zeros.
constexpr std::uintptr_t kViewAlignment = 16;

Status check_crc(std::string_view where, std::uint32_t stored, const TensorView& tensor) {
  const std::uint32_t actual = crc32c(0, tensor.data, tensor.bytes);
  if (actual == stored) return {};
  return failure(StatusCode::corrupt_data, "{}: checksum (crc32c) must be {}; got {}", where,
                 format_crc(stored), format_crc(actual));
}

}  // namespace

class PackedCheckpoint::Impl {
 public:
  explicit Impl(const SafetensorsFile& opened) : file(opened) {}

  /// "<file>: layer "<name>"", the beginning of every message about a layer.
  std::string where(std::string_view name) const {
    return fmt::format("{}: layer {}", file.files().front(), in_quotes(name));
  }

  Status add_layer(const std::string& name, std::string_view header);
  Status add_dense(const std::set<std::string, std::less<>>& claimed);
  Result<TensorView> part(const PackedLayerInfo& layer, const PackedPart& part) const;
  Status verify_layer(const PackedLayerInfo& layer) const;
  Status verify_dense(const TensorInfo& tensor) const;

  SafetensorsFile file;
  PackedOpenOptions options;
  std::vector<PackedLayerInfo> layers;  // in order of name
  std::vector<TensorInfo> dense;
  std::map<std::string, std::uint32_t, std::less<>> dense_crcs;
  std::map<std::string, std::string> metadata;
  // Set once a layer passed; several threads may find that out at the same time.
  mutable std::vector<std::atomic<bool>> verified;
};

/// Parses a layer's header and holds it against the tensors.
Status PackedCheckpoint::Impl::add_layer(const std::string& name, std::string_view header) {
  auto parsed = parse_packed_header(header, where(name));
  if (!parsed.ok()) return parsed.status();
  PackedLayerInfo layer = *std::move(parsed);
  layer.name = name;
  for (const PackedPart& part : packed_parts(layer)) {
    const std::string tensor_name = fmt::format("{}{}", name, part.suffix);
    const TensorInfo* tensor = file.info(tensor_name);
    if (tensor == nullptr) {
      return failure(StatusCode::corrupt_data, "{}: tensor {} is missing", where(name),
                     in_quotes(tensor_name));
    }
    if (tensor->dtype != part.dtype || tensor->shape != part.shape) {
      return failure(
          StatusCode::corrupt_data,
          "{}: tensor {}: n {}, k {}, weight_type {}, group_size {}, zero {}, scale_type {} must "
          "have {} [{}]; got {} [{}]",
          where(name), in_quotes(tensor_name), layer.n, layer.k, to_string(layer.spec.type),
          layer.spec.group_size, to_string(layer.spec.zero), to_string(layer.spec.scale_type),
          part.dtype, joined(part.shape), tensor->dtype, joined(tensor->shape));
    }
    layer.size_bytes += tensor->size_bytes();
  }
  if (layer.spec.zero == ZeroKind::none && file.info(name + ".zeros") != nullptr) {
    return failure(StatusCode::corrupt_data, "{}: zero none must have no tensor {}", where(name),
                   in_quotes(name + ".zeros"));
  }
  if (layer.columns == ColumnOrder::natural && file.info(name + ".permutation") != nullptr) {
    return failure(StatusCode::corrupt_data,
                   "{}: a header without permutation_crc32c must have no tensor {}", where(name),
                   in_quotes(name + ".permutation"));
  }
  layers.push_back(std::move(layer));
  return {};
}

/// Collects the tensors that no layer claimed; every stored checksum must belong to one of them.
Status PackedCheckpoint::Impl::add_dense(const std::set<std::string, std::less<>>& claimed) {
  std::size_t with_checksum = 0;
  for (const TensorInfo& tensor : file.tensors()) {
    if (claimed.contains(tensor.name)) continue;
    with_checksum += dense_crcs.count(tensor.name);
    dense.push_back(tensor);
  }
  if (with_checksum == dense_crcs.size()) return {};
  for (const auto& [name, crc] : dense_crcs) {
    if (file.info(name) == nullptr || claimed.contains(name)) {
      return failure(StatusCode::corrupt_data,
                     "{}: metadata {}{}: a checksum must belong to a dense tensor of the file",
                     file.files().front(), kDenseKeyPrefix, in_quotes(name));
    }
  }
  return {};
}

Result<TensorView> PackedCheckpoint::Impl::part(const PackedLayerInfo& layer,
                                                const PackedPart& part) const {
  return file.find(fmt::format("{}{}", layer.name, part.suffix));
}

Status PackedCheckpoint::Impl::verify_layer(const PackedLayerInfo& layer) const {
  std::atomic<bool>& passed = verified[static_cast<std::size_t>(&layer - layers.data())];
  if (passed.load(std::memory_order_acquire)) return {};
  for (const PackedPart& spec : packed_parts(layer)) {
    const Result<TensorView> tensor = part(layer, spec);
    if (!tensor.ok()) return tensor.status();
    const std::string name = fmt::format("{}: tensor {}", where(layer.name),
                                         in_quotes(layer.name + std::string(spec.suffix)));
    if (Status s = check_crc(name, stored_crc(layer, spec.suffix), *tensor); !s.ok()) return s;
    const std::size_t count = static_cast<std::size_t>(tensor->info.num_elems());
    if (Status s = check_values(spec.suffix, layer.spec, tensor->data, count, name); !s.ok()) {
      return s;
    }
  }
  passed.store(true, std::memory_order_release);
  return {};
}

Status PackedCheckpoint::Impl::verify_dense(const TensorInfo& tensor) const {
  const auto stored = dense_crcs.find(tensor.name);
  if (stored == dense_crcs.end()) return {};
  const Result<TensorView> view = file.find(tensor.name);
  if (!view.ok()) return view.status();
  return check_crc(fmt::format("{}: tensor {}", file.files().front(), in_quotes(tensor.name)),
                   stored->second, *view);
}

Result<PackedCheckpoint> PackedCheckpoint::open(const std::string& path,
                                                const PackedOpenOptions& options) {
  const Result<SafetensorsFile> file = SafetensorsFile::open(path);
  if (!file.ok()) return file.status();
  return from(*file, options);
}

bool PackedCheckpoint::is_packed(const SafetensorsFile& file) {
  return file.metadata().contains(std::string(kVersionKey));
}

Result<PackedCheckpoint> PackedCheckpoint::from(const SafetensorsFile& file,
                                                const PackedOpenOptions& options) {
  const std::string& path = file.files().front();
  const auto version = file.metadata().find(std::string(kVersionKey));
  if (version == file.metadata().end()) {
    return failure(StatusCode::corrupt_data,
                   "{}: a packed checkpoint must have the metadata {}; this file has none, only {} "
                   "dense tensors",
                   path, kVersionKey, file.tensors().size());
  }
  if (version->second != std::to_string(kPackedFormatVersion)) {
    return failure(StatusCode::version_mismatch, "{}: {} must be {}; got {}", path, kVersionKey,
                   kPackedFormatVersion, in_quotes(version->second));
  }
  auto impl = std::make_shared<Impl>(file);
  impl->options = options;
  std::set<std::string, std::less<>> claimed;
  for (const auto& [key, value] : file.metadata()) {  // in order of key, hence of layer name
    if (key == kVersionKey) continue;
    if (key.starts_with(kPackedKeyPrefix)) {
      const std::string name = key.substr(kPackedKeyPrefix.size());
      if (Status status = impl->add_layer(name, value); !status.ok()) return status;
      for (const std::string_view suffix : kPackedSuffixes) {
        claimed.insert(fmt::format("{}{}", name, suffix));
      }
    } else if (key.starts_with(kDenseKeyPrefix)) {
      const Result<std::uint32_t> crc =
          parse_crc(value, fmt::format("{}: metadata {}", path, in_quotes(key)));
      if (!crc.ok()) return crc.status();
      impl->dense_crcs[key.substr(kDenseKeyPrefix.size())] = *crc;
    } else if (key.starts_with(kReservedPrefix)) {
      return failure(StatusCode::corrupt_data, "{}: metadata {} isn't known to format version {}",
                     path, in_quotes(key), kPackedFormatVersion);
    } else {
      impl->metadata[key] = value;
    }
  }
  if (Status status = impl->add_dense(claimed); !status.ok()) return status;
  impl->verified = std::vector<std::atomic<bool>>(impl->layers.size());
  return PackedCheckpoint(std::move(impl));
}

const std::vector<PackedLayerInfo>& PackedCheckpoint::layers() const { return impl_->layers; }

std::vector<std::string> PackedCheckpoint::names() const {
  std::vector<std::string> names;
  for (const PackedLayerInfo& layer : impl_->layers) names.push_back(layer.name);
  return names;
}

const PackedLayerInfo* PackedCheckpoint::info(std::string_view name) const {
  const auto it = std::lower_bound(
      impl_->layers.begin(), impl_->layers.end(), name,
      [](const PackedLayerInfo& layer, std::string_view wanted) { return layer.name < wanted; });
  return it != impl_->layers.end() && it->name == name ? &*it : nullptr;
}

Result<PackedWeight> PackedCheckpoint::find(std::string_view name) const {
  const PackedLayerInfo* layer = info(name);
  if (layer == nullptr) {
    return failure(StatusCode::not_found, "{}: no packed weight {}", impl_->file.files().front(),
                   in_quotes(name));
  }
  if (impl_->options.verify_on_find) {
    if (Status status = impl_->verify_layer(*layer); !status.ok()) return status;
  }
  PackedView view;
  view.n = layer->n;
  view.k = layer->k;
  view.spec = layer->spec;
  view.codes_pitch_bytes = layout::strip_bytes(layer->k, bits_of(layer->spec.type));
  view.groups_pitch = num_groups(layer->k, layer->spec.group_size);
  auto storage = std::make_shared<std::vector<std::shared_ptr<const void>>>();
  for (const PackedPart& spec : packed_parts(*layer)) {
    Result<TensorView> tensor = impl_->part(*layer, spec);
    if (!tensor.ok()) return tensor.status();
    if (reinterpret_cast<std::uintptr_t>(tensor->data) % kViewAlignment != 0) {
      tensor->storage = aligned_copy(tensor->data, tensor->bytes);
      tensor->data = tensor->storage.get();
    }
    storage->push_back(tensor->storage);
    if (spec.suffix == ".codes") {
      view.codes = static_cast<const std::uint8_t*>(tensor->data);
    } else if (spec.suffix == ".scales") {
      view.scales = static_cast<const std::uint16_t*>(tensor->data);
    } else if (spec.suffix == ".zeros") {
      view.zeros = tensor->data;
    } else {
      view.permutation = static_cast<const std::int32_t*>(tensor->data);
    }
  }
  return PackedWeight(view, std::move(storage));
}

const std::vector<TensorInfo>& PackedCheckpoint::dense() const { return impl_->dense; }

Result<TensorView> PackedCheckpoint::find_dense(std::string_view name) const {
  const auto it = std::find_if(impl_->dense.begin(), impl_->dense.end(),
                               [&](const TensorInfo& tensor) { return tensor.name == name; });
  if (it == impl_->dense.end()) {
    return failure(StatusCode::not_found, "{}: no dense tensor {}", impl_->file.files().front(),
                   in_quotes(name));
  }
  return impl_->file.find(name);
}

Status PackedCheckpoint::verify(const Progress& progress) const {
  const auto num_layers = static_cast<std::int64_t>(impl_->layers.size());
  const auto num_tasks = num_layers + static_cast<std::int64_t>(impl_->dense.size());
  std::vector<Status> results(static_cast<std::size_t>(num_tasks));
  std::mutex mutex;
  std::uint64_t done_bytes = 0;
  parallel_for(num_tasks, 1, 0, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const bool packed = i < num_layers;
      const auto at = static_cast<std::size_t>(packed ? i : i - num_layers);
      results[static_cast<std::size_t>(i)] =
          packed ? impl_->verify_layer(impl_->layers[at]) : impl_->verify_dense(impl_->dense[at]);
      if (!progress) continue;
      const std::lock_guard lock(mutex);
      done_bytes += packed ? impl_->layers[at].size_bytes : impl_->dense[at].size_bytes();
      progress(static_cast<double>(done_bytes) /
               static_cast<double>(std::max<std::uint64_t>(1, impl_->file.file_bytes())));
    }
  });
  for (Status& status : results) {
    if (!status.ok()) return std::move(status);
  }
  if (progress) progress(1.0);
  return {};
}

const std::map<std::string, std::string>& PackedCheckpoint::metadata() const {
  return impl_->metadata;
}
const SafetensorsFile& PackedCheckpoint::file() const { return impl_->file; }

}  // namespace mixgemm
