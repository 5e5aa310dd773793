// SPDX-License-Identifier: Apache-2.0
// The safetensors writer: layout, protocol, shards.
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>

#include "support.hpp"

namespace mixgemm {
namespace {

using testing::expect_failure;
using testing::read_file;
using testing::TempDir;
using testing::write_file;

std::string bytes_of(std::size_t count, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::string bytes(count, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

/// A name with characters that JSON escapes or encodes.
std::string name_of(std::int64_t number) {
  std::string name = "layer \"é\" ";
  return name.append(std::to_string(number));
}

std::string_view text_of(const TensorView& tensor) {
  return {static_cast<const char*>(tensor.data), tensor.bytes};
}

TEST(SafetensorsWriter, RoundTripOfRandomTensorsInAnyOrder) {
  for (std::uint32_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    const TempDir dir;
    const std::uint64_t limit = seed % 2 == 0 ? 0 : 4000;
    auto writer = SafetensorsWriter::create(dir / "m.safetensors", {.max_shard_bytes = limit});
    ASSERT_OK(writer.status());
    const std::size_t count = 1 + random() % 12;
    std::vector<std::string> names, contents;
    const char* dtypes[] = {"U8", "F16", "BF16", "F32", "I64"};
    for (std::size_t i = 0; i < count; ++i) {
      const char* dtype = dtypes[random() % 5];
      std::vector<std::int64_t> shape;
      std::size_t bytes = static_cast<std::size_t>(*dtype_bits(dtype)) / 8;
      for (std::size_t rank = random() % 4; rank > 0; --rank) {
        shape.push_back(1 + static_cast<std::int64_t>(random() % 9));
        bytes *= static_cast<std::size_t>(shape.back());
      }
      names.push_back(name_of(static_cast<std::int64_t>(i)));
      contents.push_back(bytes_of(bytes, random()));
      ASSERT_OK(writer->declare(names[i], dtype, shape));
    }
    ASSERT_OK(writer->set_metadata("note", "line\nbreak \\ \"quote\""));
    std::vector<std::size_t> order(count);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    for (const std::size_t i : order) {
      const std::size_t cut = random() % (contents[i].size() + 1);
      ASSERT_OK(writer->append(names[i], contents[i].data(), cut));
      ASSERT_OK(writer->append(names[i], contents[i].data() + cut, contents[i].size() - cut));
    }
    EXPECT_FALSE(std::filesystem::exists(dir / "m.safetensors"));  // nothing before finish()
    ASSERT_OK(writer->finish());
    const auto file = SafetensorsFile::open(dir / "m.safetensors");
    ASSERT_OK(file.status());
    EXPECT_EQ(file->metadata().at("note"), "line\nbreak \\ \"quote\"");
    for (std::size_t i = 0; i < count; ++i) {
      const auto tensor = file->find(names[i]);
      ASSERT_OK(tensor.status());
      EXPECT_EQ(text_of(*tensor), contents[i]);
    }
    for (const std::string& entry : dir.entries()) EXPECT_EQ(entry.find(".tmp"), entry.npos);
  }
}

// Each tensor begins at a multiple of the largest power of two (≤ 512) that divides its size, in
// the file: mapping it then gives aligned memory without a copy.
TEST(SafetensorsWriter, TensorsAreAlignedWithoutHoles) {
  const TempDir dir;
  auto writer = SafetensorsWriter::create(dir / "m.safetensors");
  ASSERT_OK(writer.status());
  const std::int64_t sizes[] = {1, 512, 16, 1536, 3, 1024, 48, 2, 4};
  for (const std::int64_t size : sizes) {
    const std::string name = std::to_string(size);
    ASSERT_OK(writer->declare(name, "U8", {size}));
  }
  for (const std::int64_t size : sizes) {
    const std::string content = bytes_of(static_cast<std::size_t>(size), 1);
    ASSERT_OK(writer->write(std::to_string(size), content.data(), content.size()));
  }
  ASSERT_OK(writer->finish());
  const auto file = SafetensorsFile::open(dir / "m.safetensors");
  ASSERT_OK(file.status());
  for (const std::int64_t size : sizes) {
    const auto tensor = file->find(std::to_string(size));
    ASSERT_OK(tensor.status());
    const auto alignment = std::min<std::int64_t>(512, size & -size);
    EXPECT_EQ(
        reinterpret_cast<std::uintptr_t>(tensor->data) % static_cast<std::uintptr_t>(alignment), 0u)
        << size;
  }
}

TEST(SafetensorsWriter, SameInputSameBytes) {
  const TempDir dir;
  for (const char* name : {"a.safetensors", "b.safetensors"}) {
    auto writer = SafetensorsWriter::create(dir / name);
    ASSERT_OK(writer.status());
    ASSERT_OK(writer->declare("x", "F16", {3, 5}));
    ASSERT_OK(writer->declare("y", "U8", {7}));
    ASSERT_OK(writer->set_metadata("z", "1"));
    ASSERT_OK(writer->set_metadata("a", "2"));
    const std::string x = bytes_of(30, 5), y = bytes_of(7, 6);
    const bool x_first = *name == 'a';
    ASSERT_OK(x_first ? writer->write("x", x.data(), 30) : writer->write("y", y.data(), 7));
    ASSERT_OK(x_first ? writer->write("y", y.data(), 7) : writer->write("x", x.data(), 30));
    ASSERT_OK(writer->finish());
  }
  EXPECT_EQ(read_file(dir / "a.safetensors"), read_file(dir / "b.safetensors"));
}

TEST(SafetensorsWriter, BadDeclarations) {
  const TempDir dir;
  auto writer = SafetensorsWriter::create(dir / "m.safetensors");
  ASSERT_OK(writer.status());
  constexpr StatusCode kBad = StatusCode::invalid_argument;
  ASSERT_OK(writer->declare("w", "F16", {4}));
  expect_failure(writer->declare("w", "F16", {4}), kBad, {"tensor \"w\" is declared twice"});
  expect_failure(writer->declare("", "F16", {4}), kBad, {"not empty"});
  expect_failure(writer->declare("__metadata__", "F16", {4}), kBad, {"__metadata__"});
  expect_failure(writer->declare("\xff", "F16", {4}), kBad, {"UTF-8"});
  expect_failure(writer->declare("v", "F17", {4}), kBad, {"\"v\"", "\"F17\""});
  expect_failure(writer->declare("v", "F16", {4, 0}), kBad, {"\"v\"", "at least 1", "[4, 0]"});
  expect_failure(writer->declare("v", "F16", {-1}), kBad, {"\"v\"", "at least 1", "[-1]"});
  expect_failure(writer->declare("v", "F16", {1LL << 40, 1LL << 40}), kBad, {"below 2^63"});
  expect_failure(writer->declare("v", "F16", std::vector<std::int64_t>(33, 1)), kBad, {"got 33"});
  expect_failure(writer->set_metadata("\xff", "x"), kBad, {"UTF-8"});
  expect_failure(writer->set_metadata("x", "\xff"), kBad, {"UTF-8"});
  // None of that harmed the writer.
  ASSERT_OK(writer->write("w", "12345678", 8));
  ASSERT_OK(writer->finish());
  ASSERT_OK(SafetensorsFile::open(dir / "m.safetensors").status());
}

TEST(SafetensorsWriter, CallsOutOfOrder) {
  const TempDir dir;
  auto writer = SafetensorsWriter::create(dir / "m.safetensors");
  ASSERT_OK(writer.status());
  constexpr StatusCode kBad = StatusCode::invalid_argument;
  ASSERT_OK(writer->declare("w", "U8", {4}));
  ASSERT_OK(writer->declare("v", "U8", {2}));
  ASSERT_OK(writer->set_metadata("sum", "0000"));
  ASSERT_OK(writer->begin());
  expect_failure(writer->begin(), kBad, {"begin() isn't allowed after begin()"});
  expect_failure(writer->declare("u", "U8", {4}), kBad, {"declare()"});
  expect_failure(writer->write("u", "1234", 4), StatusCode::not_found, {"\"u\" must be declared"});
  expect_failure(writer->write("w", "123", 3), kBad, {"\"w\"", "with 4 bytes", "got 3"});
  expect_failure(writer->append("w", "12345", 5), kBad, {"\"w\"", "4 bytes in all", "got 5"});
  ASSERT_OK(writer->write("w", "1234", 4));
  expect_failure(writer->write("w", "1234", 4), kBad, {"\"w\"", "once"});
  ASSERT_OK(writer->append("v", "1", 1));
  expect_failure(writer->finish(), kBad, {"\"v\" must be written", "1 of 2"});
  expect_failure(writer->set_metadata("sum", "12345"), kBad, {"equal length", "12345"});
  expect_failure(writer->set_metadata("new", "1"), kBad, {"equal length"});
  ASSERT_OK(writer->set_metadata("sum", "1234"));
  ASSERT_OK(writer->append("v", "2", 1));
  ASSERT_OK(writer->finish());
  expect_failure(writer->finish(), kBad, {"after finish()"});
  expect_failure(writer->write("w", "1234", 4), kBad, {"\"w\""});
  EXPECT_EQ(SafetensorsFile::open(dir / "m.safetensors")->metadata().at("sum"), "1234");
}

TEST(SafetensorsWriter, UnfinishedLeavesNothing) {
  const TempDir dir;
  write_file(dir / "m.safetensors", "old");
  for (const bool abandon : {false, true}) {
    auto writer = SafetensorsWriter::create(dir / "m.safetensors");
    ASSERT_OK(writer.status());
    ASSERT_OK(writer->declare("w", "U8", {4}));
    ASSERT_OK(writer->write("w", "1234", 4));
    EXPECT_EQ(dir.entries().size(), 2u);
    if (!abandon) continue;
    writer->abandon();
    EXPECT_EQ(dir.entries().size(), 1u);
    expect_failure(writer->finish(), StatusCode::invalid_argument, {"abandon()"});
  }
  EXPECT_EQ(dir.entries(), std::vector<std::string>{"m.safetensors"});
  EXPECT_EQ(read_file(dir / "m.safetensors"), "old");
}

TEST(SafetensorsWriter, ShardsHoldAtMostTheLimitAndTheIndexNamesThem) {
  const TempDir dir;
  auto writer = SafetensorsWriter::create(dir / "m.safetensors", {.max_shard_bytes = 100});
  ASSERT_OK(writer.status());
  const std::int64_t sizes[] = {60, 40, 1, 250, 99};  // 60+40 | 1 | 250 alone | 99
  for (const auto size : sizes) ASSERT_OK(writer->declare(name_of(size), "U8", {size}));
  for (const auto size : sizes) {
    const std::string content(static_cast<std::size_t>(size), static_cast<char>(size));
    ASSERT_OK(writer->write(name_of(size), content.data(), content.size()));
  }
  ASSERT_OK(writer->finish());
  EXPECT_EQ(dir.entries(), (std::vector<std::string>{
                               "m-00001-of-00004.safetensors", "m-00002-of-00004.safetensors",
                               "m-00003-of-00004.safetensors", "m-00004-of-00004.safetensors",
                               "m.safetensors.index.json"}));
  const auto index = nlohmann::json::parse(read_file(dir / "m.safetensors.index.json"));
  EXPECT_EQ(index["metadata"]["total_size"], 450);
  EXPECT_EQ(index["weight_map"][name_of(250)], "m-00003-of-00004.safetensors");
  const auto file = SafetensorsFile::open(dir / "m.safetensors");
  ASSERT_OK(file.status());
  for (const auto size : sizes) {
    EXPECT_EQ(text_of(*file->find(name_of(size))),
              std::string(static_cast<std::size_t>(size), static_cast<char>(size)));
  }
}

TEST(SafetensorsWriter, ShardsRefuseToHideBehindAnOldFile) {
  const TempDir dir;
  write_file(dir / "m.safetensors", "old");
  auto writer = SafetensorsWriter::create(dir / "m.safetensors", {.max_shard_bytes = 1});
  ASSERT_OK(writer.status());
  ASSERT_OK(writer->declare("a", "U8", {1}));
  ASSERT_OK(writer->declare("b", "U8", {1}));
  expect_failure(writer->begin(), StatusCode::invalid_argument,
                 {"2 shards", "m.safetensors must not exist"});
  EXPECT_EQ(dir.entries(), std::vector<std::string>{"m.safetensors"});
}

}  // namespace
}  // namespace mixgemm
