// SPDX-License-Identifier: Apache-2.0
#include "some_kernels.hpp"

#include <algorithm>
#include <set>
#include <tuple>

#include "gpu_case.hpp"
#include "registry.hpp"
#include "select/config_id.hpp"
#include "select/select.hpp"

namespace mixgemm::gpu_test {

std::vector<SomeKernel> some_kernels(int m, int k, Rings rings) {
  std::vector<SomeKernel> result;
  std::set<std::tuple<int, Schedule, DataType, WeightType, Quant, bool>> seen;
  const select::DeviceFacts& facts = device_facts();
  for (const KernelEntry& entry : kernel_registry()) {
    const KernelConfig& c = entry.config;
    if (!select::runs_on(c.arch, facts.arch)) continue;
    if (std::string_view(entry.epilogue) != "standard") continue;
    Problem p;
    p.m = m;
    p.n = 4096;
    p.k = k;
    p.act = c.act;
    p.weight.type = c.weight;
    p.weight.scale_type = c.act;
    p.weight.group_size = c.quant == Quant::column ? 0 : c.fine_groups ? 32 : 128;
    p.weight.zero = c.quant == Quant::group_zero ? ZeroKind::integer : ZeroKind::none;
    if (select::why_unfit(c, p) != nullptr) continue;
    if (!seen.insert({c.arch, c.schedule, c.act, c.weight, c.quant, c.fine_groups}).second) {
      continue;
    }
    const auto offer = [&](int cluster_n, int cluster_m, int cluster_k, int split_k,
                           bool stream_k) {
      LaunchConfig l;
      l.cluster_n = cluster_n;
      l.cluster_m = cluster_m;
      l.cluster_k = cluster_k;
      l.split_k = split_k;
      l.stream_k = stream_k;
      const bool whole = rings == Rings::racecheck && cluster_k > 1 && cluster_n * cluster_m == 1;
      l.stages = std::max(2, std::min(whole ? kMaxStages : 4, select::deepest_ring(c, m)));
      if (select::why_unfit(c, l, p, facts, true) != nullptr) return;
      result.push_back({select::config_id(entry.id, p.weight.group_size, l), p.act, p.weight});
    };
    offer(1, 1, 1, 1, false);
    offer(2, 1, 1, 1, false);
    offer(1, 2, 1, 1, false);
    offer(1, 1, 2, 1, false);
    offer(2, 1, 2, 1, false);
    offer(1, 1, 1, 3, false);
    offer(1, 1, 1, 1, true);
    offer(2, 2, 1, 1, true);
  }
  return result;
}

}  // namespace mixgemm::gpu_test
