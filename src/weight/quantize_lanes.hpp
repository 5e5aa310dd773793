// SPDX-License-Identifier: Apache-2.0
// The arithmetic of quantization, one row per SIMD lane: a group of 16 rows at a time, so that no
// sum ever runs across lanes and every machine computes the same bits.
#pragma once

#include <cstdint>

#include "mixgemm/types.hpp"

namespace mixgemm {

/// Rows quantized side by side: a strip.
inline constexpr int kQuantizeLanes = 16;

/// One group of consecutive k of 16 rows.
struct GroupJob {
  const float* x = nullptr;  ///< [length][16]; rows that don't exist are zero
  std::int64_t length = 0;
  ZeroKind zero = ZeroKind::none;
  int bits = 4;
  DataType scale_type = DataType::f16;
  bool search_clip = true;
};

/// What a group's rows share, [16] each. Masks hold bit r for row r.
struct GroupResult {
  alignas(64) float scale[kQuantizeLanes];  ///< ≥ 0 and representable in the scale type
  /// none: the implicit zero; integer: the code of zero; scaled: representable in the scale type.
  alignas(64) float zero[kQuantizeLanes];
  std::uint32_t nonfinite = 0;       ///< an infinite or NaN weight; the rest is then meaningless
  std::uint32_t scale_overflow = 0;  ///< the scale is beyond the scale type
  std::uint32_t zero_overflow = 0;   ///< the scaled zero is
};

/// The kernels of one instruction set. All sets compute the same bits.
struct LaneKernels {
  /// count elements of `type`, at any alignment, to fp32. Exact.
  void (*to_float)(const void* from, DataType type, std::int64_t count, float* to);
  /// Picks the group's scales and zeros, then writes its codes, [length][16].
  void (*quantize_group)(const GroupJob& job, GroupResult& result, std::uint8_t* codes);
};

/// The kernels for this machine, and those that run anywhere.
const LaneKernels& lane_kernels();
const LaneKernels& portable_lane_kernels();

}  // namespace mixgemm
