// SPDX-License-Identifier: Apache-2.0
// Bad canonical weights are refused with the rule and the value.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "mixgemm/weight.hpp"
#include "random_weight.hpp"

namespace mixgemm {
namespace {

using ::testing::HasSubstr;
using testing::random_weight;

constexpr QuantSpec kInteger{WeightType::int4, ZeroKind::integer, 32, DataType::f16};
constexpr QuantSpec kScaled{WeightType::int8, ZeroKind::scaled, 64, DataType::bf16};

// The message of a weight changed by `change`; pack() and dequantize() must refuse it alike.
template <class Change>
std::string refusal(const QuantSpec& spec, Change change) {
  CanonicalWeight weight = random_weight(5, 100, spec, 1);
  change(weight);
  const Status status = validate(weight);
  EXPECT_EQ(status.code(), StatusCode::invalid_argument);
  EXPECT_EQ(pack(weight).status().message(), status.message());
  EXPECT_EQ(dequantize(weight).status().message(), status.message());
  return status.message();
}

TEST(Validate, AcceptsEverySpec) {
  for (const WeightType type : testing::kWeightTypes) {
    for (const ZeroKind zero : testing::kZeroKinds) {
      for (const int group_size : testing::kGroupSizes) {
        for (const DataType scale_type : testing::kScaleTypes) {
          const QuantSpec spec{type, zero, group_size, scale_type};
          const Status status = validate(random_weight(3, 70, spec, 2));
          EXPECT_TRUE(status.ok()) << status.message();
        }
      }
    }
  }
}

TEST(Validate, NamesTheBrokenSpec) {
  EXPECT_THAT(refusal(kInteger, [](auto& w) { w.spec.group_size = 48; }),
              HasSubstr("group_size must be 0 (per column), 16, 32, 64 or 128; got 48"));
  EXPECT_THAT(refusal(kInteger, [](auto& w) { w.spec.group_size = -1; }), HasSubstr("got -1"));
  EXPECT_THAT(refusal(kInteger, [](auto& w) { w.spec.scale_type = DataType::f32; }),
              HasSubstr("scale type must be f16 or bf16; got f32"));
  EXPECT_THAT(refusal(kInteger, [](auto& w) { w.spec.type = static_cast<WeightType>(9); }),
              HasSubstr("weight type must be int4 or int8; got enumerator 9"));
  EXPECT_THAT(refusal(kInteger, [](auto& w) { w.spec.zero = static_cast<ZeroKind>(7); }),
              HasSubstr("zero kind must be none, integer or scaled; got enumerator 7"));
}

TEST(Validate, NamesTheBrokenSize) {
  EXPECT_THAT(refusal(kInteger, [](auto& w) { w.n = 0; }),
              HasSubstr("N must be 1 .. 2147483647; got 0"));
  EXPECT_THAT(refusal(kInteger, [](auto& w) { w.k = -5; }),
              HasSubstr("K must be 1 .. 2147483647; got -5"));
  EXPECT_THAT(refusal(kInteger, [](auto& w) { w.n = INT64_MAX; }),
              HasSubstr("N must be 1 .. 2147483647; got 9223372036854775807"));
  EXPECT_THAT(refusal(kInteger, [](auto& w) { w.n = w.k = INT32_MAX; }),
              HasSubstr("codes must hold N*K = 4611686014132420609 elements; got 500"));
  EXPECT_THAT(refusal(kInteger, [](auto& w) { w.codes.pop_back(); }),
              HasSubstr("codes must hold N*K = 500 elements; got 499"));
  EXPECT_THAT(refusal(kInteger, [](auto& w) { w.scales.pop_back(); }),
              HasSubstr("scales must hold N*G = 20 elements; got 19"));
  EXPECT_THAT(refusal(kInteger, [](auto& w) { w.zeros.clear(); }),
              HasSubstr("zeros must hold N*G = 20 elements; got 0"));
  EXPECT_THAT(refusal(kScaled, [](auto& w) { w.scaled_zeros.clear(); }),
              HasSubstr("scaled_zeros must hold N*G = 10 elements; got 0"));
  EXPECT_THAT(refusal(kScaled, [](auto& w) { w.zeros.resize(10); }),
              HasSubstr("zeros must hold (no integer zeros) = 0 elements; got 10"));
}

TEST(Validate, NamesTheBrokenValue) {
  EXPECT_THAT(refusal(kInteger, [](auto& w) { w.codes[2 * 100 + 71] = 200; }),
              HasSubstr("code of row 2, k 71 is 200; int4 codes must be less than 16"));
  EXPECT_THAT(refusal(kInteger, [](auto& w) { w.zeros[3 * 4 + 1] = 16; }),
              HasSubstr("zero of row 3, group 1 is 16; int4 zeros must be less than 16"));
  EXPECT_THAT(refusal(kInteger, [](auto& w) { w.scales[4 * 4 + 2] = 0x7c00; }),
              HasSubstr("scale of row 4, group 2 is inf"));
  EXPECT_THAT(refusal(kScaled, [](auto& w) { w.scales[0] = 0x7fc0; }),
              HasSubstr("scale of row 0, group 0 is nan"));
  EXPECT_THAT(refusal(kScaled, [](auto& w) { w.scaled_zeros[2 * 2 + 1] = 0xff80; }),
              HasSubstr("scaled zero of row 2, group 1 is -inf"));
}

TEST(Dequantize, FollowsTheFormulaOfEachZeroKind) {
  CanonicalWeight weight;
  weight.n = 2;
  weight.k = 20;  // the second group is partial
  weight.spec = {WeightType::int4, ZeroKind::none, 16, DataType::f16};
  for (int i = 0; i < 40; ++i) weight.codes.push_back(static_cast<std::uint8_t>(i * 7 % 16));
  const float scales[] = {0.5f, -0.25f, 3.0f, 0x1p-20f};
  for (const float scale : scales) weight.scales.push_back(f16_from_f32(scale));
  const auto value = [&](auto&& weight_of) {
    const std::vector<float> dense = dequantize(weight).value();
    for (int i = 0; i < 40; ++i) {
      const int at = i / 20 * 2 + i % 20 / 16;
      EXPECT_EQ(dense[i], weight_of(weight.codes[i], scales[at], at)) << i;
    }
  };
  value([](int q, float s, int) { return static_cast<float>(q - 8) * s; });

  weight.spec.zero = ZeroKind::integer;
  weight.zeros = {0, 15, 8, 3};
  value([&](int q, float s, int at) { return static_cast<float>(q - weight.zeros[at]) * s; });

  weight.spec.zero = ZeroKind::scaled;
  weight.zeros.clear();
  const float zeros[] = {1.5f, -2.0f, 0.0f, 0x1p-10f};
  for (const float zero : zeros) weight.scaled_zeros.push_back(f16_from_f32(zero));
  value([&](int q, float s, int at) { return static_cast<float>(q) * s - zeros[at]; });
}

}  // namespace
}  // namespace mixgemm
