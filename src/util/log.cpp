// SPDX-License-Identifier: Apache-2.0
#include "util/log.hpp"
#include "util/join.hpp"

#include <cstdio>
#include <cstdlib>
#include <string_view>

namespace mixgemm::log {
namespace {

constexpr std::string_view kNames[] = {"off", "error", "warn", "info", "debug"};

Level read_level() {
  const char* wanted = std::getenv("MIXGEMM_LOG");
  if (wanted == nullptr || *wanted == '\0') return Level::warn;
  for (std::size_t i = 0; i < std::size(kNames); ++i) {
    if (kNames[i] == wanted) return static_cast<Level>(i);
  }
  fmt::print(stderr, "mixgemm: warn: MIXGEMM_LOG must be one of {}; got {}\n", joined(kNames),
             wanted);
  return Level::warn;
}

}  // namespace

Level level() {
  static const Level value = read_level();
  return value;
}

void write(Level level, const std::string& text) {
  // One call, so that lines of several threads don't mix.
  const std::string line =
      fmt::format("mixgemm: {}: {}\n", kNames[static_cast<std::size_t>(level)], text);
  std::fwrite(line.data(), 1, line.size(), stderr);
}

}  // namespace mixgemm::log
