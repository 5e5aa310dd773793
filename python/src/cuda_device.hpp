// SPDX-License-Identifier: Apache-2.0
// The few things asked of the CUDA runtime besides the library: which device is current, and what
// to wait for. A build without CUDA has them too; there they refuse.
#pragma once

#include "array.hpp"

namespace mixgemm::python {

/// The current CUDA device of this thread.
int current_cuda_device();
/// Number of CUDA devices; 0 without CUDA or a driver.
int num_cuda_devices();

/// Waits until everything enqueued on `stream` of the device is done.
void wait_for_stream(int ordinal, void* stream);

/// Whether what is enqueued on `stream` now goes into a graph, or might. A stream of the current
/// device.
bool may_be_capturing(void* stream);

/// Makes the place's device current and, at its end, the one that was. Nothing on the CPU.
class DeviceGuard {
 public:
  explicit DeviceGuard(Place place);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = -1;  // to go back to; -1: nothing was changed
};

}  // namespace mixgemm::python
