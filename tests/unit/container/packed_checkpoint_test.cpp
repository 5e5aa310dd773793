// SPDX-License-Identifier: Apache-2.0
// The packed checkpoint: round trip, slices, and every way its headers and bytes can lie.
#include <functional>
#include <nlohmann/json.hpp>
#include <random>

#include "import/packed_header.hpp"
#include "layout/packed.hpp"
#include "support.hpp"

namespace mixgemm {
namespace {

using testing::expect_failure;
using testing::read_file;
using testing::safetensors_bytes;
using testing::TempDir;
using testing::write_file;

/// A packed weight of random bits in memory of its own, straight from the layout.
struct Sample {
  PackedView view;
  std::vector<std::uint8_t> codes;
  std::vector<std::uint16_t> scales;
  std::vector<std::uint8_t> zeros;  // either kind

  Sample(std::int64_t n, std::int64_t k, QuantSpec spec, std::uint32_t seed) {
    std::mt19937 random(seed);
    const auto strips = static_cast<std::size_t>(layout::num_strips(n));
    const auto pitch = static_cast<std::size_t>(layout::strip_bytes(k, bits_of(spec.type)));
    const auto groups = static_cast<std::size_t>(num_groups(k, spec.group_size));
    codes.resize(strips * pitch);
    for (auto& byte : codes) byte = static_cast<std::uint8_t>(random());
    scales.resize(strips * groups * 16);
    const std::uint32_t finite = spec.scale_type == DataType::bf16 ? 0x7f7fu : 0x7bffu;
    for (auto& scale : scales) scale = static_cast<std::uint16_t>(random() % finite);
    if (spec.zero == ZeroKind::integer) {
      zeros.resize(scales.size());
      for (auto& zero : zeros) {
        zero = static_cast<std::uint8_t>(random() % (1u << bits_of(spec.type)));
      }
    } else if (spec.zero == ZeroKind::scaled) {
      zeros.resize(2 * scales.size());
      std::memcpy(zeros.data(), scales.data(), zeros.size());
      zeros[0] ^= 1;
    }
    view.n = n;
    view.k = k;
    view.spec = spec;
    view.codes = codes.data();
    view.scales = scales.data();
    view.zeros = zeros.empty() ? nullptr : zeros.data();
    view.codes_pitch_bytes = static_cast<std::int64_t>(pitch);
    view.groups_pitch = static_cast<std::int64_t>(groups);
  }
};

constexpr QuantSpec kSpec{WeightType::int4, ZeroKind::integer, 64, DataType::f16};

/// Bytes of `rows` runs of `row` bytes, `pitch` bytes apart.
std::string gather(const void* data, std::int64_t rows, std::int64_t row, std::int64_t pitch) {
  std::string out;
  for (std::int64_t i = 0; i < rows; ++i) {
    out.append(static_cast<const char*>(data) + i * pitch, static_cast<std::size_t>(row));
  }
  return out;
}

/// The same n, k, spec and bytes, whatever the pitches.
void expect_same(const PackedView& got, const PackedView& want) {
  ASSERT_EQ(got.n, want.n);
  ASSERT_EQ(got.k, want.k);
  ASSERT_EQ(got.spec, want.spec);
  const std::int64_t strips = layout::num_strips(want.n);
  const std::int64_t row = layout::strip_bytes(want.k, bits_of(want.spec.type));
  EXPECT_EQ(gather(got.codes, strips, row, got.codes_pitch_bytes),
            gather(want.codes, strips, row, want.codes_pitch_bytes));
  const std::int64_t groups = 32 * want.groups();
  EXPECT_EQ(gather(got.scales, strips, groups, 32 * got.groups_pitch),
            gather(want.scales, strips, groups, 32 * want.groups_pitch));
  ASSERT_EQ(got.zeros == nullptr, want.zeros == nullptr);
  if (want.zeros == nullptr) return;
  const std::int64_t half = want.spec.zero == ZeroKind::integer ? 2 : 1;
  EXPECT_EQ(gather(got.zeros, strips, groups / half, 32 * got.groups_pitch / half),
            gather(want.zeros, strips, groups / half, 32 * want.groups_pitch / half));
}

/// Writes one weight "w" and one dense tensor "b" of four bytes.
void write_sample(const std::string& path, const PackedView& view) {
  auto writer = PackedCheckpointWriter::create(path);
  ASSERT_OK(writer.status());
  ASSERT_OK(writer->declare_packed("w", view.n, view.k, view.spec));
  ASSERT_OK(writer->declare_dense("b", "F16", {2}));
  ASSERT_OK(writer->set_metadata("model", "tiny"));
  ASSERT_OK(writer->write_packed("w", view));
  ASSERT_OK(writer->write_dense("b", "bias", 4));
  ASSERT_OK(writer->finish());
}

TEST(PackedCheckpoint, RoundTripOfEverySpecAndRaggedShape) {
  const TempDir dir;
  const std::string path = dir / "m.safetensors";
  std::uint32_t seed = 1;
  for (const WeightType type : {WeightType::int4, WeightType::int8}) {
    for (const ZeroKind zero : {ZeroKind::none, ZeroKind::integer, ZeroKind::scaled}) {
      for (const DataType scale : {DataType::f16, DataType::bf16}) {
        for (const int group : {0, 16, 32, 64, 128}) {
          auto writer = PackedCheckpointWriter::create(path);
          ASSERT_OK(writer.status());
          const QuantSpec spec{type, zero, group, scale};
          std::vector<Sample> samples;
          for (const auto& [n, k] :
               std::vector<std::pair<std::int64_t, std::int64_t>>{{1, 1}, {17, 100}, {48, 256}}) {
            samples.emplace_back(n, k, spec, seed++);
          }
          for (std::size_t i = 0; i < samples.size(); ++i) {
            const PackedView& view = samples[i].view;
            ASSERT_OK(writer->declare_packed(std::to_string(i), view.n, view.k, spec));
          }
          for (std::size_t i = samples.size(); i-- > 0;) {
            ASSERT_OK(writer->write_packed(std::to_string(i), samples[i].view));
          }
          ASSERT_OK(writer->finish());
          const auto checkpoint = PackedCheckpoint::open(path);
          ASSERT_OK(checkpoint.status());
          EXPECT_EQ(checkpoint->names(), (std::vector<std::string>{"0", "1", "2"}));
          for (std::size_t i = 0; i < samples.size(); ++i) {
            SCOPED_TRACE(::testing::Message() << "seed " << seed << " sample " << i);
            const auto weight = checkpoint->find(std::to_string(i));
            ASSERT_OK(weight.status());
            expect_same(weight->view(), samples[i].view);
            EXPECT_EQ(
                checkpoint->layers()[i].size_bytes,
                samples[i].codes.size() + 2 * samples[i].scales.size() + samples[i].zeros.size());
          }
          ASSERT_OK(checkpoint->verify());
        }
      }
    }
  }
}

TEST(PackedCheckpoint, ViewIsTheMappingAndOutlivesTheCheckpoint) {
  const TempDir dir;
  const Sample sample(40, 200, kSpec, 7);
  write_sample(dir / "m.safetensors", sample.view);
  auto checkpoint = PackedCheckpoint::open(dir / "m.safetensors");
  ASSERT_OK(checkpoint.status());
  const auto codes = checkpoint->file().find("w.codes");
  ASSERT_OK(codes.status());
  auto weight = checkpoint->find("w");
  ASSERT_OK(weight.status());
  EXPECT_EQ(static_cast<const void*>(weight->view().codes), codes->data);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(weight->view().codes) % 512, 0u);
  EXPECT_EQ(checkpoint->metadata(), (std::map<std::string, std::string>{{"model", "tiny"}}));
  ASSERT_EQ(checkpoint->dense().size(), 1u);
  EXPECT_EQ(std::memcmp(checkpoint->find_dense("b")->data, "bias", 4), 0);
  expect_failure(checkpoint->find_dense("w.codes").status(), StatusCode::not_found, {"w.codes"});
  expect_failure(checkpoint->find("v").status(), StatusCode::not_found, {"packed weight \"v\""});
  checkpoint = Status(StatusCode::internal, "dropped");
  expect_same(weight->view(), sample.view);
}

TEST(PackedCheckpoint, SliceWritesOnlyItsOwnBytes) {
  const TempDir dir;
  const Sample whole(64, 512, kSpec, 11);
  PackedView slice = whole.view;  // strips 1..2, k 128..383
  slice.n = 32;
  slice.k = 256;
  slice.codes += slice.codes_pitch_bytes + 2 * layout::cell_bytes(4);
  slice.scales += (slice.groups_pitch + 2) * 16;
  slice.zeros = static_cast<const std::uint8_t*>(slice.zeros) + (slice.groups_pitch + 2) * 16;
  write_sample(dir / "m.safetensors", slice);
  const auto checkpoint = PackedCheckpoint::open(dir / "m.safetensors");
  ASSERT_OK(checkpoint.status());
  const auto weight = checkpoint->find("w");
  ASSERT_OK(weight.status());
  expect_same(weight->view(), slice);
  EXPECT_EQ(weight->view().codes_pitch_bytes, layout::strip_bytes(256, 4));
  EXPECT_EQ(checkpoint->file().info("w.codes")->size_bytes(), 2u * 4u * 512u);
}

TEST(PackedCheckpoint, Shards) {
  const TempDir dir;
  const Sample sample(40, 200, kSpec, 7);
  auto writer = PackedCheckpointWriter::create(dir / "m.safetensors", {.max_shard_bytes = 5000});
  ASSERT_OK(writer.status());
  for (const char* name : {"x", "y", "z"}) {
    ASSERT_OK(writer->declare_packed(name, 40, 200, kSpec));
  }
  for (const char* name : {"z", "x", "y"}) ASSERT_OK(writer->write_packed(name, sample.view));
  ASSERT_OK(writer->finish());
  const auto checkpoint = PackedCheckpoint::open(dir / "m.safetensors");
  ASSERT_OK(checkpoint.status());
  EXPECT_GT(checkpoint->file().files().size(), 1u);
  for (const char* name : {"x", "y", "z"}) expect_same(checkpoint->find(name)->view(), sample.view);
  double last = 0;
  ASSERT_OK(checkpoint->verify([&](double fraction) {
    EXPECT_GE(fraction, last);
    last = fraction;
  }));
  EXPECT_EQ(last, 1.0);
}

// The whole way of a weight: canonical → packed → file → mapping → canonical, for the weight and
// for slices of it that are written as weights of their own.
TEST(PackedCheckpoint, CanonicalWeightSurvivesTheFile) {
  const TempDir dir;
  constexpr std::int64_t kN = 40, kK = 300;
  std::mt19937 random(17);
  std::vector<float> dense(kN * kK);
  for (float& w : dense) w = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
  QuantizeOptions options;
  options.spec = kSpec;
  const auto canonical = quantize(dense.data(), DataType::f32, kN, kK, kK, options);
  ASSERT_OK(canonical.status());
  const auto packed = pack(*canonical);
  ASSERT_OK(packed.status());
  const auto rows = slice_n(packed->view(), 16, 40);
  ASSERT_OK(rows.status());
  const auto columns = slice_k(packed->view(), 64, 256);
  ASSERT_OK(columns.status());
  const std::map<std::string, PackedView> views = {
      {"whole", packed->view()}, {"rows", *rows}, {"columns", *columns}};

  auto writer = PackedCheckpointWriter::create(dir / "m.safetensors");
  ASSERT_OK(writer.status());
  for (const auto& [name, view] : views) {
    ASSERT_OK(writer->declare_packed(name, view.n, view.k, view.spec));
  }
  for (const auto& [name, view] : views) ASSERT_OK(writer->write_packed(name, view));
  ASSERT_OK(writer->finish());

  const auto checkpoint = PackedCheckpoint::open(dir / "m.safetensors");
  ASSERT_OK(checkpoint.status());
  for (const auto& [name, view] : views) {
    SCOPED_TRACE(name);
    const auto weight = checkpoint->find(name);
    ASSERT_OK(weight.status());
    EXPECT_EQ(weight->size_bytes(), checkpoint->info(name)->size_bytes);
    const auto got = unpack(weight->view());
    const auto want = unpack(view);
    ASSERT_OK(got.status());
    ASSERT_OK(want.status());
    EXPECT_EQ(got->codes, want->codes);
    EXPECT_EQ(got->scales, want->scales);
    EXPECT_EQ(got->zeros, want->zeros);
  }
  EXPECT_EQ(unpack(checkpoint->find("whole")->view())->codes, canonical->codes);
}

// Another program may write the same tensors in another order, at any alignment.
TEST(PackedCheckpoint, MisalignedFileIsCopied) {
  const TempDir dir;
  const Sample sample(40, 200, kSpec, 7);
  write_sample(dir / "m.safetensors", sample.view);
  const auto file = SafetensorsFile::open(dir / "m.safetensors");
  ASSERT_OK(file.status());
  nlohmann::json header;
  header["__metadata__"] = file->metadata();
  header["pad"] = {{"dtype", "U8"}, {"shape", {1}}, {"data_offsets", {0, 1}}};
  std::string data = "p";
  for (const TensorInfo& tensor : file->tensors()) {
    const auto view = file->find(tensor.name);
    header[tensor.name] = {{"dtype", tensor.dtype},
                           {"shape", tensor.shape},
                           {"data_offsets", {data.size(), data.size() + view->bytes}}};
    data.append(static_cast<const char*>(view->data), view->bytes);
  }
  write_file(dir / "again.safetensors", safetensors_bytes(header.dump(), data));
  const auto checkpoint = PackedCheckpoint::open(dir / "again.safetensors");
  ASSERT_OK(checkpoint.status());
  const auto weight = checkpoint->find("w");
  ASSERT_OK(weight.status());
  expect_same(weight->view(), sample.view);
  for (const void* p : {static_cast<const void*>(weight->view().codes),
                        static_cast<const void*>(weight->view().scales), weight->view().zeros}) {
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(p) % 16, 0u);
  }
  ASSERT_OK(checkpoint->verify());
}

