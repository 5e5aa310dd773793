// SPDX-License-Identifier: Apache-2.0
// The safetensors reader: what it accepts, and that every false claim is refused by name.
#include <sys/stat.h>

#include <string>

#include "support.hpp"

namespace mixgemm {
namespace {

using testing::expect_failure;
using testing::read_file;
using testing::safetensors_bytes;
using testing::TempDir;
using testing::write_file;

/// Opens a file of these bytes.
Result<SafetensorsFile> open_bytes(std::string_view bytes) {
  const TempDir dir;
  write_file(dir / "x.safetensors", bytes);
  return SafetensorsFile::open(dir / "x.safetensors");
}

Status open_status(std::string_view header, std::string_view data = "") {
  return open_bytes(safetensors_bytes(header, data)).status();
}

std::string repeat(std::string_view piece, std::size_t times) {
  std::string out;
  out.reserve(piece.size() * times);
  for (std::size_t i = 0; i < times; ++i) out += piece;
  return out;
}

TEST(SafetensorsReader, ReadsTensorsInPlaceAndOutlivesTheFileName) {
  const TempDir dir;
  const std::string path = dir / "a.safetensors";
  // 8 + 120 bytes before the data, so that F32 is aligned.
  std::string header =
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
      R"("a":{"dtype":"U8","shape":[],"data_offsets":[8,9]}})";
  header.resize(152, ' ');
  write_file(path, safetensors_bytes(header, std::string("\0\0\x80\x3f\0\0\0\x40\x07", 9)));
  auto file = SafetensorsFile::open(path);
  ASSERT_OK(file.status());
  ASSERT_EQ(file->tensors().size(), 2u);
  EXPECT_EQ(file->tensors()[0].name, "b");
  EXPECT_EQ(file->metadata().at("format"), "pt");
  EXPECT_EQ(file->info("nope"), nullptr);
  std::filesystem::remove(path);  // the mapping stays
  const auto b = file->find("b");
  ASSERT_OK(b.status());
  EXPECT_EQ(static_cast<const float*>(b->data)[0], 1.0f);
  EXPECT_EQ(static_cast<const float*>(b->data)[1], 2.0f);
  auto a = file->find("a");
  ASSERT_OK(a.status());
  EXPECT_EQ(a->info.num_elems(), 1);
  EXPECT_EQ(a->bytes, 1u);
  file = Status(StatusCode::internal, "dropped");  // the view alone keeps the memory
  EXPECT_EQ(*static_cast<const std::uint8_t*>(a->data), 7);
}

TEST(SafetensorsReader, MisalignedTensorIsCopied) {
  std::string header = R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                       R"("f":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}})";
  header.resize(120, ' ');
  const auto file = open_bytes(safetensors_bytes(header, std::string("\x01\0\0\x80\x3f", 5)));
  ASSERT_OK(file.status());
  const auto f = file->find("f");
  ASSERT_OK(f.status());
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(f->data) % 4, 0u);
  EXPECT_EQ(*static_cast<const float*>(f->data), 1.0f);
}

TEST(SafetensorsReader, EmptyFileOfTensorsIsLegal) {
  const auto file = open_bytes(safetensors_bytes("{}", ""));
  ASSERT_OK(file.status());
  EXPECT_TRUE(file->tensors().empty());
}

TEST(SafetensorsReader, TruncatedFiles) {
  const std::string whole =
      safetensors_bytes(R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}})", "abc");
  for (std::size_t size = 0; size < whole.size(); ++size) {
    const auto file = open_bytes(whole.substr(0, size));
    expect_failure(file.status(), StatusCode::corrupt_data, {"x.safetensors: "});
  }
  ASSERT_OK(open_bytes(whole).status());
  expect_failure(open_bytes("").status(), StatusCode::corrupt_data, {"8-byte", "0 bytes"});
  expect_failure(open_bytes(whole + "z").status(), StatusCode::corrupt_data,
                 {"must cover the data section", "3 of 4"});
}

