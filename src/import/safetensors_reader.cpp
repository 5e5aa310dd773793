// SPDX-License-Identifier: Apache-2.0
// SafetensorsFile: finds the files behind a path, maps them, and checks every claim they make.
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <set>
#include <unordered_map>
#include <utility>

#include "import/aligned_copy.hpp"
#include "import/errors.hpp"
#include "import/mapped_file.hpp"
#include "import/safetensors_header.hpp"
#include "mixgemm/checkpoint.hpp"
#include "util/join.hpp"

namespace mixgemm {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSuffix = ".safetensors";
constexpr std::string_view kIndexSuffix = ".safetensors.index.json";

/// One mapped file and its parsed header.
struct Shard {
  std::shared_ptr<const MappedFile> file;
  std::uint64_t data_begin = 0;  // offset of the data section
  SafetensorsHeader header;
};

Result<Shard> open_shard(const std::string& path) {
  auto mapped = MappedFile::open(path);
  if (!mapped.ok()) return mapped.status();
  Shard shard;
  shard.file = *std::move(mapped);
  const std::uint64_t size = shard.file->size();
  if (size < kHeaderLengthBytes) {
    return failure(StatusCode::corrupt_data,
                   "{}: a safetensors file must begin with the 8-byte length of its header; the "
                   "file has {} bytes",
                   path, size);
  }
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, shard.file->data(), sizeof(header_bytes));
  if (header_bytes > kMaxHeaderBytes) {
    return failure(StatusCode::corrupt_data,
                   "{}: the header length must be at most {}; got {} (is this a safetensors file?)",
                   path, kMaxHeaderBytes, header_bytes);
  }
  if (header_bytes > size - kHeaderLengthBytes) {
    return failure(StatusCode::corrupt_data,
                   "{}: the header must end inside the file; its length is {}, and {} bytes follow",
                   path, header_bytes, size - kHeaderLengthBytes);
  }
  shard.data_begin = kHeaderLengthBytes + header_bytes;
  const std::string_view json(
      reinterpret_cast<const char*>(shard.file->data()) + kHeaderLengthBytes, header_bytes);
  auto header = parse_safetensors_header(json, size - shard.data_begin, path);
  if (!header.ok()) return header.status();
  shard.header = *std::move(header);
  return shard;
}

/// The single entry of `directory` that ends with `suffix`.
Result<std::string> only_file(const std::string& directory, std::string_view suffix) {
  std::vector<std::string> found;
  std::error_code error;
  fs::directory_iterator it(directory, error);
  for (; !error && it != fs::directory_iterator(); it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name.size() > suffix.size() && name.ends_with(suffix)) found.push_back(it->path().string());
  }
  if (error) return system_failure("list", directory, error.value());
  if (found.size() == 1) return found.front();
  std::sort(found.begin(), found.end());
  return failure(found.empty() ? StatusCode::not_found : StatusCode::invalid_argument,
                 "{}: the directory must hold model.safetensors, model.safetensors.index.json or "
                 "exactly one file *{}; got {}",
                 directory, suffix, found.size());
}

/// The file or index that `path` stands for (SafetensorsFile::open).
Result<std::string> resolve(const std::string& path) {
  const auto exists = [](const std::string& name) {
    struct stat info {};
    return ::stat(name.c_str(), &info) == 0;
  };
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) {
    const int error = errno;
    if (exists(path + ".index.json")) return path + ".index.json";
    return system_failure("open", path, error);
  }
  if (!S_ISDIR(info.st_mode)) return path;
  const std::string model = (fs::path(path) / "model.safetensors").string();
  if (exists(model)) return model;
  if (exists(model + ".index.json")) return model + ".index.json";
  if (auto index = only_file(path, kIndexSuffix); index.ok()) return index;
  return only_file(path, kSuffix);
}

}  // namespace

class SafetensorsFile::Impl {
 public:
  Status add(const std::string& path, const std::unordered_map<std::string, std::string>* index) {
    auto opened = open_shard(path);
    if (!opened.ok()) return opened.status();
    Shard shard = *std::move(opened);
    const std::string file_name = fs::path(path).filename().string();
    for (TensorInfo& tensor : shard.header.tensors) {
      if (index != nullptr) {
        const auto listed = index->find(tensor.name);
        if (listed == index->end() || listed->second != file_name) continue;
      }
      tensor.shard = static_cast<int>(shards.size());
      tensors.push_back(std::move(tensor));
    }
    shard.header.tensors.clear();
    metadata.merge(shard.header.metadata);
    file_bytes += shard.file->size();
    files.push_back(path);
    shards.push_back(std::move(shard));
    return {};
  }