/// A packed checkpoint taken apart, so that a test can change a piece and put it together again.
class Tampered : public ::testing::Test {
 protected:
  void SetUp() override {
    write_sample(path_, sample_.view);
    const std::string bytes = read_file(path_);
    std::uint64_t length = 0;
    std::memcpy(&length, bytes.data(), 8);
    header_ = nlohmann::json::parse(bytes.substr(8, length));
    data_ = bytes.substr(8 + length);
    layer_ = nlohmann::ordered_json::parse(
        header_["__metadata__"]["mixgemm.packed.w"].get<std::string>());
  }

  /// Puts layer_ into the header, with a correct checksum of its own if `seal`.
  void set_layer(bool seal = true) {
    if (seal) {
      layer_.erase("header_crc32c");
      std::string body = layer_.dump();
      body.pop_back();
      layer_["header_crc32c"] = crc_text(body);
    }
    header_["__metadata__"]["mixgemm.packed.w"] = layer_.dump();
  }
  static std::string crc_text(const std::string& text) {
    // An independent CRC-32C, bit by bit.
    std::uint32_t crc = ~0u;
    for (const char c : text) {
      crc ^= static_cast<unsigned char>(c);
      for (int i = 0; i < 8; ++i) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f63b78u : 0u);
    }
    return format_crc(~crc);
  }
  char* at(const char* tensor) {
    return data_.data() + header_[tensor]["data_offsets"][0].get<std::size_t>();
  }
  std::string part(const char* tensor) {
    const auto& offsets = header_[tensor]["data_offsets"];
    return data_.substr(offsets[0], offsets[1].get<std::size_t>() - offsets[0].get<std::size_t>());
  }
  Status open() {
    write_file(path_, safetensors_bytes(header_.dump(), data_));
    return PackedCheckpoint::open(path_).status();
  }
  Status find(const PackedOpenOptions& options = {}) {
    write_file(path_, safetensors_bytes(header_.dump(), data_));
    const auto checkpoint = PackedCheckpoint::open(path_, options);
    return checkpoint.ok() ? checkpoint->find("w").status() : checkpoint.status();
  }
  Status verify() {
    write_file(path_, safetensors_bytes(header_.dump(), data_));
    const auto checkpoint = PackedCheckpoint::open(path_);
    return checkpoint.ok() ? checkpoint->verify() : checkpoint.status();
  }

  TempDir dir_;
  std::string path_ = dir_ / "m.safetensors";
  Sample sample_{40, 200, kSpec, 3};
  nlohmann::json header_;
  nlohmann::ordered_json layer_;
  std::string data_;
};

