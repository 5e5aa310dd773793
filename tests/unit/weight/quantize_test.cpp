// SPDX-License-Identifier: Apache-2.0
// What quantize() promises: nearest codes, the best clip, exact zeros, the same bits everywhere,
// and a named reason where it can't.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <malloc.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "mixgemm/weight.hpp"
#include "random_weight.hpp"
#include "weight/quantize_lanes.hpp"

namespace mixgemm {
namespace {

using testing::describe;
using ::testing::HasSubstr;
using testing::random_dense;
using testing::same;

QuantizeOptions options_for(const QuantSpec& spec, bool search_clip) {
  QuantizeOptions options;
  options.spec = spec;
  options.search_clip = search_clip;
  return options;
}

CanonicalWeight quantize_f32(const std::vector<float>& dense, std::int64_t n, std::int64_t k,
                             const QuantSpec& spec, bool search_clip) {
  auto weight = quantize(dense.data(), DataType::f32, n, k, k, options_for(spec, search_clip));
  EXPECT_TRUE(weight.ok()) << weight.status().message();
  return std::move(weight).value();
}

// Calls body(spec) for every combination, with a trace.
template <class Body>
void for_each_spec(std::int64_t n, std::int64_t k, const Body& body) {
  for (const WeightType type : testing::kWeightTypes) {
    for (const ZeroKind zero : testing::kZeroKinds) {
      for (const int group_size : testing::kGroupSizes) {
        for (const DataType scale_type : testing::kScaleTypes) {
          const QuantSpec spec{type, zero, group_size, scale_type};
          SCOPED_TRACE(describe(n, k, spec));
          body(spec);
          if (::testing::Test::HasFatalFailure()) return;
        }
      }
    }
  }
}

std::int64_t group_index(const CanonicalWeight& w, std::int64_t n, std::int64_t k) {
  return n * w.groups() + (w.spec.group_size == 0 ? 0 : k / w.spec.group_size);
}

double scale_of(const CanonicalWeight& w, std::int64_t group) {
  return f32_from_bits(w.scales[group], w.spec.scale_type);
}

// What a code is worth.
double value_of(const CanonicalWeight& w, std::int64_t group, int code) {
  const double scale = scale_of(w, group);
  switch (w.spec.zero) {
    case ZeroKind::none: return (code - implicit_zero(w.spec.type)) * scale;
    case ZeroKind::integer: return (code - w.zeros[group]) * scale;
    case ZeroKind::scaled:
      return code * scale - f32_from_bits(w.scaled_zeros[group], w.spec.scale_type);
  }
  return 0;
}

double squared_error(const CanonicalWeight& w, const std::vector<float>& dense) {
  double sum = 0;
  for (std::int64_t n = 0; n < w.n; ++n) {
    for (std::int64_t k = 0; k < w.k; ++k) {
      const std::int64_t at = n * w.k + k;
      const double off = value_of(w, group_index(w, n, k), w.codes[at]) - dense[at];
      sum += off * off;
    }
  }
  return sum;
}

TEST(Quantize, EveryCodeIsTheNearest) {
  constexpr std::int64_t n = 19;
  constexpr std::int64_t k = 300;
  const auto dense = random_dense(n, k, 41);
  for (const bool search : {false, true}) {
    for_each_spec(n, k, [&](const QuantSpec& spec) {
      const CanonicalWeight w = quantize_f32(dense, n, k, spec, search);
      ASSERT_TRUE(validate(w).ok());
      const int max_code = (1 << bits_of(spec.type)) - 1;
      for (std::int64_t i = 0; i < n * k; ++i) {
        const std::int64_t g = group_index(w, i / k, i % k);
        // Computed in fp32, where a code is exact to about 2^-15 of a step.
        const double slack = 1e-4 * scale_of(w, g);
        const double off = std::abs(value_of(w, g, w.codes[i]) - dense[i]);
        if (w.codes[i] > 0) {
          ASSERT_LE(off, std::abs(value_of(w, g, w.codes[i] - 1) - dense[i]) + slack) << i;
        }
        if (w.codes[i] < max_code) {
          ASSERT_LE(off, std::abs(value_of(w, g, w.codes[i] + 1) - dense[i]) + slack) << i;
        }
      }
    });
  }
}

TEST(Quantize, WithoutSearchNothingIsClippedByMoreThanTheRoundingOfScaleAndZero) {
  constexpr std::int64_t n = 21;
  constexpr std::int64_t k = 260;
  const auto dense = random_dense(n, k, 42);
  for_each_spec(n, k, [&](const QuantSpec& spec) {
    const CanonicalWeight w = quantize_f32(dense, n, k, spec, false);
    const double ulp = spec.scale_type == DataType::bf16 ? 0x1p-8 : 0x1p-11;
    for (std::int64_t i = 0; i < n * k; ++i) {
      const std::int64_t g = group_index(w, i / k, i % k);
      const double off = std::abs(value_of(w, g, w.codes[i]) - dense[i]);
      // A rounded integer zero may shift the range by half a step more.
      const double steps = spec.zero == ZeroKind::integer ? 1.0 : 0.5;
      ASSERT_LE(off, (steps + 1e-3) * scale_of(w, g) + ulp * std::abs(dense[i])) << i;
    }
  });
}

// The scale and zero of a clipping ratio, written from the definition, and the error that follows.
double best_error_by_brute_force(const std::vector<float>& group, const QuantSpec& spec) {
  const auto [low, high] = std::minmax_element(group.begin(), group.end());
  const double max_code = (1 << bits_of(spec.type)) - 1;
  const double half_range = 1 << (bits_of(spec.type) - 1);
  const auto rounded = [&](double v) -> double {
    return f32_from_bits(bits_from_f32(static_cast<float>(v), spec.scale_type), spec.scale_type);
  };
  double best = std::numeric_limits<double>::infinity();
  for (double ratio = 1.0; ratio > 0.15; ratio -= 0.005) {
    double scale = 0;
    double shift = 0;  // w = q·scale − shift
    if (spec.zero == ZeroKind::none) {
      scale = rounded(ratio * std::max<double>(*high, -*low) / (half_range - 1));
      shift = half_range * scale;
    } else if (spec.zero == ZeroKind::integer) {
      const double from = ratio * std::min(*low, 0.0f);
      scale = rounded((ratio * std::max(*high, 0.0f) - from) / max_code);
      shift = std::clamp(std::nearbyint(-from / scale), 0.0, max_code) * scale;
    } else {
      const double middle = (double{*low} + *high) / 2;
      const double reach = ratio * (double{*high} - *low) / 2;
      shift = rounded(reach - middle);
      scale = rounded((middle + reach + shift) / max_code);
    }
    double error = 0;
    for (const double w : group) {
      const double code = std::clamp(std::nearbyint((w + shift) / scale), 0.0, max_code);
      error += (code * scale - shift - w) * (code * scale - shift - w);
    }
    best = std::min(best, error);
  }
  return best;
}

TEST(QuantizeSearch, ComesCloseToBruteForceAndNeverLosesToNoSearch) {
  constexpr std::int64_t n = 32;
  constexpr std::int64_t k = 256;
  const auto dense = random_dense(n, k, 43);
  for_each_spec(n, k, [&](const QuantSpec& spec) {
    const CanonicalWeight searched = quantize_f32(dense, n, k, spec, true);
    const CanonicalWeight unclipped = quantize_f32(dense, n, k, spec, false);
    const std::int64_t length = spec.group_size == 0 ? k : spec.group_size;
    double brute = 0;
    for (std::int64_t i = 0; i < n * k; i += length) {
      const std::vector<float> group(dense.begin() + i, dense.begin() + i + length);
      brute += best_error_by_brute_force(group, spec);
    }
    EXPECT_LE(squared_error(searched, dense), 1.02 * brute);
    for (std::int64_t row = 0; row < n; ++row) {
      const auto row_of = [&](const CanonicalWeight& w) {
        return testing::cut(w, row, row + 1, 0, k);
      };
      const std::vector<float> dense_row(dense.begin() + row * k, dense.begin() + (row + 1) * k);
      EXPECT_LE(squared_error(row_of(searched), dense_row),
                squared_error(row_of(unclipped), dense_row) * (1 + 1e-4));
    }
  });
}

TEST(QuantizeSearch, PaysWhereAnOutlierStretchesTheRange) {
  std::vector<float> dense = random_dense(1, 128, 44);
  dense[17] = 0.25f;  // eight times the others' deviation
  const QuantSpec spec{WeightType::int4, ZeroKind::none, 128, DataType::f16};
  const double searched = squared_error(quantize_f32(dense, 1, 128, spec, true), dense);
  const double unclipped = squared_error(quantize_f32(dense, 1, 128, spec, false), dense);
  EXPECT_LT(searched, 0.95 * unclipped);
}

TEST(Quantize, ZeroGroupsAreExactlyZero) {
  constexpr std::int64_t n = 5;
  constexpr std::int64_t k = 200;
  std::vector<float> dense = random_dense(n, k, 45);
  std::fill(dense.begin() + k, dense.begin() + 2 * k, 0.0f);
  for (std::int64_t i = 2 * k; i < 3 * k; ++i) dense[i] = i % 2 == 0 ? 0.0f : -0.0f;
  for_each_spec(n, k, [&](const QuantSpec& spec) {
    const CanonicalWeight w = quantize_f32(dense, n, k, spec, true);
    ASSERT_TRUE(validate(w).ok());
    const auto back = dequantize(w).value();
    for (std::int64_t i = k; i < 3 * k; ++i) ASSERT_EQ(back[i], 0.0f) << i;
  });
}

TEST(Quantize, ZeroWeightsStayZeroUnderNoneAndIntegerZeros) {
  constexpr std::int64_t n = 7;
  constexpr std::int64_t k = 256;
  std::vector<float> dense = random_dense(n, k, 46);
  for (std::size_t i = 0; i < dense.size(); ++i) {
    dense[i] = i % 3 == 0 ? 0.0f : std::abs(dense[i]) + 0.1f;  // one-sided: zero is at the edge
  }
  for_each_spec(n, k, [&](const QuantSpec& spec) {
    if (spec.zero == ZeroKind::scaled) return;
    const auto back = dequantize(quantize_f32(dense, n, k, spec, true)).value();
    for (std::size_t i = 0; i < dense.size(); i += 3) ASSERT_EQ(back[i], 0.0f) << i;
  });
}

TEST(Quantize, RecoversTheCodesOfAWeightThatIsOnTheGrid) {
  std::mt19937_64 rng(47);
  constexpr std::int64_t n = 18;
  constexpr std::int64_t k = 256;
  for_each_spec(n, k, [&](const QuantSpec& spec) {
    CanonicalWeight w = testing::random_weight(n, k, spec, rng());
    const int max_code = (1 << bits_of(spec.type)) - 1;
    for (auto& scale : w.scales) {
      scale = bits_from_f32(0.01f + static_cast<float>(rng() % 100) / 1000, spec.scale_type);
    }
    for (std::int64_t g = 0; g < n * w.groups(); ++g) {
      // Each group reaches both ends of what its zero allows.
      const std::int64_t length = spec.group_size == 0 ? k : spec.group_size;
      const std::int64_t first = g / w.groups() * k + g % w.groups() * length;
      w.codes[first] = spec.zero == ZeroKind::none ? 1 : 0;
      w.codes[first + 1] = static_cast<std::uint8_t>(max_code);
      if (spec.zero == ZeroKind::none) {
        for (std::int64_t i = 0; i < length; ++i) {
          w.codes[first + i] = std::max<std::uint8_t>(w.codes[first + i], 1);
        }
      }
      if (spec.zero == ZeroKind::scaled) {
        w.scaled_zeros[g] = bits_from_f32(static_cast<float>(rng() % 64) / 64, spec.scale_type);
      }
    }
    const auto dense = dequantize(w).value();
    EXPECT_TRUE(same(w, quantize_f32(dense, n, k, spec, false)));
    EXPECT_TRUE(same(w, quantize_f32(dense, n, k, spec, true)));
  });
}

TEST(Quantize, SameBitsForEveryThreadCount) {
  constexpr std::int64_t n = 150;
  constexpr std::int64_t k = 1100;
  const auto dense = random_dense(n, k, 48);
  for (const int group_size : testing::kGroupSizes) {
    QuantizeOptions options =
        options_for({WeightType::int4, ZeroKind::scaled, group_size, DataType::bf16}, true);
    options.num_threads = 1;
    const auto one = quantize(dense.data(), DataType::f32, n, k, k, options);
    ASSERT_TRUE(one.ok());
    for (const int threads : {2, 5, 0}) {
      options.num_threads = threads;
      const auto many = quantize(dense.data(), DataType::f32, n, k, k, options);
      ASSERT_TRUE(many.ok());
      EXPECT_TRUE(same(*one, *many)) << threads << " threads, group " << group_size;
    }
  }
}

TEST(Quantize, SameBitsOnEveryInstructionSet) {
  constexpr std::int64_t length = 300;  // more than one chunk of the search
  std::mt19937_64 rng(49);
  std::uniform_real_distribution<float> exponent(-30, 10);
  std::vector<float> x(length * kQuantizeLanes);
  for (const DataType type : testing::kScaleTypes) {
    for (const ZeroKind zero : testing::kZeroKinds) {
      for (const int bits : {4, 8}) {
        for (int round = 0; round < 20; ++round) {
          for (auto& w : x) w = std::ldexp(static_cast<float>(rng() % 2001) - 1000, -10);
          for (int r = 0; r < kQuantizeLanes; ++r) {
            const float factor = std::exp2(exponent(rng));
            for (std::int64_t k = 0; k < length; ++k) x[k * kQuantizeLanes + r] *= factor;
          }
          const GroupJob job{x.data(), length, zero, bits, type, true};
          GroupResult results[2];
          std::vector<std::uint8_t> codes[2];
          for (const int i : {0, 1}) {
            codes[i].resize(x.size());
            const LaneKernels& kernels = i == 0 ? lane_kernels() : portable_lane_kernels();
            kernels.quantize_group(job, results[i], codes[i].data());
          }
          EXPECT_EQ(codes[0], codes[1]) << "seed 49, round " << round;
          EXPECT_EQ(std::memcmp(results[0].scale, results[1].scale, sizeof(results[0].scale)), 0);
          EXPECT_EQ(std::memcmp(results[0].zero, results[1].zero, sizeof(results[0].zero)), 0);
          EXPECT_EQ(results[0].scale_overflow, results[1].scale_overflow);
          EXPECT_EQ(results[0].zero_overflow, results[1].zero_overflow);
        }
      }
    }
  }
}

TEST(Quantize, ConvertsEvery16BitFloatExactly) {
  for (const DataType type : testing::kScaleTypes) {
    std::vector<std::uint16_t> bits(65536);
    for (std::size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<std::uint16_t>(i);
    for (const LaneKernels* kernels : {&lane_kernels(), &portable_lane_kernels()}) {
      std::vector<float> values(65535);  // an odd count, so that a tail remains
      kernels->to_float(bits.data() + 1, type, 65535, values.data());
      for (std::size_t i = 0; i < values.size(); ++i) {
        const float expected = f32_from_bits(bits[i + 1], type);
        if (std::isnan(expected)) {
          ASSERT_TRUE(std::isnan(values[i])) << i;
        } else {
          ASSERT_EQ(std::bit_cast<std::uint32_t>(values[i]), std::bit_cast<std::uint32_t>(expected))
              << i;
        }
      }
    }
  }
}

TEST(Quantize, InputTypeAndLeadingDimensionDontMatter) {
  constexpr std::int64_t n = 20;
  constexpr std::int64_t k = 130;
  constexpr std::int64_t ldw = 141;
  const QuantSpec spec{WeightType::int4, ZeroKind::integer, 64, DataType::f16};
  auto dense = random_dense(n, k, 50);
  for (const DataType type : testing::kScaleTypes) {
    for (auto& w : dense) w = f32_from_bits(bits_from_f32(w, type), type);
    // Between the rows: NaN, which nobody may read.
    std::vector<std::uint16_t> halves(n * ldw, 0x7fff);
    std::vector<float> floats(n * ldw, std::numeric_limits<float>::quiet_NaN());
    for (std::int64_t i = 0; i < n * k; ++i) {
      halves[i / k * ldw + i % k] = bits_from_f32(dense[i], type);
      floats[i / k * ldw + i % k] = dense[i];
    }
    const CanonicalWeight expected = quantize_f32(dense, n, k, spec, true);
    const QuantizeOptions options = options_for(spec, true);
    EXPECT_TRUE(same(expected, quantize(halves.data(), type, n, k, ldw, options).value()));
    EXPECT_TRUE(same(expected, quantize(floats.data(), DataType::f32, n, k, ldw, options).value()));
  }
}

TEST(Quantize, NamesTheFirstWeightThatIsNotFinite) {
  constexpr std::int64_t n = 70;
  constexpr std::int64_t k = 500;
  for (const ZeroKind zero : testing::kZeroKinds) {
    const QuantizeOptions options = options_for({WeightType::int4, zero, 128, DataType::f16}, true);
    auto dense = random_dense(n, k, 51);
    dense[69 * k + 3] = std::numeric_limits<float>::infinity();
    dense[33 * k + 499] = std::numeric_limits<float>::quiet_NaN();
    for (const auto& result :
         {quantize(dense.data(), DataType::f32, n, k, k, options).status(),
          quantize_packed(dense.data(), DataType::f32, n, k, k, options).status()}) {
      EXPECT_EQ(result.code(), StatusCode::invalid_argument);
      EXPECT_THAT(result.message(), HasSubstr("weights must be finite; row 33, column 499 is nan"));
    }
    std::vector<std::uint16_t> halves(n * k, 0);
    halves[69 * k] = 0xfc00;
    EXPECT_THAT(quantize(halves.data(), DataType::f16, n, k, k, options).status().message(),
                HasSubstr("row 69, column 0 is -inf"));
  }
}

TEST(Quantize, NamesTheFirstGroupWhoseScaleOverflows) {
  constexpr std::int64_t n = 40;
  constexpr std::int64_t k = 256;
  for (const ZeroKind zero : testing::kZeroKinds) {
    auto dense = random_dense(n, k, 52);
    dense[20 * k + 130] = 3e38f;
    dense[30 * k + 5] = -3e38f;
    QuantSpec spec{WeightType::int8, zero, 64, DataType::f16};
    const auto refused = quantize(dense.data(), DataType::f32, n, k, k, options_for(spec, true));
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(refused.status().message(),
              "scale of row 20, group 2 is beyond the largest f16, 65504");
    spec.scale_type = DataType::bf16;
    EXPECT_TRUE(validate(quantize_f32(dense, n, k, spec, true)).ok());
  }
  // A range that fits, far from zero.
  std::vector<float> far(64, 70000.0f);
  far[5] = 70001.0f;
  const QuantSpec spec{WeightType::int4, ZeroKind::scaled, 64, DataType::f16};
  const auto refused = quantize(far.data(), DataType::f32, 1, 64, 64, options_for(spec, true));
  EXPECT_EQ(refused.status().message(),
            "scaled zero of row 0, group 0 is beyond the largest f16, 65504");
}

TEST(Quantize, LargestFiniteWeightsWork) {
  std::vector<float> dense(128);
  for (std::size_t i = 0; i < dense.size(); ++i) {
    dense[i] = (i % 2 == 0 ? 1 : -1) * std::numeric_limits<float>::max();
  }
  for (const ZeroKind zero : testing::kZeroKinds) {
    for (const WeightType type : testing::kWeightTypes) {
      const QuantSpec spec{type, zero, 64, DataType::bf16};
      const auto w = quantize(dense.data(), DataType::f32, 1, 128, 128, options_for(spec, true));
      // The zero of the scaled kind is the largest float itself, which no bf16 is.
      if (zero == ZeroKind::scaled) {
        EXPECT_THAT(w.status().message(), HasSubstr("scaled zero of row 0, group 0"));
        continue;
      }
      ASSERT_TRUE(w.ok()) << w.status().message();
      const auto back = dequantize(*w).value();
      for (const float value : back) {
        EXPECT_GT(std::abs(value), 0.9f * std::numeric_limits<float>::max());
      }
    }
  }
}

TEST(Quantize, TinyWeightsKeepTheErrorOfHalfTheSmallestStep) {
  std::mt19937_64 rng(53);
  constexpr std::int64_t n = 16;
  constexpr std::int64_t k = 64;
  std::vector<float> dense(n * k);
  for (int exponent = -149; exponent <= -14; ++exponent) {
    for (auto& w : dense) {
      w = static_cast<float>(std::ldexp(static_cast<double>(rng() % 2001) / 1000 - 1, exponent));
    }
    for (const WeightType type : testing::kWeightTypes) {
      for (const ZeroKind zero : testing::kZeroKinds) {
        for (const DataType scale_type : testing::kScaleTypes) {
          const QuantSpec spec{type, zero, 32, scale_type};
          SCOPED_TRACE(describe(n, k, spec) + fmt::format(" 2^{}", exponent));
          const CanonicalWeight w = quantize_f32(dense, n, k, spec, false);
          ASSERT_TRUE(validate(w).ok());
          const double smallest = scale_type == DataType::bf16 ? 0x1p-126 : 0x1p-24;
          const double largest = std::ldexp(1.0, exponent);
          const double ulp = scale_type == DataType::bf16 ? 0x1p-8 : 0x1p-11;
          for (std::int64_t i = 0; i < n * k; ++i) {
            const std::int64_t g = group_index(w, i / k, i % k);
            const double step = std::max(scale_of(w, g), smallest);
            ASSERT_LE(std::abs(value_of(w, g, w.codes[i]) - dense[i]), 1.01 * step + ulp * largest);
          }
        }
      }
    }
  }
}

TEST(Quantize, RefusesBadArgumentsAndNamesTheRule) {
  const std::vector<float> dense(64 * 64, 1.0f);
  const QuantSpec good{WeightType::int4, ZeroKind::none, 64, DataType::f16};
  const auto refusal = [&](const void* w, DataType type, std::int64_t n, std::int64_t k,
                           std::int64_t ldw, const QuantSpec& spec) {
    const QuantizeOptions options = options_for(spec, true);
    const Status status = quantize(w, type, n, k, ldw, options).status();
    EXPECT_EQ(status.code(), StatusCode::invalid_argument);
    EXPECT_EQ(quantize_packed(w, type, n, k, ldw, options).status().message(), status.message());
    return status.message();
  };
  const void* w = dense.data();
  EXPECT_THAT(refusal(nullptr, DataType::f32, 64, 64, 64, good), HasSubstr("null"));
  EXPECT_THAT(refusal(w, DataType::f32, 0, 64, 64, good), HasSubstr("N must be 1 .. "));
  EXPECT_THAT(refusal(w, DataType::f32, 64, 0, 64, good), HasSubstr("K must be 1 .. "));
  EXPECT_THAT(refusal(w, DataType::f32, 64, -1, 64, good), HasSubstr("got -1"));
  EXPECT_THAT(refusal(w, DataType::f32, 64, 64, 63, good),
              HasSubstr("ldw must be at least K = 64; got 63"));
  EXPECT_THAT(refusal(w, DataType::f32, 64, 64, INT64_MAX / 2, good), HasSubstr("address space"));
  EXPECT_THAT(refusal(w, static_cast<DataType>(9), 64, 64, 64, good), HasSubstr("enumerator 9"));
  QuantSpec bad = good;
  bad.group_size = 256;
  EXPECT_THAT(refusal(w, DataType::f32, 64, 64, 64, bad), HasSubstr("got 256"));
  bad = good;
  bad.scale_type = DataType::f32;
  EXPECT_THAT(refusal(w, DataType::f32, 64, 64, 64, bad), HasSubstr("scale type"));
}

TEST(Quantize, ReportsProgressInOrderUpToOne) {
  constexpr std::int64_t n = 512;
  constexpr std::int64_t k = 1024;
  const auto dense = random_dense(n, k, 54);
  QuantizeOptions options =
      options_for({WeightType::int4, ZeroKind::none, 128, DataType::f16}, false);
  options.num_threads = 4;
  std::vector<double> fractions;
  std::atomic<int> inside{0};
  options.progress = [&](double fraction) {
    EXPECT_EQ(inside.fetch_add(1), 0) << "two calls at a time";
    fractions.push_back(fraction);
    inside.fetch_sub(1);
  };
  ASSERT_TRUE(quantize(dense.data(), DataType::f32, n, k, k, options).ok());
  ASSERT_FALSE(fractions.empty());
  EXPECT_TRUE(std::is_sorted(fractions.begin(), fractions.end()));
  EXPECT_GT(fractions.front(), 0);
  EXPECT_EQ(fractions.back(), 1);
}

TEST(QuantizePacked, GivesTheBytesOfPackAfterQuantize) {
  for (const std::int64_t n : {1, 16, 37}) {
    for (const std::int64_t k : {1, 7, 64, 100, 129, 300}) {
      const auto dense = random_dense(n, k, 55);
      for_each_spec(n, k, [&](const QuantSpec& spec) {
        const QuantizeOptions options = options_for(spec, true);
        const auto expected = pack(quantize_f32(dense, n, k, spec, true));
        const auto got = quantize_packed(dense.data(), DataType::f32, n, k, k, options);
        ASSERT_TRUE(got.ok()) << got.status().message();
        ASSERT_EQ(got->size_bytes(), expected->size_bytes());
        const PackedView& a = expected->view();
        const PackedView& b = got->view();
        const std::int64_t strips = (n + 15) / 16;
        const std::int64_t per_group = strips * a.groups() * 16;
        const std::int64_t zero_bytes = spec.zero == ZeroKind::none      ? 0
                                        : spec.zero == ZeroKind::integer ? 1
                                                                         : 2;
        ASSERT_EQ(a.codes_pitch_bytes, b.codes_pitch_bytes);
        ASSERT_EQ(a.groups_pitch, b.groups_pitch);
        // Padding included.
        ASSERT_EQ(std::memcmp(a.codes, b.codes, strips * a.codes_pitch_bytes), 0);
        ASSERT_EQ(std::memcmp(a.scales, b.scales, 2 * per_group), 0);
        if (zero_bytes > 0) {
          ASSERT_EQ(std::memcmp(a.zeros, b.zeros, zero_bytes * per_group), 0);
        }
      });
    }
  }
}

TEST(QuantizePacked, NeedsNoMoreThanAFewStripsBesideItsResult) {
  constexpr std::int64_t n = 512;
  constexpr std::int64_t k = 4096;
  const std::vector<float> dense = random_dense(n, k, 56);
  const auto allocated = [] {
    const struct mallinfo2 info = mallinfo2();
    return info.uordblks + info.hblkhd;  // what a sanitizer's allocator reports as 0
  };
  for (const int group_size : {0, 128}) {
    QuantizeOptions options =
        options_for({WeightType::int8, ZeroKind::none, group_size, DataType::f16}, true);
    options.num_threads = 1;  // one thread's working memory, in the main arena
    const std::size_t before = allocated();
    std::size_t peak = before;
    options.progress = [&](double) { peak = std::max(peak, allocated()); };
    const auto packed = quantize_packed(dense.data(), DataType::f32, n, k, k, options);
    ASSERT_TRUE(packed.ok());
    constexpr std::size_t kStripBytes = 16 * k * sizeof(float);
    EXPECT_LT(peak - before, packed->size_bytes() + 3 * kStripBytes);
  }
}

}  // namespace
}  // namespace mixgemm
