// SPDX-License-Identifier: Apache-2.0
// One layer on the CPU: its cold weight copies, its dense baseline, and the measurement of any
// kernel on it. Weights are cold, as in a model whose layers exceed the caches: copies rotate until
// they exceed 400 MB. Every timed product is checked against the fp64 oracle.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "bench_api.hpp"
#include "common/statistics.hpp"
#include "host/dense_blas.hpp"
#include "mixgemm/gemm.hpp"
#include "mixgemm/weight.hpp"

namespace mixgemm::bench {

class CpuLayer {
 public:
  /// spec.scale_type is the activation type. num_threads 0 = all cores.
  CpuLayer(const Shape& shape, const QuantSpec& spec, int num_threads, bool baselines);

  /// Makes the weights, and times reading them.
  Status prepare();

  Problem problem(std::int64_t m) const;

  struct Measured {
    Plan plan;
    Spread us;            ///< per call
    double blas_us = -1;  ///< of the dense product; negative: none
    double rel_err = 0;   ///< against the fp64 oracle
  };
  /// Measures M tokens with a kernel or configuration (empty: the plan's choice) by the median of
  /// `samples`, of 20 ms or one call each. Fails where there is no plan for it.
  Result<Measured> measure(std::int64_t m, const std::string& kernel, int samples);

  double floor_us() const { return floor_us_; }
  double bits_per_weight() const;
  const std::optional<DenseBlas>& blas() const { return blas_; }

  /// Rounding y alone gives an error of 2e-4 (fp16) or 2e-3 (bf16); a wrong product gives about 1,
  /// an unwritten one NaN.
  static constexpr double kMaxError = 0.01;
  static constexpr int kSamples = 7;

 private:
  template <class Ours>
  std::pair<Spread, double> times(std::int64_t m, const std::vector<std::uint16_t>& x, int samples,
                                  const Ours& ours);

  Shape shape_;
  QuantSpec spec_;
  int num_threads_;
  bool baselines_;
  std::vector<PackedWeight> weights_;
  std::vector<std::vector<float>> dense_;
  std::optional<DenseBlas> blas_;
  double floor_us_ = 0.0;
};

}  // namespace mixgemm::bench
