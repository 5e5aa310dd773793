// SPDX-License-Identifier: Apache-2.0
#include "gpu/configurations.hpp"

#include <fmt/format.h>
#include <fnmatch.h>

#include <algorithm>
#include <cstdio>

#include "launch/device.hpp"
#include "select/config_id.hpp"

namespace mixgemm::bench {

LaunchGrid::Cluster parse_cluster(const std::string& text) {
  LaunchGrid::Cluster cluster;
  int used_two = 0, used_three = 0;
  const auto size = static_cast<int>(text.size());
  const int fields = std::sscanf(text.c_str(), "%dx%d%nx%d%n", &cluster.n, &cluster.m, &used_two,
                                 &cluster.k, &used_three);
  if ((fields == 2 && used_two == size) || (fields == 3 && used_three == size)) return cluster;
  throw Error(
      StatusCode::invalid_argument,
      fmt::format("a cluster is written NxM or NxMxK, e.g. 2x1 or 1x1x4; got \"{}\"", text));
}

std::vector<LaunchConfig> expand(const LaunchGrid& grid, const KernelConfig& config,
                                 const Problem& problem, const select::DeviceFacts& device) {
  const auto legal = [&](const LaunchConfig& launch) {
    return select::why_unfit(config, launch, problem, device, true) == nullptr;
  };
  std::vector<LaunchConfig> launches;
  const auto offer = [&](LaunchConfig launch) {
    if (launch.stages == 0) {
      launch.stages = kMaxStages;
      while (launch.stages > 1 && !legal(launch)) --launch.stages;
    }
    if (legal(launch) && std::find(launches.begin(), launches.end(), launch) == launches.end()) {
      launches.push_back(launch);
    }
  };
  for (const LaunchGrid::Cluster& cluster : grid.clusters) {
    for (const int stages : grid.stages) {
      for (const int raster : grid.rasters) {
        for (const int split : grid.splits) {
          for (const bool stream_k : grid.stream_k) {
            for (const bool one_pass : grid.one_pass) {
              LaunchConfig launch;
              launch.cluster_n = cluster.n;
              launch.cluster_m = cluster.m;
              launch.cluster_k = cluster.k;
              launch.stages = stages;
              launch.split_k = split;
              launch.stream_k = stream_k;
              launch.one_pass = one_pass;
              launch.raster_m = raster;
              offer(launch);
            }
          }
        }
      }
    }
  }
  return launches;
}

std::vector<std::string> configurations(const Problem& problem, const std::string& pattern,
                                        const LaunchGrid* grid) {
  const cuda::DeviceContext& device = *cuda::current_device().value();
  std::vector<std::string> ids;
  // A pattern may name kernels that the plan doesn't look at: those for SM80 on Hopper.
  std::vector<const KernelEntry*> kernels;
  for (const int arch : {device.arch, 80}) {
    for (const KernelEntry* entry : cuda::kernel_index().kernels(problem, arch)) {
      if (std::find(kernels.begin(), kernels.end(), entry) == kernels.end()) {
        kernels.push_back(entry);
      }
    }
    if (pattern.empty()) break;
  }
  for (const KernelEntry* entry : kernels) {
    if (!pattern.empty() && fnmatch(pattern.c_str(), entry->id, 0) != 0) continue;
    if (select::why_unfit(entry->config, problem) != nullptr) continue;
    const auto launches = grid != nullptr ? expand(*grid, entry->config, problem, device.facts)
                                          : select::launches(entry->config, problem, device.facts);
    for (const LaunchConfig& launch : launches) {
      ids.push_back(select::config_id(entry->id, problem.weight.group_size, launch));
    }
  }
  return ids;
}

}  // namespace mixgemm::bench
