// SPDX-License-Identifier: Apache-2.0
// A row's fields, with a value for those that aren't there or have another type.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace mixgemm::bench {

inline std::string text(const nlohmann::ordered_json& row, const char* key) {
  const auto found = row.find(key);
  return found != row.end() && found->is_string() ? found->get<std::string>() : std::string();
}
inline double number(const nlohmann::ordered_json& row, const char* key) {
  const auto found = row.find(key);
  return found != row.end() && found->is_number() ? found->get<double>() : -1;
}
inline bool flag(const nlohmann::ordered_json& row, const char* key, bool absent = false) {
  const auto found = row.find(key);
  return found != row.end() && found->is_boolean() ? found->get<bool>() : absent;
}

}  // namespace mixgemm::bench
