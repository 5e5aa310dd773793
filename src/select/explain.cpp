// SPDX-License-Identifier: Apache-2.0
#include "select/explain.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <utility>

#include "select/config_id.hpp"
#include "util/join.hpp"

namespace mixgemm::select {
namespace {

PlanCandidate legal(std::string config, const Estimate& e) {
  PlanCandidate candidate;
  candidate.config = std::move(config);
  candidate.estimated_us = e.total_us;
  candidate.breakdown = fmt::format(
      "fixed {:.2f}, HBM {:.2f}, loop {:.2f} by {}, output {:.2f}, sum over k ranges "
      "{:.2f}",
      e.fixed_us, e.stream_us, e.loop_us, e.bound, e.output_us, e.reduce_us);
  return candidate;
}

}  // namespace

std::vector<PlanCandidate> explain(const Problem& problem, std::span<const KernelEntry> registry,
                                   const KernelIndex& index, const DeviceFacts& device,
                                   const std::string& picked,
                                   const std::optional<TuningEntry>& tuned, std::size_t limit) {
  const int group = problem.weight.group_size;
  const auto kernels = index.kernels(problem, device.arch);
  std::vector<PlanCandidate> candidates;
  std::set<std::string> listed;
  const auto offer = [&](const KernelEntry& entry, const LaunchConfig& launch, const Estimate& e) {
    std::string id = config_id(entry.id, group, launch);
    if (listed.insert(id).second) candidates.push_back(legal(std::move(id), e));
  };

  for (const Candidate& c : rank(problem, kernels, device, limit)) {
    offer(*c.entry, c.launch, c.estimate);
  }
  // Kernels that ranking doesn't look at for this M come after, the best launch of each.
  const auto ranked = static_cast<std::ptrdiff_t>(candidates.size());
  for (const KernelEntry* entry : kernels) {
    if (why_unfit(entry->config, problem) != nullptr) continue;
    std::optional<Candidate> best;
    for (const LaunchConfig& launch : launches(entry->config, problem, device)) {
      const Estimate e = estimate(entry->config, launch, problem, device);
      if (!best || e.total_us < best->estimate.total_us) best = {entry, launch, e};
    }
    if (best) offer(*entry, best->launch, best->estimate);
  }
  std::stable_sort(candidates.begin() + ranked, candidates.end(),
                   [](const PlanCandidate& a, const PlanCandidate& b) {
                     return a.estimated_us < b.estimated_us;
                   });
  if (!picked.empty() && listed.count(picked) == 0) {
    if (const auto id = parse_config_id(picked); id && id->has_launch) {
      if (const KernelEntry* entry = index.find(id->kernel_id)) {
        offer(*entry, id->launch, estimate(entry->config, id->launch, problem, device));
      }
    }
  }
  const auto find = [&](const std::string& id) {
    return std::find_if(candidates.begin(), candidates.end(),
                        [&](const PlanCandidate& c) { return c.config == id; });
  };
  if (tuned && tuned->measured_on.empty()) {
    for (const auto& [id, us] :
         {std::pair(tuned->config, tuned->us), std::pair(tuned->model_config, tuned->model_us)}) {
      if (const auto at = find(id); at != candidates.end()) at->tuned_us = us;
    }
  }
  if (const auto at = find(picked); at != candidates.end()) at->picked = true;
  // The picked and the tuned ones stay, wherever they stand.
  std::size_t seen = 0;
  std::erase_if(candidates, [&](const PlanCandidate& c) {
    return seen++ >= limit && !c.picked && c.tuned_us < 0;
  });

  for (const KernelEntry& entry : registry) {
    const char* rule = std::string_view(entry.epilogue) != "standard"
                           ? "its epilogue is asked for by name only"
                           : why_unfit(entry.config, problem);
    if (rule == nullptr && !runs_on(entry.config.arch, device.arch)) {
      rule = entry.config.arch == 80 ? "it needs compute capability 8.0 or newer"
                                     : "it needs compute capability 9.0 (Hopper)";
    }
    if (rule == nullptr && std::find(kernels.begin(), kernels.end(), &entry) == kernels.end()) {
      rule = "a kernel for SM80 is asked for by name where there are Hopper kernels";
    }
    if (rule == nullptr && launches(entry.config, problem, device).empty()) {
      rule = "no launch of it is legal for this problem on this device";
    }
    if (rule == nullptr) continue;
    PlanCandidate out;
    out.config = entry.id;
    out.why_not = rule;
    candidates.push_back(std::move(out));
  }
  return candidates;
}

std::string format_candidates(const std::vector<PlanCandidate>& candidates) {
  std::string text = "  estimated     tuned\n";
  std::vector<std::pair<std::string, std::vector<std::string>>> reasons;
  for (const PlanCandidate& c : candidates) {
    if (c.why_not.empty()) {
      const std::string tuned = c.tuned_us > 0 ? fmt::format("{:.2f}", c.tuned_us) : "-";
      const std::string estimated =
          c.estimated_us >= 0 ? fmt::format("{:.2f}", c.estimated_us) : "-";
      text += fmt::format("{} {:>8} us {:>6} us  {}{}\n", c.picked ? '>' : ' ', estimated, tuned,
                          c.config, c.breakdown.empty() ? "" : "  (" + c.breakdown + ")");
      continue;
    }
    const auto at = std::find_if(reasons.begin(), reasons.end(),
                                 [&](const auto& reason) { return reason.first == c.why_not; });
    if (at != reasons.end()) {
      at->second.push_back(c.config);
    } else {
      reasons.push_back({c.why_not, {c.config}});
    }
  }
  for (const auto& [why, kernels] : reasons) {
    constexpr std::size_t kShown = 2;
    const std::vector<std::string> shown(
        kernels.begin(),
        kernels.begin() + static_cast<std::ptrdiff_t>(std::min(kernels.size(), kShown)));
    text += fmt::format("  out: {} kernel{} ({}{}): {}\n", kernels.size(),
                        kernels.size() == 1 ? "" : "s", joined(shown),
                        kernels.size() > kShown ? ", ..." : "", why);
  }
  return text;
}

}  // namespace mixgemm::select
