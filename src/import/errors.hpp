// SPDX-License-Identifier: Apache-2.0
// Messages of the container code: names from files are untrusted, so they are quoted and shortened.
#pragma once

#include <fmt/format.h>

#include <cerrno>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "mixgemm/status.hpp"

namespace mixgemm {

template <class... Args>
Status failure(StatusCode code, fmt::format_string<Args...> format, Args&&... args) {
  return {code, fmt::format(format, std::forward<Args>(args)...)};
}

/// A name as a message may show it: in quotes, control characters escaped, at most 200 bytes.
inline std::string in_quotes(std::string_view name) {
  constexpr std::size_t kMaxShown = 200;
  std::string out = "\"";
  for (const char c : name.substr(0, kMaxShown)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      out += fmt::format("\\x{:02x}", byte);
    } else if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else {
      out += c;
    }
  }
  out += name.size() > kMaxShown ? "…\"" : "\"";
  return out;
}

/// "cannot <action> <path>: <what the operating system says>".
inline Status system_failure(std::string_view action, std::string_view path, int error = errno) {
  const bool missing = error == ENOENT || error == ENOTDIR;
  return failure(missing ? StatusCode::not_found : StatusCode::io_error, "cannot {} {}: {}", action,
                 path, std::system_category().message(error));
}

}  // namespace mixgemm
