// SPDX-License-Identifier: Apache-2.0
// Successive halving: most candidates are ruled out by a glance, so that the time goes into telling
// the good ones apart.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <utility>

#include "mixgemm/tuning.hpp"
#include "mixgemm/version.hpp"
#include "util/log.hpp"

namespace mixgemm {
namespace {

/// A pass over what is left: how much work a measurement gets, the share of the candidates that
/// goes on, and the share of the time after which no further one is begun.
struct Round {
  double effort;
  std::size_t keep_one_in;
  double until;
};
constexpr Round kRounds[] = {{1.0 / 6, 3, 0.5}, {1.0 / 2, 3, 0.8}, {1.0, 1, 1.0}};
// Few enough to measure in full whatever the time says; three differ by less than screening shows.
constexpr std::size_t kFinalists = 3;
constexpr std::size_t kMinScreened = 4;
/// Another configuration must be faster than the model's pick by this much and by the noise.
constexpr double kMinGain = 0.005;

struct Timed {
  std::size_t candidate;
  TuneMeasurement measured;
};

class Search {
 public:
  Search(const std::vector<std::string>& candidates, const TuneMeasure& measure,
         const TuneOptions& options)
      : candidates_(candidates), measure_(measure), options_(options) {}

  /// What was measured in full, the fastest first.
  std::vector<Timed> run() {
    std::vector<std::size_t> alive(candidates_.size());
    for (std::size_t i = 0; i < alive.size(); ++i) alive[i] = i;
    for (const Round& round : kRounds) {
      const bool final = round.effort == 1;
      // A pass without anything to rule out would only cost time.
      if (!final && alive.size() <= kFinalists) continue;
      if (final && std::find(alive.begin(), alive.end(), 0u) == alive.end()) alive.push_back(0);
      std::vector<Timed> timed = time(alive, round, final ? alive.size() : kMinScreened);
      if (stopped_ || final) return final ? timed : std::vector<Timed>();
      const std::size_t keep = std::max(kFinalists, timed.size() / round.keep_one_in);
      alive.clear();
      for (const Timed& t : timed) {
        if (alive.size() < keep) alive.push_back(t.candidate);
      }
    }
    return {};
  }
  int num_screened() const { return num_screened_; }
  bool stopped() const { return stopped_; }
  const Status& failure() const { return failure_; }

 private:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

  std::vector<Timed> time(const std::vector<std::size_t>& alive, const Round& round,
                          std::size_t at_least) {
    std::vector<Timed> timed;
    int begun = 0;
    for (const std::size_t candidate : alive) {
      if (timed.size() >= at_least && seconds() > options_.seconds * round.until) break;
      if (options_.stop && options_.stop()) {
        stopped_ = true;
        break;
      }
      ++begun;
      const auto measured = measure_(candidates_[candidate], round.effort);
      if (!measured) {
        failure_ = measured.status();
        log::info("tuning: {} is out: {}", candidates_[candidate], failure_.message());
      } else {
        timed.push_back({candidate, *measured});
      }
    }
    num_screened_ = std::max(num_screened_, begun);
    std::stable_sort(timed.begin(), timed.end(),
                     [](const Timed& a, const Timed& b) { return a.measured.us < b.measured.us; });
    return timed;
  }

  const std::vector<std::string>& candidates_;
  const TuneMeasure& measure_;
  const TuneOptions& options_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  int num_screened_ = 0;
  bool stopped_ = false;
  Status failure_;
};

}  // namespace

Result<TuningEntry> tune(const Problem& problem, const TuningDevice& device,
                         const std::vector<std::string>& candidates, const TuneMeasure& measure,
                         const TuneOptions& options) {
  if (candidates.empty()) {
    return Status(StatusCode::invalid_argument, "tune() needs at least one candidate; got none");
  }
  if (!(options.seconds >= 0)) {
    return Status(StatusCode::invalid_argument,
                  fmt::format("seconds must be 0 or more; got {}", options.seconds));
  }
  Search search(candidates, measure, options);
  const std::vector<Timed> finals = search.run();
  if (finals.empty()) {
    if (search.stopped()) {
      return Status(StatusCode::unsupported,
                    "tune() was stopped before a candidate was measured in full");
    }
    return search.failure();
  }

  const auto model =
      std::find_if(finals.begin(), finals.end(), [](const Timed& t) { return t.candidate == 0; });
  const Timed* best = &finals.front();
  if (model != finals.end()) {
    const double needed = std::max({kMinGain, best->measured.noise / 2, model->measured.noise / 2});
    if (best->measured.us > model->measured.us * (1 - needed)) best = &*model;
  }
  TuningEntry entry;
  entry.device = device;
  entry.library = version();
  entry.problem = problem;
  entry.config = candidates[best->candidate];
  entry.us = best->measured.us;
  entry.noise = best->measured.noise;
  entry.model_config = candidates.front();
  if (model != finals.end()) entry.model_us = model->measured.us;
  entry.num_candidates = search.num_screened();
  return entry;
}

}  // namespace mixgemm
