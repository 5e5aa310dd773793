// SPDX-License-Identifier: Apache-2.0
#include "import/packed_header.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <limits>
#include <map>
#include <utility>
#include <variant>

#include "import/crc32c.hpp"
#include "import/errors.hpp"
#include "import/json_reader.hpp"
#include "layout/packed.hpp"
#include "weight/checks.hpp"

namespace mixgemm {
namespace {

/// A header is about 250 bytes; whatever is much longer is none.
constexpr std::size_t kMaxPackedHeaderBytes = 4096;

using Value = std::variant<std::uint64_t, std::string>;

/// {"key": integer or string, ...}, nothing nested.
class FlatHandler final : public JsonHandler {
 public:
  std::map<std::string, Value, std::less<>> values;

  bool on_key(const std::string& key) override {
    key_ = key;
    return values.contains(key) ? reject(fmt::format("{} appears twice", in_quotes(key))) : true;
  }
  bool on_string(const std::string& value) override { return set(value); }
  bool on_unsigned(std::uint64_t value) override { return set(value); }
  bool on_object(bool begin) override {
    if (begin && std::exchange(open_, true)) return unexpected("an object");
    return true;
  }
  bool on_array(bool) override { return unexpected("an array"); }
  std::string rule() const override {
    return fmt::format("{} must be a string or an integer ≥ 0", in_quotes(key_));
  }

 private:
  bool set(Value value) {
    values.emplace(key_, std::move(value));
    return true;
  }

  bool open_ = false;
  std::string key_;
};

/// Takes fields out of a parsed header; the first rule broken is kept.
class Fields {
 public:
  Fields(std::map<std::string, Value, std::less<>> values, std::string_view where)
      : values_(std::move(values)), where_(where) {}

  std::int64_t integer(std::string_view key, std::int64_t low, std::int64_t high) {
    const std::optional<Value> value = take(key);
    if (!value) return low;
    const auto* number = std::get_if<std::uint64_t>(&*value);
    if (number == nullptr || *number > static_cast<std::uint64_t>(high) ||
        static_cast<std::int64_t>(*number) < low) {
      refuse(StatusCode::corrupt_data, "{}: {} must be an integer in {} … {}; got {}", where_, key,
             low, high, shown(*value));
      return low;
    }
    return static_cast<std::int64_t>(*number);
  }

  /// One of `choices`, by its to_string() name.
  template <class Enum, std::size_t size>
  Enum choice(std::string_view key, const std::array<Enum, size>& choices) {
    const std::optional<Value> value = take(key);
    if (!value) return choices[0];
    const auto* text = std::get_if<std::string>(&*value);
    std::string names;
    for (const Enum candidate : choices) {
      if (text != nullptr && *text == to_string(candidate)) return candidate;
      names += fmt::format("{}{}", names.empty() ? "" : ", ", to_string(candidate));
    }
    refuse(StatusCode::corrupt_data, "{}: {} must be one of {}; got {}", where_, key, names,
           shown(*value));
    return choices[0];
  }

  std::uint32_t crc(std::string_view key) {
    const std::optional<Value> value = take(key);
    if (!value) return 0;
    const auto* text = std::get_if<std::string>(&*value);
    const auto parsed = parse_crc(text == nullptr ? "" : std::string_view(*text),
                                  fmt::format("{}: {}", where_, key));
    if (!parsed.ok()) {
      if (status_.ok()) status_ = parsed.status();
      return 0;
    }
    return *parsed;
  }

  bool has(std::string_view key) const { return values_.contains(key); }

  template <class... Args>
  void refuse(StatusCode code, fmt::format_string<Args...> format, Args&&... args) {
    if (status_.ok()) status_ = failure(code, format, std::forward<Args>(args)...);
  }

  void refuse_leftovers() {
    if (values_.empty()) return;
    refuse(StatusCode::corrupt_data, "{}: no field {} is known to format version {}", where_,
           in_quotes(values_.begin()->first), kPackedFormatVersion);
  }

  const Status& status() const { return status_; }

 private:
  std::optional<Value> take(std::string_view key) {
    const auto it = values_.find(key);
    if (it == values_.end()) {
      refuse(StatusCode::corrupt_data, "{}: {} is missing", where_, key);
      return std::nullopt;
    }
    Value value = std::move(it->second);
    values_.erase(it);
    return value;
  }

