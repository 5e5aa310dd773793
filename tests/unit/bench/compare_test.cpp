// SPDX-License-Identifier: Apache-2.0
// Verdicts between two files of rows.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "bench_api.hpp"

namespace mixgemm::bench {
namespace {

using testing::HasSubstr;
using Json = nlohmann::ordered_json;

Json row(double us, double spread = 0.004, int m = 16, const char* layer = "a") {
  return {{"gpu", "X"},
          {"kernel", "k"},
          {"config", "k@g128"},
          {"auto", true},
          {"act", "fp16"},
          {"weight", "int4"},
          {"group", 128},
          {"zero", "none"},
          {"pdl", true},
          {"m", m},
          {"n", 64},
          {"k", 64},
          {"layer", layer},
          {"us", us},
          {"us_min", us * (1 - spread / 2)},
          {"us_max", us * (1 + spread / 2)},
          {"floor_us", 3.0},
          {"cublas_us", 9.0},
          {"ok", true}};
}
std::string_view verdict(const Json& before, const Json& after, double threshold = 0.05) {
  return compare_rows({before}, {after}, threshold).rows.at(0).verdict;
}

TEST(CompareRows, FivePerCentIsARegressionUnlessTheRepeatsSpreadAsFar) {
  EXPECT_EQ(verdict(row(10), row(10.4)), "same");
  EXPECT_EQ(verdict(row(10), row(10.6)), "slower");
  EXPECT_EQ(verdict(row(10.6), row(10)), "faster");
  EXPECT_EQ(verdict(row(10, 0.08), row(10.6, 0.08)), "noisy");
  EXPECT_EQ(verdict(row(10, 0.02), row(10.6, 0.02)), "slower");
  EXPECT_EQ(verdict(row(10), row(10.3), 0.02), "slower");
  EXPECT_EQ(verdict(row(10, 0), row(10.005, 0), 0), "noisy");  // below any measurement's noise
}

TEST(CompareRows, FailuresAndMissingRowsAreVerdictsToo) {
  Json failed = row(10);
  failed["ok"] = false;
  failed["us"] = nullptr;
  EXPECT_EQ(verdict(row(10), failed), "failed");
  EXPECT_EQ(verdict(failed, row(10)), "fixed");
  const auto c = compare_rows({row(10), row(10, 0, 32)}, {row(10), row(10, 0, 64)}, 0.05);
  ASSERT_EQ(c.rows.size(), 3u);
  EXPECT_EQ(c.rows[1].verdict, "new");
  EXPECT_EQ(c.rows[2].verdict, "gone");
  EXPECT_THAT(format_comparison(c, 0.05, true), HasSubstr("1 new, 1 gone"));
}

TEST(CompareRows, PicksAreComparedWithPicksAndOthersByConfiguration) {
  Json other = row(10);
  other["config"] = "k@g128_s4";
  EXPECT_EQ(verdict(row(10), other), "same");
  Json named = other;
  named["auto"] = false;
  EXPECT_EQ(verdict(row(10), named), "new");
  for (const auto& [key, value] : std::vector<std::pair<const char*, Json>>{{"act", "bf16"},
                                                                            {"weight", "int8"},
                                                                            {"group", 64},
                                                                            {"zero", "scaled"},
                                                                            {"pdl", false},
                                                                            {"m", 17},
                                                                            {"layer", "b"}}) {
    Json different = row(10);
    different[key] = value;
    EXPECT_EQ(verdict(row(10), different), "new") << key;
  }
}

TEST(CompareRows, ChainsAndHostCostsHaveTimesOfTheirOwn) {
  const Json chain = {{"chain", "llama8b"}, {"act", "fp16"},        {"m", 1},
                      {"chain_us", 50.0},   {"chain_us_min", 49.9}, {"chain_us_max", 50.1},
                      {"ok", true}};
  Json slower = chain;
  slower["chain_us"] = 60.0;
  EXPECT_EQ(verdict(chain, slower), "slower");
}

TEST(CompareRows, SaysHowTheMachinesDiffer) {
  Json now = row(10);
  now["floor_us"] = 3.3;
  now["gpu"] = "Y";
  const auto c = compare_rows({row(10)}, {now}, 0.05);
  EXPECT_NEAR(c.floor_ratio, 1.1, 1e-9);
  EXPECT_NEAR(c.cublas_ratio, 1.0, 1e-9);
  EXPECT_THAT(format_comparison(c, 0.05, false), HasSubstr("different devices"));
}

TEST(CompareRows, CommittedResultsAgreeWithThemselves) {
  const std::string path =
      std::string(MIXGEMM_SOURCE_DIR) + "/bench/results/h100/2026-11-22-e5162db54e.jsonl";
  const auto rows = load_rows(path);
  ASSERT_TRUE(rows) << rows.status().message();
  const auto c = compare_rows(*rows, *rows, 0);
  EXPECT_EQ(c.slower + c.faster + c.noisy + c.failed, 0);
  EXPECT_EQ(c.rows.size(), rows->size());
  EXPECT_NEAR(c.ratio, 1, 1e-12);
  EXPECT_EQ(load_rows(path + ".none").status().code(), StatusCode::not_found);
}

}  // namespace
}  // namespace mixgemm::bench
