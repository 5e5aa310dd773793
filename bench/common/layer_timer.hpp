// SPDX-License-Identifier: Apache-2.0
// What `mixgemm compare` asks of a GPU: the time of a file's own layer, and of a dense 16-bit
// product of the same sizes on the same device, both by the same measurement.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "mixgemm/gemm.hpp"

namespace mixgemm::bench {

/// Times are of launches one after the other in a CUDA graph (docs/measurement.md), so what the
/// host takes to launch is in none of them. The launches rotate over as many copies of the layer's
/// weight as make `model_bytes`, the size of all layers in that format (at most the protocol's
/// working set): between two reads of a copy as much else is read as between two passes of the
/// model. Both throw Error.
class LayerTimer {
 public:
  virtual ~LayerTimer() = default;

  /// The dense library's file and version; empty where none was found.
  virtual std::string dense_library() const = 0;
  /// µs of plan.run(args). The weight is whole, and every address the device's.
  virtual double run_us(const Plan& plan, const RunArgs& args, double model_bytes) = 0;
  /// µs of X[M,K] · w[N,K]ᵀ, all of the problem's activation type; w in host memory, x on the
  /// device. Only where there is a dense library.
  virtual double dense_us(const Problem& problem, const void* x,
                          const std::vector<std::uint16_t>& w, double model_bytes) = 0;
};

/// For the current device. Throws Error(unsupported) in a CPU-only build.
std::unique_ptr<LayerTimer> make_cuda_layer_timer();

}  // namespace mixgemm::bench
