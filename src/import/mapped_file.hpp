// SPDX-License-Identifier: Apache-2.0
// A regular file mapped read-only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "mixgemm/status.hpp"

namespace mixgemm {

/// Immutable; unmapped when the last shared_ptr goes. The mapping outlives the file's name:
/// deleting or replacing the file is harmless. Shortening it in place is not (an access then raises
/// SIGBUS), hence check_unchanged().
class MappedFile {
 public:
  /// Fails with not_found; with io_error for anything but a readable regular file (never blocks on
  /// a pipe or device).
  static Result<std::shared_ptr<const MappedFile>> open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::uint8_t* data() const { return data_; }
  std::size_t size() const { return size_; }
  const std::string& path() const { return path_; }
  /// Fails with io_error if the file is shorter now than when it was mapped.
  Status check_unchanged() const;

 private:
  MappedFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}

  std::string path_;
  int fd_ = -1;
  const std::uint8_t* data_ = nullptr;  // nullptr for an empty file
  std::size_t size_ = 0;
};

}  // namespace mixgemm