TEST(SafetensorsReader, LyingHeaderLength) {
  std::string bytes = safetensors_bytes("{}", "");
  bytes[0] = 3;
  expect_failure(open_bytes(bytes).status(), StatusCode::corrupt_data,
                 {"must end inside the file", "length is 3", "2 bytes follow"});
  bytes[0] = '\0';
  expect_failure(open_bytes(bytes).status(), StatusCode::corrupt_data, {"must begin with '{'"});
  bytes.replace(0, 8, 8, '\xff');
  expect_failure(open_bytes(bytes).status(), StatusCode::corrupt_data,
                 {"at most 100000000", "18446744073709551615"});
}

TEST(SafetensorsReader, MalformedJson) {
  for (const char* header :
       {"[]", "\"a\"", " {}", "{", "{}{}", "{\"a\":}", "{\"a\":1e999}", "{,}", "nul",
        "{\"\xff\":1}", R"({"a":{"dtype":"U8","shape":[0x1],"data_offsets":[0,1]}})"}) {
    SCOPED_TRACE(header);
    expect_failure(open_status(header, "z"), StatusCode::corrupt_data, {"header: "});
  }
  // The parser would stop at a NUL and ignore what follows.
  expect_failure(open_status(std::string_view("{}\0{}", 5)), StatusCode::corrupt_data,
                 {"byte 2 is NUL"});
}

TEST(SafetensorsReader, DeepNestingIsRefusedWithoutRecursion) {
  constexpr std::size_t kDepth = 2'000'000;
  expect_failure(open_status("{\"a\":" + repeat("[", kDepth)), StatusCode::corrupt_data,
                 {"\"a\"", "must be an object", "got an array"});
  expect_failure(open_status(repeat("{\"a\":", kDepth)), StatusCode::corrupt_data, {"\"a\""});
  expect_failure(open_status(R"({"__metadata__":{"k":)" + repeat("[", kDepth)),
                 StatusCode::corrupt_data, {"__metadata__", "\"k\" must be a string"});
}

TEST(SafetensorsReader, DuplicateKeys) {
  const std::string tensor = R"({"dtype":"U8","shape":[1],"data_offsets":[0,1]})";
  expect_failure(open_status("{\"a\":" + tensor + ",\"a\":" + tensor + "}", "z"),
                 StatusCode::corrupt_data, {"\"a\""});
  const std::string empty = R"({"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  expect_failure(open_status("{\"a\":" + empty + ",\"a\":" + empty + "}"), StatusCode::corrupt_data,
                 {"\"a\" appears twice"});
  expect_failure(
      open_status(R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "z"),
      StatusCode::corrupt_data, {"\"a\": dtype appears twice"});
  expect_failure(open_status(R"({"__metadata__":{"k":"1","k":"2"}})"), StatusCode::corrupt_data,
                 {"key \"k\" appears twice"});
  expect_failure(open_status(R"({"__metadata__":{},"__metadata__":{}})"), StatusCode::corrupt_data,
                 {"__metadata__ appears twice"});
}

struct BadTensor {
  const char* fields;
  const char* rule;
  const char* value;
};

