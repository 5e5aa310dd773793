// SPDX-License-Identifier: Apache-2.0
// Successive halving on made-up times.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "support.hpp"

namespace mixgemm {
namespace {

using testing::HasSubstr;

std::string name_of(std::size_t i) { return std::string("c").append(std::to_string(i)); }

/// Candidates c0, c1, … with true times; measurements err by `error` / √effort.
struct Machine {
  std::vector<double> us;
  double error = 0;
  std::mt19937 random{3};
  std::map<std::string, int> measured = {};
  std::map<std::string, int> in_full = {};

  std::vector<std::string> names() const {
    std::vector<std::string> all;
    for (std::size_t i = 0; i < us.size(); ++i) all.push_back(name_of(i));
    return all;
  }
  Result<TuneMeasurement> measure(const std::string& name, double effort) {
    ++measured[name];
    if (effort == 1) ++in_full[name];
    const double truth = us[std::stoul(name.substr(1))];
    if (truth < 0) return Status(StatusCode::device_error, name + " fails");
    std::normal_distribution<double> normal(0, error / std::sqrt(effort));
    return TuneMeasurement{truth * (1 + normal(random)), error};
  }
  Result<TuningEntry> search(TuneOptions options = {}) {
    return tune(
        layer(16), h100(), names(),
        [this](const std::string& name, double effort) { return measure(name, effort); }, options);
  }
};

TEST(TuneSearch, FindsTheFastestAndMeasuresFewInFull) {
  std::mt19937 random(4);
  for (int round = 0; round < 50; ++round) {
    Machine machine;
    for (int i = 0; i < 40; ++i)
      machine.us.push_back(10 + 0.37 * static_cast<double>(random() % 99));
    const std::size_t fastest = random() % 40;
    machine.us[fastest] = 8;
    const auto found = machine.search();
    ASSERT_TRUE(found) << found.status().message();
    EXPECT_EQ(found->config, name_of(fastest));
    EXPECT_EQ(found->us, 8);
    EXPECT_EQ(found->model_config, "c0");
    EXPECT_EQ(found->model_us, machine.us[0]);
    EXPECT_EQ(found->num_candidates, 40);
    EXPECT_LE(machine.in_full.size(), 5u);
    EXPECT_EQ(found->library, version());
  }
}

TEST(TuneSearch, NoiseCostsLittle) {
  std::mt19937 random(5);
  int close = 0;
  for (int round = 0; round < 100; ++round) {
    Machine machine;
    machine.error = 0.01;
    machine.random.seed(static_cast<unsigned>(round));
    for (int i = 0; i < 40; ++i)
      machine.us.push_back(10 + 0.1 * static_cast<double>(random() % 99));
    const auto found = machine.search();
    ASSERT_TRUE(found);
    const double best = *std::min_element(machine.us.begin(), machine.us.end());
    if (machine.us[std::stoul(found->config.substr(1))] <= 1.03 * best) ++close;
  }
  EXPECT_GE(close, 97);
}

TEST(TuneSearch, TheModelsPickStaysUnlessBeatenByMoreThanNoise) {
  Machine machine{.us = {10, 9.99, 12, 13}};
  EXPECT_EQ(machine.search()->config, "c0");
  machine.us[1] = 9.5;
  EXPECT_EQ(machine.search()->config, "c1");
}

TEST(TuneSearch, ThePickIsTimedInFullEvenWhereScreeningRulesItOut) {
  Machine machine{.us = {100, 9, 9.1, 9.2, 9.3, 9.4, 9.5, 9.6, 9.7, 9.8, 9.9, 10}};
  EXPECT_EQ(machine.search()->model_us, 100);
}

TEST(TuneSearch, FailingCandidatesAreOutAndAllFailingIsAFailure) {
  Machine machine{.us = {-1, 5, -1, 4, -1}};
  const auto found = machine.search();
  EXPECT_EQ(found->config, "c3");
  EXPECT_LT(found->model_us, 0);
  Machine broken{.us = {-1, -1}};
  EXPECT_EQ(broken.search().status().code(), StatusCode::device_error);
  EXPECT_THAT(broken.search().status().message(), HasSubstr("fails"));
}

TEST(TuneSearch, NoTimeLeftStillGivesAnAnswer) {
  Machine machine;
  machine.us.assign(500, 7.0);
  machine.us[2] = 5;
  TuneOptions options;
  options.seconds = 0;
  EXPECT_EQ(machine.search(options)->config, "c2");
  EXPECT_LT(machine.measured.size(), 10u);
}

TEST(TuneSearch, StoppingKeepsWhatWasMeasuredInFull) {
  Machine machine{.us = {9, 8, 7, 6}};
  int left = 0;
  TuneOptions options;
  options.stop = [&] { return left-- <= 0; };
  EXPECT_EQ(machine.search(options).status().code(), StatusCode::unsupported);
  left = 4 + 3 + 1;  // two screenings, then one in full
  const auto found = machine.search(options);
  ASSERT_TRUE(found) << found.status().message();
  EXPECT_EQ(found->config, "c3");
}

TEST(TuneSearch, RulesAreNamed) {
  Machine none;
  EXPECT_THAT(none.search().status().message(), HasSubstr("at least one candidate"));
  Machine one{.us = {5}};
  EXPECT_EQ(one.search()->config, "c0");
  TuneOptions options;
  options.seconds = -1;
  EXPECT_EQ(one.search(options).status().code(), StatusCode::invalid_argument);
}

}  // namespace
}  // namespace mixgemm
