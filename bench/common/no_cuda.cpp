// SPDX-License-Identifier: Apache-2.0
// The CUDA benchmark of a CPU-only build: an error that says so.
#include "bench_api.hpp"

namespace mixgemm::bench {

Result<Summary> run_cuda(const Options&, const Callbacks&) {
  return Status(StatusCode::unsupported,
                "this build has no CUDA: configure with -DMIXGEMM_CUDA=ON to benchmark on a GPU");
}

}  // namespace mixgemm::bench
