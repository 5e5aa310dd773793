// SPDX-License-Identifier: Apache-2.0
// Every format, encoded here from its definition, gives exactly the weights it defines; and a
// product with them, gathered where columns are permuted, is the dense product.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "encoders.hpp"
#include "mixgemm/gemm.hpp"
#include "mixgemm/import.hpp"

namespace mixgemm {
namespace {

using namespace mixgemm::testing;

#define ASSERT_OK(expression)                                         \
  do {                                                                \
    const ::mixgemm::Status assert_ok_status = (expression);          \
    ASSERT_TRUE(assert_ok_status.ok()) << assert_ok_status.message(); \
  } while (false)

/// The layer "m.fc" of a checkpoint, imported.
CanonicalWeight import_one(const RawCheckpoint& checkpoint, const ImportOptions& options = {}) {
  const Folder folder;
  checkpoint.write(folder.path());
  const auto model = ModelCheckpoint::open(folder.path(), options).value();
  auto weight = model.load("m.fc").value();
  validate(weight).throw_if_error();
  const ImportedLayer* info = model.info("m.fc");
  EXPECT_EQ(info->n, weight.n);
  EXPECT_EQ(info->k, weight.k);
  EXPECT_EQ(info->spec, weight.spec);
  EXPECT_EQ(info->columns == ColumnOrder::permuted, !weight.permutation.empty());
  return weight;
}

/// The weight is `dense` exactly, before packing and after.
void expect_exact(const CanonicalWeight& weight, const std::vector<float>& dense) {
  ASSERT_EQ(dequantize(weight).value(), dense);
  const auto packed = pack(weight, 1).value();
  EXPECT_EQ(packed.permutation().empty(), weight.permutation.empty());
  EXPECT_EQ(dequantize(unpack(packed.view(), 1).value()).value(), dense);
}

struct Case {
  LayerShape shape;
  std::string name() const {
    return fmt::format("{}x{} {} bits, group {}, {}{}{}", shape.n, shape.k, shape.bits,
                       shape.group_size, shape.sym ? "sym" : "asym",
                       shape.act_order ? ", act order" : "",
                       shape.scale_type == DataType::bf16 ? ", bf16" : "");
  }
};

/// Shapes with every feature of GPTQ and compressed-tensors; N and K are multiples of 32.
std::vector<Case> cases() {
  std::vector<Case> all;
  for (const int bits : {4, 8}) {
    for (const bool sym : {true, false}) {
      for (const bool act_order : {false, true}) {
        for (const std::int64_t group : {-1, 16, 32, 64, 128, 256, 512}) {
          if (group == -1 && act_order) continue;
          all.push_back({{.n = 32,
                          .k = 512,
                          .group_size = group,
                          .bits = bits,
                          .sym = sym,
                          .act_order = act_order}});
        }
      }
    }
  }
  all.push_back({{.n = 8, .k = 32, .group_size = 128}});                     // one short group
  all.push_back({{.n = 40, .k = 96, .group_size = 64, .act_order = true}});  // a partial last one
  all.push_back({{.n = 16, .k = 64, .group_size = 32, .sym = false, .scale_type = DataType::bf16}});
  return all;
}

TEST(Gptq, BothVersionsOfZerosGiveTheDefinedWeights) {
  std::uint64_t seed = 1;
  for (const Case& c : cases()) {
    for (const int version : {1, 2}) {
      SCOPED_TRACE(::testing::Message() << c.name() << " version " << version << " seed " << seed);
      const RawLayer layer = random_layer(c.shape, seed++);
      RawCheckpoint checkpoint;
      encode_gptq(checkpoint, "m.fc", layer, version, c.shape.act_order || seed % 2 == 0);
      checkpoint.quantization = gptq_config(c.shape, version);
      const CanonicalWeight weight = import_one(checkpoint);
      EXPECT_EQ(weight.spec.zero, c.shape.sym ? ZeroKind::none : ZeroKind::integer);
      EXPECT_EQ(weight.spec.type, c.shape.bits == 4 ? WeightType::int4 : WeightType::int8);
      expect_exact(weight, layer.dense());
    }
  }
}

TEST(Awq, NibbleOrderGivesTheDefinedWeights) {
  std::uint64_t seed = 100;
  for (const std::int64_t group : {-1, 32, 64, 128, 256}) {
    for (const std::int64_t n : {8, 24, 160}) {
      const LayerShape shape{.n = n, .k = 256, .group_size = group, .sym = false};
      SCOPED_TRACE(::testing::Message() << "n " << n << " group " << group << " seed " << seed);
      const RawLayer layer = random_layer(shape, seed++);
      RawCheckpoint checkpoint;
      encode_awq(checkpoint, "m.fc", layer);
      checkpoint.quantization = awq_config(shape);
      const CanonicalWeight weight = import_one(checkpoint);
      EXPECT_EQ(weight.spec.zero, ZeroKind::integer);
      expect_exact(weight, layer.dense());
    }
  }
}

TEST(CompressedTensors, GroupsChannelsAndZeroPointsGiveTheDefinedWeights) {
  std::uint64_t seed = 200;
  std::vector<Case> all = cases();
  all.push_back({{.n = 7, .k = 100, .group_size = 32, .sym = false}});  // words not full
  all.push_back({{.n = 5, .k = 13, .group_size = -1, .bits = 8}});
  for (const Case& c : all) {
    for (const ZeroPoints zeros : {ZeroPoints::bytes, ZeroPoints::packed, ZeroPoints::none}) {
      if (!c.shape.sym && zeros == ZeroPoints::none) continue;
      SCOPED_TRACE(::testing::Message() << c.name() << " seed " << seed);
      const RawLayer layer = random_layer(c.shape, seed++);
      RawCheckpoint checkpoint;
      encode_compressed_tensors(checkpoint, "m.fc", layer, zeros, c.shape.act_order);
      checkpoint.quantization = compressed_tensors_config(c.shape);
      expect_exact(import_one(checkpoint), layer.dense());
    }
  }
}

TEST(CompressedTensors, OneScaleForTheTensor) {
  const LayerShape shape{.n = 12, .k = 40, .group_size = -1, .bits = 8};
  RawLayer layer = random_layer(shape, 7);
  for (auto& scale : layer.scales) scale = layer.scales[0];
  RawCheckpoint checkpoint;
  encode_compressed_tensors(checkpoint, "m.fc", layer, ZeroPoints::none, false);
  RawTensor& scale = checkpoint.tensors["m.fc.weight_scale"];
  scale.shape = {1};
  scale.bytes.resize(2);
  checkpoint.quantization = compressed_tensors_config(shape);
  checkpoint.quantization["config_groups"]["group_0"]["weights"]["strategy"] = "tensor";
  expect_exact(import_one(checkpoint), layer.dense());
}

TEST(CompressedTensors, SchemesByNamePatternAndClass) {
  const LayerShape four{.n = 16, .k = 64, .group_size = 32};
  const LayerShape eight{.n = 16, .k = 64, .group_size = -1, .bits = 8};
  RawCheckpoint checkpoint;
  const RawLayer a = random_layer(four, 1), b = random_layer(eight, 2), c = random_layer(eight, 3);
  encode_compressed_tensors(checkpoint, "model.layers.0.up_proj", a, ZeroPoints::none, false);
  encode_compressed_tensors(checkpoint, "model.layers.0.down_proj", b, ZeroPoints::none, false);
  encode_compressed_tensors(checkpoint, "lm_head", c, ZeroPoints::none, false);
  Json config = compressed_tensors_config(four);
  Json by_pattern = compressed_tensors_config(eight)["config_groups"]["group_0"];
  by_pattern["targets"] = {"re:.*\\.(down|gate)_proj$", "lm_head"};
  config["config_groups"]["group_1"] = by_pattern;
  checkpoint.quantization = config;
  const Folder folder;
  checkpoint.write(folder.path());
  const auto model = ModelCheckpoint::open(folder.path()).value();
  ASSERT_EQ(model.layers().size(), 3u);
  EXPECT_EQ(dequantize(model.load("model.layers.0.up_proj").value()).value(), a.dense());
  EXPECT_EQ(dequantize(model.load("model.layers.0.down_proj").value()).value(), b.dense());
  EXPECT_EQ(dequantize(model.load("lm_head").value()).value(), c.dense());
}

TEST(Hqq, ZerosThatAreCodesAreExact) {
  std::uint64_t seed = 300;
  for (const int bits : {4, 8}) {
    for (const std::int64_t group : {16, 64, 128, 256}) {
      const LayerShape shape{.n = 6, .k = 256, .group_size = group, .bits = bits, .sym = false};
      SCOPED_TRACE(::testing::Message() << bits << " bits, group " << group << " seed " << seed);
      const RawLayer layer = random_layer(shape, seed++);
      RawCheckpoint checkpoint;
      encode_hqq(checkpoint, "m.fc", layer, {layer.zeros.begin(), layer.zeros.end()});
      checkpoint.quantization = hqq_config(shape);
      const CanonicalWeight weight = import_one(checkpoint);
      EXPECT_EQ(weight.spec.zero, ZeroKind::integer);
      expect_exact(weight, layer.dense());
    }
  }
}

TEST(Hqq, OtherZerosAreStoredTimesTheScale) {
  const LayerShape shape{.n = 6, .k = 128, .group_size = 64, .sym = false};
  const RawLayer layer = random_layer(shape, 5);
  std::vector<float> zeros;
  for (std::size_t i = 0; i < layer.zeros.size(); ++i) {
    zeros.push_back(f32_from_f16(f16_from_f32(-1.3f + 1.37f * static_cast<float>(i))));
  }
  RawCheckpoint checkpoint;
  encode_hqq(checkpoint, "m.fc", layer, zeros);
  checkpoint.quantization = hqq_config(shape);
  const CanonicalWeight weight = import_one(checkpoint);
  EXPECT_EQ(weight.spec.zero, ZeroKind::scaled);
  std::vector<float> dense;
  for (std::int64_t row = 0; row < layer.n; ++row) {
    for (std::int64_t k = 0; k < layer.k; ++k) {
      const auto at = static_cast<std::size_t>(row * layer.groups + k / 64);
      const double scale = f32_from_f16(layer.scales[at]);
      const double shift = f32_from_f16(f16_from_f32(static_cast<float>(zeros[at] * scale)));
      const int code = layer.codes[static_cast<std::size_t>(row * layer.k + k)];
      dense.push_back(static_cast<float>(code * scale - shift));
    }
  }
  expect_exact(weight, dense);
}

TEST(Scales, AreExactUnlessATypeIsAskedFor) {
  const LayerShape shape{.n = 16, .k = 32, .group_size = -1};
  RawLayer layer = random_layer(shape, 9);
  RawCheckpoint checkpoint;
  encode_gptq(checkpoint, "m.fc", layer, 2, false);
  checkpoint.quantization = gptq_config(shape, 2);
  std::vector<float> scales;
  for (const auto bits : layer.scales) scales.push_back(f32_from_f16(bits));
  checkpoint.tensors["m.fc.scales"] = raw("F32", {1, 16}, scales);
  expect_exact(import_one(checkpoint), layer.dense());  // F32 that fp16 holds
  scales[3] = 0.1f;
  checkpoint.tensors["m.fc.scales"] = raw("F32", {1, 16}, scales);
  const Folder folder;
  checkpoint.write(folder.path());
  const auto refused = ModelCheckpoint::open(folder.path()).value().load("m.fc");
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(refused.status().message(), ::testing::HasSubstr("row 3, group 0: must be exact"));
  const auto rounded = import_one(checkpoint, {.scale_type = DataType::bf16});
  EXPECT_EQ(rounded.spec.scale_type, DataType::bf16);
  EXPECT_EQ(rounded.scales[3], bf16_from_f32(0.1f));
}

TEST(ModelCheckpoint, DenseWithoutAQuantizationSection) {
  RawCheckpoint checkpoint;
  checkpoint.tensors["a.weight"] = raw("F32", {2, 2}, std::vector<float>{1, 2, 3, 4});
  const Folder folder;
  checkpoint.write(folder.path());
  for (const bool with_config : {true, false}) {
    if (!with_config) std::filesystem::remove(folder / "config.json");
    const auto model = ModelCheckpoint::open(folder.path()).value();
    EXPECT_EQ(model.format(), CheckpointFormat::dense);
    EXPECT_TRUE(model.layers().empty());
    EXPECT_EQ(model.others().size(), 1u);
  }
}

TEST(ModelCheckpoint, ShardsOldConfigFilesAndOtherTensors) {
  const LayerShape shape{.n = 16, .k = 64, .group_size = 32, .sym = false};
  const RawLayer layer = random_layer(shape, 4);
  RawCheckpoint checkpoint;
  encode_gptq(checkpoint, "m.fc", layer, 1, true);
  encode_gptq(checkpoint, "m.a", layer, 1, false);
  checkpoint.tensors["m.fc.bias"] = raw("F32", {1}, std::vector<float>{1});
  const Folder folder;
  checkpoint.write(folder.path(), 600);
  ASSERT_TRUE(std::filesystem::exists(folder / "model.safetensors.index.json"));
  Json old = gptq_config(shape, 1);
  old.erase("quant_method");
  old.erase("checkpoint_format");
  std::ofstream(folder / "quantize_config.json") << old;
  const auto model = ModelCheckpoint::open(folder.path()).value();
  EXPECT_EQ(model.format(), CheckpointFormat::gptq);
  ASSERT_EQ(model.layers().size(), 2u);
  EXPECT_EQ(model.layers()[0].name, "m.a");
  ASSERT_EQ(model.others().size(), 1u);
  EXPECT_EQ(model.others()[0].name, "m.fc.bias");
  EXPECT_EQ(dequantize(model.load("m.fc").value()).value(), layer.dense());
}

TEST(Permutation, GatheredProductIsTheDenseProduct) {
  const LayerShape shape{.n = 32, .k = 192, .group_size = 64, .act_order = true};
  const RawLayer layer = random_layer(shape, 11);
  RawCheckpoint checkpoint;
  encode_gptq(checkpoint, "m.fc", layer, 1, true);
  checkpoint.quantization = gptq_config(shape, 1);
  const PackedWeight weight = pack(import_one(checkpoint)).value();
  ASSERT_EQ(weight.permutation().size(), 192u);

  Problem problem;
  problem.m = 3;
  problem.n = 32;
  problem.k = 192;
  problem.weight = weight.view().spec;
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  constexpr std::int64_t kLdx = 200, kLdg = 196;
  std::vector<std::uint16_t> x(3 * kLdx), gathered(3 * kLdg, 0x7fff);
  for (auto& value : x) value = f16_from_f32(normal(rng));
  std::vector<double> expected(3 * 32);
  const std::vector<float> dense = layer.dense();
  for (std::int64_t m = 0; m < 3; ++m) {
    for (std::int64_t n = 0; n < 32; ++n) {
      double sum = 0.0;
      for (std::int64_t k = 0; k < 192; ++k) {
        sum += static_cast<double>(f32_from_f16(x[static_cast<std::size_t>(m * kLdx + k)])) *
               dense[static_cast<std::size_t>(n * 192 + k)];
      }
      expected[static_cast<std::size_t>(m * 32 + n)] = sum;
    }
  }
  // The oracle takes X as it is.
  std::vector<double> oracle(3 * 32);
  RunArgs args;
  args.x = x.data();
  args.ldx = kLdx;
  args.weight = weight.view();
  args.y = oracle.data();
  args.ldy = 32;
  ASSERT_OK(reference_gemm(problem, args));
  for (std::size_t i = 0; i < oracle.size(); ++i) EXPECT_NEAR(oracle[i], expected[i], 1e-9);

  // A plan refuses the permutation, and takes the gathered form.
  const auto plan = mixgemm::plan(problem).value();
  std::vector<std::uint16_t> y(3 * 32);
  void* workspace = std::aligned_alloc(256, (plan.workspace_bytes() + 511) / 256 * 256);
  args.y = y.data();
  args.workspace = workspace;
  args.workspace_bytes = plan.workspace_bytes();
  const Status refused = plan.run(args);
  EXPECT_EQ(refused.code(), StatusCode::invalid_argument);
  EXPECT_THAT(refused.message(), ::testing::HasSubstr("gather_columns"));
  ASSERT_OK(gather_columns(weight.view(), x.data(), 3, kLdx, gathered.data(), kLdg, 1));
  args.x = gathered.data();
  args.ldx = kLdg;
  args.weight = weight.for_gathered_x().view();
  ASSERT_OK(plan.run(args));
  std::free(workspace);
  for (std::size_t i = 0; i < y.size(); ++i) {
    EXPECT_NEAR(f32_from_f16(y[i]), expected[i], 2e-3 * std::max(1.0, std::abs(expected[i])));
  }
}

}  // namespace
}  // namespace mixgemm
