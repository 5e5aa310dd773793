// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "bench_api.hpp"

namespace mixgemm::bench {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::ordered_json;

GemmRow sample_row() {
  GemmRow row;
  row.gpu = "NVIDIA H100 80GB HBM3";
  row.kernel = "sm90_f16_i4_g_t128x16x64_coop";
  row.config = row.kernel + "@g128_c1x1_s6";
  row.is_auto = true;
  row.m = 16;
  row.n = 4096;
  row.k = 4096;
  row.layer = "llama8b.o";
  row.us = 4.00049;
  row.floor_us = 3.0;
  row.ideal_us = 3.0;
  row.rel_err = 2.93456e-4;
  row.clock_mhz = 1755;
  return row;
}

TEST(Rows, KeysAreSpelledAndOrderedAsDocumented) {
  const char* keys[] = {
      "gpu",       "kernel", "config",   "auto",      "act",      "weight",  "group",
      "zero",      "pdl",    "m",        "n",         "k",        "layer",   "us",
      "tflops",    "gbps",   "floor_us", "cublas_us", "ideal_us", "rel_err", "rel_err_cublas",
      "clock_mhz", "commit", "ok"};
  const Json json = to_json(sample_row());
  ASSERT_EQ(json.size(), std::size(keys));
  auto it = json.begin();
  for (const char* key : keys) EXPECT_EQ((it++).key(), key);
}

TEST(Rows, ValuesAndWhatWasNotMeasured) {
  const Json json = to_json(sample_row());
  EXPECT_EQ(json["act"], "fp16");
  EXPECT_EQ(json["weight"], "int4");
  EXPECT_EQ(json["zero"], "none");
  EXPECT_EQ(json["group"], 128);
  EXPECT_DOUBLE_EQ(json["us"].get<double>(), 4.0);
  EXPECT_TRUE(json["cublas_us"].is_null());
  EXPECT_TRUE(json["rel_err_cublas"].is_null());
  EXPECT_DOUBLE_EQ(json["rel_err"].get<double>(), 2.935e-4);
  EXPECT_NEAR(json["tflops"].get<double>(), 2.0 * 16 * 4096 * 4096 / 4.00049e6, 1e-3);
  EXPECT_EQ(json["commit"].get<std::string>(), commit());
  EXPECT_FALSE(json.contains("error"));
}

TEST(Rows, FailedMeasurementHasNoTimeButAReason) {
  GemmRow row = sample_row();
  row.us = -1;
  row.ok = false;
  row.error = "no answer after 10 s";
  const Json json = to_json(row);
  EXPECT_TRUE(json["us"].is_null());
  EXPECT_TRUE(json["tflops"].is_null());
  EXPECT_EQ(json["ok"], false);
  EXPECT_EQ(json["error"], row.error);
  EXPECT_THAT(format_table({json}), HasSubstr("FAILED"));
}

TEST(Rows, BytesCountPaddingScalesZerosAndActivations) {
  QuantSpec spec;  // int4, group 128
  EXPECT_EQ(code_bytes(4096, 4096, WeightType::int4), 4096.0 * 2048);
  EXPECT_EQ(code_bytes(17, 65, WeightType::int8), 2 * 2 * 1024.0);
  EXPECT_EQ(bytes_moved(1, 4096, 4096, spec), 4096 * 2048 + 4096 * 32 * 2 + 2.0 * (4096 + 4096));
  spec.zero = ZeroKind::integer;
  EXPECT_EQ(bytes_moved(1, 4096, 4096, spec), 4096 * 2048 + 4096 * 32 * 4 + 2.0 * (4096 + 4096));
  spec = QuantSpec{};
  spec.type = WeightType::int8;
  spec.group_size = 0;
  EXPECT_EQ(bytes_moved(2, 17, 65, spec), 4096 + 2 * 16 * 2 + 2 * 2.0 * (17 + 65));
}

TEST(Rows, IdealIsMemoryOrComputeBound) {
  EXPECT_EQ(ideal_us(1, 4096, 4096, 3.0), 3.0);
  EXPECT_DOUBLE_EQ(ideal_us(8192, 4096, 4096, 3.0), 2.0 * 8192 * 4096 * 4096 / 800e6);
}

TEST(Rows, TableShowsRatios) {
  const std::string table = format_table({to_json(sample_row())});
  EXPECT_THAT(table, HasSubstr("llama8b.o"));
  EXPECT_THAT(table, HasSubstr("1.33"));
  EXPECT_THAT(table, HasSubstr("@g128_c1x1_s6"));
}

TEST(Rows, TableHasChainsHostCostsAndRowsThatWereNeverTimed) {
  const Json chain = {{"chain", "llama8b"}, {"m", 1}, {"chain_us", 45.5}, {"ratio", 1.31}};
  const Json cost = {{"host_cost", "llama8b.o"}, {"m", 1}, {"run_us", 2.25}, {"ok", true}};
  const Json hang = {{"layer", "llama8b.o"}, {"ok", false}, {"error", "hangs"}};
  const std::string table = format_table({chain, cost, hang});
  for (const char* part : {"45.50", "1.31", "2.25", "FAILED", "hangs"}) {
    EXPECT_THAT(table, HasSubstr(part));
  }
  EXPECT_EQ(format_table({}), "");
}

}  // namespace
}  // namespace mixgemm::bench
