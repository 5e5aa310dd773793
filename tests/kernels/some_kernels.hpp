// SPDX-License-Identifier: Apache-2.0
// A few configurations of each mechanism, for tests about launches rather than arithmetic.
#pragma once

#include <string>
#include <vector>

#include "mixgemm/types.hpp"

namespace mixgemm::gpu_test {

/// One configuration of a kernel of the build, for M tokens and a K of at least 512.
struct SomeKernel {
  std::string config_id;
  DataType act;
  QuantSpec spec;
};

/// How deep the rings of their launches are. `wrapping`: a few stages, which a CTA fills more than
/// once. `racecheck`: the same, but where a cluster only splits K, a ring holds a CTA's whole share
/// if it can. compute-sanitizer's racecheck lets no warp past barrier.cluster.wait before all warps
/// of the CTA are there (CUDA 13.0), and such a cluster's producers come late: their ring must not
/// wait for consumers that are held there.
enum class Rings { wrapping, racecheck };

/// Up to one per kind of kernel (schedule × family) and kind of launch, for this M.
std::vector<SomeKernel> some_kernels(int m, int k, Rings rings = Rings::wrapping);

}  // namespace mixgemm::gpu_test
