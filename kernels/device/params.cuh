// SPDX-License-Identifier: Apache-2.0
// Kernel parameters lie in constant memory, fresh for each launch: the first read of each line of
// it goes all the way to L2, several hundred clocks on the spot. Read once before
// griddepcontrol.wait, they are there when the products and the epilogue ask for them. What reads
// one line after the other waits that long for each; warps that read one each wait once.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernel_config.hpp"
#include "ptx/sync.cuh"

namespace mixgemm::device {

// Lines of Params without the tensor maps, which the copy engine reads.
inline constexpr int kConstantLineBytes = 64;
inline constexpr int kLinesBefore = offsetof(Params, x_map) / kConstantLineBytes;
inline constexpr int kLinesOfMaps =
    (offsetof(Params, by_band) - offsetof(Params, x_map)) / kConstantLineBytes;
inline constexpr int kParamLines =
    (sizeof(Params) + kConstantLineBytes - 1) / kConstantLineBytes - kLinesOfMaps;

__device__ __forceinline__ std::uint32_t word_of_line(const Params& p, int line) {
  const auto* const words = reinterpret_cast<const std::uint32_t*>(&p);
  return words[(line < kLinesBefore ? line : line + kLinesOfMaps) * (kConstantLineBytes / 4)];
}

/// One warp brings Params into the constant cache. `scratch`: a word of shared memory for the sum
/// of what was read; loads that nothing depends on would be optimized away.
__device__ __forceinline__ void touch_params(const Params& p, volatile std::uint32_t* scratch) {
  std::uint32_t sum = 0;
#pragma unroll
  for (int line = 0; line < kParamLines; ++line) sum += word_of_line(p, line);
  *scratch = sum;
}

/// The same by `warps` warps together, first of all: about a line each, of which the first two come
/// last, being read by others at once. One more belongs to the launch: whether it has clusters.
/// `warp`: which of them, `scratch`: a word for each.
__device__ __forceinline__ void touch_params(const Params& p, int warp, int warps,
                                             volatile std::uint32_t* scratch) {
  std::uint32_t sum = 0;
#pragma unroll
  for (int i = 0; i <= kParamLines; ++i) {
    if (i % warps != warp) continue;
    sum += i == 0 ? ptx::is_explicit_cluster() : word_of_line(p, kParamLines - i);
  }
  scratch[warp] = sum;
}

}  // namespace mixgemm::device
