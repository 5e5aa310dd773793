// SPDX-License-Identifier: Apache-2.0
// A file that appears whole or not at all: written under a temporary name, then renamed. And the
// journal by which a later process continues such a file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

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
  /// The same with the temporary TARGET.partial, which may exist and which stays unless discard()
  /// is called.
  static Result<OutputFile> create_partial(const std::string& target);
  ~OutputFile();
  OutputFile(OutputFile&& other) noexcept;
  OutputFile& operator=(OutputFile&& other) noexcept;

  /// Sets the size and reserves the blocks, where the file system can: a full disk shows here.
  Status resize(std::uint64_t bytes);
  Status write_at(std::uint64_t offset, const void* data, std::size_t bytes);
  Status read_at(std::uint64_t offset, void* data, std::size_t bytes) const;
  /// Size now, before resize() that of the temporary that was found.
  Result<std::uint64_t> size() const;
  /// Data and size reach the disk.
  Status flush();
  /// The target is replaced by the temporary, at once. Call flush() first.
  Status publish();
  /// Removes the temporary; nothing after publish().
  void discard();

  const std::string& target() const { return target_; }

 private:
  OutputFile(std::string target, std::string temporary, int fd, bool keep)
      : target_(std::move(target)), temporary_(std::move(temporary)), fd_(fd), keep_(keep) {}

  std::string target_;
  std::string temporary_;
  int fd_ = -1;        // −1 once published, discarded or moved from
  bool keep_ = false;  // the temporary outlives the object
};

/// What has been written whole of a file that may be continued: TARGET.partial.journal, text, one
/// line an entry behind a first line that says what is being written. Locked, so that two processes
/// can't write the same target. Stays when the object goes. Move-only.
class Journal {
 public:
  struct Entry {
    std::size_t index = 0;  ///< of the tensor, in order of declaration
    std::uint32_t crc = 0;  ///< CRC-32C of its bytes
  };

  /// Opens and locks the journal of `target`, whose rules are OutputFile::create's. Fails with
  /// io_error while another process has it.
  static Result<Journal> open(const std::string& target);
  ~Journal();
  Journal(Journal&& other) noexcept;
  Journal& operator=(Journal&& other) noexcept;

  /// The entries, if the first line is `identity`, else none. What a killed process left of a last
  /// line is dropped.
  Result<std::vector<Entry>> read(std::string_view identity);
  /// Begins anew.
  Status start(std::string_view identity);
  Status append(const Entry& entry);
  /// Deletes the journal.
  void remove();

 private:
  Journal(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  Status write(std::string_view text);

  std::string path_;
  int fd_ = -1;
};

}  // namespace mixgemm
