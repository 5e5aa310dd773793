// SPDX-License-Identifier: Apache-2.0
// The CUDA benchmark of a CPU-only build: an error that says so.
#include "bench_api.hpp"
#include "common/layer_timer.hpp"
#include "common/meter.hpp"

namespace mixgemm::bench {
namespace {

Status no_cuda() {
  return Status(StatusCode::unsupported,
                "this build has no CUDA: configure with -DMIXGEMM_CUDA=ON to benchmark on a GPU");
}

}  // namespace

Result<Summary> run_cuda(const Options&, const Callbacks&) { return no_cuda(); }

std::unique_ptr<Meter> make_cuda_meter(bool, double) {
  no_cuda().throw_if_error();
  return nullptr;
}

std::unique_ptr<LayerTimer> make_cuda_layer_timer() {
  no_cuda().throw_if_error();
  return nullptr;
}

}  // namespace mixgemm::bench