// One tensor "w" with these fields, in front of eight bytes of data.
TEST(SafetensorsReader, BadTensorFields) {
  const BadTensor cases[] = {
      {R"("dtype":"F17","shape":[4],"data_offsets":[0,8])", "dtype must be one of", "\"F17\""},
      {R"("dtype":16,"shape":[4],"data_offsets":[0,8])", "dtype must be a string", "got 16"},
      {R"("dtype":["F16"],"shape":[4],"data_offsets":[0,8])", "dtype must be a string", "an array"},
      {R"("dtype":null,"shape":[4],"data_offsets":[0,8])", "dtype must be a string", "got null"},
      {R"("shape":[4],"data_offsets":[0,8])", "dtype is missing", ""},
      {R"("dtype":"F16","data_offsets":[0,8])", "shape is missing", ""},
      {R"("dtype":"F16","shape":[4])", "data_offsets is missing", ""},
      {R"("dtype":"F16","shape":[4],"data_offsets":[0,8],"x":1)", "fields are dtype", "got \"x\""},
      {R"("dtype":"F16","shape":4,"data_offsets":[0,8])", "shape must be an array", "got 4"},
      {R"("dtype":"F16","shape":[-4],"data_offsets":[0,8])", "shape must be an array", "got -4"},
      {R"("dtype":"F16","shape":[4.0],"data_offsets":[0,8])", "shape must be an array", "4.0"},
      {R"("dtype":"F16","shape":["4"],"data_offsets":[0,8])", "shape must be an array", "\"4\""},
      {R"("dtype":"F16","shape":[[4]],"data_offsets":[0,8])", "shape must be an array", "an array"},
      {R"("dtype":"F16","shape":[9223372036854775808],"data_offsets":[0,8])", "2^63",
       "got 9223372036854775808"},
      {R"("dtype":"F16","shape":[99999999999999999999],"data_offsets":[0,8])", "2^63",
       "99999999999999999999"},
      {R"("dtype":"F16","shape":[4294967296,4294967296],"data_offsets":[0,8])", "below 2^63 bits",
       "[4294967296, 4294967296]"},
      {R"("dtype":"F16","shape":[1152921504606846976],"data_offsets":[0,8])", "below 2^63 bits",
       "[1152921504606846976]"},
      {R"("dtype":"F4","shape":[3],"data_offsets":[0,8])", "whole bytes", "12 bits"},
      {R"("dtype":"F16","shape":[3],"data_offsets":[0,8])", "span 6 bytes", "got 8"},
      {R"("dtype":"F32","shape":[2,2],"data_offsets":[0,8])", "span 16 bytes", "F32 [2, 2]"},
      {R"("dtype":"F16","shape":[8],"data_offsets":[0,16])", "inside the data section of 8",
       "[0, 16]"},
      {R"("dtype":"F16","shape":[4],"data_offsets":[8,0])", "ordered", "[8, 0]"},
      {R"("dtype":"F16","shape":[4],"data_offsets":[18446744073709551608,0])", "ordered",
       "18446744073709551608"},
      {R"("dtype":"F16","shape":[4],"data_offsets":[0])", "two integers", "got 1"},
      {R"("dtype":"F16","shape":[4],"data_offsets":[0,8,8])", "two integers", "got more"},
      {R"("dtype":"F16","shape":[4],"data_offsets":[0,-8])", "two integers", "-8"},
      {R"("dtype":"F16","shape":[4],"data_offsets":"0,8")", "two integers", "0,8"},
  };
  for (const BadTensor& bad : cases) {
    SCOPED_TRACE(bad.fields);
    const Status status = open_status(std::string("{\"w\":{") + bad.fields + "}}", "01234567");
    expect_failure(status,
                   std::string_view(bad.rule).starts_with("dtype must be one")
                       ? StatusCode::unsupported
                       : StatusCode::corrupt_data,
                   {"x.safetensors", "tensor \"w\"", bad.rule, bad.value});
  }
  std::string shape = "1";
  for (int i = 0; i < 32; ++i) shape += ",1";
  expect_failure(
      open_status("{\"w\":{\"dtype\":\"U8\",\"shape\":[" + shape + "],\"data_offsets\":[0,1]}}",
                  "z"),
      StatusCode::corrupt_data, {"\"w\"", "at most 32 dimensions"});
  expect_failure(open_status(R"({"w":7})"), StatusCode::corrupt_data,
                 {"\"w\": must be an object", "got 7"});
  expect_failure(open_status(R"({"__metadata__":{"k":7}})"), StatusCode::corrupt_data,
                 {"\"k\" must be a string", "got 7"});
  expect_failure(open_status(R"({"__metadata__":[]})"), StatusCode::corrupt_data,
                 {"__metadata__ must be an object"});
}

TEST(SafetensorsReader, OverlapsAndHoles) {
  const auto two = [](const char* second) {
    return std::string(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)") +
           R"("b":{"dtype":"U8","shape":[4],"data_offsets":)" + second + "}}";
  };
  ASSERT_OK(open_status(two("[4,8]"), "01234567"));
  expect_failure(open_status(two("[3,7]"), "0123456"), StatusCode::corrupt_data,
                 {"\"b\"", "must not overlap", "begins at 3", "ends at 4"});
  expect_failure(open_status(two("[0,4]"), "0123"), StatusCode::corrupt_data, {"must not overlap"});
  expect_failure(open_status(two("[5,9]"), "012345678"), StatusCode::corrupt_data,
                 {"\"b\"", "leave no hole", "begins at 5", "ends at 4"});
}