TEST_F(Tampered, UnchangedIsAccepted) {
  set_layer();
  ASSERT_OK(find());
  ASSERT_OK(verify());
}

TEST_F(Tampered, FileIsNoPackedCheckpoint) {
  header_["__metadata__"].erase("mixgemm.format_version");
  expect_failure(open(), StatusCode::corrupt_data,
                 {"mixgemm.format_version", "this file has none"});
}

TEST_F(Tampered, OtherVersions) {
  for (const char* version : {"2", "0", "01", "", "one"}) {
    header_["__metadata__"]["mixgemm.format_version"] = version;
    expect_failure(open(), StatusCode::version_mismatch,
                   {"mixgemm.format_version must be 1", version});
  }
  header_["__metadata__"]["mixgemm.format_version"] = "1";
  layer_ = {{"format_version", 2}, {"new_field", "x"}};
  set_layer(false);
  expect_failure(open(), StatusCode::version_mismatch,
                 {"layer \"w\"", "format_version must be 1", "got 2"});
}

TEST_F(Tampered, LayerFields) {
  struct Case {
    const char* field;
    nlohmann::json value;
    const char* rule;
  };
  const Case cases[] = {
      {"format_version", "1", "format_version must be an integer"},
      {"format_version", 1.0, "must be a string or an integer"},
      {"n", 0, "n must be an integer in 1 … 2147483647; got 0"},
      {"n", -1, "\"n\" must be a string or an integer ≥ 0; got -1"},
      {"n", 1ull << 31, "got 2147483648"},
      {"n", ~0ull, "got 18446744073709551615"},
      {"n", "40", "n must be an integer in 1 … 2147483647; got \"40\""},
      {"k", 0, "k must be an integer"},
      {"k", nlohmann::json::array(), "\"k\" must be a string or an integer ≥ 0; got an array"},
      {"k", nlohmann::json::object(), "got an object"},
      {"weight_type", "int3", "weight_type must be one of int4, int8; got \"int3\""},
      {"weight_type", 4, "weight_type must be one of int4, int8; got 4"},
      {"zero", "float", "zero must be one of none, integer, scaled; got \"float\""},
      {"group_size", 48, "group_size must be 0 (per column), 16, 32, 64 or 128; got 48"},
      {"scale_type", "f32", "scale_type must be one of f16, bf16; got \"f32\""},
      {"codes_crc32c", 7, "codes_crc32c: must be eight lower-case hexadecimal digits"},
      {"codes_crc32c", "0123456", "eight lower-case hexadecimal digits; got \"0123456\""},
      {"codes_crc32c", "0123456G", "eight lower-case hexadecimal digits; got \"0123456G\""},
      {"codes_crc32c", "0123456F", "eight lower-case hexadecimal digits; got \"0123456F\""},
      {"more", 1, "no field \"more\""},
  };
  const auto original = layer_;
  for (const Case& bad : cases) {
    SCOPED_TRACE(bad.rule);
    layer_ = original;
    layer_[bad.field] = bad.value;
    set_layer();
    expect_failure(open(), StatusCode::corrupt_data, {"m.safetensors", "layer \"w\"", bad.rule});
  }
  for (const auto& [field, value] : original.items()) {
    layer_ = original;
    layer_.erase(field);
    set_layer(false);
    expect_failure(open(), StatusCode::corrupt_data, {"layer \"w\"", field + " is missing"});
  }
}

