// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>

#include "gpu/configurations.hpp"
#include "gpu/gemm_bench.hpp"
#include "gpu/modes.hpp"

namespace mixgemm::bench {

void RowCounter::add(const nlohmann::ordered_json& row) {
  ++summary_.rows;
  if (!row.value("ok", false)) ++summary_.failed;
  if (callbacks_.row) callbacks_.row(row);
}

Summary run_gemms(const Options& options, const Callbacks& callbacks) {
  RowCounter rows(callbacks);
  GemmBench bench(options.timeout_s, options.baselines,
                  [&](const nlohmann::ordered_json& row) { rows.add(row); });
  const std::int64_t max_m = *std::max_element(options.tokens.begin(), options.tokens.end());
  const double total =
      static_cast<double>(options.shapes.size() * options.acts.size() * options.tokens.size());
  double done = 0;
  rows.progress(0, fmt::format("dense baseline: {}", bench.dense_library()));
  for (const Shape& shape : options.shapes) {
    for (const DataType act : options.acts) {
      const QuantSpec spec = spec_of(options, act);
      rows.progress(done / total,
                    fmt::format("{} {}: weights and reference", shape.layer, act_name(act)));
      bench.load(shape, spec, max_m);
      for (const std::int64_t m : options.tokens) {
        std::vector<std::string> kernels = {options.kernel};
        if (options.all_configs) kernels = configurations(bench.problem(m), options.kernel);
        // The plan's own pick stands beside them, marked as such.
        if (options.all_configs && options.kernel.empty()) kernels.insert(kernels.begin(), "");
        if (kernels.empty()) {
          throw Error(StatusCode::not_found,
                      fmt::format("no kernel of this build fits {} M={} {} and matches \"{}\"",
                                  shape.layer, m, act_name(act), options.kernel));
        }
        for (std::size_t i = 0; i < kernels.size(); ++i) {
          const double part = static_cast<double>(i) / static_cast<double>(kernels.size());
          rows.progress((done + part) / total,
                        fmt::format("{} {} M={}", shape.layer, act_name(act), m));
          Protocol protocol;
          protocol.load = std::chrono::milliseconds(options.load_ms);
          rows.add(bench.measure(
              {.m = m, .kernel = kernels[i], .pdl = options.pdl, .protocol = protocol}));
        }
        ++done;
      }
    }
  }
  rows.progress(1, "done");
  return rows.summary();
}

}  // namespace mixgemm::bench
