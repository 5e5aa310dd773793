// SPDX-License-Identifier: Apache-2.0
// What a checkpoint may get wrong: every message names the tensor or field, the rule and the value.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "encoders.hpp"
#include "mixgemm/import.hpp"

namespace mixgemm {
namespace {

using namespace mixgemm::testing;
using ::testing::HasSubstr;

using Change = std::function<void(RawCheckpoint&)>;

struct BadCase {
  const char* name;
  RawCheckpoint (*make)();
  Change change;
  StatusCode code;
  std::vector<std::string> words;
};

constexpr StatusCode kCorrupt = StatusCode::corrupt_data;
constexpr StatusCode kUnsupported = StatusCode::unsupported;

constexpr LayerShape kShape{.n = 16, .k = 128, .group_size = 32, .sym = false, .act_order = true};
constexpr LayerShape kPlain{.n = 16, .k = 128, .group_size = 32, .sym = false};
constexpr LayerShape kSym{.n = 16, .k = 128, .group_size = 32};

RawCheckpoint gptq() {
  RawCheckpoint c;
  encode_gptq(c, "fc", random_layer(kShape, 1), 1, true);
  c.quantization = gptq_config(kShape, 1);
  return c;
}
RawCheckpoint gptq_sym() {
  RawCheckpoint c;
  encode_gptq(c, "fc", random_layer(kSym, 1), 1, true);
  c.quantization = gptq_config(kSym, 1);
  return c;
}
RawCheckpoint awq() {
  RawCheckpoint c;
  encode_awq(c, "fc", random_layer(kPlain, 2));
  c.quantization = awq_config(kPlain);
  return c;
}
RawCheckpoint ct() {
  RawCheckpoint c;
  encode_compressed_tensors(c, "fc", random_layer(kShape, 3), ZeroPoints::bytes, true);
  c.quantization = compressed_tensors_config(kShape);
  return c;
}
RawCheckpoint ct_sym() {
  RawCheckpoint c;
  encode_compressed_tensors(c, "fc", random_layer(kSym, 3), ZeroPoints::bytes, false);
  c.quantization = compressed_tensors_config(kSym);
  return c;
}
RawCheckpoint hqq() {
  const RawLayer layer = random_layer(kPlain, 4);
  RawCheckpoint c;
  encode_hqq(c, "fc", layer, {layer.zeros.begin(), layer.zeros.end()});
  c.quantization = hqq_config(kPlain);
  return c;
}

Json& weights(RawCheckpoint& c) { return c.quantization["config_groups"]["group_0"]["weights"]; }
Json& params(RawCheckpoint& c) { return c.quantization["quant_config"]["weight_quant_params"]; }

Change erase(const std::string& tensor) {
  return [=](RawCheckpoint& c) { ASSERT_EQ(c.tensors.erase(tensor), 1u); };
}
template <class T>
Change poke(const std::string& tensor, std::size_t at, T value) {
  return [=](RawCheckpoint& c) { c.tensors.at(tensor).template as<T>()[at] = value; };
}
/// Removes the last row.
Change shorten(const std::string& tensor) {
  return [=](RawCheckpoint& c) {
    RawTensor& t = c.tensors.at(tensor);
    t.bytes.resize(t.bytes.size() / static_cast<std::size_t>(t.shape[0]) *
                   static_cast<std::size_t>(t.shape[0] - 1));
    --t.shape[0];
  };
}
Change retype(const std::string& tensor, const std::string& dtype) {
  return [=](RawCheckpoint& c) { c.tensors.at(tensor).dtype = dtype; };
}
template <class T>
Change configure(const char* key, T value) {
  return [=](RawCheckpoint& c) { c.quantization[key] = value; };
}

constexpr std::uint16_t kNan = 0x7e00, kInfinity = 0x7c00;

const BadCase kCases[] = {
    {"UnknownMethod",
     gptq,
     configure("quant_method", "nf4"),
     kUnsupported,
     {"quantization_config.quant_method must be gptq, awq, compressed-tensors or hqq", "\"nf4\""}},
    {"NoMethod",
     gptq,
     [](RawCheckpoint& c) { c.quantization.erase("quant_method"); },
     kCorrupt,
     {"quantization_config.quant_method must be given"}},
    {"MethodIsANumber",
     gptq,
     configure("quant_method", 4),
     kCorrupt,
     {"quant_method must be a string; got 4"}},
    {"SectionIsAList",
     gptq,
     [](RawCheckpoint& c) {
       c.quantization = {1, 2};
     },
     kCorrupt,
     {"quantization_config must be an object; got [1,2]"}},
    {"QuantizedTensorsWithoutSection",
     gptq,
     [](RawCheckpoint& c) { c.quantization = Json(); },
     kCorrupt,
     {"\"fc.qweight\" is quantized", "quantization_config"}},
    {"SectionWithoutQuantizedTensors",
     gptq,
     [](RawCheckpoint& c) {
       c.tensors = {{"a.weight", raw("F32", {1}, std::vector<float>{1})}};
     },
     kCorrupt,
     {"must have tensors *.qweight", "got none"}},
    {"TensorsOfAnotherMethod",
     gptq,
     [](RawCheckpoint& c) {
       encode_compressed_tensors(c, "other", random_layer(kSym, 1), ZeroPoints::none, false);
     },
     kCorrupt,
     {"\"other.weight_packed\"", "gptq"}},

    {"GptqThreeBits", gptq, configure("bits", 3), kUnsupported, {"bits must be 4 or 8; got 3"}},
    {"GptqNoBits",
     gptq,
     [](RawCheckpoint& c) { c.quantization.erase("bits"); },
     kCorrupt,
     {"quantization_config.bits must be given"}},
    {"GptqBitsDisagree", gptq, configure("bits", 8), kCorrupt, {"\"fc.", "must be"}},
    {"GptqGroupSize24",
     gptq,
     configure("group_size", 24),
     kUnsupported,
     {"group_size must be −1, a multiple of 16", "got 24"}},
    {"GptqGroupSize0", gptq, configure("group_size", 0), kCorrupt, {"group_size", "got 0"}},
    {"GptqGroupSizeDisagrees",
     gptq,
     configure("group_size", 64),
     kCorrupt,
     {"\"fc.scales\"", "[K / group_size, N] = [2, 16]; got [4, 16]"}},
    {"GptqMarlin",
     gptq,
     configure("checkpoint_format", "marlin"),
     kUnsupported,
     {"checkpoint_format must be \"gptq\" or \"gptq_v2\"; got \"marlin\""}},
    {"GptqDynamic",
     gptq,
     configure("dynamic", Json{{"-:.*", Json::object()}}),
     kUnsupported,
     {"dynamic must be empty"}},
    {"GptqMissingScales",
     gptq,
     erase("fc.scales"),
     kCorrupt,
     {"\"fc\"", "\"fc.scales\"; it is missing"}},
    {"GptqMissingZeros", gptq, erase("fc.qzeros"), kCorrupt, {"\"fc.qzeros\"; it is missing"}},
    {"GptqMissingWeight", gptq, erase("fc.qweight"), kCorrupt, {"\"fc.qweight\" is missing"}},
    {"GptqMissingGroups", gptq, erase("fc.g_idx"), kCorrupt, {"\"fc.g_idx\"", "desc_act"}},
    {"GptqOrderWithoutDescAct",
     gptq,
     configure("desc_act", false),
     kCorrupt,
     {"\"fc.g_idx\"", "desc_act is false"}},
    {"GptqFlatWeight",
     gptq,
     [](RawCheckpoint& c) { c.tensors.at("fc.qweight").shape = {16 * 16}; },
     kCorrupt,
     {"\"fc.qweight\"", "shape must be [K·bits/32, N]; got [256]"}},
    {"GptqShortWeight",
     gptq,
     shorten("fc.qweight"),
     kCorrupt,
     {"\"fc.g_idx\"", "[120]; got [128]"}},
    {"GptqShortScales", gptq, shorten("fc.scales"), kCorrupt, {"\"fc.scales\"", "got [3, 16]"}},
    {"GptqShortZeros", gptq, shorten("fc.qzeros"), kCorrupt, {"\"fc.qzeros\"", "got [3, 2]"}},
    {"GptqShortGroups", gptq, shorten("fc.g_idx"), kCorrupt, {"\"fc.g_idx\"", "got [127]"}},
    {"GptqFloatWeight",
     gptq,
     retype("fc.qweight", "F32"),
     kCorrupt,
     {"\"fc.qweight\"", "dtype must be I32; got F32"}},
    {"GptqIntegerScales",
     gptq,
     retype("fc.scales", "I16"),
     kCorrupt,
     {"\"fc.scales\"", "F16 or BF16 or F32; got I16"}},
    {"GptqGroupOutOfRange",
     gptq,
     poke<std::int32_t>("fc.g_idx", 5, 4),
     kCorrupt,
     {"\"fc.g_idx\"", "groups in 0 … 3; element 5 is 4"}},
    {"GptqGroupNegative",
     gptq,
     poke<std::int32_t>("fc.g_idx", 5, -1),
     kCorrupt,
     {"\"fc.g_idx\"", "element 5 is -1"}},
    {"GptqGroupsUneven",
     gptq,
     [](RawCheckpoint& c) {
       auto* g = c.tensors.at("fc.g_idx").as<std::int32_t>();
       g[0] = (g[0] + 1) % 4;
     },
     kCorrupt,
     {"\"fc.g_idx\"", "must have 32 of the K = 128 elements"}},
    {"GptqNanScale",
     gptq,
     poke("fc.scales", 17, kNan),
     kCorrupt,
     {"\"fc.scales\": row 1, group 1: must be finite; got nan"}},
    {"GptqInfiniteScale",
     gptq,
     poke("fc.scales", 2, kInfinity),
     kCorrupt,
     {"\"fc.scales\": row 2, group 0: must be finite; got inf"}},
    {"GptqSymWithOtherZeros",
     gptq_sym,
     poke<std::uint32_t>("fc.qzeros", 2, 0x77787777u),
     kCorrupt,
     {"\"fc.qzeros\": row 4, group 1", "sym true", "must be 8; got 9"}},
    {"GptqWrongVersionShows",
     gptq_sym,
     configure("checkpoint_format", "gptq_v2"),
     kCorrupt,
     {"\"fc.qzeros\": row 0, group 0", "must be 8; got 7"}},

    {"AwqThreeBits", awq, configure("bits", 3), kUnsupported, {"bits must be 4; got 3"}},
    {"AwqGemv",
     awq,
     configure("version", "gemv"),
     kUnsupported,
     {"version must be \"gemm\"; got \"gemv\""}},
    {"AwqNoZeroPoint",
     awq,
     configure("zero_point", false),
     kUnsupported,
     {"zero_point must be true"}},
    {"AwqMissingScales", awq, erase("fc.scales"), kCorrupt, {"\"fc.scales\"; it is missing"}},
    {"AwqShortZeros", awq, shorten("fc.qzeros"), kCorrupt, {"\"fc.qzeros\"", "[4, 2]; got [3, 2]"}},
    {"AwqGptqTensors",
     awq,
     [](RawCheckpoint& c) { encode_gptq(c, "fc", random_layer(kShape, 1), 1, true); },
     kCorrupt,
     {"\"fc."}},
    {"AwqNanScale",
     awq,
     poke("fc.scales", 17, kNan),
     kCorrupt,
     {"\"fc.scales\": row 1, group 1: must be finite; got nan"}},

    {"CtTwoBits",
     ct,
     [](RawCheckpoint& c) { weights(c)["num_bits"] = 2; },
     kUnsupported,
     {"group_0.weights.num_bits must be 4 or 8; got 2"}},
    {"CtFloat",
     ct,
     [](RawCheckpoint& c) { weights(c)["type"] = "float"; },
     kUnsupported,
     {"weights.type must be \"int\"; got \"float\""}},
    {"CtFormat",
     ct,
     configure("format", "nvfp4-pack-quantized"),
     kUnsupported,
     {"must be \"pack-quantized\"; got \"nvfp4-pack-quantized\""}},
    {"CtActivations",
     ct,
     [](RawCheckpoint& c) {
       c.quantization["config_groups"]["group_0"]["input_activations"] = {{"num_bits", 8}};
     },
     kUnsupported,
     {"input_activations must be null", "num_bits"}},
    {"CtStrategy",
     ct,
     [](RawCheckpoint& c) { weights(c)["strategy"] = "block"; },
     kUnsupported,
     {"weights.strategy must be", "\"block\""}},
    {"CtNoGroups",
     ct,
     [](RawCheckpoint& c) { c.quantization["config_groups"] = Json::object(); },
     kCorrupt,
     {"config_groups must have at least one group"}},
    {"CtSparse",
     ct,
     configure("sparsity_config", Json{{"format", "sparse-24-bitmask"}}),
     kUnsupported,
     {"sparsity_config.format", "sparse-24-bitmask"}},
    {"CtTransform",
     ct,
     configure("transform_config", Json{{"config_groups", 1}}),
     kUnsupported,
     {"transform_config must be empty"}},
    {"CtPattern",
     ct,
     [](RawCheckpoint& c) {
       Json& groups = c.quantization["config_groups"];
       groups["group_1"] = groups["group_0"];
       groups["group_0"]["targets"] = {"re:(?!x)"};
     },
     kUnsupported,
     {"group_0.targets", "plain regular expression", "(?!x)"}},
    {"CtNoTarget",
     ct,
     [](RawCheckpoint& c) {
       Json& groups = c.quantization["config_groups"];
       groups["group_1"] = groups["group_0"];
       groups["group_0"]["targets"] = {"a.b"};
       groups["group_1"]["targets"] = {"re:x"};
     },
     kCorrupt,
     {"\"fc.weight_packed\"", "2 config_groups; got none"}},
    {"CtMissingShape",
     ct,
     erase("fc.weight_shape"),
     kCorrupt,
     {"\"fc.weight_shape\"; it is missing"}},
    {"CtMissingScale",
     ct,
     erase("fc.weight_scale"),
     kCorrupt,
     {"\"fc.weight_scale\"; it is missing"}},
    {"CtMissingZeros",
     ct,
     erase("fc.weight_zero_point"),
     kCorrupt,
     {"\"fc.weight_zero_point\"; it is missing"}},
    {"CtMissingGroups",
     ct,
     erase("fc.weight_g_idx"),
     kCorrupt,
     {"\"fc.weight_g_idx\"", "actorder"}},
    {"CtMissingWeight",
     ct,
     erase("fc.weight_packed"),
     kCorrupt,
     {"\"fc.weight_packed\" is missing"}},
    {"CtShapeDisagrees",
     ct,
     poke<std::int64_t>("fc.weight_shape", 1, 64),
     kCorrupt,
     {"\"fc.weight_packed\"", "[16, 8]; got [16, 16]"}},
    {"CtShapeHuge",
     ct,
     poke<std::int64_t>("fc.weight_shape", 0, std::int64_t{1} << 62),
     kCorrupt,
     {"\"fc\"", "N must be 1 .. 2147483647; got 4611686018427387904"}},
    {"CtShapeNegative",
     ct,
     poke<std::int64_t>("fc.weight_shape", 1, -1),
     kCorrupt,
     {"K must be 1", "got -1"}},
    {"CtOrderWithoutActorder",
     ct,
     [](RawCheckpoint& c) { weights(c)["actorder"] = nullptr; },
     kCorrupt,
     {"\"fc.weight_g_idx\"", "actorder isn't \"group\""}},
    {"CtGroupOutOfRange",
     ct,
     poke<std::int32_t>("fc.weight_g_idx", 9, 77),
     kCorrupt,
     {"\"fc.weight_g_idx\"", "element 9 is 77"}},
    {"CtNanScale",
     ct,
     poke("fc.weight_scale", 5, kNan),
     kCorrupt,
     {"\"fc.weight_scale\": row 1, group 1: must be finite; got nan"}},
    {"CtZeroOutOfRange",
     ct,
     poke<std::int8_t>("fc.weight_zero_point", 6, 8),
     kCorrupt,
     {"\"fc.weight_zero_point\": row 1, group 2", "-8 … 7; got 8"}},
    {"CtSymmetricWithZeros",
     ct_sym,
     poke<std::int8_t>("fc.weight_zero_point", 6, 1),
     kCorrupt,
     {"\"fc.weight_zero_point\": row 1, group 2", "symmetric is true; got 1"}},

    {"HqqThreeBits",
     hqq,
     [](RawCheckpoint& c) { params(c)["nbits"] = 3; },
     kUnsupported,
     {"weight_quant_params.nbits must be 4 or 8; got 3"}},
    {"HqqAxis0",
     hqq,
     [](RawCheckpoint& c) { params(c)["axis"] = 0; },
     kUnsupported,
     {"axis must be 1", "got 0"}},
    {"HqqAxis0OfALayer",
     hqq,
     poke<std::int32_t>("fc.axis", 0, 0),
     kUnsupported,
     {"\"fc.axis\": must be 1", "got 0"}},
    {"HqqBitsDisagree",
     hqq,
     [](RawCheckpoint& c) { params(c)["nbits"] = 8; },
     kCorrupt,
     {"\"fc.nbits\": must be", "nbits = 8; got 4"}},
    {"HqqGroupsDisagree",
     hqq,
     [](RawCheckpoint& c) { params(c)["group_size"] = 64; },
     kCorrupt,
     {"\"fc.group_size\": must be", "group_size = 64; got 32"}},
    {"HqqQuantizedScales",
     hqq,
     poke<std::uint8_t>("fc.view_as_float", 0, 1),
     kUnsupported,
     {"\"fc.view_as_float\": must be 0"}},
    {"HqqMissingScale", hqq, erase("fc.scale"), kCorrupt, {"\"fc.scale\"; it is missing"}},
    {"HqqShortWeight", hqq, shorten("fc.W_q"), kCorrupt, {"\"fc.W_q\"", "[32, 32]; got [31, 32]"}},
    {"HqqNanZero",
     hqq,
     poke("fc.zero", 6, kNan),
     kCorrupt,
     {"\"fc.zero\": row 1, group 2: must be finite; got nan"}},
    {"HqqNanScale",
     hqq,
     poke("fc.scale", 6, kNan),
     kCorrupt,
     {"\"fc.scale\": row 1, group 2: must be finite; got nan"}},
    {"HqqZeroTimesScaleOverflows",
     hqq,
     [](RawCheckpoint& c) {
       c.tensors.at("fc.zero").as<std::uint16_t>()[6] = f16_from_f32(60000.0f);
       c.tensors.at("fc.scale").as<std::uint16_t>()[6] = f16_from_f32(2.0f);
     },
     kCorrupt,
     {"\"fc.zero\": row 1, group 2: zero · scale: must fit f16; got 120000"}},
};

class BadCheckpoint : public ::testing::TestWithParam<BadCase> {};

TEST_P(BadCheckpoint, NamesRuleAndValue) {
  const BadCase& bad = GetParam();
  RawCheckpoint checkpoint = bad.make();
  bad.change(checkpoint);
  const Folder folder;
  checkpoint.write(folder.path());
  const auto model = ModelCheckpoint::open(folder.path());
  const Status status = model.ok() ? model->load("fc").status() : model.status();
  EXPECT_EQ(to_string(status.code()), to_string(bad.code)) << status.message();
  for (const std::string& word : bad.words) EXPECT_THAT(status.message(), HasSubstr(word));
}

INSTANTIATE_TEST_SUITE_P(All, BadCheckpoint, ::testing::ValuesIn(kCases),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(BadConfig, TextThatIsNoObject) {
  const Folder folder;
  gptq().write(folder.path());
  for (const char* text : {"", "{", "[]", "nul", "{\"quantization_config\": 7}"}) {
    std::ofstream(folder / "config.json") << text;
    const auto model = ModelCheckpoint::open(folder.path());
    ASSERT_FALSE(model.ok()) << text;
    EXPECT_EQ(model.status().code(), kCorrupt) << model.status().message();
    EXPECT_THAT(model.status().message(), HasSubstr("config.json")) << text;
  }
}

TEST(BadCheckpointProperty, FlippedBitsAreRefusedOrStayLegal) {
  // Whatever one byte becomes, the importer answers with a sentence or with a legal weight.
  RawCheckpoint (*const makers[])() = {gptq, gptq_sym, awq, ct, ct_sym, hqq};
  for (std::uint64_t seed = 1; seed <= 120; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937_64 rng(seed);
    RawCheckpoint checkpoint = makers[seed % std::size(makers)]();
    auto it = checkpoint.tensors.begin();
    std::advance(it, static_cast<std::ptrdiff_t>(rng() % checkpoint.tensors.size()));
    it->second.bytes[rng() % it->second.bytes.size()] ^= static_cast<std::uint8_t>(1u << rng() % 8);
    const Folder folder;
    checkpoint.write(folder.path());
    const auto model = ModelCheckpoint::open(folder.path());
    if (!model.ok()) {
      EXPECT_THAT(model.status().message(), HasSubstr("fc"));
      continue;
    }
    const auto weight = model->load("fc");
    if (!weight.ok()) {
      EXPECT_THAT(weight.status().message(), HasSubstr("fc."));
      continue;
    }
    EXPECT_TRUE(validate(*weight).ok()) << validate(*weight).message();
  }
}

}  // namespace
}  // namespace mixgemm
