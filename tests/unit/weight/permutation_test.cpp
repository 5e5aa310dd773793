// SPDX-License-Identifier: Apache-2.0
// Weights whose columns are in another order than the input features: the order survives packing,
// is undone by dequantize(), and whoever can't honour it says so.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "mixgemm/weight.hpp"
#include "random_weight.hpp"

namespace mixgemm {
namespace {

using ::testing::HasSubstr;
using testing::random_weight;
using testing::same;

constexpr QuantSpec kSpec{WeightType::int4, ZeroKind::integer, 32, DataType::f16};

std::vector<std::int32_t> random_permutation(std::int64_t k, std::uint64_t seed) {
  std::vector<std::int32_t> permutation(static_cast<std::size_t>(k));
  std::iota(permutation.begin(), permutation.end(), 0);
  std::mt19937_64 rng(seed);
  for (std::size_t i = permutation.size() - 1; i > 0; --i) {
    std::swap(permutation[i], permutation[rng() % (i + 1)]);
  }
  return permutation;
}

TEST(Permutation, SurvivesPackingAndIsUndoneByDequantize) {
  for (const std::int64_t k : {1, 7, 64, 200}) {
    SCOPED_TRACE(::testing::Message() << "k " << k << ", seeds 1 and k");
    CanonicalWeight weight = random_weight(18, k, kSpec, 1);
    const std::vector<float> in_order = dequantize(weight).value();
    weight.permutation = random_permutation(k, static_cast<std::uint64_t>(k));
    const auto packed = pack(weight, 1).value();
    EXPECT_EQ(packed.size_bytes(),
              packed.for_gathered_x().size_bytes() + 4 * static_cast<std::size_t>(k));
    const auto again = unpack(packed.view(), 1).value();
    EXPECT_TRUE(same(again, weight));
    EXPECT_EQ(again.permutation, weight.permutation);
    EXPECT_TRUE(unpack(packed.for_gathered_x().view(), 1)->permutation.empty());
    const std::vector<float> dense = dequantize(again).value();
    for (std::int64_t row = 0; row < 18; ++row) {
      for (std::int64_t j = 0; j < k; ++j) {
        ASSERT_EQ(dense[row * k + weight.permutation[j]], in_order[row * k + j]);
      }
    }
  }
}

TEST(Permutation, OutlivesTheWeightItWasPackedFrom) {
  PackedWeight copy;
  {
    CanonicalWeight weight = random_weight(16, 64, kSpec, 3);
    weight.permutation = random_permutation(64, 3);
    copy = pack(weight, 1).value();
  }
  EXPECT_TRUE(std::equal(copy.permutation().begin(), copy.permutation().end(),
                         random_permutation(64, 3).begin()));
}

TEST(Permutation, EveryIndexOnce) {
  const auto refusal = [](const std::vector<std::int32_t>& permutation) {
    CanonicalWeight weight = random_weight(4, 5, kSpec, 1);
    weight.permutation = permutation;
    EXPECT_EQ(pack(weight).status().code(), StatusCode::invalid_argument);
    EXPECT_EQ(dequantize(weight).status().message(), validate(weight).message());
    return validate(weight).message();
  };
  EXPECT_THAT(refusal({0, 1, 2, 3}), HasSubstr("permutation must hold K = 5 elements; got 4"));
  EXPECT_THAT(refusal({0, 1, 2, 3, 5}), HasSubstr("indices in 0 .. 4; element 4 is 5"));
  EXPECT_THAT(refusal({-1, 1, 2, 3, 4}), HasSubstr("element 0 is -1"));
  EXPECT_THAT(refusal({4, 1, 2, 3, 1}), HasSubstr("every index once; element 4 repeats 1"));
}

TEST(Permutation, SlicesOfRowsKeepItAndSlicesOfColumnsAreRefused) {
  CanonicalWeight weight = random_weight(48, 128, kSpec, 2);
  weight.permutation = random_permutation(128, 2);
  const auto packed = pack(weight, 1).value();
  const auto rows = slice_n(packed.view(), 16, 32).value();
  EXPECT_EQ(unpack(rows, 1)->permutation, weight.permutation);
  const Status refused = slice_k(packed.view(), 0, 64).status();
  EXPECT_EQ(refused.code(), StatusCode::unsupported);
  EXPECT_THAT(refused.message(), HasSubstr("permutation"));
}

TEST(GatherColumns, PutsXInTheOrderOfTheColumns) {
  CanonicalWeight weight = random_weight(4, 70, kSpec, 2);
  weight.permutation = random_permutation(70, 5);
  const auto packed = pack(weight, 1).value();
  constexpr std::int64_t kM = 9, kLdx = 75, kLdg = 71;
  std::vector<std::uint16_t> x(kM * kLdx), gathered(kM * kLdg, 0xdead);
  std::iota(x.begin(), x.end(), 0);
  for (const PackedView& view : {packed.view(), packed.for_gathered_x().view()}) {
    for (const int threads : {1, 3}) {
      const Status status =
          gather_columns(view, x.data(), kM, kLdx, gathered.data(), kLdg, threads);
      ASSERT_TRUE(status.ok()) << status.message();
      for (std::int64_t m = 0; m < kM; ++m) {
        for (std::int64_t j = 0; j < 70; ++j) {
          const std::int64_t from = view.permutation == nullptr ? j : weight.permutation[j];
          ASSERT_EQ(gathered[m * kLdg + j], x[m * kLdx + from]);
        }
        ASSERT_EQ(gathered[m * kLdg + 70], 0xdead);
      }
    }
  }
}

TEST(GatherColumns, NamesRuleAndValue) {
  const auto packed = pack(random_weight(4, 70, kSpec, 2), 1).value();
  std::vector<std::uint16_t> x(280), y(280);
  const auto refusal = [&](const void* from, std::int64_t m, std::int64_t ldx, void* to,
                           std::int64_t ldg) {
    const Status status = gather_columns(packed.view(), from, m, ldx, to, ldg, 1);
    EXPECT_EQ(status.code(), StatusCode::invalid_argument);
    return status.message();
  };
  EXPECT_THAT(refusal(nullptr, 2, 70, y.data(), 70), HasSubstr("x must not be null"));
  EXPECT_THAT(refusal(x.data(), 2, 70, nullptr, 70), HasSubstr("gathered must not be null"));
  EXPECT_THAT(refusal(x.data(), -1, 70, y.data(), 70), HasSubstr("m must be at least 0; got -1"));
  EXPECT_THAT(refusal(x.data(), 2, 69, y.data(), 70), HasSubstr("ldx must be at least K = 70"));
  EXPECT_THAT(refusal(x.data(), 2, 70, y.data(), 3), HasSubstr("ldg must be at least K = 70"));
  EXPECT_THAT(refusal(x.data(), 2, 70, x.data() + 139, 70), HasSubstr("must not overlap"));
  EXPECT_TRUE(gather_columns(packed.view(), nullptr, 0, 70, nullptr, 70, 1).ok());
}

}  // namespace
}  // namespace mixgemm