  static std::string shown(const Value& value) {
    const auto* number = std::get_if<std::uint64_t>(&value);
    return number != nullptr ? std::to_string(*number) : in_quotes(std::get<std::string>(value));
  }

  std::map<std::string, Value, std::less<>> values_;
  std::string_view where_;
  Status status_;
};

/// The header without its own checksum and closing brace: what that checksum covers.
std::string format_body(const PackedLayerInfo& layer) {
  std::string out = fmt::format(
      R"({{"format_version":{},"n":{},"k":{},"weight_type":"{}","zero":"{}","group_size":{},"scale_type":"{}","codes_crc32c":"{}","scales_crc32c":"{}")",
      layer.format_version, layer.n, layer.k, to_string(layer.spec.type),
      to_string(layer.spec.zero), layer.spec.group_size, to_string(layer.spec.scale_type),
      format_crc(layer.codes_crc), format_crc(layer.scales_crc));
  if (layer.spec.zero != ZeroKind::none) {
    out += fmt::format(R"(,"zeros_crc32c":"{}")", format_crc(layer.zeros_crc));
  }
  if (layer.columns == ColumnOrder::permuted) {
    out += fmt::format(R"(,"permutation_crc32c":"{}")", format_crc(layer.permutation_crc));
  }
  return out;
}

std::uint32_t crc_of_text(std::string_view text) { return crc32c(0, text.data(), text.size()); }

}  // namespace

std::uint32_t& stored_crc(PackedLayerInfo& layer, std::string_view suffix) {
  if (suffix == ".codes") return layer.codes_crc;
  if (suffix == ".scales") return layer.scales_crc;
  return suffix == ".zeros" ? layer.zeros_crc : layer.permutation_crc;
}

std::vector<PackedPart> packed_parts(std::int64_t n, std::int64_t k, const QuantSpec& spec,
                                     ColumnOrder columns) {
  const std::int64_t strips = layout::num_strips(n);
  const std::vector<std::int64_t> per_group = {strips, num_groups(k, spec.group_size),
                                               layout::kStripRows};
  std::vector<PackedPart> parts = {
      {".codes", "U8", {strips, layout::num_k_blocks(k), layout::cell_bytes(bits_of(spec.type))}},
      {".scales", dtype_name(spec.scale_type), per_group}};
  if (spec.zero == ZeroKind::integer) parts.push_back({".zeros", "U8", per_group});
  if (spec.zero == ZeroKind::scaled) {
    parts.push_back({".zeros", dtype_name(spec.scale_type), per_group});
  }
  if (columns == ColumnOrder::permuted) parts.push_back({".permutation", "I32", {k}});
  return parts;
}

Status check_packed_shape(std::int64_t n, std::int64_t k, const QuantSpec& spec,
                          std::string_view where) {
  constexpr std::int64_t kMax = std::numeric_limits<std::int32_t>::max();
  for (const auto& [field, value] : {std::pair("n", n), std::pair("k", k)}) {
    if (value < 1 || value > kMax) {
      return failure(StatusCode::invalid_argument, "{}: {} must be in 1 … {}; got {}", where, field,
                     kMax, value);
    }
  }
  const int g = spec.group_size;
  if (g != 0 && g != 16 && g != 32 && g != 64 && g != 128) {
    return failure(StatusCode::invalid_argument,
                   "{}: group_size must be 0 (per column), 16, 32, 64 or 128; got {}", where, g);
  }
  if (spec.scale_type != DataType::f16 && spec.scale_type != DataType::bf16) {
    return failure(StatusCode::invalid_argument, "{}: scale_type must be f16 or bf16; got {}",
                   where, to_string(spec.scale_type));
  }
  return {};
}

std::string format_packed_header(const PackedLayerInfo& layer) {
  const std::string body = format_body(layer);
  return fmt::format(R"({},"header_crc32c":"{}"}})", body, format_crc(crc_of_text(body)));
}

Result<PackedLayerInfo> parse_packed_header(std::string_view json, std::string_view where) {
  if (json.size() > kMaxPackedHeaderBytes) {
    return failure(StatusCode::corrupt_data, "{}: must have at most {} bytes; got {}", where,
                   kMaxPackedHeaderBytes, json.size());
  }
  FlatHandler handler;
  if (const std::string error = parse_json(json, handler); !error.empty()) {
    return failure(StatusCode::corrupt_data, "{}: {}", where, error);
  }
  Fields fields(std::move(handler.values), where);
  PackedLayerInfo layer;
  const std::int64_t version =
      fields.integer("format_version", 0, std::numeric_limits<std::int32_t>::max());
  if (version != kPackedFormatVersion) {  // another version's fields mean nothing here
    fields.refuse(StatusCode::version_mismatch, "{}: format_version must be {}; got {}", where,
                  kPackedFormatVersion, version);
    return fields.status();
  }
  constexpr std::int64_t kMax = std::numeric_limits<std::int32_t>::max();
  layer.n = fields.integer("n", 1, kMax);
  layer.k = fields.integer("k", 1, kMax);
  layer.spec.type = fields.choice("weight_type", std::array{WeightType::int4, WeightType::int8});
  layer.spec.zero =
      fields.choice("zero", std::array{ZeroKind::none, ZeroKind::integer, ZeroKind::scaled});
  layer.spec.group_size = static_cast<int>(fields.integer("group_size", 0, kMax));
  layer.spec.scale_type = fields.choice("scale_type", std::array{DataType::f16, DataType::bf16});
  layer.codes_crc = fields.crc("codes_crc32c");
  layer.scales_crc = fields.crc("scales_crc32c");
  if (layer.spec.zero != ZeroKind::none) layer.zeros_crc = fields.crc("zeros_crc32c");
  if (fields.has("permutation_crc32c")) {
    layer.columns = ColumnOrder::permuted;
    layer.permutation_crc = fields.crc("permutation_crc32c");
  }
  const std::uint32_t header_crc = fields.crc("header_crc32c");
  fields.refuse_leftovers();
  if (!fields.status().ok()) return fields.status();
  if (Status status = check_packed_shape(layer.n, layer.k, layer.spec, where); !status.ok()) {
    return Status(StatusCode::corrupt_data, status.message());
  }
  if (const std::uint32_t actual = crc_of_text(format_body(layer)); actual != header_crc) {
    return failure(StatusCode::corrupt_data,
                   "{}: header_crc32c must be the checksum of the fields, {}; got {}", where,
                   format_crc(actual), format_crc(header_crc));
  }
  return layer;
}

std::string format_crc(std::uint32_t crc) { return fmt::format("{:08x}", crc); }

Result<std::uint32_t> parse_crc(std::string_view text, std::string_view where) {
  std::uint32_t crc = 0;
  const char* end = text.data() + text.size();
  const auto [parsed_to, error] = std::from_chars(text.data(), end, crc, 16);
  if (error != std::errc() || parsed_to != end || text != format_crc(crc)) {
    return failure(StatusCode::corrupt_data,
                   "{}: must be eight lower-case hexadecimal digits; got {}", where,
                   in_quotes(text));
  }
  return crc;
}

Status check_values(std::string_view part, const QuantSpec& spec, const void* data,
                    std::size_t count, std::string_view where) {
  if (part == ".codes") return {};  // every bit pattern is a code
  if (part == ".permutation") {
    const Status status = check_permutation({static_cast<const std::int32_t*>(data), count},
                                            static_cast<std::int64_t>(count));
    if (status.ok()) return {};
    return failure(StatusCode::corrupt_data, "{}: {}", where, status.message());
  }
  if (part == ".zeros" && spec.zero == ZeroKind::integer) {
    const auto* zeros = static_cast<const std::uint8_t*>(data);
    const int limit = 1 << bits_of(spec.type);
    const auto* bad = std::find_if(zeros, zeros + count, [&](int zero) { return zero >= limit; });
    if (bad == zeros + count) return {};
    return failure(StatusCode::corrupt_data,
                   "{}{}: must be below {}, a code of {}; element {} is {}", where, part, limit,
                   to_string(spec.type), bad - zeros, *bad);
  }
  const auto* floats = static_cast<const std::uint16_t*>(data);
  const std::uint16_t exponent = spec.scale_type == DataType::bf16 ? 0x7f80 : 0x7c00;
  const auto* bad = std::find_if(floats, floats + count,
                                 [&](std::uint16_t bits) { return (bits & exponent) == exponent; });
  if (bad == floats + count) return {};
  return failure(StatusCode::corrupt_data,
                 "{}{}: must be finite; element {} has the {} bits {:#06x}", where, part,
                 bad - floats, to_string(spec.scale_type), *bad);
}

}  // namespace mixgemm
