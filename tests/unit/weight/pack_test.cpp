// SPDX-License-Identifier: Apache-2.0
// unpack(pack(w)) == w, and what lies in the packed bytes beside the codes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "layout/packed.hpp"
#include "mixgemm/weight.hpp"
#include "random_weight.hpp"

namespace mixgemm {
namespace {

using testing::describe;
using ::testing::HasSubstr;
using testing::random_weight;
using testing::same;

void expect_round_trip(const CanonicalWeight& weight) {
  const auto packed = pack(weight);
  ASSERT_TRUE(packed.ok()) << packed.status().message();
  const auto back = unpack(packed->view());
  ASSERT_TRUE(back.ok()) << back.status().message();
  ASSERT_TRUE(same(weight, *back));
}

// A packed weight's code, by the bijection alone.
int code_at(const PackedView& view, std::int64_t n, std::int64_t k) {
  const int bits = bits_of(view.spec.type);
  const std::uint8_t* cell = view.codes + n / layout::kStripRows * view.codes_pitch_bytes +
                             k / layout::kBlockK * layout::cell_bytes(bits);
  const layout::Place place = layout::place_of(
      {static_cast<int>(n % layout::kStripRows), static_cast<int>(k % layout::kBlockK)}, bits);
  std::uint32_t word;
  std::memcpy(&word, cell + 4 * place.word, sizeof(word));
  return static_cast<int>(word >> place.bit & ((1u << bits) - 1));
}

TEST(PackRoundTrip, EverySmallShapeAndSpec) {
  std::uint64_t seed = 1;
  for (std::int64_t n = 1; n <= 40; ++n) {
    for (const std::int64_t k : {1, 7, 15, 16, 17, 63, 64, 65, 100, 127, 128, 129, 200}) {
      for (const WeightType type : testing::kWeightTypes) {
        for (const ZeroKind zero : testing::kZeroKinds) {
          for (const int group_size : testing::kGroupSizes) {
            for (const DataType scale_type : testing::kScaleTypes) {
              const QuantSpec spec{type, zero, group_size, scale_type};
              SCOPED_TRACE(describe(n, k, spec) + fmt::format(" seed {}", seed));
              expect_round_trip(random_weight(n, k, spec, seed++));
              if (HasFatalFailure()) return;
            }
          }
        }
      }
    }
  }
}

TEST(PackRoundTrip, RandomLargeShapes) {
  std::mt19937_64 rng(20240607);
  for (int i = 0; i < 12; ++i) {
    const auto n = static_cast<std::int64_t>(1 + rng() % 700);
    const auto k = static_cast<std::int64_t>(1 + rng() % 3000);
    const QuantSpec spec{testing::kWeightTypes[rng() % 2], testing::kZeroKinds[rng() % 3],
                         testing::kGroupSizes[rng() % 5], testing::kScaleTypes[rng() % 2]};
    const std::uint64_t seed = rng();
    SCOPED_TRACE(describe(n, k, spec) + fmt::format(" seed {}", seed));
    expect_round_trip(random_weight(n, k, spec, seed));
  }
}

TEST(Pack, CodesScalesAndZerosLieWhereTheLayoutSays) {
  for (const WeightType type : testing::kWeightTypes) {
    for (const ZeroKind zero : testing::kZeroKinds) {
      const QuantSpec spec{type, zero, 32, DataType::f16};
      const CanonicalWeight weight = random_weight(37, 200, spec, 5);
      const auto packed = pack(weight);
      ASSERT_TRUE(packed.ok());
      const PackedView& view = packed->view();
      for (std::int64_t n = 0; n < weight.n; ++n) {
        for (std::int64_t k = 0; k < weight.k; ++k) {
          ASSERT_EQ(code_at(view, n, k), weight.codes[n * weight.k + k]);
        }
        for (std::int64_t g = 0; g < weight.groups(); ++g) {
          const std::int64_t from = n * weight.groups() + g;
          const std::int64_t at = layout::scale_index(n, g, view.groups_pitch);
          EXPECT_EQ(view.scales[at], weight.scales[from]);
          if (zero == ZeroKind::integer) {
            EXPECT_EQ(static_cast<const std::uint8_t*>(view.zeros)[at], weight.zeros[from]);
          } else if (zero == ZeroKind::scaled) {
            EXPECT_EQ(static_cast<const std::uint16_t*>(view.zeros)[at], weight.scaled_zeros[from]);
          } else {
            EXPECT_EQ(view.zeros, nullptr);
          }
        }
      }
    }
  }
}

// Kernels read whole cells: what lies beyond N and K must be worth 0 or at least be finite.
TEST(Pack, PaddingIsTheZeroCodeAndZeroScales) {
  for (const WeightType type : testing::kWeightTypes) {
    for (const ZeroKind zero : testing::kZeroKinds) {
      const QuantSpec spec{type, zero, 16, DataType::bf16};
      const auto packed = pack(random_weight(19, 100, spec, 6));
      ASSERT_TRUE(packed.ok());
      const PackedView& view = packed->view();
      const int padding = zero == ZeroKind::none ? implicit_zero(type) : 0;
      for (std::int64_t n = 0; n < 32; ++n) {
        for (std::int64_t k = 0; k < 128; ++k) {
          if (n < 19 && k < 100) continue;
          ASSERT_EQ(code_at(view, n, k), padding) << n << ", " << k;
        }
        for (std::int64_t g = 0; n >= 19 && g < 7; ++g) {
          const std::int64_t at = layout::scale_index(n, g, view.groups_pitch);
          EXPECT_EQ(view.scales[at], 0);
          if (zero == ZeroKind::integer) {
            EXPECT_EQ(static_cast<const std::uint8_t*>(view.zeros)[at], 0);
          }
          if (zero == ZeroKind::scaled) {
            EXPECT_EQ(static_cast<const std::uint16_t*>(view.zeros)[at], 0);
          }
        }
      }
    }
  }
}

TEST(Pack, PartsAre256ByteAlignedAndSizesCountThePadding) {
  const QuantSpec spec{WeightType::int4, ZeroKind::integer, 32, DataType::f16};
  const auto packed = pack(random_weight(17, 65, spec, 7));
  ASSERT_TRUE(packed.ok());
  const PackedView& view = packed->view();
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(view.codes) % 256, 0u);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(view.scales) % 256, 0u);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(view.zeros) % 256, 0u);
  EXPECT_EQ(view.codes_pitch_bytes, 2 * 512);
  EXPECT_EQ(view.groups_pitch, 3);
  EXPECT_EQ(packed->size_bytes(), 2u * (2 * 512 + 3 * 16 * (2 + 1)));
  EXPECT_EQ(PackedWeight().size_bytes(), 0u);

  const QuantSpec wide{WeightType::int8, ZeroKind::scaled, 0, DataType::bf16};
  EXPECT_EQ(pack(random_weight(16, 64, wide, 8)).value().size_bytes(), 1024u + 16 * (2 + 2));
}

