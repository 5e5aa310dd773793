// SPDX-License-Identifier: Apache-2.0
// Runs the program itself, as a shell would, in a folder that goes away with the test.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

namespace mixgemm {

struct ProgramOutcome {
  int exit_code = -1;
  std::string out, err;
  nlohmann::ordered_json json() const { return nlohmann::ordered_json::parse(out); }
};

class Program : public testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        std::filesystem::temp_directory_path() / ("mixgemm_program_" + std::to_string(getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  std::string write(const std::string& name, const std::string& text) const {
    std::ofstream(path(name), std::ios::binary) << text;
    return path(name);
  }
  static std::string read(const std::string& path) {
    std::ostringstream text;
    text << std::ifstream(path, std::ios::binary).rdbuf();
    return text.str();
  }

  /// Runs `mixgemm words…` without the caches of this machine's user. `prefix`: what comes before,
  /// such as variables or `timeout`.
  ProgramOutcome run(const std::vector<std::string>& words, const std::string& prefix = "") const {
    std::string command =
        "XDG_CACHE_HOME='" + path("xdg") + "' " + prefix + " '" + MIXGEMM_PROGRAM + "'";
    for (const auto& word : words) command += " '" + word + "'";
    command += " >'" + path("stdout") + "' 2>'" + path("stderr") + "' </dev/null";
    ProgramOutcome outcome;
    const int status = std::system(command.c_str());
    outcome.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    outcome.out = read(path("stdout"));
    outcome.err = read(path("stderr"));
    return outcome;
  }

  std::filesystem::path folder_;
};

}  // namespace mixgemm
