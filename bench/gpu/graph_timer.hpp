// SPDX-License-Identifier: Apache-2.0
// The measurement protocol (docs/measurement.md): back-to-back launches of one problem over
// rotating weight copies, captured in a CUDA graph.
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <vector>

#include "common/statistics.hpp"
#include "gpu/clock.hpp"
#include "gpu/cuda_support.hpp"

namespace mixgemm::bench {

/// How long and how often. The defaults are the protocol that rows are measured by.
struct Protocol {
  double graph_us = kGraphUs;
  int warmups = 2;
  int replays = 7;
  /// Idle time before. Under load the GPU lowers its clock to keep its power limit, and holds it
  /// there for a while: without a pause a measurement would inherit what the one before drew.
  std::chrono::milliseconds settle{50};
  /// Under load for at least so long before the timed replays: clocks as in steady work.
  std::chrono::milliseconds load{0};
};
/// For choosing among candidates, of which the best are then measured in full.
inline constexpr Protocol kScreening{.graph_us = 1000, .warmups = 1, .replays = 3, .settle = {}};

struct Timing {
  Spread us;  ///< per launch
  int launches = 0;
  double clock_mhz = -1;
};

class GraphTimer {
 public:
  /// Enqueues one launch on the stream, reading weight copy `copy`. Called while capturing, too, so
  /// it must not synchronize or allocate. Throws Error.
  using Launch = std::function<void(int copy, cudaStream_t stream)>;

  explicit GraphTimer(const ClockReader& clock) : clock_(clock) {}

  /// Throws Error on any failure; the stream is out of capture then.
  Timing time(const Launch& launch, int copies, const Protocol& protocol = {}) const;

  /// Screens all candidates (one that throws is out), measures the best `finalists` in full and
  /// returns the fastest. Throws the last failure when none works.
  struct Best {
    std::size_t index = 0;
    Timing timing;
  };
  Best best_of(const std::vector<Launch>& candidates, int copies, int finalists = 2,
               const Protocol& protocol = {}) const;

  cudaStream_t stream() const { return stream_.get(); }
  void synchronize() const { stream_.synchronize(); }

 private:
  double estimate(const Launch& launch, int copies) const;  // µs of one

  const ClockReader& clock_;
  Stream stream_;
  Event start_, stop_;
};

}  // namespace mixgemm::bench
