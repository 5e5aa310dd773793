// SPDX-License-Identifier: Apache-2.0
// Launches by the driver's own call, which costs the host less than the runtime's: that one looks
// the kernel and the device up each time. Whatever isn't as it was when the plan was made goes
// through the runtime, which knows what to do and says what is wrong.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace mixgemm::cuda {

/// Names a CUDA context for the life of the process: a new one on the same device, as after
/// cudaDeviceReset, has another number. 0: none, or a driver that doesn't number them
/// (before 12.0).
using ContextId = std::uint64_t;

/// The calling thread's current context. Some 20 ns; never makes one.
ContextId current_context();

/// A kernel as the driver knows it, in one context.
struct DriverKernel {
  void* function = nullptr;
  ContextId context = 0;  ///< 0: unknown to the driver, to be launched by the runtime
};

/// In the current context. `function`: a kernel of this program, as for cudaLaunchKernelExC.
DriverKernel driver_kernel(const void* function);

/// cudaLaunchKernelExC for a kernel of the current context, with cluster and PDL attributes only.
/// False where nothing was launched.
bool launch_by_driver(const DriverKernel& kernel, const cudaLaunchConfig_t& config, void** args);

}  // namespace mixgemm::cuda
