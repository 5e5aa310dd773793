// SPDX-License-Identifier: Apache-2.0
#include "import/mapped_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <utility>

#include "import/errors.hpp"

namespace mixgemm {

Result<std::shared_ptr<const MappedFile>> MappedFile::open(const std::string& path) {
  // O_NONBLOCK: opening a pipe nobody writes to must fail below, not wait.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return system_failure("open", path);
  std::shared_ptr<MappedFile> file(new MappedFile(path, fd));
  struct stat info {};
  if (::fstat(fd, &info) != 0) return system_failure("examine", path);
  if (!S_ISREG(info.st_mode)) {
    return failure(StatusCode::io_error, "{}: must be a regular file; got {}", path,
                   S_ISDIR(info.st_mode) ? "a directory" : "a device, pipe or socket");
  }
  if (info.st_size > 0) {
    const auto size = static_cast<std::size_t>(info.st_size);
    void* address = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
    if (address == MAP_FAILED) return system_failure("map", path);
    file->data_ = static_cast<const std::uint8_t*>(address);
    file->size_ = size;
  }
  return std::shared_ptr<const MappedFile>(std::move(file));
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::uint8_t*>(data_), size_);
  ::close(fd_);
}

Status MappedFile::check_unchanged() const {
  struct stat info {};
  if (::fstat(fd_, &info) != 0) return system_failure("examine", path_);
  if (static_cast<std::uint64_t>(info.st_size) < size_) {
    return failure(StatusCode::io_error,
                   "{}: must not become shorter while it is open; it had {} bytes, now {}", path_,
                   size_, info.st_size);
  }
  return {};
}

}  // namespace mixgemm
