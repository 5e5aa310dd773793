// SPDX-License-Identifier: Apache-2.0
// A file that appears whole or not at all: written under a temporary name, then renamed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "mixgemm/status.hpp"

namespace mixgemm {

/// Life: create → resize → write_at … → flush → publish. Destroyed before publish(), it removes the
/// temporary and leaves the target as it was. Move-only.
class OutputFile {
 public:
  /// Opens a temporary beside `target`. Fails when the directory isn't there or isn't writable, and
  /// when the target exists and is write-protected or no regular file. Where the target is a link,
  /// what it points to is replaced.
  static Result<OutputFile> create(const std::string& target);
  ~OutputFile() { discard(); }
  OutputFile(OutputFile&& other) noexcept;
  OutputFile& operator=(OutputFile&& other) noexcept;

  /// Sets the size and reserves the blocks, where the file system can: a full disk shows here.
  Status resize(std::uint64_t bytes);
  Status write_at(std::uint64_t offset, const void* data, std::size_t bytes);
  /// Data and size reach the disk.
  Status flush();
  /// The target is replaced by the temporary, at once. Call flush() first.
  Status publish();
  /// Removes the temporary; nothing after publish().
  void discard();

  const std::string& target() const { return target_; }

 private:
  OutputFile(std::string target, std::string temporary, int fd)
      : target_(std::move(target)), temporary_(std::move(temporary)), fd_(fd) {}

  std::string target_;
  std::string temporary_;
  int fd_ = -1;  // −1 once published, discarded or moved from
};

}  // namespace mixgemm
