// SPDX-License-Identifier: Apache-2.0
// NOTE: compiled with -ffp-contract=off (CMakeLists.txt): a fused multiply-add on machines that
// have one would change codes from machine to machine.
//
// Highway compiles this file once per target; which one runs is decided at the bottom, by hand,
// because Highway's own dispatcher would make its shared library a dependency.
#include "weight/quantize_lanes.hpp"

#include <hwy/detect_targets.h>

// Baseline and AVX2 only: AVX-512 gains little here, since transposing and converting remain.
#undef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3 | HWY_AVX3_DL)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "weight/quantize_lanes.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>

#include "util/half.hpp"

HWY_BEFORE_NAMESPACE();
namespace mixgemm {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::CappedTag<float, kQuantizeLanes>;
using Bits = hn::RebindToUnsigned<Floats>;
using Ints = hn::RebindToSigned<Floats>;
using Vec = hn::Vec<Floats>;

// Clipping ratios that the search tries: first the coarse ones, then steps around each row's best.
struct Ratios {
  float coarse[9];
  float fine_steps[4];
};
// A Gaussian group of 128 int4 codes is best at about 0.8; a whole row with outliers may want 0.3.
// The result is within 1.5 % of the error that ratios in steps of 0.005 reach.
constexpr Ratios kRatiosInt4 = {{1.0f, 0.9f, 0.8f, 0.7f, 0.6f, 0.5f, 0.4f, 0.3f, 0.2f},
                                {-0.05f, -0.025f, 0.025f, 0.05f}};
// With 255 steps clipping rarely pays; what pays is a scale that suits the group's extremes, such
// as a negative one at code 0 (ratio 127/128).
constexpr Ratios kRatiosInt8 = {{1.0f, 0.9925f, 0.985f, 0.9775f, 0.97f, 0.9f, 0.8f, 0.65f, 0.5f},
                                {-0.00375f, -0.001875f, 0.001875f, 0.00375f}};
constexpr int kNumCoarse = std::size(kRatiosInt4.coarse);
constexpr int kNumFine = std::size(kRatiosInt4.fine_steps);

// k evaluated for all candidates before going on: 8 KB of fp32, which stay in the L1 cache.
constexpr std::int64_t kChunk = 128;

// 2^23: adding and subtracting it rounds a float in [0, 2^22] to the nearest integer, ties to even,
// and between the two the integer sits in the low bits.
constexpr float kRoundMagic = 0x1p23f;

// One way to quantize the group, row by row.
struct Candidate {
  alignas(64) float ratio[kQuantizeLanes];  // of the weights' range that codes reach
  alignas(64) float scale[kQuantizeLanes];
  alignas(64) float zero[kQuantizeLanes];
  alignas(64) float inverse[kQuantizeLanes];  // 1 / scale; 0 for a row without extent
  alignas(64) float error[kQuantizeLanes];    // Σ (code − exact code)²
  alignas(64) float weight[kQuantizeLanes];   // of the error: (scale / unclipped scale)², or +inf
};

// Smallest and largest weight of each row.
struct Range {
  alignas(64) float low[kQuantizeLanes];
  alignas(64) float high[kQuantizeLanes];
};

// fp32 ≥ 0 → nearest value of the scale type, still as fp32; beyond its range a value larger than
// largest().
template <DataType type>
HWY_ATTR Vec round_to(Vec value) {
  const Floats d;
  const Bits du;
  constexpr int dropped = type == DataType::bf16 ? 16 : 13;
  const auto bits = hn::BitCast(du, value);
  const auto odd = hn::And(hn::ShiftRight<dropped>(bits), hn::Set(du, 1));
  const auto rounded = hn::And(hn::Add(hn::Add(bits, hn::Set(du, (1u << (dropped - 1)) - 1)), odd),
                               hn::Set(du, ~((1u << dropped) - 1)));
  const auto normal = hn::BitCast(d, rounded);
  if constexpr (type == DataType::bf16) return normal;
  // Below 2^-14 an fp16's last bit is 2^-24, which is also 0.5's as an fp32.
  const auto half = hn::Set(d, 0.5f);
  const auto subnormal = hn::Sub(hn::Add(value, half), half);
  return hn::IfThenElse(hn::Lt(value, hn::Set(d, 0x1p-14f)), subnormal, normal);
}

template <DataType type>
constexpr float largest() {
  return type == DataType::bf16 ? 0x1.fep127f : 65504.0f;
}

// The scale for an ideal one that spreads its range over `steps` codes. Where the type is coarse
// (fp16 subnormals) it goes up if the nearest value would clip the range by over half a step, and
// bf16 stops at its smallest normal number, whose inverse is finite: a scale is 0 only for a group
// without extent.
template <DataType type>
HWY_ATTR Vec scale_near(Vec ideal, float steps) {
  const Floats d;
  auto scale = round_to<type>(ideal);
  if constexpr (type == DataType::bf16) {
    scale = hn::Max(scale, hn::Set(d, 0x1p-126f));
  } else {
    const auto clips =
        hn::Gt(hn::Mul(ideal, hn::Set(d, steps)), hn::Mul(scale, hn::Set(d, steps + 0.5f)));
    scale = hn::IfThenElse(clips, hn::Add(scale, hn::Set(d, 0x1p-24f)), scale);
  }
  return hn::IfThenElseZero(hn::Gt(ideal, hn::Zero(d)), scale);
}

template <ZeroKind zero>
HWY_ATTR Vec exact_code(Vec x, Vec inverse, Vec offset) {
  if constexpr (zero == ZeroKind::scaled) return hn::Mul(hn::Add(x, offset), inverse);
  return hn::Add(hn::Mul(x, inverse), offset);
}

// The code, plus 2^23.
HWY_ATTR Vec code_above_magic(Vec exact, Vec max_code) {
  const Floats d;
  return hn::Add(hn::Min(hn::Max(exact, hn::Zero(d)), max_code), hn::Set(d, kRoundMagic));
}

// Fills in the range; returns the rows with a non-finite weight.
HWY_ATTR std::uint32_t find_range(const GroupJob& job, Range& range) {
  const Floats d;
  const Ints di;
  alignas(64) std::int32_t magnitudes[kQuantizeLanes];
  for (int r = 0; r < kQuantizeLanes; r += static_cast<int>(hn::Lanes(d))) {
    auto low = hn::LoadU(d, job.x + r);
    auto high = low;
    auto magnitude = hn::Zero(di);
    for (std::int64_t k = 0; k < job.length; ++k) {
      const auto x = hn::LoadU(d, job.x + k * kQuantizeLanes + r);
      low = hn::Min(low, x);
      high = hn::Max(high, x);
      magnitude = hn::Max(magnitude, hn::BitCast(di, hn::Abs(x)));
    }
    hn::StoreU(low, d, range.low + r);
    hn::StoreU(high, d, range.high + r);
    hn::StoreU(magnitude, di, magnitudes + r);
  }
  std::uint32_t nonfinite = 0;
  for (int r = 0; r < kQuantizeLanes; ++r) {
    if (magnitudes[r] >= 0x7f800000) nonfinite |= 1u << r;
  }
  return nonfinite;
}

// A candidate for its ratios, rows r …; unclipped is the one of ratio 1, or `to` itself.
template <ZeroKind zero, DataType type>
HWY_ATTR void fill_candidate(const GroupJob& job, const Range& range, int r,
                             const Candidate& unclipped, Candidate& to) {
  const Floats d;
  const float max_code = static_cast<float>((1 << job.bits) - 1);
  const auto nothing = hn::Zero(d);
  const auto range_low = hn::LoadU(d, range.low + r);
  const auto range_high = hn::LoadU(d, range.high + r);
  const auto shrink = hn::LoadU(d, to.ratio + r);
  const auto limit = hn::Set(d, largest<type>());
  Vec scale, stored;
  auto valid = hn::Eq(nothing, nothing);
  if constexpr (zero == ZeroKind::none) {
    const float steps = static_cast<float>((1 << (job.bits - 1)) - 1);
    const auto reach = hn::Max(hn::Sub(nothing, range_low), range_high);
    scale = scale_near<type>(hn::Div(hn::Mul(reach, shrink), hn::Set(d, steps)), steps);
    stored = hn::Set(d, static_cast<float>(1 << (job.bits - 1)));
  } else if constexpr (zero == ZeroKind::integer) {
    // The range reaches to 0, so that 0 has a code and stays exactly 0.
    const auto low = hn::Mul(hn::Min(range_low, nothing), shrink);
    const auto high = hn::Mul(hn::Max(range_high, nothing), shrink);
    const auto steps = hn::Set(d, max_code);
    scale = scale_near<type>(hn::Sub(hn::Div(high, steps), hn::Div(low, steps)), max_code);
    stored = nothing;  // until the inverse is known
  } else {
    const auto half = hn::Set(d, 0.5f);
    const auto middle = hn::Add(hn::Mul(range_low, half), hn::Mul(range_high, half));
    const auto extent =
        hn::Mul(hn::Sub(hn::Mul(range_high, half), hn::Mul(range_low, half)), shrink);
    const auto low = hn::Sub(middle, extent);
    const auto magnitude = round_to<type>(hn::Abs(low));
    valid = hn::Le(magnitude, limit);
    stored = hn::IfThenElse(hn::Lt(low, nothing), magnitude, hn::Sub(nothing, magnitude));
    // From where the stored zero puts code 0, not from `low`: its rounding may exceed a step.
    const auto high = hn::Add(hn::Add(middle, extent), stored);
    scale = scale_near<type>(hn::Div(high, hn::Set(d, max_code)), max_code);
  }
  valid = hn::And(valid, hn::Le(scale, limit));
  const auto inverse = hn::IfThenElseZero(hn::Gt(scale, nothing), hn::Div(hn::Set(d, 1.0f), scale));
  if constexpr (zero == ZeroKind::integer) {
    const auto low = hn::Mul(hn::Min(range_low, nothing), shrink);
    const auto exact = hn::Mul(hn::Sub(nothing, low), inverse);
    stored = hn::Sub(code_above_magic(exact, hn::Set(d, max_code)), hn::Set(d, kRoundMagic));
  }
  hn::StoreU(scale, d, to.scale + r);
  hn::StoreU(stored, d, to.zero + r);
  hn::StoreU(inverse, d, to.inverse + r);
  hn::StoreU(nothing, d, to.error + r);
  const auto relative = hn::Mul(scale, hn::LoadU(d, unclipped.inverse + r));
  hn::StoreU(hn::IfThenElse(valid, hn::Mul(relative, relative), hn::Inf(d)), d, to.weight + r);
}

template <ZeroKind zero>
HWY_ATTR void add_errors(const GroupJob& job, Candidate* candidates, int num_candidates) {
  const Floats d;
  const auto max_code = hn::Set(d, static_cast<float>((1 << job.bits) - 1));
  const auto magic = hn::Set(d, kRoundMagic);
  for (std::int64_t begin = 0; begin < job.length; begin += kChunk) {
    const std::int64_t end = std::min(job.length, begin + kChunk);
    for (int c = 0; c < num_candidates; ++c) {
      for (int r = 0; r < kQuantizeLanes; r += static_cast<int>(hn::Lanes(d))) {
        const auto inverse = hn::LoadU(d, candidates[c].inverse + r);
        const auto offset = hn::LoadU(d, candidates[c].zero + r);
        auto error = hn::LoadU(d, candidates[c].error + r);
        for (std::int64_t k = begin; k < end; ++k) {
          const auto x = hn::LoadU(d, job.x + k * kQuantizeLanes + r);
          const auto exact = exact_code<zero>(x, inverse, offset);
          const auto code = hn::Sub(code_above_magic(exact, max_code), magic);
          const auto off = hn::Sub(exact, code);
          error = hn::Add(error, hn::Mul(off, off));
        }
        hn::StoreU(error, d, candidates[c].error + r);
      }
    }
  }
}

template <ZeroKind zero>
HWY_ATTR void write_codes(const GroupJob& job, const Candidate& chosen, std::uint8_t* codes) {
  const Floats d;
  const Ints di;
  const hn::Rebind<std::uint8_t, Floats> d8;
  const auto max_code = hn::Set(d, static_cast<float>((1 << job.bits) - 1));
  for (int r = 0; r < kQuantizeLanes; r += static_cast<int>(hn::Lanes(d))) {
    const auto inverse = hn::LoadU(d, chosen.inverse + r);
    const auto offset = hn::LoadU(d, chosen.zero + r);
    for (std::int64_t k = 0; k < job.length; ++k) {
      const auto x = hn::LoadU(d, job.x + k * kQuantizeLanes + r);
      const auto shifted = code_above_magic(exact_code<zero>(x, inverse, offset), max_code);
      const auto code = hn::And(hn::BitCast(di, shifted), hn::Set(di, 0xff));
      hn::StoreU(hn::DemoteTo(d8, code), d8, codes + k * kQuantizeLanes + r);
    }
  }
}

template <ZeroKind zero, DataType type>
HWY_ATTR void fill_candidates(const GroupJob& job, const Range& range, const Candidate& unclipped,
                              Candidate* candidates, int num_candidates) {
  const Floats d;
  for (int c = 0; c < num_candidates; ++c) {
    for (int r = 0; r < kQuantizeLanes; r += static_cast<int>(hn::Lanes(d))) {
      fill_candidate<zero, type>(job, range, r, unclipped, candidates[c]);
    }
  }
}

// Replaces what is best so far, row by row, where a candidate has less error.
HWY_ATTR void keep_best(const Candidate* candidates, int num_candidates, Candidate& best) {
  const Floats d;
  for (int c = 0; c < num_candidates; ++c) {
    const Candidate& other = candidates[c];
    for (int r = 0; r < kQuantizeLanes; r += static_cast<int>(hn::Lanes(d))) {
      const auto error = hn::Mul(hn::LoadU(d, other.error + r), hn::LoadU(d, other.weight + r));
      const auto least = hn::LoadU(d, best.error + r);
      const auto better = hn::Lt(error, least);
      const auto keep = [&](const float* from, float* to) HWY_ATTR {
        hn::StoreU(hn::IfThenElse(better, hn::LoadU(d, from + r), hn::LoadU(d, to + r)), d, to + r);
      };
      hn::StoreU(hn::IfThenElse(better, error, least), d, best.error + r);
      keep(other.ratio, best.ratio);
      keep(other.scale, best.scale);
      keep(other.zero, best.zero);
      keep(other.inverse, best.inverse);
    }
  }
}

// The candidate with the least squared error, row by row.
template <ZeroKind zero, DataType type>
HWY_ATTR void search_clip(const GroupJob& job, const Range& range, const Candidate& unclipped,
                          Candidate& best) {
  const Ratios& ratios = job.bits == 4 ? kRatiosInt4 : kRatiosInt8;
  Candidate coarse[kNumCoarse];
  for (int c = 0; c < kNumCoarse; ++c) {
    std::fill_n(coarse[c].ratio, kQuantizeLanes, ratios.coarse[c]);
  }
  fill_candidates<zero, type>(job, range, unclipped, coarse, kNumCoarse);
  add_errors<zero>(job, coarse, kNumCoarse);
  best = coarse[0];
  keep_best(coarse + 1, kNumCoarse - 1, best);

  Candidate fine[kNumFine];
  for (int c = 0; c < kNumFine; ++c) {
    for (int r = 0; r < kQuantizeLanes; ++r) {
      fine[c].ratio[r] = std::min(1.0f, best.ratio[r] + ratios.fine_steps[c]);
    }
  }
  fill_candidates<zero, type>(job, range, unclipped, fine, kNumFine);
  add_errors<zero>(job, fine, kNumFine);
  keep_best(fine, kNumFine, best);
}

template <ZeroKind zero, DataType type>
HWY_ATTR void quantize_group_as(const GroupJob& job, GroupResult& result, std::uint8_t* codes) {
  Range range;
  result.nonfinite = find_range(job, range);
  Candidate unclipped;
  std::fill_n(unclipped.ratio, kQuantizeLanes, 1.0f);
  fill_candidates<zero, type>(job, range, unclipped, &unclipped, 1);
  result.scale_overflow = result.zero_overflow = 0;
  for (int r = 0; r < kQuantizeLanes; ++r) {
    if (!(unclipped.scale[r] <= largest<type>())) result.scale_overflow |= 1u << r;
    if (zero == ZeroKind::scaled && !(std::abs(unclipped.zero[r]) <= largest<type>())) {
      result.zero_overflow |= 1u << r;
    }
  }
  Candidate best;
  if (job.search_clip) {
    search_clip<zero, type>(job, range, unclipped, best);
  } else {
    best = unclipped;
  }
  std::copy_n(best.scale, kQuantizeLanes, result.scale);
  std::copy_n(best.zero, kQuantizeLanes, result.zero);
  write_codes<zero>(job, best, codes);
}

template <ZeroKind zero>
void quantize_group_with(const GroupJob& job, GroupResult& result, std::uint8_t* codes) {
  if (job.scale_type == DataType::bf16) {
    return quantize_group_as<zero, DataType::bf16>(job, result, codes);
  }
  quantize_group_as<zero, DataType::f16>(job, result, codes);
}

void quantize_group(const GroupJob& job, GroupResult& result, std::uint8_t* codes) {
  switch (job.zero) {
    case ZeroKind::none: return quantize_group_with<ZeroKind::none>(job, result, codes);
    case ZeroKind::integer: return quantize_group_with<ZeroKind::integer>(job, result, codes);
    case ZeroKind::scaled: return quantize_group_with<ZeroKind::scaled>(job, result, codes);
  }
}

// 16-bit floats, as many as a vector of fp32 has lanes, at any alignment.
template <DataType type>
HWY_ATTR Vec load_half(const std::uint8_t* from) {
  const Floats d;
  const Bits du;
  const hn::Rebind<std::uint16_t, Floats> d16;
  std::uint16_t values[kQuantizeLanes];
  std::memcpy(values, from, hn::Lanes(d) * sizeof(std::uint16_t));
  const auto bits = hn::PromoteTo(du, hn::LoadU(d16, values));
  if constexpr (type == DataType::bf16) {
    return hn::BitCast(d, hn::ShiftLeft<16>(bits));
  } else {
    // By hand, because Highway's portable conversion makes infinity 65536 and NaN a number.
    const auto exponent = [&](std::uint32_t e) HWY_ATTR { return hn::Set(du, e << 23); };
    const auto moved = hn::ShiftLeft<13>(hn::And(bits, hn::Set(du, 0x7fff)));
    const auto normal = hn::Add(moved, exponent(127 - 15));
    // A subnormal: put it below the last bits of 2^-14, then take 2^-14 away.
    const auto smallest = exponent(127 - 14);
    const auto subnormal = hn::BitCast(
        du, hn::Sub(hn::BitCast(d, hn::Add(moved, smallest)), hn::BitCast(d, smallest)));
    const auto special = hn::Or(moved, exponent(255));
    const auto magnitude =
        hn::IfThenElse(hn::Lt(moved, exponent(1)), subnormal,
                       hn::IfThenElse(hn::Lt(moved, exponent(31)), normal, special));
    return hn::BitCast(d, hn::Or(magnitude, hn::ShiftLeft<16>(hn::And(bits, hn::Set(du, 0x8000)))));
  }
}

template <DataType type>
HWY_ATTR void half_to_float(const std::uint8_t* from, std::int64_t count, float* to) {
  const Floats d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) hn::StoreU(load_half<type>(from + 2 * i), d, to + i);
  for (; i < count; ++i) {
    std::uint16_t bits;
    std::memcpy(&bits, from + 2 * i, sizeof(bits));
    to[i] = f32_from_bits(bits, type);
  }
}

void to_float(const void* from, DataType type, std::int64_t count, float* to) {
  const auto* bytes = static_cast<const std::uint8_t*>(from);
  switch (type) {
    case DataType::f16: return half_to_float<DataType::f16>(bytes, count, to);
    case DataType::bf16: return half_to_float<DataType::bf16>(bytes, count, to);
    case DataType::f32: std::memcpy(to, from, count * sizeof(float)); return;
  }
}

}  // namespace

constexpr LaneKernels kKernels = {to_float, quantize_group};

}  // namespace HWY_NAMESPACE
}  // namespace mixgemm
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mixgemm {

const LaneKernels& portable_lane_kernels() { return HWY_STATIC_DISPATCH(kKernels); }

const LaneKernels& lane_kernels() {
#if (HWY_TARGETS & HWY_AVX2) && (HWY_STATIC_TARGET != HWY_AVX2)
  // AVX2 machines have F16C too; BMI2 and FMA are not used, but the compiler may.
  static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                           __builtin_cpu_supports("bmi2");
  if (avx2) return N_AVX2::kKernels;
#endif
  return portable_lane_kernels();
}

}  // namespace mixgemm
#endif
