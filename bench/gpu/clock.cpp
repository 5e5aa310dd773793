// SPDX-License-Identifier: Apache-2.0
#include "gpu/clock.hpp"

#include <array>

namespace mixgemm::bench {

ClockReader::ClockReader() {
  // NVML's header doesn't come with every toolkit; these three functions haven't changed since
  // 2012.
  library_ = SharedLibrary::open_first(std::array{"libnvidia-ml.so.1", "libnvidia-ml.so"});
  int (*init)() = nullptr;
  int (*get_device)(const char*, Device*) = nullptr;
  int ordinal = 0;
  char bus_id[32] = {};
  if (!library_.find("nvmlInit_v2", init) ||
      !library_.find("nvmlDeviceGetHandleByPciBusId_v2", get_device) ||
      cudaGetDevice(&ordinal) != cudaSuccess ||
      cudaDeviceGetPCIBusId(bus_id, sizeof bus_id, ordinal) != cudaSuccess || init() != 0 ||
      get_device(bus_id, &device_) != 0) {
    device_ = nullptr;
    return;
  }
  library_.find("nvmlDeviceGetClockInfo", get_clock_);
}

double ClockReader::sm_mhz() const {
  constexpr int kSmClock = 1;  // NVML_CLOCK_SM
  unsigned mhz = 0;
  if (device_ == nullptr || get_clock_ == nullptr) return -1;
  return get_clock_(device_, kSmClock, &mhz) == 0 ? static_cast<double>(mhz) : -1;
}

}  // namespace mixgemm::bench
