// SPDX-License-Identifier: Apache-2.0
// Diagnostics on standard error, as much as MIXGEMM_LOG asks for: off, error, warn (the default),
// info or debug. For what a Status can't say: what was ignored, and why plans are what they are.
#pragma once

#include <fmt/format.h>

#include <string>
#include <utility>

namespace mixgemm::log {

enum class Level { off, error, warn, info, debug };

/// Read from the environment once; an unknown word there is itself warned of.
Level level();
inline bool enabled(Level wanted) { return wanted <= level(); }

/// One line "mixgemm: LEVEL: text".
void write(Level level, const std::string& text);

template <class... Args>
void warn(fmt::format_string<Args...> format, Args&&... args) {
  if (enabled(Level::warn)) write(Level::warn, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void info(fmt::format_string<Args...> format, Args&&... args) {
  if (enabled(Level::info)) write(Level::info, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void debug(fmt::format_string<Args...> format, Args&&... args) {
  if (enabled(Level::debug)) write(Level::debug, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace mixgemm::log