TEST(SafetensorsReader, ZeroSizedDimensionIsListedButNotHandedOut) {
  const auto file =
      open_bytes(safetensors_bytes(R"({"e":{"dtype":"F16","shape":[0,16],"data_offsets":[0,0]},)"
                                   R"("f":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                                   "z"));
  ASSERT_OK(file.status());
  expect_failure(file->find("e").status(), StatusCode::invalid_argument,
                 {"tensor \"e\"", "at least 1", "[0, 16]"});
  ASSERT_OK(file->find("f").status());
  expect_failure(file->find("g").status(), StatusCode::not_found, {"no tensor \"g\""});
}

TEST(SafetensorsReader, NamesInMessagesAreEscapedAndShortened) {
  const std::string name = "\\n\\u0007" + std::string(500, 'x');
  const Status status = open_status("{\"" + name + "\":7}");
  expect_failure(status, StatusCode::corrupt_data, {"\\x0a\\x07xxx", "…"});
  EXPECT_LT(status.message().size(), 500u);
}

TEST(SafetensorsReader, PathsThatAreNoRegularFile) {
  const TempDir dir;
  expect_failure(SafetensorsFile::open(dir / "missing.safetensors").status(), StatusCode::not_found,
                 {"missing.safetensors"});
  expect_failure(SafetensorsFile::open("").status(), StatusCode::not_found, {"cannot open"});
  ASSERT_EQ(::mkfifo((dir / "pipe.safetensors").c_str(), 0600), 0);
  expect_failure(SafetensorsFile::open(dir / "pipe.safetensors").status(), StatusCode::io_error,
                 {"regular file"});
  expect_failure(SafetensorsFile::open("/dev/zero").status(), StatusCode::io_error,
                 {"regular file"});
  std::filesystem::create_symlink(dir / "gone", dir / "dangling.safetensors");
  expect_failure(SafetensorsFile::open(dir / "dangling.safetensors").status(),
                 StatusCode::not_found, {"dangling"});
}

TEST(SafetensorsReader, FileThatShrinksAfterOpening) {
  const TempDir dir;
  const std::string path = dir / "a.safetensors";
  write_file(path,
             safetensors_bytes(R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}})", "abc"));
  const auto file = SafetensorsFile::open(path);
  ASSERT_OK(file.status());
  std::filesystem::resize_file(path, 10);
  expect_failure(file->find("a").status(), StatusCode::io_error,
                 {"must not become shorter", "now 10"});
}

class SafetensorsDirectory : public ::testing::Test {
 protected:
  void add(const std::string& name, const std::string& tensor, char value) const {
    write_file(
        dir_ / name,
        safetensors_bytes("{\"__metadata__\":{\"format\":\"pt\",\"" + tensor + "\":\"1\"},\"" +
                              tensor + R"(":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                          std::string(1, value)));
  }
  void index(std::string_view text,
             const std::string& name = "model.safetensors.index.json") const {
    write_file(dir_ / name, text);
  }
  Status open(const std::string& name = "") const {
    return SafetensorsFile::open(dir_ / name).status();
  }

  TempDir dir_;
};

TEST_F(SafetensorsDirectory, ShardsAreOneCheckpoint) {
  add("m-1.safetensors", "a", 'A');
  add("m-2.safetensors", "b", 'B');
  index(R"({"metadata":{"total_size":2,"x":[[1,null,true,-1,0.5]]},)"
        R"("weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}})");
  for (const char* name : {"", "model.safetensors", "model.safetensors.index.json"}) {
    SCOPED_TRACE(name);
    const auto file = SafetensorsFile::open(dir_ / name);
    ASSERT_OK(file.status());
    ASSERT_EQ(file->tensors().size(), 2u);
    EXPECT_EQ(file->files().size(), 2u);
    EXPECT_EQ(file->metadata().size(), 3u);
    EXPECT_EQ(*static_cast<const char*>(file->find("b")->data), 'B');
    EXPECT_EQ(file->info("b")->shard, 1);
  }
}

