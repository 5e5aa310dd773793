// SPDX-License-Identifier: Apache-2.0
// What tuning asks of a device: load a layer, then time configurations on it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "bench_api.hpp"
#include "mixgemm/tuning.hpp"

namespace mixgemm::bench {

/// May throw Error where the device as a whole fails; a configuration that does is a Status.
class Meter {
 public:
  virtual ~Meter() = default;

  /// Makes `shape` the loaded layer for up to max_m tokens; spec.scale_type is the activation type.
  virtual void load(const Shape& shape, const QuantSpec& spec, std::int64_t max_m) = 0;
  /// The problem of the loaded layer.
  virtual Problem problem(std::int64_t m) const = 0;
  /// Times one configuration, whose result it has checked. effort: as TuneMeasure has it.
  virtual Result<TuneMeasurement> measure(std::int64_t m, const std::string& config,
                                          double effort) = 0;
};

std::unique_ptr<Meter> make_cpu_meter();
/// Throws Error(unsupported) without a usable device, or in a CPU-only build.
std::unique_ptr<Meter> make_cuda_meter(bool pdl, double timeout_s);

}  // namespace mixgemm::bench
