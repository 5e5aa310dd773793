// SPDX-License-Identifier: Apache-2.0
// Writing that a later process continues: what a killed one left counts, if it is whole, of the
// same work, and undamaged.
#include <sys/wait.h>

#include <csignal>
#include <functional>

#include "import/crc32c.hpp"
#include "mixgemm/weight.hpp"
#include "support.hpp"

namespace mixgemm {
namespace {

using testing::expect_failure;
using testing::read_file;
using testing::TempDir;
using testing::write_file;

constexpr QuantSpec kResumeSpec{WeightType::int4, ZeroKind::integer, 32, DataType::f16};
constexpr int kLayers = 4;

PackedWeight layer(int seed, bool permuted = false) {
  CanonicalWeight weight;
  weight.n = 20;
  weight.k = 96;
  weight.spec = kResumeSpec;
  for (int i = 0; i < 20 * 96; ++i) weight.codes.push_back((i * 7 + seed) % 16);
  for (int i = 0; i < 20 * 3; ++i) weight.scales.push_back(static_cast<std::uint16_t>(0x2000 + i));
  for (int i = 0; i < 20 * 3; ++i) weight.zeros.push_back((i + seed) % 16);
  if (permuted) {
    for (int i = 0; i < 96; ++i) weight.permutation.push_back((i * 5 + seed) % 96);
  }
  return pack(weight, 1).value();
}

std::string name(int i) { return "layer" + std::to_string(i); }

/// Layers 0 … and a dense tensor; layer 1 has a permutation.
PackedCheckpointWriter declare(const std::string& path, const std::string& key,
                               std::uint64_t max_shard_bytes = 0) {
  auto writer =
      PackedCheckpointWriter::create(path, {.max_shard_bytes = max_shard_bytes, .resume_key = key})
          .value();
  for (int i = 0; i < kLayers; ++i) {
    const auto columns = i == 1 ? ColumnOrder::permuted : ColumnOrder::natural;
    writer.declare_packed(name(i), 20, 96, kResumeSpec, columns).throw_if_error();
  }
  writer.declare_dense("bias", "F32", {8}).throw_if_error();
  writer.begin().throw_if_error();
  return writer;
}

constexpr char kBias[33] = "0123456789abcdef0123456789abcdef";

/// Writes what isn't there; how many layers that were. Ends after `stop_after` of them.
int write_rest(PackedCheckpointWriter& writer, int stop_after = kLayers) {
  int written = 0;
  for (int i = 0; i < kLayers && written < stop_after; ++i) {
    if (writer.is_written(name(i))) continue;
    writer.write_packed(name(i), layer(i, i == 1).view()).throw_if_error();
    ++written;
  }
  return written;
}

void finish(PackedCheckpointWriter& writer) {
  if (!writer.is_written("bias")) writer.write_dense("bias", kBias, 32).throw_if_error();
  writer.finish().throw_if_error();
}

/// In a process of its own, which ends by SIGKILL.
void in_killed_process(const std::function<void()>& body) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    try {
      body();
    } catch (...) {
      ::_exit(1);
    }
    ::raise(SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
}

/// The bytes of a file written in one go.
std::string reference() {
  const TempDir dir;
  auto writer = declare(dir / "m.safetensors", "key");
  write_rest(writer);
  finish(writer);
  return read_file(dir / "m.safetensors");
}

TEST(Resume, KilledProcessIsContinued) {
  for (int done = 0; done <= kLayers; ++done) {
    SCOPED_TRACE(done);
    const TempDir dir;
    const std::string path = dir / "m.safetensors";
    in_killed_process([&] {
      auto writer = declare(path, "key");
      write_rest(writer, done);
    });
    EXPECT_FALSE(std::filesystem::exists(path));
    auto writer = declare(path, "key");
    for (int i = 0; i < kLayers; ++i) EXPECT_EQ(writer.is_written(name(i)), i < done);
    EXPECT_FALSE(writer.is_written("bias"));
    EXPECT_EQ(write_rest(writer), kLayers - done);
    finish(writer);
    EXPECT_EQ(dir.entries(), std::vector<std::string>{"m.safetensors"});
    EXPECT_EQ(read_file(path), reference());
    ASSERT_OK(PackedCheckpoint::open(path)->verify());
  }
}

TEST(Resume, WriterThatGoesIsContinuedButNotOneThatAbandons) {
  const TempDir dir;
  const std::string path = dir / "m.safetensors";
  {
    auto writer = declare(path, "key");
    write_rest(writer, 2);
  }
  EXPECT_EQ(dir.entries(),
            (std::vector<std::string>{"m.safetensors.partial", "m.safetensors.partial.journal"}));
  {
    auto writer = declare(path, "key");
    EXPECT_TRUE(writer.is_written(name(1)));
    writer.abandon();
  }
  EXPECT_TRUE(dir.entries().empty());
}

TEST(Resume, OtherWorkBeginsAnew) {
  const TempDir dir;
  const std::string path = dir / "m.safetensors";
  const auto leave_two = [&] {
    auto writer = declare(path, "key");
    write_rest(writer, 2);
  };
  leave_two();
  {
    auto writer = declare(path, "another\nkey");
    EXPECT_EQ(write_rest(writer), kLayers);
    finish(writer);
  }
  leave_two();
  auto other = PackedCheckpointWriter::create(path, {.resume_key = "key"}).value();
  ASSERT_OK(other.declare_packed(name(0), 20, 96, kResumeSpec));
  ASSERT_OK(other.begin());
  EXPECT_FALSE(other.is_written(name(0)));
}

TEST(Resume, DamagedLayersAndTornJournalLinesAreWrittenAgain) {
  const TempDir dir;
  const std::string path = dir / "m.safetensors";
  {
    auto writer = declare(path, "key");
    write_rest(writer, 3);
  }
  std::string bytes = read_file(path + ".partial");
  const PackedWeight damaged = layer(2);
  const auto* codes = reinterpret_cast<const char*>(damaged.view().codes);
  const std::size_t at = bytes.find(std::string(codes, 512));
  ASSERT_NE(at, std::string::npos);
  bytes[at + 100] ^= 1;
  write_file(path + ".partial", bytes);
  const std::string journal = read_file(path + ".partial.journal");
  // As after a power cut: the end of the last line is missing, that of layer 2's zeros.
  write_file(path + ".partial.journal", journal.substr(0, journal.size() - 3));
  auto writer = declare(path, "key");
  EXPECT_TRUE(writer.is_written(name(0)));
  EXPECT_TRUE(writer.is_written(name(1)));
  EXPECT_FALSE(writer.is_written(name(2)));
  EXPECT_EQ(write_rest(writer), 2);
  finish(writer);
  EXPECT_EQ(read_file(path), reference());
}

TEST(Resume, OneProcessAtATime) {
  const TempDir dir;
  const std::string path = dir / "m.safetensors";
  const auto writer = declare(path, "key");
  expect_failure(PackedCheckpointWriter::create(path, {.resume_key = "key"}).status(),
                 StatusCode::io_error, {path, "one process at a time"});
}

TEST(Resume, Shards) {
  const TempDir dir;
  const std::string path = dir / "m.safetensors";
  in_killed_process([&] {
    auto writer = declare(path, "key", 4000);
    write_rest(writer, 2);
  });
  auto writer = declare(path, "key", 4000);
  EXPECT_EQ(write_rest(writer), kLayers - 2);
  finish(writer);
  for (const std::string& entry : dir.entries()) {
    EXPECT_EQ(entry.find("partial"), std::string::npos) << entry;
  }
  const auto checkpoint = PackedCheckpoint::open(path);
  ASSERT_OK(checkpoint.status());
  ASSERT_OK(checkpoint->verify());
  EXPECT_GT(checkpoint->file().files().size(), 1u);
}

TEST(Permutation, SurvivesTheFileAndIsChecked) {
  const TempDir dir;
  const std::string path = dir / "m.safetensors";
  const PackedWeight weight = layer(3, true);
  auto writer = PackedCheckpointWriter::create(path).value();
  ASSERT_OK(writer.declare_packed("w", 20, 96, kResumeSpec, ColumnOrder::permuted));
  ASSERT_OK(writer.declare_packed("v", 20, 96, kResumeSpec));
  expect_failure(writer.write_packed("w", weight.for_gathered_x().view()),
                 StatusCode::invalid_argument, {"\"w\"", "without one"});
  expect_failure(writer.write_packed("v", weight.view()), StatusCode::invalid_argument,
                 {"\"v\"", "with one"});
  std::vector<std::int32_t> twice(weight.permutation().begin(), weight.permutation().end());
  twice[7] = twice[8];
  PackedView view = weight.view();
  view.permutation = twice.data();
  expect_failure(writer.write_packed("w", view), StatusCode::invalid_argument,
                 {"\"w\"", "every index once", "element 8"});
  ASSERT_OK(writer.write_packed("w", weight.view()));
  ASSERT_OK(writer.write_packed("v", weight.for_gathered_x().view()));
  ASSERT_OK(writer.finish());
  const auto checkpoint = PackedCheckpoint::open(path);
  ASSERT_OK(checkpoint.status());
  EXPECT_EQ(checkpoint->info("w")->columns, ColumnOrder::permuted);
  EXPECT_EQ(checkpoint->info("w")->size_bytes, checkpoint->info("v")->size_bytes + 4 * 96);
  EXPECT_TRUE(checkpoint->dense().empty());
  const auto found = checkpoint->find("w");
  ASSERT_OK(found.status());
  EXPECT_TRUE(std::equal(found->permutation().begin(), found->permutation().end(),
                         weight.permutation().begin(), weight.permutation().end()));
  EXPECT_TRUE(checkpoint->find("v")->permutation().empty());
  EXPECT_EQ(found->size_bytes(), weight.size_bytes());

  // One index changed in the file.
  std::string bytes = read_file(path);
  const std::string stored(reinterpret_cast<const char*>(weight.permutation().data()), 4 * 96);
  const std::size_t at = bytes.find(stored);
  ASSERT_NE(at, std::string::npos);
  bytes[at] ^= 1;
  write_file(path, bytes);
  expect_failure(PackedCheckpoint::open(path)->find("w").status(), StatusCode::corrupt_data,
                 {"w.permutation", "checksum"});
}

}  // namespace
}  // namespace mixgemm
