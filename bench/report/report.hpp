// SPDX-License-Identifier: Apache-2.0
// A page that explains a benchmark's rows: `mixgemm report`.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "mixgemm/tuning.hpp"

namespace mixgemm::bench {

struct ReportInput {
  /// Rows of bench/results, and of bench/baselines (those with a "peer").
  std::vector<nlohmann::ordered_json> rows;
  std::vector<TuningEntry> tuned;
  std::vector<std::string> sources;  ///< names of the files, for the head of the page
};

/// One self-contained HTML page: no script, no link, no font from elsewhere; light and dark.
std::string report_html(const ReportInput& input);

}  // namespace mixgemm::bench
