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

// Clipping ratios of the search: 1, 1 − 1/40, … down to 21/40. A Gaussian group of 128 int4 codes
// is best at about 0.8, so the range ends well below.
constexpr int kMaxCandidates = 20;
constexpr float kRatioStep = 1.0f / 40;

// k evaluated for all candidates before going on: 8 KB of fp32, which stay in the L1 cache.
constexpr std::int64_t kChunk = 128;

// 2^23: adding and subtracting it rounds a float in [0, 2^22] to the nearest integer, ties to even,
// and between the two the integer sits in the low bits.
constexpr float kRoundMagic = 0x1p23f;

// What turns weights into codes: q = clamp(round((w + pre) / scale + post)). Only one of pre and
// post is ever nonzero: a scaled zero must be added before the division, where it cancels exactly.
struct Candidate {
  alignas(64) float scale[kQuantizeLanes];
  alignas(64) float zero[kQuantizeLanes];
  alignas(64) float inverse[kQuantizeLanes];  // 0 for a group without extent
  alignas(64) float error[kQuantizeLanes];    // Σ (code − exact code)²
  alignas(64) float weight[kQuantizeLanes];   // of the error: (scale / unclipped scale)², or +inf
};

struct Range {
  Vec low, high;
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

// Smallest and largest weight of rows r …; sets the bits of rows with a non-finite one.
HWY_ATTR Range find_range(const GroupJob& job, int r, std::uint32_t& nonfinite) {
  const Floats d;
  const Ints di;
  Range range{hn::LoadU(d, job.x + r), hn::LoadU(d, job.x + r)};
  auto magnitude = hn::Zero(di);
  for (std::int64_t k = 0; k < job.length; ++k) {
    const auto x = hn::LoadU(d, job.x + k * kQuantizeLanes + r);
    range.low = hn::Min(range.low, x);
    range.high = hn::Max(range.high, x);
    magnitude = hn::Max(magnitude, hn::BitCast(di, hn::Abs(x)));
  }
  std::int32_t magnitudes[kQuantizeLanes];
  hn::StoreU(magnitude, di, magnitudes);
  for (int i = 0; i < static_cast<int>(hn::Lanes(d)); ++i) {
    if (magnitudes[i] >= 0x7f800000) nonfinite |= 1u << (r + i);
  }
  return range;
}

// Scale, zero and their kin of one clipping ratio, for rows r ….
template <ZeroKind zero, DataType type>
HWY_ATTR void make_candidate(const GroupJob& job, Range range, float ratio, int r,
                             const Candidate& unclipped, Candidate& to) {
  const Floats d;
  const float max_code = static_cast<float>((1 << job.bits) - 1);
  const auto nothing = hn::Zero(d);
  const auto shrink = hn::Set(d, ratio);
  const auto limit = hn::Set(d, largest<type>());
  Vec scale, stored;
  auto valid = hn::Eq(nothing, nothing);
  if constexpr (zero == ZeroKind::none) {
    const float steps = static_cast<float>((1 << (job.bits - 1)) - 1);
    const auto reach = hn::Max(hn::Sub(nothing, range.low), range.high);
    scale = scale_near<type>(hn::Div(hn::Mul(reach, shrink), hn::Set(d, steps)), steps);
    stored = hn::Set(d, static_cast<float>(1 << (job.bits - 1)));
  } else if constexpr (zero == ZeroKind::integer) {
    // The range reaches to 0, so that 0 has a code and stays exactly 0.
    const auto low = hn::Mul(hn::Min(range.low, nothing), shrink);
    const auto high = hn::Mul(hn::Max(range.high, nothing), shrink);
    const auto steps = hn::Set(d, max_code);
    scale = scale_near<type>(hn::Sub(hn::Div(high, steps), hn::Div(low, steps)), max_code);
    stored = nothing;  // until the inverse is known
  } else {
    const auto half = hn::Set(d, 0.5f);
    const auto middle = hn::Add(hn::Mul(range.low, half), hn::Mul(range.high, half));
    const auto extent =
        hn::Mul(hn::Sub(hn::Mul(range.high, half), hn::Mul(range.low, half)), shrink);
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
    const auto low = hn::Mul(hn::Min(range.low, nothing), shrink);
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
HWY_ATTR void write_codes(const GroupJob& job, const GroupResult& result, const float* inverses,
                          std::uint8_t* codes) {
  const Floats d;
  const Ints di;
  const hn::Rebind<std::uint8_t, Floats> d8;
  const auto max_code = hn::Set(d, static_cast<float>((1 << job.bits) - 1));
  for (int r = 0; r < kQuantizeLanes; r += static_cast<int>(hn::Lanes(d))) {
    const auto inverse = hn::LoadU(d, inverses + r);
    const auto offset = hn::LoadU(d, result.zero + r);
    for (std::int64_t k = 0; k < job.length; ++k) {
      const auto x = hn::LoadU(d, job.x + k * kQuantizeLanes + r);
      const auto shifted = code_above_magic(exact_code<zero>(x, inverse, offset), max_code);
      const auto code = hn::And(hn::BitCast(di, shifted), hn::Set(di, 0xff));
      hn::StoreU(hn::DemoteTo(d8, code), d8, codes + k * kQuantizeLanes + r);
    }
  }
}

template <ZeroKind zero, DataType type>
HWY_ATTR void quantize_group_as(const GroupJob& job, GroupResult& result, std::uint8_t* codes) {
  const Floats d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const int num_candidates = job.search_clip ? kMaxCandidates : 1;
  Candidate candidates[kMaxCandidates];
  result.nonfinite = result.scale_overflow = result.zero_overflow = 0;
  for (int r = 0; r < kQuantizeLanes; r += lanes) {
    const Range range = find_range(job, r, result.nonfinite);
    hn::StoreU(hn::Zero(d), d, candidates[0].inverse + r);
    for (int c = 0; c < num_candidates; ++c) {
      make_candidate<zero, type>(job, range, 1 - c * kRatioStep, r, candidates[0], candidates[c]);
    }
  }
  for (int r = 0; r < kQuantizeLanes; ++r) {
    const Candidate& unclipped = candidates[0];
    if (!(unclipped.scale[r] <= largest<type>())) result.scale_overflow |= 1u << r;
    if (zero == ZeroKind::scaled && !(std::abs(unclipped.zero[r]) <= largest<type>())) {
      result.zero_overflow |= 1u << r;
    }
  }
  if (num_candidates > 1) add_errors<zero>(job, candidates, num_candidates);

  alignas(64) float inverses[kQuantizeLanes];
  for (int r = 0; r < kQuantizeLanes; r += lanes) {
    auto scale = hn::LoadU(d, candidates[0].scale + r);
    auto stored = hn::LoadU(d, candidates[0].zero + r);
    auto inverse = hn::LoadU(d, candidates[0].inverse + r);
    auto least = hn::LoadU(d, candidates[0].error + r);
    for (int c = 1; c < num_candidates; ++c) {
      const Candidate& other = candidates[c];
      const auto error = hn::Mul(hn::LoadU(d, other.error + r), hn::LoadU(d, other.weight + r));
      const auto better = hn::Lt(error, least);
      least = hn::IfThenElse(better, error, least);
      scale = hn::IfThenElse(better, hn::LoadU(d, other.scale + r), scale);
      stored = hn::IfThenElse(better, hn::LoadU(d, other.zero + r), stored);
      inverse = hn::IfThenElse(better, hn::LoadU(d, other.inverse + r), inverse);
    }
    hn::StoreU(scale, d, result.scale + r);
    hn::StoreU(stored, d, result.zero + r);
    hn::StoreU(inverse, d, inverses + r);
  }
  write_codes<zero>(job, result, inverses, codes);
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
  const hn::Rebind<std::uint16_t, Floats> d16;
  std::uint16_t values[kQuantizeLanes];
  std::memcpy(values, from, hn::Lanes(d) * sizeof(std::uint16_t));
  const auto bits = hn::LoadU(d16, values);
  if constexpr (type == DataType::bf16) {
    return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(Bits(), bits)));
  } else {
    return hn::PromoteTo(d, hn::BitCast(hn::Rebind<hwy::float16_t, Floats>(), bits));
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
