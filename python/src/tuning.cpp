// SPDX-License-Identifier: Apache-2.0
// Tuning: the library's search, with a measurement that Python makes.
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <cstdint>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "cuda_device.hpp"
#include "mixgemm/tuning.hpp"

namespace mixgemm::python {
namespace {

/// The model's best, and the best launch of every further kernel; what the plan picks untuned comes
/// first.
std::vector<std::string> candidates_of(const Problem& problem) {
  constexpr std::size_t kBest = 24, kMost = 48, kAll = 4096;
  std::vector<std::string> chosen;
  std::set<std::string> kernels;
  const auto all = plan_candidates(problem, kAll).value();
  for (const PlanCandidate& c : all) {
    if (!c.why_not.empty() || chosen.size() == kMost) break;
    const bool new_kernel = kernels.insert(c.config.substr(0, c.config.find('@'))).second;
    if (chosen.size() < kBest || new_kernel) chosen.push_back(c.config);
  }
  return chosen;
}

nb::dict show_entry(const TuningEntry& entry) {
  nb::dict shown;
  shown["m"] = entry.problem.m;
  shown["config"] = entry.config;
  shown["us"] = entry.us;
  shown["noise"] = entry.noise;
  shown["model_config"] = entry.model_config;
  shown["model_us"] = entry.model_us < 0 ? nb::object(nb::none()) : nb::cast(entry.model_us);
  shown["candidates"] = entry.num_candidates;
  return shown;
}

/// measure(configuration id, effort) → (µs, noise). What it raises ends the search.
nb::dict py_tune(const PlacedWeight& weight, std::int64_t m, const std::string& dtype,
                 bool batch_invariant, double seconds, const nb::object& measure,
                 const std::string& path) {
  Problem problem;
  problem.m = m;
  problem.n = weight.view().n;
  problem.k = weight.view().k;
  problem.act = parse_dtype(dtype, "dtype");
  problem.weight = weight.view().spec;
  problem.device = weight.place.device;
  problem.batch_invariant = batch_invariant;
  const DeviceGuard guard(weight.place);

  std::exception_ptr raised;
  TuneOptions options;
  options.seconds = seconds;
  options.stop = [&] { return raised != nullptr || PyErr_CheckSignals() != 0; };
  const TuneMeasure measured = [&](const std::string& config,
                                   double effort) -> Result<TuneMeasurement> {
    try {
      const auto [us, noise] = nb::cast<std::tuple<double, double>>(measure(config, effort));
      return TuneMeasurement{us, noise};
    } catch (...) {
      raised = std::current_exception();
      return Status(StatusCode::internal, "the measurement raised an exception");
    }
  };
  const TuningDevice device = tuning_device(problem.device).value();
  const auto entry = tune(problem, device, candidates_of(problem), measured, options);
  if (raised) std::rethrow_exception(raised);
  if (PyErr_Occurred() != nullptr) throw nb::python_error();

  TuningCache cache;
  cache.add(entry.value());
  add_tuning(cache, "mixgemm.tune");
  if (!path.empty()) {
    auto file = TuningCache::load(path);
    if (!file && file.status().code() != StatusCode::not_found) file.status().throw_if_error();
    TuningCache merged = file ? std::move(*file) : TuningCache();
    merged.merge(cache);
    merged.save(path).throw_if_error();
  }
  return show_entry(*entry);
}

}  // namespace

void bind_tuning(nb::module_& m) {
  m.def("tune", &py_tune, nb::arg("weight"), nb::arg("m"), nb::arg("dtype"),
        nb::arg("batch_invariant"), nb::arg("seconds"), nb::arg("measure"), nb::arg("path"));
  m.def("default_tuning_path", &default_tuning_path);
}

}  // namespace mixgemm::python
