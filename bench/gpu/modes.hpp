// SPDX-License-Identifier: Apache-2.0
// What run_cuda() can measure, one function and one file each. All throw Error; all lists in the
// options are filled.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string_view>

#include "bench_api.hpp"

namespace mixgemm::bench {

Summary run_gemms(const Options& options, const Callbacks& callbacks);
Summary run_chains(const Options& options, const Callbacks& callbacks);
Summary run_host_cost(const Options& options, const Callbacks& callbacks);

/// The weight's format in a run with activations of type `act`: kernels need scales of that type.
inline QuantSpec spec_of(const Options& options, DataType act) {
  return {
      .type = options.weight, .zero = options.zero, .group_size = options.group, .scale_type = act};
}

/// Hands rows on and counts them.
class RowCounter {
 public:
  explicit RowCounter(const Callbacks& callbacks) : callbacks_(callbacks) {}

  void add(const nlohmann::ordered_json& row);
  void progress(double fraction, std::string_view what) const {
    if (callbacks_.progress) callbacks_.progress(fraction, what);
  }
  const Summary& summary() const { return summary_; }

 private:
  const Callbacks& callbacks_;
  Summary summary_;
};

}  // namespace mixgemm::bench
