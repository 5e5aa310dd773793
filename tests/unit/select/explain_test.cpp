// SPDX-License-Identifier: Apache-2.0
// What explain() lists: candidates with both times, the pick, and a reason for every other kernel.
#include "select/explain.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "fake_registry.hpp"
#include "select/config_id.hpp"

namespace mixgemm::select {
namespace {

using testing::HasSubstr;

Problem problem(std::int64_t m) {
  Problem p;
  p.m = m;
  p.n = p.k = 4096;
  p.device = Device::cuda;
  return p;
}

struct Explained {
  FakeRegistry registry;
  KernelIndex index{registry.entries()};
  DeviceFacts device = h100_facts();

  std::vector<PlanCandidate> operator()(const Problem& p, const std::string& picked = "",
                                        const std::optional<TuningEntry>& tuned = {},
                                        std::size_t limit = 12) const {
    return explain(p, registry.entries(), index, device, picked, tuned, limit);
  }
};

TEST(Explain, EveryKernelIsACandidateOrOutForAReason) {
  const Explained explained;
  for (const std::int64_t m : {1, 9, 64, 4096}) {
    std::set<std::string> kernels;
    for (const PlanCandidate& c : explained(problem(m), "", {}, 100000)) {
      kernels.insert(c.config.substr(0, c.config.find('@')));
      EXPECT_EQ(c.why_not.empty(), c.estimated_us >= 0) << c.config;
      EXPECT_EQ(c.why_not.empty(), c.config.find('@') != c.config.npos) << c.config;
    }
    EXPECT_EQ(kernels.size(), explained.registry.entries().size()) << m;
  }
}

TEST(Explain, TheFirstIsWhatRankingPutsFirst) {
  const Explained explained;
  for (const std::int64_t m : {1, 16, 300}) {
    const Problem p = problem(m);
    const auto best = rank(p, explained.index.kernels(p), explained.device, 1).at(0);
    const auto list = explained(p);
    EXPECT_EQ(list.at(0).config, config_id(best.entry->id, 128, best.launch));
    EXPECT_NEAR(list.at(0).estimated_us, best.estimate.total_us, 1e-9);
  }
}

TEST(Explain, TunedTimesAndThePickStayHoweverFarBehind) {
  const Explained explained;
  const auto all = explained(problem(16), "", {}, 100000);
  std::vector<std::string> legal;
  for (const PlanCandidate& c : all) {
    if (c.why_not.empty()) legal.push_back(c.config);
  }
  ASSERT_GT(legal.size(), 20u);
  TuningEntry tuned;
  tuned.config = legal.back();
  tuned.us = 4.5;
  tuned.model_config = legal.front();
  tuned.model_us = 5.5;
  const auto few = explained(problem(16), legal.back(), tuned, 3);
  std::size_t shown = 0;
  for (const PlanCandidate& c : few) {
    if (!c.why_not.empty()) continue;
    ++shown;
    EXPECT_EQ(c.picked, c.config == legal.back());
    EXPECT_EQ(c.tuned_us, c.config == legal.back() ? 4.5 : c.config == legal.front() ? 5.5 : -1);
  }
  EXPECT_EQ(shown, 4u);
  tuned.measured_on = "another device";
  for (const PlanCandidate& c : explained(problem(16), legal.back(), tuned, 3)) {
    EXPECT_EQ(c.tuned_us, -1);
  }
  const std::string text = format_candidates(few);
  EXPECT_THAT(text, HasSubstr("4.50 us  " + legal.back()));
  EXPECT_THAT(text, HasSubstr("> "));
}

TEST(Explain, ReasonsAreGroupedAndCounted) {
  const Explained explained;
  const std::string text = format_candidates(explained(problem(100)));
  EXPECT_THAT(text, HasSubstr("streaming: M must not exceed tile_m"));
  EXPECT_THAT(text, HasSubstr("its weight type isn't the problem's"));
  EXPECT_THAT(text, HasSubstr(", ...): "));
}

}  // namespace
}  // namespace mixgemm::select
