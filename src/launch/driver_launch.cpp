// SPDX-License-Identifier: Apache-2.0
#include "launch/driver_launch.hpp"

#include <cuda.h>

namespace mixgemm::cuda {
namespace {

/// A function of the driver by its name and the CUDA version whose form of it is meant, or nullptr.
template <class Function>
Function driver_function(const char* name, unsigned version) {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion(name, &entry, version, cudaEnableDefault, &found);
  if (error != cudaSuccess) cudaGetLastError();
  const bool usable = error == cudaSuccess && found == cudaDriverEntryPointSuccess;
  return usable ? reinterpret_cast<Function>(entry) : nullptr;
}

struct Driver {
  decltype(&cuCtxGetId) ctx_get_id = driver_function<decltype(&cuCtxGetId)>("cuCtxGetId", 12000);
  decltype(&cuLaunchKernelEx) launch_kernel_ex =
      driver_function<decltype(&cuLaunchKernelEx)>("cuLaunchKernelEx", 12000);
};

const Driver& driver() {
  static const Driver found;
  return found;
}

}  // namespace

ContextId current_context() {
  const auto get_id = driver().ctx_get_id;
  unsigned long long id = 0;
  if (get_id == nullptr || get_id(nullptr, &id) != CUDA_SUCCESS) return 0;
  return id;
}

DriverKernel driver_kernel(const void* function) {
  const ContextId context = current_context();
  if (context == 0 || driver().launch_kernel_ex == nullptr) return {};
  cudaFunction_t found = nullptr;
  if (cudaGetFuncBySymbol(&found, function) != cudaSuccess) {
    cudaGetLastError();
    return {};
  }
  return {found, context};
}

bool launch_by_driver(const DriverKernel& kernel, const cudaLaunchConfig_t& config, void** args) {
  if (kernel.context == 0) return false;
  CUlaunchAttribute attrs[2];
  CUlaunchConfig c = {};
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& from = config.attrs[i];
    if (c.numAttrs == 2) return false;
    CUlaunchAttribute& to = attrs[c.numAttrs++];
    to = {};
    switch (from.id) {
      case cudaLaunchAttributeClusterDimension:
        to.id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
        to.value.clusterDim.x = from.val.clusterDim.x;
        to.value.clusterDim.y = from.val.clusterDim.y;
        to.value.clusterDim.z = from.val.clusterDim.z;
        break;
      case cudaLaunchAttributeProgrammaticStreamSerialization:
        to.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        to.value.programmaticStreamSerializationAllowed =
            from.val.programmaticStreamSerializationAllowed;
        break;
      default: return false;
    }
  }
  c.attrs = attrs;
  c.gridDimX = config.gridDim.x;
  c.gridDimY = config.gridDim.y;
  c.gridDimZ = config.gridDim.z;
  c.blockDimX = config.blockDim.x;
  c.blockDimY = config.blockDim.y;
  c.blockDimZ = config.blockDim.z;
  c.sharedMemBytes = static_cast<unsigned>(config.dynamicSmemBytes);
  c.hStream = config.stream;
  return driver().launch_kernel_ex(&c, static_cast<CUfunction>(kernel.function), args, nullptr) ==
         CUDA_SUCCESS;
}

}  // namespace mixgemm::cuda
