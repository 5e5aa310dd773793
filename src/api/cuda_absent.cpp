// SPDX-License-Identifier: Apache-2.0
// The answers of a build without CUDA.
#include "mixgemm/weight.hpp"

namespace mixgemm {

Result<PackedWeight> to_cuda(const PackedWeight&) {
  return Status(StatusCode::unsupported,
                "to_cuda() needs CUDA, but this build has no CUDA support; configure with "
                "-DMIXGEMM_CUDA=ON where nvcc is installed");
}

}  // namespace mixgemm
