// SPDX-License-Identifier: Apache-2.0
// Which caches a process consults, and that plan() does what they say.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "mixgemm/gemm.hpp"
#include "support.hpp"
#include "tuning/active.hpp"
#include "tuning/shipped.hpp"

namespace mixgemm {
namespace {

using testing::HasSubstr;

/// Every case begins and ends without caches of its own.
class ActiveTuning : public testing::Test {
 protected:
  void SetUp() override { EXPECT_TRUE(set_tuning("off").ok()); }
  void TearDown() override { EXPECT_TRUE(set_tuning("off").ok()); }
  TemporaryFolder folder_;
};

Problem cpu_problem(std::int64_t m) {
  Problem p = layer(m, 64, 128);
  p.device = Device::cpu;
  return p;
}

/// An entry for this machine's CPU that names the given method.
TuningEntry cpu_entry(std::int64_t m, const std::string& method, int threads = 0) {
  TuningEntry e = entry(cpu_problem(m), 16);
  e.device = tuning_device(Device::cpu).value();
  const int t = threads > 0 ? threads : e.device.num_sms;
  e.config = "cpu_f16_i4_g_" + method + "@g128_t" + std::to_string(t);
  return e;
}

std::string kernel_of(std::int64_t m, const PlanOptions& options = {}) {
  return plan(cpu_problem(m), options).value().kernel_id();
}

TEST_F(ActiveTuning, ShippedCachesAreReadable) {
  for (const auto& shipped : tuning::shipped_caches()) {
    const auto cache = TuningCache::parse(shipped.json, shipped.name);
    EXPECT_TRUE(cache) << cache.status().message();
    for (const TuningEntry& e : cache->entries()) EXPECT_TRUE(tuning_is_current(e.library));
  }
  EXPECT_TRUE(set_tuning(":").ok());
  EXPECT_EQ(tuning_sources().size(), tuning::shipped_caches().size());
}

TEST_F(ActiveTuning, LaterFilesWinAndOffIsNothing) {
  TuningCache a, b;
  a.add(entry(layer(16), 16, 5));
  a.add(entry(layer(64), 64, 6));
  b.add(entry(layer(16), 32, 4));
  ASSERT_TRUE(a.save(folder_.file("a.json")).ok());
  ASSERT_TRUE(b.save(folder_.file("b.json")).ok());
  ASSERT_TRUE(set_tuning(folder_.file("a.json") + ":" + folder_.file("b.json")).ok());
  EXPECT_EQ(tuning::lookup(h100(), layer(16))->us, 4);
  EXPECT_EQ(tuning::lookup(h100(), layer(64))->us, 6);
  const auto sources = tuning_sources();
  EXPECT_EQ(sources.back().name, folder_.file("b.json"));
  EXPECT_EQ(sources.back().num_entries, 1u);
  EXPECT_EQ(sources.back().note, "");
  ASSERT_TRUE(set_tuning("off").ok());
  EXPECT_TRUE(tuning_sources().empty());
  EXPECT_FALSE(tuning::lookup(h100(), layer(16)));
}

TEST_F(ActiveTuning, BadCachesAreNamedAndTheOthersStillUsed) {
  TuningCache good, foreign;
  good.add(entry(layer(16), 16, 5));
  TuningEntry old = entry(layer(32), 32, 5);
  old.library = "0.0.3";
  foreign.add(old);
  ASSERT_TRUE(good.save(folder_.file("good.json")).ok());
  ASSERT_TRUE(foreign.save(folder_.file("foreign.json")).ok());
  const std::string broken = folder_.write("broken.json", "{\"mixgemm_tuning\": 1, ");
  const Status failure = set_tuning(folder_.file("missing.json") + ":" + broken + ":" +
                                    folder_.file("foreign.json") + ":" + folder_.file("good.json"));
  EXPECT_EQ(failure.code(), StatusCode::not_found);
  EXPECT_THAT(failure.message(), HasSubstr("missing.json"));
  const auto sources = tuning_sources();
  ASSERT_GE(sources.size(), 4u);
  const auto* last = &sources.back();
  EXPECT_EQ(last->num_entries, 1u);
  EXPECT_THAT(last[-1].note, HasSubstr("0.0.3"));
  EXPECT_EQ(last[-1].num_entries, 0u);
  EXPECT_THAT(last[-2].note, HasSubstr("must be JSON"));
  EXPECT_TRUE(tuning::lookup(h100(), layer(16)));
  EXPECT_FALSE(tuning::lookup(h100(), layer(32)));
}

TEST_F(ActiveTuning, APlanTakesTheTunedKernelAndSaysSo) {
  // 128 tokens are past where simd is chosen, if there is a BLAS; one token is before it.
  const std::string untuned = kernel_of(128);
  TuningCache cache;
  cache.add(cpu_entry(128, "simd"));
  add_tuning(cache, "a test");
  EXPECT_EQ(kernel_of(128), "cpu_f16_i4_g_simd");
  EXPECT_EQ(kernel_of(100), "cpu_f16_i4_g_simd");
  const auto chosen = plan(cpu_problem(128)).value();
  EXPECT_THAT(chosen.explain(), HasSubstr("tuned: 5.0 us measured at M = 128"));
  EXPECT_EQ(tuning_sources().back().name, "a test");
  // Without the cache the choice is the old one again: remembered plans don't outlive it.
  ASSERT_TRUE(set_tuning("off").ok());
  EXPECT_EQ(kernel_of(128), untuned);
}

TEST_F(ActiveTuning, WhatCannotRunIsNotPlanned) {
  TuningCache cache;
  TuningEntry nonsense = cpu_entry(16, "simd");
  nonsense.config = "cpu_f16_i4_g_quantum@g128_t1";
  cache.add(nonsense);
  cache.add(cpu_entry(64, "blas", 4000));
  add_tuning(cache, "a test");
  EXPECT_EQ(kernel_of(16), "cpu_f16_i4_g_simd");
  EXPECT_EQ(kernel_of(64), "cpu_f16_i4_g_simd");  // tuned with another number of threads
  setenv("MIXGEMM_BLAS", "none", 1);
  cache.add(cpu_entry(32, "blas"));
  add_tuning(cache, "a test");
  EXPECT_EQ(kernel_of(32), "cpu_f16_i4_g_simd");
  unsetenv("MIXGEMM_BLAS");
}

TEST_F(ActiveTuning, CandidatesShowTunedTimesAndThePick) {
  TuningCache cache;
  TuningEntry e = cpu_entry(128, "simd");
  e.us = 17;
  e.model_config = "cpu_f16_i4_g_blas@g128_t" + std::to_string(e.device.num_sms);
  e.model_us = 23;
  cache.add(e);
  add_tuning(cache, "a test");
  const auto candidates = plan_candidates(cpu_problem(128)).value();
  ASSERT_EQ(candidates.size(), 2u);
  for (const PlanCandidate& c : candidates) {
    const bool simd = c.config == e.config;
    EXPECT_EQ(c.picked, simd);
    EXPECT_EQ(c.tuned_us, simd ? 17 : 23);
  }
  Problem invariant = cpu_problem(128);
  invariant.batch_invariant = true;
  EXPECT_THAT(plan_candidates(invariant)->back().why_not, HasSubstr("batch invariant"));
}

TEST_F(ActiveTuning, PlansAndChangesOfTheCachesMayMeet) {
  TuningCache cache;
  cache.add(cpu_entry(128, "simd"));
  std::atomic<bool> stop{false};
  std::vector<std::thread> planners;
  for (int i = 0; i < 3; ++i) {
    planners.emplace_back([&] {
      for (std::int64_t m = 1; !stop; m = m % 300 + 1) EXPECT_NE(kernel_of(m), "");
    });
  }
  for (int i = 0; i < 50; ++i) {
    add_tuning(cache, "a test");
    EXPECT_TRUE(set_tuning("off").ok());
  }
  stop = true;
  for (std::thread& planner : planners) planner.join();
}

}  // namespace
}  // namespace mixgemm
