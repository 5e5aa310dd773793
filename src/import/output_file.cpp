// SPDX-License-Identifier: Apache-2.0
#include "import/output_file.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <random>
#include <utility>

#include "import/errors.hpp"

namespace mixgemm {
namespace {

namespace fs = std::filesystem;

/// rename() lasts across a power cut once the directory is on disk. Some file systems can't sync a
/// directory, and the data is whole either way, so a failure isn't one of the write.
void sync_directory_of(const std::string& path) {
  const fs::path parent = fs::path(path).parent_path();
  const int fd = ::open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  ::fsync(fd);
  ::close(fd);
}

/// Where `target` leads, if it can be written: a name to be, or a regular file to be replaced.
Result<std::string> resolve_target(const std::string& target) {
  if (!fs::path(target).has_filename()) {
    return failure(StatusCode::invalid_argument, "an output path must name a file; got {}",
                   in_quotes(target));
  }
  std::string resolved = target;
  std::error_code error;
  if (fs::is_symlink(target, error)) {
    const fs::path followed = fs::weakly_canonical(target, error);
    if (!error) resolved = followed.string();
  }
  struct stat info {};
  if (::stat(resolved.c_str(), &info) == 0) {
    if (!S_ISREG(info.st_mode)) {
      return failure(StatusCode::io_error, "cannot write {}: must be a regular file; got {}",
                     resolved, S_ISDIR(info.st_mode) ? "a directory" : "a device, pipe or socket");
    }
    // The mode is asked too because the superuser may write anything.
    if ((info.st_mode & 0222) == 0 || ::access(resolved.c_str(), W_OK) != 0) {
      return failure(StatusCode::io_error,
                     "cannot replace {}: the file must be writable; got mode {:04o}", resolved,
                     info.st_mode & 07777u);
    }
  } else if (errno != ENOENT) {
    return system_failure("write", resolved);
  }
  return resolved;
}

}  // namespace

OutputFile::~OutputFile() {
  if (!keep_) discard();
  if (fd_ >= 0) ::close(fd_);
}

Result<OutputFile> OutputFile::create(const std::string& target) {
  const Result<std::string> resolved = resolve_target(target);
  if (!resolved.ok()) return resolved.status();
  std::random_device random;
  for (int attempt = 0;; ++attempt) {
    std::string temporary = fmt::format("{}.tmp-{:08x}", *resolved, random());
    const int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd >= 0) return OutputFile(*resolved, std::move(temporary), fd, false);
    if (errno != EEXIST || attempt == 100) return system_failure("create", temporary);
  }
}

Result<OutputFile> OutputFile::create_partial(const std::string& target) {
  const Result<std::string> resolved = resolve_target(target);
  if (!resolved.ok()) return resolved.status();
  std::string temporary = *resolved + ".partial";
  // Not through a link: what it points to isn't ours.
  const int fd = ::open(temporary.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
  if (fd < 0) return system_failure("create", temporary);
  return OutputFile(*resolved, std::move(temporary), fd, true);
}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : target_(std::move(other.target_)),
      temporary_(std::move(other.temporary_)),
      fd_(std::exchange(other.fd_, -1)),
      keep_(other.keep_) {}

OutputFile& OutputFile::operator=(OutputFile&& other) noexcept {
  if (this != &other) {
    if (!keep_) discard();
    if (fd_ >= 0) ::close(fd_);
    target_ = std::move(other.target_);
    temporary_ = std::move(other.temporary_);
    fd_ = std::exchange(other.fd_, -1);
    keep_ = other.keep_;
  }
  return *this;
}

Status OutputFile::resize(std::uint64_t bytes) {
  const auto size = static_cast<off_t>(bytes);
  int result = 0;
  while (bytes > 0) {  // fallocate() refuses to reserve nothing
    result = ::fallocate(fd_, 0, 0, size);
    if (result == 0 || errno != EINTR) break;
  }
  if (result != 0 && errno != EOPNOTSUPP && errno != ENOSYS) {
    return system_failure(fmt::format("reserve {} bytes for", bytes), target_);
  }
  if (::ftruncate(fd_, size) != 0) {
    return system_failure(fmt::format("extend to {} bytes", bytes), target_);
  }
  return {};
}

Status OutputFile::write_at(std::uint64_t offset, const void* data, std::size_t bytes) {
  const char* p = static_cast<const char*>(data);
  while (bytes > 0) {
    // Linux moves at most 0x7ffff000 bytes a call.
    const ssize_t written = ::pwrite(fd_, p, std::min<std::size_t>(bytes, std::size_t{1} << 30),
                                     static_cast<off_t>(offset));
    if (written < 0) {
      if (errno == EINTR) continue;
      return system_failure("write", target_);
    }
    p += written;
    offset += static_cast<std::uint64_t>(written);
    bytes -= static_cast<std::size_t>(written);
  }
  return {};
}

Status OutputFile::read_at(std::uint64_t offset, void* data, std::size_t bytes) const {
  char* p = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t got = ::pread(fd_, p, std::min<std::size_t>(bytes, std::size_t{1} << 30),
                                static_cast<off_t>(offset));
    if (got < 0) {
      if (errno == EINTR) continue;
      return system_failure("read", temporary_);
    }
    if (got == 0) {
      return failure(StatusCode::io_error, "cannot read {}: it ends {} bytes early", temporary_,
                     bytes);
    }
    p += got;
    offset += static_cast<std::uint64_t>(got);
    bytes -= static_cast<std::size_t>(got);
  }
  return {};
}

