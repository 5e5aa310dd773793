// SPDX-License-Identifier: Apache-2.0
// Tuning on a CUDA device: the benchmark's own measurement, without baselines.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "common/meter.hpp"
#include "gpu/gemm_bench.hpp"

namespace mixgemm::bench {
namespace {

Protocol protocol_of(std::int64_t m, double effort) {
  constexpr std::chrono::milliseconds kSettle{20};
  if (effort >= 1) return {};
  if (effort >= 0.5) return {.graph_us = 2000, .warmups = 1, .replays = 5, .settle = kSettle};
  Protocol glance = kScreening;
  // From about here on power decides: without a pause the first candidates look fastest, by up to
  // 15 % (H200, M = 2048).
  if (m >= 256) glance.settle = kSettle;
  return glance;
}

class CudaMeter final : public Meter {
 public:
  CudaMeter(bool pdl, double timeout_s)
      : bench_(timeout_s, false,
               [](const nlohmann::ordered_json& row) {
                 // Only a lost device or a hang comes this way; the process ends, or an Error
                 // follows.
                 fmt::print(stderr, "mixgemm: {}: {}\n", row.value("config", ""),
                            row.value("error", ""));
               }),
        pdl_(pdl) {}

  void load(const Shape& shape, const QuantSpec& spec, std::int64_t max_m) override {
    bench_.load(shape, spec, max_m);
  }
  Problem problem(std::int64_t m) const override { return bench_.problem(m); }

  Result<TuneMeasurement> measure(std::int64_t m, const std::string& config,
                                  double effort) override {
    const auto row = bench_.measure({.m = m,
                                     .kernel = config,
                                     .pdl = pdl_,
                                     .protocol = protocol_of(m, effort),
                                     .floor = false});
    if (!row.value("ok", false)) {
      return Status(StatusCode::device_error, row.value("error", "the measurement failed"));
    }
    const double us = row.at("us").get<double>();
    return TuneMeasurement{us,
                           (row.at("us_max").get<double>() - row.at("us_min").get<double>()) / us};
  }

 private:
  GemmBench bench_;
  bool pdl_;
};

}  // namespace

std::unique_ptr<Meter> make_cuda_meter(bool pdl, double timeout_s) {
  return std::make_unique<CudaMeter>(pdl, timeout_s);
}

}  // namespace mixgemm::bench
