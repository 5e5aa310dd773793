// SPDX-License-Identifier: Apache-2.0
#include "import/model_config.hpp"

#include <nlohmann/json.hpp>
#include <utility>

#include "import/errors.hpp"

namespace mixgemm {
namespace {

using Json = nlohmann::json;

/// Configs are a few kilobytes; a list of layers may take some more.
constexpr std::size_t kMaxConfigBytes = std::size_t{1} << 24;

std::string shorten(std::string text) {
  constexpr std::size_t kMaxShown = 80;
  if (text.size() > kMaxShown) text = text.substr(0, kMaxShown) + "…";
  return text;
}

}  // namespace

Result<ConfigSection> ConfigSection::parse(std::string_view text, std::string where) {
  if (text.size() > kMaxConfigBytes) {
    return failure(StatusCode::corrupt_data, "{}: must have at most {} bytes; got {}", where,
                   kMaxConfigBytes, text.size());
  }
  auto root = std::make_shared<Json>(Json::parse(text, nullptr, /*allow_exceptions=*/false));
  if (!root->is_object()) {
    return failure(StatusCode::corrupt_data, "{}: must be one JSON object; got {}", where,
                   root->is_discarded() ? "text that doesn't parse" : root->type_name());
  }
  const Json* object = root.get();
  return ConfigSection(std::move(root), object, std::move(where) + ": ");
}

const Json* ConfigSection::find(std::string_view key) const {
  if (object_ == nullptr) return nullptr;
  const auto it = object_->find(std::string(key));
  return it == object_->end() || it->is_null() ? nullptr : &*it;
}

const Json* ConfigSection::require(std::string_view key, bool has_fallback) {
  const Json* value = find(key);
  if (value == nullptr && !has_fallback && status_.ok()) {
    status_ = failure(StatusCode::corrupt_data, "{} must be given; it is missing", field(key));
  }
  return value;
}

void ConfigSection::refuse(std::string_view key, std::string_view rule) {
  if (!status_.ok()) return;
  status_ =
      failure(StatusCode::corrupt_data, "{} must be {}; got {}", field(key), rule, shown(key));
}

bool ConfigSection::has(std::string_view key) const { return find(key) != nullptr; }

std::int64_t ConfigSection::integer(std::string_view key, std::optional<std::int64_t> fallback) {
  const Json* value = require(key, fallback.has_value());
  if (value == nullptr) return fallback.value_or(0);
  constexpr std::uint64_t kMax = std::numeric_limits<std::int64_t>::max();
  if (!value->is_number_integer() ||
      (value->is_number_unsigned() && *value->get_ptr<const std::uint64_t*>() > kMax)) {
    refuse(key, "an integer");
    return fallback.value_or(0);
  }
  return *value->get_ptr<const std::int64_t*>();
}

bool ConfigSection::boolean(std::string_view key, std::optional<bool> fallback) {
  const Json* value = require(key, fallback.has_value());
  if (value == nullptr) return fallback.value_or(false);
  if (!value->is_boolean()) {
    refuse(key, "true or false");
    return fallback.value_or(false);
  }
  return *value->get_ptr<const bool*>();
}

std::string ConfigSection::text(std::string_view key, std::optional<std::string> fallback) {
  const Json* value = require(key, fallback.has_value());
  if (value == nullptr) return fallback.value_or("");
  if (!value->is_string()) {
    refuse(key, "a string");
    return fallback.value_or("");
  }
  return *value->get_ptr<const std::string*>();
}

std::vector<std::string> ConfigSection::texts(std::string_view key) {
  std::vector<std::string> list;
  const Json* value = find(key);
  if (value == nullptr) return list;
  if (!value->is_array()) {
    refuse(key, "a list of strings");
    return list;
  }
  for (const Json& item : *value) {
    if (!item.is_string()) {
      refuse(key, "a list of strings");
      return {};
    }
    list.push_back(*item.get_ptr<const std::string*>());
  }
  return list;
}

ConfigSection ConfigSection::section(std::string_view key, bool optional) {
  const Json* value = require(key, optional);
  if (value != nullptr && !value->is_object()) {
    refuse(key, "an object");
    value = nullptr;
  }
  return ConfigSection(root_, value, field(key) + ".");
}

std::vector<std::string> ConfigSection::keys() const {
  std::vector<std::string> names;
  if (object_ == nullptr) return names;
  for (auto it = object_->begin(); it != object_->end(); ++it) names.push_back(it.key());
  return names;
}

std::string ConfigSection::shown(std::string_view key) const {
  const Json* value = find(key);
  if (value == nullptr) return "null";
  if (value->is_string()) return in_quotes(*value->get_ptr<const std::string*>());
  if (value->is_structured() && value->size() > 16) return value->type_name();
  return shorten(value->dump(-1, ' ', true, Json::error_handler_t::replace));
}

std::string ConfigSection::field(std::string_view key) const {
  return fmt::format("{}{}", where_, key);
}

}  // namespace mixgemm
