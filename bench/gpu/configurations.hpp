// SPDX-License-Identifier: Apache-2.0
// Every way to run a problem on this device, by configuration id.
#pragma once

#include <string>
#include <vector>

#include "kernel_config.hpp"
#include "mixgemm/gemm.hpp"
#include "select/select.hpp"

namespace mixgemm::bench {

/// Launches to try: the product of the lists. `stages` 0 stands for the deepest ring that fits.
struct LaunchGrid {
  struct Cluster {
    int n = 1, m = 1, k = 1;
  };
  std::vector<Cluster> clusters = {{}};
  std::vector<int> stages = {0};
  std::vector<int> splits = {1};  ///< split_k; those above 1 go with cluster_k = 1 only
  std::vector<bool> stream_k = {false};
  std::vector<bool> one_pass = {false};
  std::vector<int> rasters = {LaunchConfig{}.raster_m};
};
/// "2x1" or "1x1x4" → {2, 1, 1}, {1, 1, 4}. Throws Error(invalid_argument) naming the text.
LaunchGrid::Cluster parse_cluster(const std::string& text);

/// The members of the grid that are legal for kernel, problem and device, each once, in the lists'
/// order. X is taken to be aligned for TMA.
std::vector<LaunchConfig> expand(const LaunchGrid& grid, const KernelConfig& config,
                                 const Problem& problem, const select::DeviceFacts& device);

/// Configuration ids of every kernel of this build that fits the problem and whose id matches
/// `pattern` (shell wildcards; empty: all), in registry order: with `grid`, its legal members; with
/// nullptr, the launches that the plan itself considers. Throws Error.
std::vector<std::string> configurations(const Problem& problem, const std::string& pattern,
                                        const LaunchGrid* grid = nullptr);

}  // namespace mixgemm::bench
