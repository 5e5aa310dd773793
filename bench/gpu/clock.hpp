// SPDX-License-Identifier: Apache-2.0
// The SM clock while a measurement runs, from the driver's management library where there is one.
#pragma once

#include "gpu/cuda_support.hpp"

namespace mixgemm::bench {

class ClockReader {
 public:
  /// For the current device.
  ClockReader();
  /// SM clock now, MHz; -1 where it can't be read.
  double sm_mhz() const;

 private:
  using Device = void*;  // nvmlDevice_t
  SharedLibrary library_;
  int (*get_clock_)(Device, int, unsigned*) = nullptr;
  Device device_ = nullptr;
};

}  // namespace mixgemm::bench
