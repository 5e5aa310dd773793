// SPDX-License-Identifier: Apache-2.0
// The page of `mixgemm report`: complete, self-contained, and unharmed by what files may hold.
#include "report/report.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "bench_api.hpp"
#include "report/chart.hpp"

namespace mixgemm::bench {
namespace {

using testing::HasSubstr;
using testing::Not;
using Json = nlohmann::ordered_json;

std::vector<Json> rows_of(const std::string& file) {
  return load_rows(std::string(MIXGEMM_SOURCE_DIR) + "/bench/" + file).value();
}

std::size_t count(const std::string& text, const std::string& what) {
  std::size_t n = 0;
  for (auto at = text.find(what); at != text.npos; at = text.find(what, at + 1)) ++n;
  return n;
}

ReportInput committed() {
  ReportInput input;
  input.rows = rows_of("results/h100/2026-11-22-e5162db54e.jsonl");
  for (const Json& peer : rows_of("baselines/h100_peers.jsonl")) input.rows.push_back(peer);
  input.sources = {"run.jsonl", "peers.jsonl"};
  return input;
}

TEST(Report, HasEveryPartForEveryActivationType) {
  const std::string html = report_html(committed());
  EXPECT_EQ(count(html, "<h3>Time over M</h3>"), 2u);
  EXPECT_EQ(count(html, "<h3>Roofline</h3>"), 2u);
  EXPECT_EQ(count(html, "<h3>Kernel × M</h3>"), 2u);
  EXPECT_EQ(count(html, "<h3>What ran</h3>"), 2u);
  EXPECT_THAT(html, HasSubstr("fp16 × int4 g128"));
  EXPECT_THAT(html, HasSubstr("bf16 × int4 g128"));
  EXPECT_THAT(html, HasSubstr("llama70b.gate_up, 57344 × 8192"));
  EXPECT_THAT(html, HasSubstr("fastest 4-bit peer"));
  EXPECT_THAT(html, HasSubstr("prefers-color-scheme: dark"));
  EXPECT_THAT(html, Not(HasSubstr("nan")));
  EXPECT_THAT(html, Not(HasSubstr("inf\"")));
}

TEST(Report, RowsUnderLoadStandApart) {
  ReportInput input = committed();
  const std::size_t peaceful = input.rows.size();
  for (std::size_t i = 0; i < peaceful; ++i) {
    Json row = input.rows[i];
    if (!row.contains("ideal_us") || row["act"] != "fp16") continue;
    row["load_ms"] = 500;
    row["us"] = 2 * row.value("us", 1.0);
    input.rows.push_back(row);
  }
  const std::string html = report_html(input);
  EXPECT_EQ(count(html, "<h3>Time over M</h3>"), 3u);
  EXPECT_THAT(html, HasSubstr("fp16 × int4 g128, after 500 ms of load"));
}

TEST(Report, NeedsNoNetworkAndNoScript) {
  const std::string html = report_html(committed());
  for (const char* outside : {"http:", "https:", "<script", "<link", "@import", "url(", "src="}) {
    EXPECT_THAT(html, Not(HasSubstr(outside)));
  }
}

TEST(Report, ClosesWhatItOpens) {
  const std::string html = report_html(committed());
  for (const std::string tag :
       {"svg", "table", "details", "div", "main", "tr", "td", "p", "span"}) {
    EXPECT_EQ(count(html, "<" + tag + ">") + count(html, "<" + tag + " "),
              count(html, "</" + tag + ">"))
        << tag;
  }
}

TEST(Report, NamesFromFilesAreTextNotMarkup) {
  ReportInput input;
  Json row = rows_of("results/h100/2026-11-22-e5162db54e.jsonl").front();
  row["layer"] = "<b onload='x'>&\"";
  row["config"] = "</table><script>";
  row["gpu"] = "<i>";
  input.rows = {row};
  input.sources = {"<u>"};
  const std::string html = report_html(input);
  for (const char* markup : {"<b ", "<script", "<i>", "<u>"}) {
    EXPECT_THAT(html, Not(HasSubstr(markup)));
  }
  EXPECT_EQ(escape("<&\"'>"), "&lt;&amp;&quot;&#39;&gt;");
}

TEST(Report, OddRowsAreLeftOut) {
  ReportInput input = committed();
  for (const char* odd :
       {"{}", R"({"layer": "x", "us": null, "m": 1})", R"({"layer": "x", "us": -1})",
        R"({"layer": "x", "us": 5, "m": 0})", R"({"layer": 3, "us": "y", "m": "z"})"}) {
    input.rows.push_back(Json::parse(odd));
  }
  EXPECT_THAT(report_html(input), Not(HasSubstr("nan")));
  EXPECT_THAT(report_html({}), HasSubstr("No row with a time"));
}

TEST(Report, ComparesTheModelsPicksWithTheFastest) {
  ReportInput input;
  TuningEntry entry;
  entry.problem.m = 16, entry.problem.n = 64, entry.problem.k = 64;
  entry.config = "fast@g128";
  entry.us = 4;
  entry.model_config = "guess@g128";
  entry.model_us = 5;
  input.tuned = {entry};
  const std::string html = report_html(input);
  EXPECT_THAT(html, HasSubstr("1 problems: geometric mean 1.250, worst 1.25, 0 of them within"));
  EXPECT_THAT(html, HasSubstr("guess@g128"));
}

}  // namespace
}  // namespace mixgemm::bench
