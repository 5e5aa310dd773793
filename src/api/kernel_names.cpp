// SPDX-License-Identifier: Apache-2.0
#include "api/kernel_names.hpp"
#include "util/join.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <numeric>
#include <utility>

namespace mixgemm {
namespace {

/// Levenshtein distance.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i + 1;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t replace = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replace, row[j] + 1, diagonal + 1});
    }
  }
  return row[b.size()];
}

/// A name from outside may be of any length: error messages show, and distances use, its head.
constexpr std::size_t kShownChars = 120;

}  // namespace

std::vector<std::string> nearest_names(std::string_view name,
                                       const std::vector<std::string>& candidates,
                                       std::size_t limit) {
  std::vector<std::pair<std::size_t, const std::string*>> ranked;
  ranked.reserve(candidates.size());
  for (const std::string& candidate : candidates) {
    ranked.emplace_back(edit_distance(name.substr(0, kShownChars), candidate), &candidate);
  }
  std::stable_sort(ranked.begin(), ranked.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<std::string> nearest;
  for (const auto& [distance, candidate] : ranked) {
    if (nearest.size() == limit) break;
    nearest.push_back(*candidate);
  }
  return nearest;
}

Status kernel_not_found(std::string_view name, const std::vector<std::string>& candidates,
                        std::string_view hint) {
  const std::vector<std::string> nearest = nearest_names(name, candidates);
  std::string message = fmt::format("no kernel \"{}{}\"", name.substr(0, kShownChars),
                                    name.size() > kShownChars ? "..." : "");
  if (!nearest.empty()) {
    message += fmt::format("; nearest: {}", joined(nearest));
  }
  message += "; `mixgemm kernels` and mixgemm::kernels() list all of this build";
  if (!hint.empty()) message += fmt::format("; {}", hint);
  return Status(StatusCode::not_found, std::move(message));
}

}  // namespace mixgemm
