// SPDX-License-Identifier: Apache-2.0
#include "import/safetensors_header.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "import/errors.hpp"
#include "import/json_reader.hpp"
#include "util/join.hpp"

namespace mixgemm {
namespace {

struct DtypeRow {
  std::string_view name;
  int bits;
};

constexpr std::array kDtypes = {
    DtypeRow{"BOOL", 8},    DtypeRow{"U8", 8},      DtypeRow{"I8", 8},   DtypeRow{"F8_E5M2", 8},
    DtypeRow{"F8_E4M3", 8}, DtypeRow{"F8_E8M0", 8}, DtypeRow{"F4", 4},   DtypeRow{"F6_E2M3", 6},
    DtypeRow{"F6_E3M2", 6}, DtypeRow{"I16", 16},    DtypeRow{"U16", 16}, DtypeRow{"F16", 16},
    DtypeRow{"BF16", 16},   DtypeRow{"I32", 32},    DtypeRow{"U32", 32}, DtypeRow{"F32", 32},
    DtypeRow{"I64", 64},    DtypeRow{"U64", 64},    DtypeRow{"F64", 64}, DtypeRow{"C64", 64}};

/// {"name": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}, "__metadata__": {...}}
class HeaderHandler final : public JsonHandler {
 public:
  SafetensorsHeader header;

  bool on_key(const std::string& key) override {
    if (depth_ == 1) {
      if (key == kMetadataKey) {
        if (std::exchange(has_metadata_, true)) return reject("__metadata__ appears twice");
        in_metadata_ = true;
        return true;
      }
      in_metadata_ = false;
      header.tensors.emplace_back().name = key;
      seen_ = {};
      field_ = kNone;
      return true;
    }
    if (in_metadata_) {
      metadata_key_ = key;
      if (header.metadata.contains(key)) {
        return reject(fmt::format("__metadata__: key {} appears twice", in_quotes(key)));
      }
      return true;
    }
    const auto it = std::find(kFieldNames.begin(), kFieldNames.end(), key);
    if (it == kFieldNames.end()) {
      return reject(fmt::format("tensor {}: fields are dtype, shape and data_offsets; got {}",
                                in_quotes(tensor().name), in_quotes(key)));
    }
    field_ = static_cast<Field>(it - kFieldNames.begin());
    if (std::exchange(seen_[field_], true)) {
      return reject(fmt::format("tensor {}: {} appears twice", in_quotes(tensor().name), key));
    }
    return true;
  }

  bool on_string(const std::string& value) override {
    if (depth_ == 2 && in_metadata_) {
      header.metadata.emplace(metadata_key_, value);
      return true;
    }
    if (depth_ != 2 || field_ != kDtype) return unexpected(in_quotes(value));
    tensor().dtype = value;
    return true;
  }

  bool on_unsigned(std::uint64_t value) override {
    if (!in_array_) return unexpected(std::to_string(value));
    if (field_ == kOffsets) {
      if (num_offsets_ == 2) return reject(rule() + "; got more");
      (num_offsets_++ == 0 ? tensor().begin : tensor().end) = value;
      return true;
    }
    if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
      return unexpected(std::to_string(value));
    }
    if (tensor().shape.size() == kMaxRank) {
      return reject(fmt::format("tensor {}: must have at most {} dimensions; got more",
                                in_quotes(tensor().name), kMaxRank));
    }
    tensor().shape.push_back(static_cast<std::int64_t>(value));
    return true;
  }

  bool on_object(bool begin) override {
    if (!begin) {
      if (depth_ == 2 && !in_metadata_) {
        for (const Field field : {kDtype, kShape, kOffsets}) {
          if (!seen_[field]) {
            return reject(fmt::format("tensor {}: {} is missing", in_quotes(tensor().name),
                                      kFieldNames[field]));
          }
        }
      }
      --depth_;
      return true;
    }
    if (depth_ == 2) return unexpected("an object");
    ++depth_;
    return true;
  }

  bool on_array(bool begin) override {
    if (begin) {
      const bool expected = depth_ == 2 && !in_metadata_ && !in_array_ && field_ >= kShape;
      if (!expected) return unexpected("an array");
      num_offsets_ = 0;
    } else if (field_ == kOffsets && num_offsets_ != 2) {
      return reject(fmt::format("{}; got {}", rule(), num_offsets_));
    }
    in_array_ = begin;
    return true;
  }

  std::string rule() const override {
    if (depth_ == 0) return "must be an object";
    if (in_metadata_) {
      return depth_ == 1
                 ? "__metadata__ must be an object"
                 : fmt::format("__metadata__: {} must be a string", in_quotes(metadata_key_));
    }
    const std::string name = in_quotes(header.tensors.back().name);
    switch (depth_ == 1 ? kNone : field_) {
      case kDtype: return fmt::format("tensor {}: dtype must be a string", name);
      case kShape:
        return fmt::format("tensor {}: shape must be an array of integers in 0 … 2^63 − 1", name);
      case kOffsets:
        return fmt::format("tensor {}: data_offsets must be two integers in 0 … 2^64 − 1", name);
      case kNone: break;
    }
    return fmt::format("tensor {}: must be an object", name);
  }

