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

/// Up to one per kind of kernel (schedule × family) and kind of launch, for this M.
std::vector<SomeKernel> some_kernels(int m, int k);

}  // namespace mixgemm::gpu_test
