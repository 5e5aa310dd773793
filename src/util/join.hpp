// SPDX-License-Identifier: Apache-2.0
// Lists in messages. fmt::join does the same, but takes the compiler a second and a half a file.
#pragma once

#include <string>
#include <string_view>
#include <type_traits>

namespace mixgemm {

/// The items, text or integers, with `separator` between them: "16, 32, 64".
template <class Items>
std::string joined(const Items& items, std::string_view separator = ", ") {
  std::string text;
  std::string_view before;
  for (const auto& item : items) {
    text += before;
    before = separator;
    if constexpr (std::is_integral_v<std::remove_cvref_t<decltype(item)>>) {
      text += std::to_string(item);
    } else {
      text += item;
    }
  }
  return text;
}

}  // namespace mixgemm