 private:
  enum Field : int { kNone = -1, kDtype = 0, kShape = 1, kOffsets = 2 };
  static constexpr std::array<std::string_view, 3> kFieldNames = {"dtype", "shape", "data_offsets"};

  TensorInfo& tensor() { return header.tensors.back(); }

  int depth_ = 0;  // open objects
  bool in_array_ = false;
  bool in_metadata_ = false;
  bool has_metadata_ = false;
  std::string metadata_key_;
  Field field_ = kNone;
  std::array<bool, 3> seen_{};
  int num_offsets_ = 0;
};

/// {"metadata": {...}, "weight_map": {"tensor": "file"}}; other keys are passed over.
class IndexHandler final : public JsonHandler {
 public:
  std::unordered_map<std::string, std::string> files;
  bool has_map = false;

  bool on_key(const std::string& key) override {
    if (depth_ == 1) {
      in_map_ = key == "weight_map";
      if (in_map_ && std::exchange(has_map, true)) return reject("weight_map appears twice");
      return true;
    }
    if (in_map_) {
      tensor_ = key;
      if (files.contains(key)) {
        return reject(fmt::format("weight_map: tensor {} appears twice", in_quotes(key)));
      }
    }
    return true;
  }

  bool on_string(const std::string& value) override {
    if (!in_map_) return true;
    if (depth_ != 2) return unexpected(in_quotes(value));
    const bool plain = !value.empty() && value != "." && value != ".." &&
                       value.find('/') == value.npos && value.find('\0') == value.npos;
    if (!plain) {
      return reject(fmt::format(
          "weight_map: tensor {}: the file must be a plain name in the index's directory; got {}",
          in_quotes(tensor_), in_quotes(value)));
    }
    files.emplace(tensor_, value);
    return true;
  }

  bool on_unsigned(std::uint64_t value) override {
    return in_map_ ? unexpected(std::to_string(value)) : true;
  }
  bool on_other(const std::string& shown) override { return in_map_ ? unexpected(shown) : true; }
  bool on_object(bool begin) override { return nest(begin, depth_ == 1, "an object"); }
  bool on_array(bool begin) override { return nest(begin, false, "an array"); }

  std::string rule() const override {
    if (depth_ < 2) return "weight_map must be an object";
    return fmt::format("weight_map: the file of tensor {} must be a string", in_quotes(tensor_));
  }

 private:
  static constexpr int kMaxDepth = 16;

  bool nest(bool begin, bool allowed_in_map, std::string_view shown) {
    if (begin && in_map_ && !allowed_in_map) return unexpected(shown);
    depth_ += begin ? 1 : -1;
    if (depth_ > kMaxDepth) {
      return reject(fmt::format("must nest at most {} levels; got more", kMaxDepth));
    }
    if (depth_ == 1) in_map_ = false;
    return true;
  }

  int depth_ = 0;  // open objects and arrays
  bool in_map_ = false;
  std::string tensor_;
};

/// The bytes must be covered once each: an unclaimed byte could hide data, a shared one is a lie.
Status check_coverage(const std::vector<TensorInfo>& tensors, std::uint64_t data_bytes,
                      std::string_view where) {
  std::uint64_t covered = 0;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.begin < covered) {
      return failure(StatusCode::corrupt_data,
                     "{}: tensor {}: data_offsets must not overlap another tensor's; begins at {}, "
                     "the one before ends at {}",
                     where, in_quotes(tensor.name), tensor.begin, covered);
    }
    if (tensor.begin > covered) {
      return failure(StatusCode::corrupt_data,
                     "{}: tensor {}: data_offsets must leave no hole; begins at {}, the one before "
                     "ends at {}",
                     where, in_quotes(tensor.name), tensor.begin, covered);
    }
    covered = tensor.end;
  }
  if (covered != data_bytes) {
    return failure(StatusCode::corrupt_data,
                   "{}: the tensors must cover the data section; they end at {} of {} bytes", where,
                   covered, data_bytes);
  }
  return {};
}

}  // namespace

std::optional<int> dtype_bits(std::string_view dtype) {
  for (const DtypeRow& row : kDtypes) {
    if (row.name == dtype) return row.bits;
  }
  return std::nullopt;
}

std::optional<DataType> data_type_of(std::string_view dtype) {
  if (dtype == "F16") return DataType::f16;
  if (dtype == "BF16") return DataType::bf16;
  if (dtype == "F32") return DataType::f32;
  return std::nullopt;
}

std::string_view dtype_name(DataType type) {
  switch (type) {
    case DataType::f16: return "F16";
    case DataType::bf16: return "BF16";
    case DataType::f32: return "F32";
  }
  return "?";
}