  /// Builds the table of names; they must be unique.
  Status index_names(const std::string& path) {
    by_name.reserve(tensors.size());
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      if (!by_name.emplace(tensors[i].name, i).second) {
        return failure(StatusCode::corrupt_data, "{}: tensor {} appears twice", path,
                       in_quotes(tensors[i].name));
      }
    }
    return {};
  }

  std::vector<Shard> shards;
  std::vector<TensorInfo> tensors;
  std::unordered_map<std::string_view, std::size_t> by_name;  // views into tensors
  std::map<std::string, std::string> metadata;
  std::vector<std::string> files;
  std::uint64_t file_bytes = 0;
};

Result<SafetensorsFile> SafetensorsFile::open(const std::string& path) {
  const Result<std::string> resolved = resolve(path);
  if (!resolved.ok()) return resolved.status();
  auto impl = std::make_shared<Impl>();
  if (!resolved->ends_with(".json")) {
    if (Status status = impl->add(*resolved, nullptr); !status.ok()) return status;
    if (Status status = impl->index_names(*resolved); !status.ok()) return status;
  } else {
    const auto mapped = MappedFile::open(*resolved);
    if (!mapped.ok()) return mapped.status();
    const std::size_t size = (*mapped)->size();
    if (size > kMaxHeaderBytes) {
      return failure(StatusCode::corrupt_data, "{}: an index must have at most {} bytes; got {}",
                     *resolved, kMaxHeaderBytes, size);
    }
    const auto index = parse_safetensors_index(
        {reinterpret_cast<const char*>((*mapped)->data()), size}, *resolved);
    if (!index.ok()) return index.status();
    std::set<std::string> names;  // sorted: the order of the shards
    for (const auto& [tensor, file] : *index) names.insert(file);
    const fs::path directory = fs::path(*resolved).parent_path();
    for (const std::string& name : names) {
      Status status = impl->add((directory / name).string(), &*index);
      if (!status.ok()) {
        return failure(status.code(), "{}: shard {}: {}", *resolved, in_quotes(name),
                       status.message());
      }
    }
    if (Status status = impl->index_names(*resolved); !status.ok()) return status;
    for (const auto& [tensor, file] : *index) {
      if (!impl->by_name.contains(tensor)) {
        return failure(StatusCode::corrupt_data,
                       "{}: tensor {} must be in the shard that the index names, {}", *resolved,
                       in_quotes(tensor), in_quotes(file));
      }
    }
  }
  return SafetensorsFile(std::move(impl));
}

const std::vector<TensorInfo>& SafetensorsFile::tensors() const { return impl_->tensors; }

const TensorInfo* SafetensorsFile::info(std::string_view name) const {
  const auto it = impl_->by_name.find(name);
  return it == impl_->by_name.end() ? nullptr : &impl_->tensors[it->second];
}

Result<TensorView> SafetensorsFile::find(std::string_view name) const {
  const TensorInfo* tensor = info(name);
  if (tensor == nullptr) {
    return failure(StatusCode::not_found, "{}: no tensor {}", impl_->files.front(),
                   in_quotes(name));
  }
  if (std::find(tensor->shape.begin(), tensor->shape.end(), 0) != tensor->shape.end()) {
    return failure(StatusCode::invalid_argument,
                   "{}: tensor {}: every dimension must be at least 1; got shape [{}]",
                   impl_->files[static_cast<std::size_t>(tensor->shard)], in_quotes(name),
                   joined(tensor->shape));
  }
  const Shard& shard = impl_->shards[static_cast<std::size_t>(tensor->shard)];
  if (Status status = shard.file->check_unchanged(); !status.ok()) return status;
  TensorView view;
  view.info = *tensor;
  view.bytes = static_cast<std::size_t>(tensor->size_bytes());
  view.data = shard.file->data() + shard.data_begin + tensor->begin;
  view.storage = shard.file;
  // Other programs align tensors as they like; typed access needs the element size.
  const std::size_t alignment =
      static_cast<std::size_t>(std::max(8, *dtype_bits(tensor->dtype))) / 8;
  if (reinterpret_cast<std::uintptr_t>(view.data) % alignment != 0) {
    view.storage = aligned_copy(view.data, view.bytes);
    view.data = view.storage.get();
  }
  return view;
}

const std::map<std::string, std::string>& SafetensorsFile::metadata() const {
  return impl_->metadata;
}
const std::vector<std::string>& SafetensorsFile::files() const { return impl_->files; }
std::uint64_t SafetensorsFile::file_bytes() const { return impl_->file_bytes; }

}  // namespace mixgemm
