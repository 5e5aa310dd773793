// SPDX-License-Identifier: Apache-2.0
// One layer at a time: its weight copies, its fp64 reference, its baselines, and the measurement of
// any configuration on it.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <tuple>
#include <vector>

#include "bench_api.hpp"
#include "common/watchdog.hpp"
#include "gpu/clock.hpp"
#include "gpu/cublas.hpp"
#include "gpu/data.hpp"
#include "gpu/floor.hpp"
#include "gpu/graph_timer.hpp"
#include "gpu/weight_pool.hpp"

namespace mixgemm::bench {

/// The current device.
struct GpuFacts {
  std::string name;
  int num_sms = 0;
};

/// One configuration at one token count of the loaded layer.
struct Measurement {
  std::int64_t m = 0;
  std::string kernel = {};  ///< kernel or configuration id; empty: what the plan picks
  bool pdl = true;
  Protocol protocol = {};
  bool floor = true;  ///< the row has the streaming floor, which is timed once a layer
};

/// Workspaces hold these bytes before a call: kernels must not need a cleared one.
constexpr int kWorkspacePoison = 0xa5;

class GemmBench {
 public:
  using Json = nlohmann::ordered_json;
  using Sink = std::function<void(const Json&)>;

  /// `baselines`: also time cuBLASLt, where it is found. `sink` receives a row of its own only from
  /// the watchdog; the others are returned.
  GemmBench(double timeout_s, bool baselines, Sink sink);

  const GpuFacts& device() const { return device_; }
  const GraphTimer& timer() const { return timer_; }
  Watchdog& watchdog() { return watchdog_; }
  /// cuBLASLt's file and version, or why there is none.
  std::string dense_library() const;

  /// Makes `shape` the loaded layer for up to max_m tokens; spec.scale_type is the activation type.
  /// Throws Error, also where the reference disagrees with the CPU oracle.
  void load(const Shape& shape, const QuantSpec& spec, std::int64_t max_m);

  /// The problem of the loaded layer.
  Problem problem(std::int64_t m) const;

  /// Measures one configuration: checks all of Y against the reference before and after timing. A
  /// failure of this configuration makes a row with "ok": false. Throws Error where the device is
  /// lost, after `sink` has received the row.
  Json measure(const Measurement& what);

  /// The streaming floor of a shape, measured once.
  struct Floors {
    Floor with_pdl, without_pdl;
  };
  const Floors& floors(const Shape& shape, WeightType weight);

 private:
  /// What a dense 16-bit product of the loaded layer needs and how wrong it is.
  struct Dense {
    double us = -1;
    int launches = 0;
    ErrorNorms error;
  };
  const Dense& dense(std::int64_t m, const Protocol& protocol);

  void make_reference();
  void check_reference_on_cpu();
  void make_dense();
  /// Throws Error unless Y (on the device) keeps the contract; returns its error.
  ErrorNorms check_output(std::int64_t m, const ErrorNorms& allowed, const char* when);
  /// A row of this session before anything is measured; `kernel` is what was asked for.
  GemmRow empty_row(const Measurement& what) const;

  GpuFacts device_;
  Sink sink_;
  Watchdog watchdog_;
  ClockReader clock_;
  GraphTimer timer_;
  std::unique_ptr<CublasLt> cublas_;
  bool baselines_;

  Shape shape_;
  QuantSpec spec_;
  std::int64_t max_m_ = 0;
  WeightPool weights_;
  std::map<std::tuple<std::int64_t, std::int64_t, WeightType>, Floors> floors_;
  std::map<std::pair<std::int64_t, std::int64_t>, Dense> dense_;  // of the loaded layer, by m, load

  DeviceBuffer x_, y_, workspace_;
  DeviceBuffer weight_f64_, reference_;
  DeviceBuffer dense_copies_;  // 16-bit weights, where cuBLAS is there
  int num_dense_copies_ = 0;
  DeviceBuffer rounded_f64_, rounded_;  // else: the product of the rounded weight
  Comparer comparer_;
};

}  // namespace mixgemm::bench