TEST(Pack, SameBytesForEveryThreadCount) {
  const QuantSpec spec{WeightType::int4, ZeroKind::scaled, 64, DataType::f16};
  const CanonicalWeight weight = random_weight(333, 1000, spec, 9);
  const auto one = pack(weight, 1);
  ASSERT_TRUE(one.ok());
  for (const int threads : {2, 3, 8}) {
    const auto many = pack(weight, threads);
    ASSERT_TRUE(many.ok());
    const std::size_t bytes = 21 * one->view().codes_pitch_bytes;
    EXPECT_EQ(std::memcmp(one->view().codes, many->view().codes, bytes), 0);
    EXPECT_TRUE(same(unpack(many->view(), threads).value(), weight));
  }
}

TEST(Pack, NamesTheCodeThatIsTooLarge) {
  CanonicalWeight weight =
      random_weight(40, 200, {WeightType::int4, ZeroKind::none, 64, DataType::f16}, 10);
  weight.codes[33 * 200 + 150] = 16;
  const auto packed = pack(weight);
  ASSERT_FALSE(packed.ok());
  EXPECT_EQ(packed.status().code(), StatusCode::invalid_argument);
  EXPECT_THAT(packed.status().message(), HasSubstr("row 33, k 150 is 16"));
}

TEST(Unpack, RefusesViewsThatContradictThemselves) {
  const QuantSpec spec{WeightType::int4, ZeroKind::integer, 32, DataType::f16};
  const auto packed = pack(random_weight(16, 128, spec, 11));
  ASSERT_TRUE(packed.ok());
  const auto refusal = [&](auto&& change) {
    PackedView view = packed->view();
    change(view);
    const auto result = unpack(view);
    EXPECT_FALSE(result.ok());
    EXPECT_EQ(result.status().code(), StatusCode::invalid_argument);
    return result.status().message();
  };
  EXPECT_THAT(refusal([](PackedView& v) { v.device = Device::cuda; }), HasSubstr("cuda"));
  EXPECT_THAT(refusal([](PackedView& v) { v.n = 0; }),
              HasSubstr("N must be 1 .. 2147483647; got 0"));
  EXPECT_THAT(refusal([](PackedView& v) { v.k = -3; }),
              HasSubstr("K must be 1 .. 2147483647; got -3"));
  EXPECT_THAT(refusal([](PackedView& v) { v.codes = nullptr; }), HasSubstr("codes"));
  EXPECT_THAT(refusal([](PackedView& v) { v.codes += 8; }), HasSubstr("8 bytes past"));
  EXPECT_THAT(refusal([](PackedView& v) { v.scales = nullptr; }), HasSubstr("scales"));
  EXPECT_THAT(refusal([](PackedView& v) { v.zeros = nullptr; }), HasSubstr("must have zeros"));
  EXPECT_THAT(refusal([](PackedView& v) { v.spec.zero = ZeroKind::none; }),
              HasSubstr("must have no zeros"));
  EXPECT_THAT(refusal([](PackedView& v) { v.codes_pitch_bytes = 1008; }), HasSubstr("got 1008"));
  EXPECT_THAT(refusal([](PackedView& v) { v.groups_pitch = 3; }), HasSubstr("got 3"));
  EXPECT_THAT(refusal([](PackedView& v) { v.spec.group_size = 48; }), HasSubstr("got 48"));
}

}  // namespace
}  // namespace mixgemm
