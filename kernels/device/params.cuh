// SPDX-License-Identifier: Apache-2.0
// Kernel parameters lie in constant memory, fresh for each launch: the first read of each line of
// it goes all the way to L2, several hundred clocks on the spot. Read once before
// griddepcontrol.wait, they are there when the products and the epilogue ask for them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernel_config.hpp"

namespace mixgemm::device {

/// Brings what follows the tensor maps in Params into the constant cache. `scratch`: where the sum
/// of the words read may go, in shared memory; loads that nothing depends on would be optimized
/// away.
__device__ __forceinline__ void touch_params(const Params& p, volatile std::uint32_t* scratch) {
  constexpr unsigned kLineBytes = 64;
  const auto* const bytes = reinterpret_cast<const char*>(&p);
  std::uint32_t sum = 0;
#pragma unroll
  for (unsigned at = offsetof(Params, x); at < sizeof(Params); at += kLineBytes) {
    sum += *reinterpret_cast<const std::uint32_t*>(bytes + at);
  }
  *scratch = sum;
}

}  // namespace mixgemm::device
