// SPDX-License-Identifier: Apache-2.0
// The streaming floor: how long the machine needs merely to read a layer's packed codes, cold. The
// bar for decode; no kernel that uses the codes can be faster.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "gpu/graph_timer.hpp"

namespace mixgemm::bench {

/// A ring of bulk copies. CTAs per SM is how many are launched; what really shares an SM, two grids
/// at a time included, depends on the shared memory.
struct FloorRing {
  int stages = 0;
  int chunk_bytes = 0;
  int ctas_per_sm = 0;
};
/// e.g. "6x16K/2".
std::string to_string(const FloorRing& ring);

struct Floor {
  double us = -1;
  FloorRing ring;
};

/// Best of several rings over `copies` weights of `bytes` each (a multiple of 512), `stride_bytes`
/// apart (a multiple of 16), with or without programmatic dependent launch.
Floor measure_floor(const GraphTimer& timer, const std::uint8_t* codes, std::size_t bytes,
                    std::size_t stride_bytes, int copies, int num_sms, bool pdl);

}  // namespace mixgemm::bench
