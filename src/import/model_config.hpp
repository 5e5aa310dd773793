// SPDX-License-Identifier: Apache-2.0
// A model's config.json: JSON objects read field by field, with messages that name field, rule and
// value.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "mixgemm/status.hpp"

namespace mixgemm {

/// One object of a config. The first rule that a field breaks is kept in status(), so that a caller
/// may read all it needs and ask once. null counts as absent.
class ConfigSection {
 public:
  /// Parses a whole file; `where` begins every message.
  static Result<ConfigSection> parse(std::string_view text, std::string where);

  bool has(std::string_view key) const;
  /// A field that must be there unless there is a fallback.
  std::int64_t integer(std::string_view key, std::optional<std::int64_t> fallback = {});
  bool boolean(std::string_view key, std::optional<bool> fallback = {});
  std::string text(std::string_view key, std::optional<std::string> fallback = {});
  std::vector<std::string> texts(std::string_view key);
  /// An object; without one an empty section, and a failure unless `optional`.
  ConfigSection section(std::string_view key, bool optional = false);
  /// Names of the fields, in order.
  std::vector<std::string> keys() const;
  /// The field as JSON text, shortened, for a message; "null" where there is none.
  std::string shown(std::string_view key) const;
  /// "config.json: quantization_config.bits".
  std::string field(std::string_view key) const;

  const Status& status() const { return status_; }
  /// Takes over another section's failure.
  void merge(const ConfigSection& other) {
    if (status_.ok()) status_ = other.status_;
  }

 private:
  ConfigSection(std::shared_ptr<const nlohmann::json> root, const nlohmann::json* object,
                std::string where)
      : root_(std::move(root)), object_(object), where_(std::move(where)) {}
  const nlohmann::json* find(std::string_view key) const;
  const nlohmann::json* require(std::string_view key, bool has_fallback);
  void refuse(std::string_view key, std::string_view rule);

  std::shared_ptr<const nlohmann::json> root_;
  const nlohmann::json* object_;  // into root_; nullptr: empty
  std::string where_;             // ends with ": " or "."
  Status status_;
};

}  // namespace mixgemm
