// SPDX-License-Identifier: Apache-2.0
// A slice is a view of the same bytes that unpacks to the same rows and columns.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "mixgemm/weight.hpp"
#include "random_weight.hpp"

namespace mixgemm {
namespace {

using testing::cut;
using testing::describe;
using ::testing::HasSubstr;
using testing::random_weight;
using testing::same;

std::int64_t k_unit(const QuantSpec& spec) {
  return spec.group_size == 0 ? 64 : std::lcm(64, spec.group_size);
}

TEST(Slice, UnpacksToTheSameRowsAndColumnsOfEverySpec) {
  constexpr std::int64_t n = 70;
  constexpr std::int64_t k = 420;
  std::uint64_t seed = 100;
  for (const WeightType type : testing::kWeightTypes) {
    for (const ZeroKind zero : testing::kZeroKinds) {
      for (const int group_size : testing::kGroupSizes) {
        const QuantSpec spec{type, zero, group_size, DataType::f16};
        SCOPED_TRACE(describe(n, k, spec) + fmt::format(" seed {}", seed));
        const CanonicalWeight weight = random_weight(n, k, spec, seed++);
        const auto packed = pack(weight);
        ASSERT_TRUE(packed.ok());
        const std::int64_t unit = k_unit(spec);
        for (const std::int64_t n0 : {0, 16, 64}) {
          for (const std::int64_t n1 : {16, 48, 70}) {
            if (n0 >= n1) continue;
            for (std::int64_t k0 = 0; k0 < k; k0 += unit) {
              for (std::int64_t k1 = k0 + unit; k1 < k + unit; k1 += unit) {
                const std::int64_t k_end = std::min(k1, k);
                const auto rows = slice_n(packed->view(), n0, n1);
                ASSERT_TRUE(rows.ok()) << rows.status().message();
                const auto both = slice_k(*rows, k0, k_end);
                ASSERT_TRUE(both.ok()) << both.status().message();
                ASSERT_TRUE(same(unpack(*both).value(), cut(weight, n0, n1, k0, k_end)));
                const auto other_order =
                    slice_n(slice_k(packed->view(), k0, k_end).value(), n0, n1);
                ASSERT_EQ(other_order.value().codes, both->codes);
                ASSERT_EQ(other_order.value().scales, both->scales);
                ASSERT_EQ(other_order.value().zeros, both->zeros);
              }
            }
          }
        }
      }
    }
  }
}

TEST(Slice, IsAViewWithTheParentsPitch) {
  const QuantSpec spec{WeightType::int8, ZeroKind::integer, 128, DataType::bf16};
  const auto packed = pack(random_weight(64, 512, spec, 1));
  ASSERT_TRUE(packed.ok());
  const PackedView& whole = packed->view();
  const auto part = slice_k(slice_n(whole, 16, 48).value(), 128, 384);
  ASSERT_TRUE(part.ok());
  EXPECT_EQ(part->codes, whole.codes + whole.codes_pitch_bytes + 2 * 1024);
  EXPECT_EQ(part->scales, whole.scales + (whole.groups_pitch + 1) * 16);
  EXPECT_EQ(part->zeros,
            static_cast<const std::uint8_t*>(whole.zeros) + (whole.groups_pitch + 1) * 16);
  EXPECT_EQ(part->codes_pitch_bytes, whole.codes_pitch_bytes);
  EXPECT_EQ(part->groups_pitch, whole.groups_pitch);
  EXPECT_EQ(part->groups(), 2);
  // What a copy of the slice alone would take.
  EXPECT_EQ(PackedWeight(*part, nullptr).size_bytes(), 2u * (4 * 1024 + 2 * 16 * (2 + 1)));
}

TEST(Slice, PerColumnScalesStayWholeUnderSlicesOfK) {
  const QuantSpec spec{WeightType::int4, ZeroKind::scaled, 0, DataType::f16};
  const auto packed = pack(random_weight(16, 256, spec, 2));
  ASSERT_TRUE(packed.ok());
  const auto part = slice_k(packed->view(), 64, 192);
  ASSERT_TRUE(part.ok());
  EXPECT_EQ(part->scales, packed->view().scales);
  EXPECT_EQ(part->zeros, packed->view().zeros);
}

TEST(Slice, RefusesOtherCutsAndNamesTheRule) {
  const QuantSpec spec{WeightType::int4, ZeroKind::none, 128, DataType::f16};
  const auto packed = pack(random_weight(40, 400, spec, 3));
  ASSERT_TRUE(packed.ok());
  const PackedView& view = packed->view();
  const auto n_error = [&](std::int64_t begin, std::int64_t end) {
    return slice_n(view, begin, end).status().message();
  };
  const auto k_error = [&](std::int64_t begin, std::int64_t end) {
    return slice_k(view, begin, end).status().message();
  };
  EXPECT_THAT(n_error(8, 32), HasSubstr("begin at a multiple of 16 (a strip); got 8"));
  EXPECT_THAT(n_error(0, 33), HasSubstr("got 33"));
  EXPECT_THAT(n_error(-16, 16), HasSubstr("[-16, 16)"));
  EXPECT_THAT(n_error(16, 16), HasSubstr("[16, 16)"));
  EXPECT_THAT(n_error(32, 48), HasSubstr("<= N = 40"));
  EXPECT_THAT(k_error(64, 128), HasSubstr("multiple of 128"));
  EXPECT_THAT(k_error(0, 192), HasSubstr("got 192"));
  EXPECT_THAT(k_error(0, 401), HasSubstr("<= K = 400"));
  EXPECT_TRUE(slice_n(view, 32, 40).ok());
  EXPECT_TRUE(slice_k(view, 384, 400).ok());
  PackedView narrow = view;
  narrow.spec.group_size = 16;  // lcm(64, 16) = 64
  narrow.groups_pitch = 25;
  EXPECT_TRUE(slice_k(narrow, 64, 128).ok());
  EXPECT_THAT(slice_k(narrow, 16, 64).status().message(), HasSubstr("multiple of 64"));
}

}  // namespace
}  // namespace mixgemm
