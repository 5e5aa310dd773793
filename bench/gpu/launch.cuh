// SPDX-License-Identifier: Apache-2.0
// Launches of the benchmark's own kernels, with and without programmatic dependent launch.
#pragma once

#include <cuda_runtime.h>

#include "gpu/cuda_support.hpp"

namespace mixgemm::bench {

struct LaunchSpec {
  int grid = 1;   ///< CTAs
  int block = 1;  ///< threads of each
  int smem_bytes = 0;
  bool pdl = false;
  cudaStream_t stream = nullptr;
  const char* name = "";
};

/// Throws Error. Arguments convert to the kernel's parameter types.
template <class... Params, class... Args>
void launch(const LaunchSpec& spec, void (*kernel)(Params...), Args... args) {
  cudaLaunchAttribute pdl{};
  pdl.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  pdl.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(spec.grid);
  config.blockDim = static_cast<unsigned>(spec.block);
  config.dynamicSmemBytes = static_cast<std::size_t>(spec.smem_bytes);
  config.stream = spec.stream;
  config.attrs = &pdl;
  int device = 0, major = 0;  // programmatic dependent launch begins with Hopper
  check(cudaGetDevice(&device), "the current device");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
        "its compute capability");
  config.numAttrs = spec.pdl && major >= 9 ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...), spec.name);
}

}  // namespace mixgemm::bench
