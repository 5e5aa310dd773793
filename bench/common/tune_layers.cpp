// SPDX-License-Identifier: Apache-2.0
// Tuning a list of layers, problem by problem.
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "bench_api.hpp"
#include "common/meter.hpp"
#include "mixgemm/version.hpp"

namespace mixgemm::bench {
namespace {

/// The model's best, and the best launch of every further kernel: the model errs about whole
/// kernels more than about the launches of one. What the plan picks untuned comes first.
std::vector<std::string> candidates_of(const Problem& problem) {
  constexpr std::size_t kBest = 24, kMost = 48, kAll = 4096;
  const auto all = plan_candidates(problem, kAll).value();
  std::vector<std::string> chosen;
  std::set<std::string> kernels;
  for (const PlanCandidate& c : all) {
    if (!c.why_not.empty() || chosen.size() == kMost) break;
    const bool new_kernel = kernels.insert(c.config.substr(0, c.config.find('@'))).second;
    if (chosen.size() < kBest || new_kernel) chosen.push_back(c.config);
  }
  return chosen;
}

}  // namespace

Result<TuneSummary> run_tune(const TuneRun& run, TuningCache& cache,
                             const TuneCallbacks& callbacks) try {
  const auto device = tuning_device(run.device);
  if (!device) return device.status();
  const auto stopped = [&] { return callbacks.stop && callbacks.stop(); };
  const auto progress = [&](double done, double total, const std::string& what) {
    if (callbacks.progress) callbacks.progress(total > 0 ? done / total : 1, what);
  };

  // What isn't in the cache yet, so that the progress tells the truth.
  struct Job {
    const TuneLayer* layer;
    QuantSpec spec;
    std::vector<std::int64_t> tokens;
  };
  std::vector<Job> jobs;
  TuneSummary summary;
  double total = 0;
  for (const TuneLayer& layer : run.layers) {
    for (const DataType act : run.acts) {
      Job job = {&layer, layer.spec, {}};
      job.spec.scale_type = act;
      for (const std::int64_t m : run.tokens) {
        Problem p;
        p.m = m, p.n = layer.shape.n, p.k = layer.shape.k;
        p.act = act, p.weight = job.spec, p.device = run.device;
        if (!run.force && cache.find(*device, version(), p) != nullptr) {
          ++summary.known;
        } else {
          job.tokens.push_back(m);
        }
      }
      total += static_cast<double>(job.tokens.size());
      if (!job.tokens.empty()) jobs.push_back(std::move(job));
    }
  }
  if (jobs.empty()) return summary;

  const auto meter =
      run.device == Device::cuda ? make_cuda_meter(run.pdl, run.timeout_s) : make_cpu_meter();
  double done = 0;
  for (const Job& job : jobs) {
    const std::string name =
        fmt::format("{} {}", job.layer->shape.layer, act_name(job.spec.scale_type));
    progress(done, total, name + ": weights");
    meter->load(job.layer->shape, job.spec,
                *std::max_element(job.tokens.begin(), job.tokens.end()));
    for (const std::int64_t m : job.tokens) {
      if (stopped()) {
        summary.stopped = true;
        return summary;
      }
      const Problem problem = meter->problem(m);
      const auto candidates = candidates_of(problem);
      int timed = 0;
      const TuneMeasure measure = [&](const std::string& config, double effort) {
        progress(
            done, total,
            fmt::format("{} M={}: {} timed of {} candidates", name, m, timed++, candidates.size()));
        return meter->measure(m, config, effort);
      };
      TuneOptions options;
      options.seconds = run.seconds;
      options.stop = stopped;
      const auto entry = tune(problem, *device, candidates, measure, options);
      if (entry) {
        cache.add(*entry);
        ++summary.tuned;
        if (callbacks.entry) callbacks.entry(job.layer->shape, *entry);
      } else if (stopped()) {
        summary.stopped = true;
        return summary;
      } else {
        ++summary.failed;
        if (callbacks.failed) callbacks.failed(job.layer->shape, problem, entry.status());
      }
      ++done;
    }
  }
  progress(total, total, "done");
  return summary;
} catch (const Error& error) {
  return Status(error.code(), error.what());
}

}  // namespace mixgemm::bench