TEST_F(Tampered, LayerHeaderThatIsNoFlatObject) {
  for (const char* text : {"", "7", "[]", "{", "{\"n\":1,\"n\":1}", "{}x", "{\"n\":{\"n\":{}}}"}) {
    SCOPED_TRACE(text);
    header_["__metadata__"]["mixgemm.packed.w"] = text;
    expect_failure(open(), StatusCode::corrupt_data, {"layer \"w\""});
  }
  header_["__metadata__"]["mixgemm.packed.w"] = std::string(5000, '[');
  expect_failure(open(), StatusCode::corrupt_data, {"at most 4096 bytes; got 5000"});
}

// n = 39 has the same tensors as n = 40: only the header's own checksum can tell.
TEST_F(Tampered, HeaderThatFitsItsTensorsButNotItsChecksum) {
  layer_["n"] = 39;
  set_layer(false);
  expect_failure(open(), StatusCode::corrupt_data, {"layer \"w\"", "header_crc32c"});
  set_layer(true);
  ASSERT_OK(open());
}

TEST_F(Tampered, ShapesAndTypesOfTheParts) {
  const auto layer = layer_;
  for (const auto& [field, value, tensor] :
       std::vector<std::tuple<const char*, nlohmann::json, const char*>>{
           {"n", 49, "w.codes"},
           {"k", 257, "w.codes"},
           {"weight_type", "int8", "w.codes"},
           {"group_size", 32, "w.scales"},
           {"scale_type", "bf16", "w.scales"},
           {"zero", "scaled", "w.zeros"}}) {
    SCOPED_TRACE(field);
    layer_ = layer;
    layer_[field] = value;
    set_layer();
    expect_failure(open(), StatusCode::corrupt_data,
                   {"layer \"w\"", tensor, "must have", "got", field});
  }
  layer_ = layer;
  layer_["zero"] = "none";
  layer_.erase("zeros_crc32c");
  set_layer();
  expect_failure(open(), StatusCode::corrupt_data, {"zero none must have no tensor \"w.zeros\""});
}

