// SPDX-License-Identifier: Apache-2.0
// Tuning on the CPU.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "common/meter.hpp"
#include "host/cpu_layer.hpp"
#include "host/measure.hpp"

namespace mixgemm::bench {
namespace {

class CpuMeter final : public Meter {
 public:
  void load(const Shape& shape, const QuantSpec& spec, std::int64_t) override {
    layer_.emplace(shape, spec, 0, false);
    layer_->prepare().throw_if_error();
  }
  Problem problem(std::int64_t m) const override { return layer_->problem(m); }

  Result<TuneMeasurement> measure(std::int64_t m, const std::string& config,
                                  double effort) override {
    const int samples = std::max(2, static_cast<int>(std::lround(CpuLayer::kSamples * effort)));
    wait_until_idle();  // the candidate before may have used a BLAS
    const auto measured = layer_->measure(m, config, samples);
    if (!measured) return measured.status();
    if (!(measured->rel_err <= CpuLayer::kMaxError)) {
      return Status(StatusCode::internal,
                    fmt::format("{}: relative error must be at most {}; got {}", config,
                                CpuLayer::kMaxError, measured->rel_err));
    }
    const Spread& us = measured->us;
    return TuneMeasurement{us.median, (us.max - us.min) / us.median};
  }

 private:
  std::optional<CpuLayer> layer_;
};

}  // namespace

std::unique_ptr<Meter> make_cpu_meter() { return std::make_unique<CpuMeter>(); }

}  // namespace mixgemm::bench
