// SPDX-License-Identifier: Apache-2.0
// Kernel parameters lie in constant memory, fresh for each launch: the first read of each line of
// it goes all the way to L2, several hundred clocks on the spot. Read once before
// griddepcontrol.wait, they are there when the products and the epilogue ask for them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernel_config.hpp"

namespace mixgemm::device {

/// Brings what follows the tensor maps in Params into the constant cache. `scratch`: `parts`
/// words of shared memory for the sums of what was read; loads that nothing depends on would be
/// optimized away. One miss after the other takes its time: where several warps come here, each of
/// them reads what is its part.
__device__ __forceinline__ void touch_params(const Params& p, volatile std::uint32_t* scratch,
                                             int part = 0, int parts = 1) {
  constexpr int kLineBytes = 64;
  constexpr int kFirst = offsetof(Params, k_tiles) / kLineBytes;
  constexpr int kLines = (sizeof(Params) + kLineBytes - 1) / kLineBytes - kFirst;
  const auto* const words = reinterpret_cast<const std::uint32_t*>(&p);
  std::uint32_t sum = 0;
#pragma unroll
  for (int line = 0; line < kLines; ++line) {
    if (line % parts == part) sum += words[(kFirst + line) * (kLineBytes / 4)];
  }
  scratch[part] = sum;
}

}  // namespace mixgemm::device