TEST_F(Tampered, MissingTensor) {
  header_["v.scales"] = header_["w.scales"];
  header_.erase("w.scales");
  expect_failure(open(), StatusCode::corrupt_data, {"tensor \"w.scales\" is missing"});
}

TEST_F(Tampered, UnknownOrStrayMetadata) {
  header_["__metadata__"]["mixgemm.magic"] = "x";
  expect_failure(open(), StatusCode::corrupt_data, {"\"mixgemm.magic\""});
  header_["__metadata__"].erase("mixgemm.magic");
  header_["__metadata__"]["mixgemm.crc32c.nothing"] = "00000000";
  expect_failure(open(), StatusCode::corrupt_data, {"\"nothing\"", "must belong to a dense"});
  header_["__metadata__"].erase("mixgemm.crc32c.nothing");
  header_["__metadata__"]["mixgemm.crc32c.b"] = "zz";
  expect_failure(open(), StatusCode::corrupt_data, {"mixgemm.crc32c.b", "\"zz\""});
}

// One flipped bit in any tensor is found, by find() or, for dense ones, by verify().
TEST_F(Tampered, FlippedBits) {
  for (const char* tensor : {"w.codes", "w.scales", "w.zeros"}) {
    *at(tensor) ^= 1;
    expect_failure(find(), StatusCode::corrupt_data, {"layer \"w\"", tensor, "checksum (crc32c)"});
    expect_failure(verify(), StatusCode::corrupt_data, {tensor, "checksum (crc32c)"});
    ASSERT_OK(find({.verify_on_find = false}));
    *at(tensor) ^= 1;
  }
  *at("b") ^= 1;
  ASSERT_OK(find());
  expect_failure(verify(), StatusCode::corrupt_data, {"tensor \"b\"", "checksum"});
}

