// SPDX-License-Identifier: Apache-2.0
// Writers on a disk that doesn't cooperate: what was there before stays, nothing half-written
// shows.
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <csignal>
#include <functional>
#include <sstream>

#include "support.hpp"

namespace mixgemm {
namespace {

using testing::expect_failure;
using testing::read_file;
using testing::TempDir;
using testing::write_file;

/// Runs `body` in a child process, whose limits and user it may change; its text comes back.
std::string in_child(const std::function<std::string()>& body) {
  const TempDir dir;
  std::filesystem::permissions(dir.path(), std::filesystem::perms::all);
  const std::string report = dir / "report";
  const pid_t child = ::fork();
  if (child == 0) {
    const int fd = ::open(report.c_str(), O_WRONLY | O_CREAT, 0666);
    const std::string text = body();
    // The report is shorter than any file-size limit of these tests.
    const bool ok = ::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
    ::_exit(ok ? 0 : 1);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "the child died: " << status;
  return read_file(report);
}

std::string describe(const Status& status) {
  return std::string(to_string(status.code())) + ": " + status.message();
}

/// Writes `bytes` of data to `path`; the first failure.
Status write_checkpoint(const std::string& path, std::int64_t bytes, bool reserve) {
  auto writer = SafetensorsWriter::create(path);
  if (!writer.ok()) return writer.status();
  if (Status s = writer->declare("w", "U8", {bytes}); !s.ok()) return s;
  if (reserve) {
    if (Status s = writer->begin(); !s.ok()) return s;
  }
  const std::string data(static_cast<std::size_t>(bytes), 'x');
  if (Status s = writer->write("w", data.data(), data.size()); !s.ok()) return s;
  return writer->finish();
}

TEST(Disk, MissingDirectoryOrFileInItsPlace) {
  const TempDir dir;
  expect_failure(SafetensorsWriter::create(dir / "no/m.safetensors").status(),
                 StatusCode::not_found, {"no/m.safetensors", "No such file"});
  write_file(dir / "file", "");
  expect_failure(SafetensorsWriter::create(dir / "file/m.safetensors").status(),
                 StatusCode::not_found, {"Not a directory"});
  expect_failure(SafetensorsWriter::create(dir.path().string()).status(), StatusCode::io_error,
                 {"must be a regular file; got a directory"});
  expect_failure(SafetensorsWriter::create("/dev/null").status(), StatusCode::io_error,
                 {"must be a regular file; got a device"});
  expect_failure(SafetensorsWriter::create("").status(), StatusCode::invalid_argument,
                 {"must name a file; got \"\""});
}

TEST(Disk, WriteProtectedTargetStays) {
  const TempDir dir;
  write_file(dir / "m.safetensors", "old");
  ASSERT_EQ(::chmod((dir / "m.safetensors").c_str(), 0444), 0);
  expect_failure(write_checkpoint(dir / "m.safetensors", 10, false), StatusCode::io_error,
                 {"cannot replace", "must be writable", "0444"});
  EXPECT_EQ(read_file(dir / "m.safetensors"), "old");
}

TEST(Disk, ReadOnlyDirectory) {
  const TempDir dir;
  ASSERT_EQ(::chmod(dir.path().c_str(), 0555), 0);
  const std::string told = in_child([&]() -> std::string {
    // Permissions don't bind the superuser: become somebody else.
    if (::geteuid() == 0 && ::setresuid(65534, 65534, 65534) != 0) return "can't change the user";
    return describe(write_checkpoint(dir / "m.safetensors", 10, false));
  });
  ASSERT_EQ(::chmod(dir.path().c_str(), 0755), 0);
  EXPECT_THAT(told, ::testing::StartsWith("io_error: "));
  EXPECT_THAT(told, ::testing::HasSubstr("Permission denied"));
  EXPECT_TRUE(dir.entries().empty());
}

// A full disk looks like this to a writer, wherever the tests run.
TEST(Disk, FileSizeLimitIsReportedBeforeTheWork) {
  const TempDir dir;
  write_file(dir / "m.safetensors", "old");
  const std::string told = in_child([&] {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{1 << 16, 1 << 16};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    return describe(write_checkpoint(dir / "m.safetensors", 1 << 20, true));
  });
  EXPECT_THAT(told, ::testing::StartsWith("io_error: cannot reserve 1049088 bytes for "));
  EXPECT_THAT(told, ::testing::HasSubstr("File too large"));
  EXPECT_EQ(dir.entries(), std::vector<std::string>{"m.safetensors"});
  EXPECT_EQ(read_file(dir / "m.safetensors"), "old");
}

TEST(Disk, FailureWhileWritingEndsTheWriter) {
  const TempDir dir;
  const std::string told = in_child([&] {
    ::signal(SIGXFSZ, SIG_IGN);
    auto writer = SafetensorsWriter::create(dir / "m.safetensors");
    std::string out = describe(writer->declare("w", "U8", {1 << 20})) + "\n";
    out += describe(writer->begin()) + "\n";  // reserved while the disk still had room
    const rlimit limit{1 << 16, 1 << 16};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const std::string data(1 << 20, 'x');
    out += describe(writer->write("w", data.data(), data.size())) + "\n";
    out += describe(writer->finish()) + "\n";
    return out;
  });
  std::istringstream lines(told);
  std::string declared, begun, written, finished;
  std::getline(lines, declared);
  std::getline(lines, begun);
  std::getline(lines, written);
  std::getline(lines, finished);
  EXPECT_EQ(begun, "ok: ");
  EXPECT_THAT(written, ::testing::StartsWith("io_error: cannot write "));
  EXPECT_THAT(written, ::testing::HasSubstr("File too large"));
  EXPECT_EQ(finished, written);
  EXPECT_TRUE(dir.entries().empty());
}

TEST(Disk, FullDisk) {
  const TempDir dir;
  if (::mount("tmpfs", dir.path().c_str(), "tmpfs", 0, "size=256k") != 0) {
    GTEST_SKIP() << "needs the right to mount a tmpfs; FileSizeLimitIsReportedBeforeTheWork covers "
                    "the same paths";
  }
  write_file(dir / "m.safetensors", "old");
  const Status status = write_checkpoint(dir / "m.safetensors", 1 << 20, true);
  const auto entries = dir.entries();
  const std::string content = read_file(dir / "m.safetensors");
  const Status small = write_checkpoint(dir / "m.safetensors", 1 << 16, true);
  EXPECT_EQ(::umount(dir.path().c_str()), 0);
  expect_failure(status, StatusCode::io_error, {"cannot reserve", "No space left on device"});
  EXPECT_EQ(entries, std::vector<std::string>{"m.safetensors"});
  EXPECT_EQ(content, "old");
  EXPECT_TRUE(small.ok()) << small.message();  // what was reserved in vain was given back
}

TEST(Disk, DirectoryThatVanishesWhileWriting) {
  const TempDir dir;
  std::filesystem::create_directory(dir / "sub");
  auto writer = SafetensorsWriter::create(dir / "sub/m.safetensors");
  ASSERT_OK(writer.status());
  ASSERT_OK(writer->declare("w", "U8", {1}));
  ASSERT_OK(writer->write("w", "x", 1));
  std::filesystem::remove_all(dir / "sub");
  expect_failure(writer->finish(), StatusCode::not_found, {"cannot rename", "m.safetensors"});
}

TEST(Disk, LinkKeepsPointingAndItsTargetIsReplaced) {
  const TempDir dir;
  std::filesystem::create_directory(dir / "sub");
  write_file(dir / "sub/real.safetensors", "old");
  std::filesystem::create_symlink("sub/real.safetensors", dir / "m.safetensors");
  ASSERT_OK(write_checkpoint(dir / "m.safetensors", 10, false));
  EXPECT_TRUE(std::filesystem::is_symlink(dir / "m.safetensors"));
  ASSERT_OK(SafetensorsFile::open(dir / "sub/real.safetensors").status());
  EXPECT_EQ(dir.entries(), (std::vector<std::string>{"m.safetensors", "sub"}));
}

// A reader that holds the old file keeps reading the old bytes while the new one takes its place.
TEST(Disk, ReplacingAnOpenFileLeavesItsReadersAlone) {
  const TempDir dir;
  ASSERT_OK(write_checkpoint(dir / "m.safetensors", 100, false));
  const auto before = SafetensorsFile::open(dir / "m.safetensors");
  ASSERT_OK(before.status());
  ASSERT_OK(write_checkpoint(dir / "m.safetensors", 10, false));
  const auto w = before->find("w");
  ASSERT_OK(w.status());
  EXPECT_EQ(w->bytes, 100u);
  EXPECT_EQ(static_cast<const char*>(w->data)[99], 'x');
}

// Offsets beyond 4 GiB: the file is a hole but for its ends, and takes no room.
TEST(Disk, FilesBeyondFourGiB) {
  const TempDir dir;
  const std::uint64_t far = (std::uint64_t{5} << 30) + 8;
  std::string header = R"({"hole":{"dtype":"U8","shape":[)" + std::to_string(far) +
                       R"(],"data_offsets":[0,)" + std::to_string(far) +
                       R"(]},"end":{"dtype":"F32","shape":[1],"data_offsets":[)" +
                       std::to_string(far) + "," + std::to_string(far + 4) + "]}}";
  header.resize(248, ' ');
  const std::string path = dir / "big.safetensors";
  write_file(path, testing::safetensors_bytes(header, ""));
  std::error_code error;
  std::filesystem::resize_file(path, 256 + far + 4, error);
  if (error) GTEST_SKIP() << "the file system takes no sparse file of 5 GiB: " << error.message();
  {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(256 + far));
    file.write("\0\0\x80\x3f", 4);
  }
  const auto file = SafetensorsFile::open(path);
  ASSERT_OK(file.status());
  EXPECT_EQ(file->info("end")->begin, far);
  EXPECT_EQ(*static_cast<const float*>(file->find("end")->data), 1.0f);
}

}  // namespace
}  // namespace mixgemm