TEST_F(SafetensorsDirectory, ShardsReachedThroughLinks) {
  std::filesystem::create_directory(dir_ / "blobs");
  std::filesystem::create_directory(dir_ / "snapshot");
  add("blobs/0123", "a", 'A');
  index(R"({"weight_map":{"a":"m-1.safetensors"}})", "blobs/4567");
  std::filesystem::create_symlink("../blobs/0123", dir_ / "snapshot/m-1.safetensors");
  std::filesystem::create_symlink("../blobs/4567", dir_ / "snapshot/model.safetensors.index.json");
  ASSERT_OK(open("snapshot"));
  ASSERT_OK(open("snapshot/model.safetensors.index.json"));
}

TEST_F(SafetensorsDirectory, WhichFileADirectoryMeans) {
  expect_failure(open(), StatusCode::not_found, {"exactly one file *.safetensors", "got 0"});
  add("one.safetensors", "a", 'A');
  ASSERT_OK(open());
  add("two.safetensors", "b", 'B');
  expect_failure(open(), StatusCode::invalid_argument, {"got 2"});
  index(R"({"weight_map":{"a":"one.safetensors"}})", "any.safetensors.index.json");
  ASSERT_OK(open());
  add("model.safetensors", "c", 'C');
  EXPECT_NE(SafetensorsFile::open(dir_.path().string())->info("c"), nullptr);
}

TEST_F(SafetensorsDirectory, LyingIndexes) {
  add("m-1.safetensors", "a", 'A');
  add("m-2.safetensors", "b", 'B');
  const std::pair<const char*, const char*> cases[] = {
      {"", "must begin with '{'"},
      {"[]", "must begin with '{'"},
      {"{}", "weight_map is missing"},
      {R"({"weight_map":{}})", "at least one tensor"},
      {R"({"weight_map":7})", "weight_map must be an object; got 7"},
      {R"({"weight_map":[]})", "weight_map must be an object; got an array"},
      {R"({"weight_map":{"a":null}})", "file of tensor \"a\" must be a string; got null"},
      {R"({"weight_map":{"a":{}}})", "file of tensor \"a\" must be a string; got an object"},
      {R"({"weight_map":{"a":"m-1.safetensors","a":"m-1.safetensors"}})", "\"a\" appears twice"},
      {R"({"weight_map":{"a":"m-1.safetensors"},"weight_map":{}})", "weight_map appears twice"},
      {R"({"weight_map":{"a":"../m-1.safetensors"}})", "plain name"},
      {R"({"weight_map":{"a":"/etc/passwd"}})", "plain name"},
      {R"({"weight_map":{"a":".."}})", "plain name"},
      {R"({"weight_map":{"a":""}})", "plain name"},
      {R"({"weight_map":{"a":"m-2.safetensors"}})", "tensor \"a\" must be in the shard"},
      {R"({"weight_map":{"a":"m-1.safetensors","c":"m-1.safetensors"}})", "tensor \"c\" must be"},
      {R"({"weight_map":{"a":"m-3.safetensors"}})", "m-3.safetensors"},
  };
  for (const auto& [text, message] : cases) {
    SCOPED_TRACE(text);
    index(text);
    const Status status = open();
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(status.message(), ::testing::HasSubstr(message));
    EXPECT_THAT(status.message(), ::testing::HasSubstr("model.safetensors.index.json"));
  }
  index(R"({"metadata":)" + repeat("[", 1'000'000));
  expect_failure(open(), StatusCode::corrupt_data, {"at most 16 levels"});
  // A tensor that the index doesn't list isn't there.
  index(R"({"weight_map":{"a":"m-1.safetensors"}})");
  EXPECT_EQ(SafetensorsFile::open(dir_.path().string())->info("b"), nullptr);
}

}  // namespace
}  // namespace mixgemm