Result<std::uint64_t> tensor_bytes(std::string_view name, std::string_view dtype,
                                   const std::vector<std::int64_t>& shape, std::string_view where) {
  const std::optional<int> bits = dtype_bits(dtype);
  if (!bits) {
    return failure(StatusCode::unsupported,
                   "{}: tensor {}: dtype must be one of those the format defines; got {}", where,
                   in_quotes(name), in_quotes(dtype));
  }
  if (shape.size() > kMaxRank) {
    return failure(StatusCode::invalid_argument,
                   "{}: tensor {}: must have at most {} dimensions; got {}", where, in_quotes(name),
                   kMaxRank, shape.size());
  }
  // Elements and bits must fit a signed 64-bit number each, so that no later product can overflow.
  std::int64_t elems = 1;
  std::int64_t total_bits = 0;
  bool overflow = false;
  for (const std::int64_t dim : shape) overflow |= __builtin_mul_overflow(elems, dim, &elems);
  overflow |= __builtin_mul_overflow(elems, static_cast<std::int64_t>(*bits), &total_bits);
  if (overflow) {
    return failure(StatusCode::corrupt_data,
                   "{}: tensor {}: the size must be below 2^63 bits; got shape [{}] of {}", where,
                   in_quotes(name), joined(shape), dtype);
  }
  if (total_bits % 8 != 0) {
    return failure(StatusCode::corrupt_data,
                   "{}: tensor {}: the size must be whole bytes; got {} bits", where,
                   in_quotes(name), total_bits);
  }
  return static_cast<std::uint64_t>(total_bits) / 8;
}

Result<SafetensorsHeader> parse_safetensors_header(std::string_view json, std::uint64_t data_bytes,
                                                   std::string_view where) {
  HeaderHandler handler;
  if (const std::string error = parse_json(json, handler); !error.empty()) {
    return failure(StatusCode::corrupt_data, "{}: header: {}", where, error);
  }
  SafetensorsHeader header = std::move(handler.header);
  for (const TensorInfo& tensor : header.tensors) {
    const Result<std::uint64_t> bytes =
        tensor_bytes(tensor.name, tensor.dtype, tensor.shape, where);
    if (!bytes.ok()) return bytes.status();
    if (tensor.end < tensor.begin || tensor.end > data_bytes) {
      return failure(
          StatusCode::corrupt_data,
          "{}: tensor {}: data_offsets must be ordered and inside the data section of {} "
          "bytes; got [{}, {}]",
          where, in_quotes(tensor.name), data_bytes, tensor.begin, tensor.end);
    }
    if (tensor.size_bytes() != *bytes) {
      return failure(StatusCode::corrupt_data,
                     "{}: tensor {}: data_offsets must span {} bytes, the size of {} [{}]; got {}",
                     where, in_quotes(tensor.name), *bytes, tensor.dtype, joined(tensor.shape),
                     tensor.size_bytes());
    }
  }
  std::stable_sort(header.tensors.begin(), header.tensors.end(), [](const auto& a, const auto& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  if (Status status = check_coverage(header.tensors, data_bytes, where); !status.ok()) {
    return status;
  }
  return header;
}

std::string format_safetensors_header(const std::vector<TensorInfo>& tensors,
                                      const std::map<std::string, std::string>& metadata) {
  // Written piece by piece: the order of the keys is part of "same input, same bytes".
  std::string out = "{";
  if (!metadata.empty()) {
    out += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) {
      if (out.back() != '{') out += ',';
      out += to_json_string(key) + ':' + to_json_string(value);
    }
    out += '}';
  }
  for (const TensorInfo& tensor : tensors) {
    if (out.back() != '{') out += ',';
    out += fmt::format(R"({}:{{"dtype":{},"shape":[{}],"data_offsets":[{},{}]}})",
                       to_json_string(tensor.name), to_json_string(tensor.dtype),
                       joined(tensor.shape, ","), tensor.begin, tensor.end);
  }
  out += '}';
  return out;
}

Result<std::unordered_map<std::string, std::string>> parse_safetensors_index(
    std::string_view json, std::string_view where) {
  IndexHandler handler;
  if (const std::string error = parse_json(json, handler); !error.empty()) {
    return failure(StatusCode::corrupt_data, "{}: index: {}", where, error);
  }
  if (!handler.has_map) {
    return failure(StatusCode::corrupt_data, "{}: index: weight_map is missing", where);
  }
  if (handler.files.empty()) {
    return failure(StatusCode::corrupt_data,
                   "{}: index: weight_map must name at least one tensor; got 0", where);
  }
  return std::move(handler.files);
}

std::string format_safetensors_index(const std::map<std::string, std::string>& files_of_tensors,
                                     std::uint64_t total_bytes) {
  std::string out =
      fmt::format("{{\n  \"metadata\": {{\n    \"total_size\": {}\n  }},\n", total_bytes);
  out += "  \"weight_map\": {";
  for (const auto& [tensor, file] : files_of_tensors) {
    out += fmt::format("{}\n    {}: {}", out.back() == '{' ? "" : ",", to_json_string(tensor),
                       to_json_string(file));
  }
  return out + "\n  }\n}\n";
}

}  // namespace mixgemm
