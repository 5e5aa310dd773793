// SPDX-License-Identifier: Apache-2.0
// The workspace of tiles that are split along K: flags [CTAs][4], one for each consumer warpgroup
// (a kernel without warpgroup roles uses the first), then partial tiles of fp32 sums, one per CTA.
// A flag counts as set only if it holds this launch's tag, and whoever read it resets it, so
// nothing has to be cleared beforehand.
#pragma once

#include <cstdint>

#include "kernel_config.hpp"

namespace mixgemm::device {

__host__ __device__ constexpr std::int64_t workspace_flag_bytes(int num_ctas) {
  return (std::int64_t(num_ctas) * 4 * 8 + 255) / 256 * 256;
}

/// The first flag of a CTA's slot.
__device__ __forceinline__ std::uint64_t* workspace_flag(const Params& p, int slot) {
  return static_cast<std::uint64_t*>(p.workspace) + slot * 4;
}

/// The partial tile of a CTA's slot, of `slots`.
template <int kTileElems>
__device__ __forceinline__ float* workspace_tile(const Params& p, int slot, int slots) {
  auto* const tiles =
      reinterpret_cast<float*>(static_cast<char*>(p.workspace) + workspace_flag_bytes(slots));
  return tiles + std::int64_t(slot) * kTileElems;
}

}  // namespace mixgemm::device
