// SPDX-License-Identifier: Apache-2.0
// What the launcher knows of each CUDA device, asked once per process.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string_view>

#include "kernel_config.hpp"
#include "mixgemm/status.hpp"
#include "mixgemm/tuning.hpp"
#include "registry.hpp"
#include "select/select.hpp"

namespace mixgemm::cuda {

/// device_error (or out_of_memory) with CUDA's name and sentence, after what was attempted. Also
/// clears the runtime's record of an error that isn't sticky, so that it isn't reported twice.
Status cuda_error(cudaError_t error, std::string_view what);

/// Number of devices; 0 with a note where there is no driver or no device.
struct DeviceCount {
  int count = 0;
  const char* note = "";
};
DeviceCount device_count();

/// One device's facts. Lives as long as the process.
struct DeviceContext {
  int ordinal = 0;
  int arch = 0;  ///< compute capability × 10
  select::DeviceFacts facts;
  TuningDevice identity;  ///< by which tuning caches know it
};

/// The current device's, made on first use. Fails with unsupported where there is no device, or one
/// that this build has no kernels for.
Result<const DeviceContext*> current_device();

/// nullptr, or why kernels of this build don't run on a device of compute capability arch / 10.
const char* why_no_kernels(int arch);

/// The registry by families; built on first use.
const select::KernelIndex& kernel_index();

/// Clusters of this launch that should be at work at once: at least 1, or an error where it can't
/// be launched at all. Remembered. Also lets the kernel use all the shared memory, once per device.
Result<int> resident_clusters(const DeviceContext& device, const KernelEntry& entry,
                              const LaunchConfig& launch, std::int64_t m);

}  // namespace mixgemm::cuda