TEST_F(Tampered, ValuesThatNoPackerWrites) {
  const auto set_crcs = [&] {
    layer_["scales_crc32c"] = crc_text(part("w.scales"));
    layer_["zeros_crc32c"] = crc_text(part("w.zeros"));
    set_layer();
  };
  const std::string good = data_;
  at("w.scales")[2] = '\x00';  // element 1: infinity
  at("w.scales")[3] = '\x7c';
  set_crcs();
  expect_failure(find(), StatusCode::corrupt_data,
                 {"w.scales", "must be finite", "element 1", "0x7c00"});
  data_ = good;
  at("w.zeros")[5] = 16;
  set_crcs();
  expect_failure(find(), StatusCode::corrupt_data, {"w.zeros", "below 16", "element 5 is 16"});
}

TEST(PackedCheckpointWriter, BadViewsAndDeclarations) {
  constexpr StatusCode kBad = StatusCode::invalid_argument;
  const TempDir dir;
  auto writer = PackedCheckpointWriter::create(dir / "m.safetensors");
  ASSERT_OK(writer.status());
  QuantSpec bad = kSpec;
  bad.group_size = 48;
  expect_failure(writer->declare_packed("w", 40, 200, bad), kBad, {"\"w\"", "group_size", "48"});
  bad = kSpec;
  bad.scale_type = DataType::f32;
  expect_failure(writer->declare_packed("w", 40, 200, bad), kBad, {"\"w\"", "scale_type", "f32"});
  expect_failure(writer->declare_packed("w", 0, 200, kSpec), kBad, {"\"w\"", "n must be", "got 0"});
  expect_failure(writer->declare_packed("w", 40, -1, kSpec), kBad,
                 {"\"w\"", "k must be", "got -1"});
  expect_failure(writer->declare_packed("w", 1ll << 31, 1, kSpec), kBad, {"2147483648"});
  expect_failure(writer->set_metadata("mixgemm.x", "1"), kBad, {"reserved"});
  ASSERT_OK(writer->declare_packed("w", 40, 200, kSpec));
  ASSERT_OK(writer->declare_dense("b", "F16", {2}));
  expect_failure(writer->declare_packed("w", 40, 200, kSpec), kBad, {"w.codes", "declared twice"});
  expect_failure(writer->declare_dense("w.scales", "F16", {2}), kBad, {"w.scales"});

  Sample sample(40, 200, kSpec, 1);
  const auto try_view = [&](const std::function<void(PackedView&)>& change) {
    PackedView view = sample.view;
    change(view);
    return writer->write_packed("w", view);
  };
  expect_failure(writer->write_packed("v", sample.view), StatusCode::not_found, {"\"v\""});
  expect_failure(try_view([](PackedView& v) { v.device = Device::cuda; }), kBad, {"cpu", "cuda"});
  expect_failure(try_view([](PackedView& v) { v.n = 41; }), kBad, {"n 40", "got n 41"});
  expect_failure(try_view([](PackedView& v) { v.spec.group_size = 32; }), kBad, {"group_size 32"});
  expect_failure(try_view([](PackedView& v) { v.codes = nullptr; }), kBad, {".codes", "null"});
  expect_failure(try_view([](PackedView& v) { v.zeros = nullptr; }), kBad, {".zeros", "null"});
  expect_failure(try_view([](PackedView& v) { v.codes_pitch_bytes -= 1; }), kBad,
                 {".codes", "at least 2048", "got 2047"});
  expect_failure(try_view([](PackedView& v) { v.groups_pitch = 3; }), kBad, {".scales", "96"});
  sample.scales[4] = 0x7e00;  // NaN
  expect_failure(writer->write_packed("w", sample.view), kBad,
                 {"\"w\"", "scales", "finite", "element 4", "0x7e00"});
  sample.scales[4] = 0x3c00;
  sample.zeros[6] = 200;
  expect_failure(writer->write_packed("w", sample.view), kBad, {"zeros", "element 6 is 200"});
  sample.zeros[6] = 2;
  // None of that harmed the writer.
  ASSERT_OK(writer->write_packed("w", sample.view));
  expect_failure(writer->write_packed("w", sample.view), kBad, {"\"w\"", "once"});
  expect_failure(writer->finish(), kBad, {"\"b\" must be written"});
  expect_failure(writer->write_dense("b", "bia", 3), kBad, {"\"b\"", "4 bytes", "got 3"});
  expect_failure(writer->write_dense("w", "bias", 4), StatusCode::not_found, {"\"w\""});
  ASSERT_OK(writer->write_dense("b", "bias", 4));
  ASSERT_OK(writer->finish());
  const auto checkpoint = PackedCheckpoint::open(dir / "m.safetensors");
  ASSERT_OK(checkpoint.status());
  ASSERT_OK(checkpoint->verify());
}

}  // namespace
}  // namespace mixgemm
