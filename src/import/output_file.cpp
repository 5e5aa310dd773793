// SPDX-License-Identifier: Apache-2.0
#include "import/output_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
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

}  // namespace

Result<OutputFile> OutputFile::create(const std::string& target) {
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
  std::random_device random;
  for (int attempt = 0;; ++attempt) {
    std::string temporary = fmt::format("{}.tmp-{:08x}", resolved, random());
    const int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd >= 0) return OutputFile(std::move(resolved), std::move(temporary), fd);
    if (errno != EEXIST || attempt == 100) return system_failure("create", temporary);
  }
}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : target_(std::move(other.target_)),
      temporary_(std::move(other.temporary_)),
      fd_(std::exchange(other.fd_, -1)) {}

OutputFile& OutputFile::operator=(OutputFile&& other) noexcept {
  if (this != &other) {
    discard();
    target_ = std::move(other.target_);
    temporary_ = std::move(other.temporary_);
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

Status OutputFile::resize(std::uint64_t bytes) {
  const auto size = static_cast<off_t>(bytes);
  int result = 0;
  do {
    result = ::fallocate(fd_, 0, 0, size);
  } while (result != 0 && errno == EINTR);
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

}  // namespace mixgemm
