// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "mixgemm/tuning.hpp"
#include "mixgemm/version.hpp"

namespace mixgemm {

/// Named as no device is, so that shipped caches say nothing of it.
inline TuningDevice h100() { return {Device::cuda, "NVIDIA H100 of the tests", 90, 132}; }

inline Problem layer(std::int64_t m, std::int64_t n = 4096, std::int64_t k = 4096) {
  Problem p;
  p.m = m;
  p.n = n;
  p.k = k;
  p.device = Device::cuda;
  return p;
}

/// An entry of this library, for a kernel whose tile holds `tile_m` tokens.
inline TuningEntry entry(const Problem& problem, int tile_m, double us = 5) {
  TuningEntry e;
  e.device = h100();
  e.library = version();
  e.problem = problem;
  e.config = "sm90_f16_i4_g_t128x" + std::to_string(tile_m) + "x64_coop@g128_c1x1_s4";
  e.us = us;
  return e;
}

/// A folder that goes away with the test.
class TemporaryFolder {
 public:
  TemporaryFolder()
      : path_(std::filesystem::temp_directory_path() /
              ("mixgemm_tuning_" + std::to_string(getpid()))) {
    std::filesystem::create_directories(path_);
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  std::string file(const std::string& name) const { return (path_ / name).string(); }
  std::string write(const std::string& name, const std::string& text) const {
    std::ofstream(file(name), std::ios::binary) << text;
    return file(name);
  }

 private:
  std::filesystem::path path_;
};

inline std::string read_text(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

}  // namespace mixgemm