Result<std::uint64_t> OutputFile::size() const {
  struct stat info {};
  if (::fstat(fd_, &info) != 0) return system_failure("read the size of", temporary_);
  return static_cast<std::uint64_t>(info.st_size);
}

Status OutputFile::flush() {
  if (::fsync(fd_) != 0) return system_failure("flush", target_);
  return {};
}

Status OutputFile::publish() {
  if (::rename(temporary_.c_str(), target_.c_str()) != 0) {
    return system_failure(fmt::format("rename {} to", temporary_), target_);
  }
  ::close(std::exchange(fd_, -1));
  sync_directory_of(target_);
  return {};
}

void OutputFile::discard() {
  if (fd_ < 0) return;
  ::unlink(temporary_.c_str());
  ::close(std::exchange(fd_, -1));
}

Result<Journal> Journal::open(const std::string& target) {
  const Result<std::string> resolved = resolve_target(target);
  if (!resolved.ok()) return resolved.status();
  std::string path = *resolved + ".partial.journal";
  for (;;) {
    const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd < 0) return system_failure("create", path);
    struct stat opened {
    }, named{};
    if (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
      const int error = errno;
      ::close(fd);
      if (error != EWOULDBLOCK) return system_failure("lock", path, error);
      return failure(StatusCode::io_error,
                     "cannot write {}: one process at a time may; another has locked {}", target,
                     path);
    }
    // The one who had the lock before may have deleted the file in between.
    if (::fstat(fd, &opened) == 0 && ::stat(path.c_str(), &named) == 0 &&
        opened.st_ino == named.st_ino && opened.st_dev == named.st_dev) {
      return Journal(std::move(path), fd);
    }
    ::close(fd);
  }
}

Journal::~Journal() {
  if (fd_ < 0) return;
  struct stat info {};
  if (::fstat(fd_, &info) == 0 && info.st_size == 0) remove();  // nothing to continue
  if (fd_ >= 0) ::close(fd_);
}

Journal::Journal(Journal&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)) {}

Journal& Journal::operator=(Journal&& other) noexcept {
  if (this != &other) {
    if (fd_ >= 0) ::close(fd_);
    path_ = std::move(other.path_);
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

Result<std::vector<Journal::Entry>> Journal::read(std::string_view identity) {
  std::string text;
  for (char piece[1 << 16];;) {
    const ssize_t got = ::pread(fd_, piece, sizeof(piece), static_cast<off_t>(text.size()));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return system_failure("read", path_);
    if (got == 0) break;
    text.append(piece, static_cast<std::size_t>(got));
  }
  std::vector<Entry> entries;
  if (!text.starts_with(identity) || !text.substr(identity.size()).starts_with('\n')) {
    return entries;
  }
  std::size_t at = identity.size() + 1;
  for (;;) {
    Entry entry;
    const char* const end = text.data() + text.size();
    const auto [after_index, bad_index] = std::from_chars(text.data() + at, end, entry.index);
    if (bad_index != std::errc() || after_index == end || *after_index != ' ') break;
    const auto [after_crc, bad_crc] = std::from_chars(after_index + 1, end, entry.crc, 16);
    if (bad_crc != std::errc() || after_crc == end || *after_crc != '\n') break;
    entries.push_back(entry);
    at = static_cast<std::size_t>(after_crc + 1 - text.data());
  }
  if (::ftruncate(fd_, static_cast<off_t>(at)) != 0) return system_failure("truncate", path_);
  return entries;
}

Status Journal::start(std::string_view identity) {
  if (::ftruncate(fd_, 0) != 0) return system_failure("truncate", path_);
  return write(fmt::format("{}\n", identity));
}

Status Journal::append(const Entry& entry) {
  return write(fmt::format("{} {:08x}\n", entry.index, entry.crc));
}

Status Journal::write(std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(fd_, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return system_failure("write", path_);
    text.remove_prefix(static_cast<std::size_t>(written));
  }
  return {};
}

void Journal::remove() {
  if (fd_ < 0) return;
  ::unlink(path_.c_str());
  ::close(std::exchange(fd_, -1));
}

}  // namespace mixgemm
