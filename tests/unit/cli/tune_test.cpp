// SPDX-License-Identifier: Apache-2.0
// tune, tuning and explain as programs: what they write, keep, resume and refuse.
#include <gmock/gmock.h>

#include "mixgemm/tuning.hpp"
#include "mixgemm/version.hpp"
#include "program.hpp"

namespace mixgemm {
namespace {

using testing::HasSubstr;

constexpr char kShapes[] =
    R"({"shapes": [{"n": 64, "k": 128, "layer": "a"}, {"n": 48, "k": 64, "layer": "b"}]})";

class TuneProgram : public Program {
 protected:
  std::vector<std::string> tune(const std::vector<std::string>& more = {}) const {
    std::vector<std::string> words = {"tune", "--shapes", write("shapes.json", kShapes),
                                      "--m",  "1,4",      "--seconds",
                                      "0",    "-o",       path("cache.json")};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
};

TEST_F(TuneProgram, WritesACacheThatPlansFollow) {
  const auto outcome = run(tune());
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("4 tuned, 0 known before, 0 failed"));
  const auto cache = TuningCache::load(path("cache.json")).value();
  ASSERT_EQ(cache.entries().size(), 4u);
  for (const TuningEntry& e : cache.entries()) {
    EXPECT_EQ(e.library, version());
    EXPECT_GT(e.us, 0);
    EXPECT_GE(e.num_candidates, 1);
  }
  const auto explained =
      run({"explain", "--m", "4", "--n", "64", "--k", "128", "--tuning", path("cache.json")});
  EXPECT_THAT(explained.out, HasSubstr("tuned: "));
  const auto untuned = run({"explain", "--m", "4", "--n", "64", "--k", "128", "--tuning", "off"});
  EXPECT_THAT(untuned.out, testing::Not(HasSubstr("tuned: ")));
  // In the default place it needs no option.
  std::filesystem::create_directories(path("xdg/mixgemm"));
  std::filesystem::copy(path("cache.json"), path("xdg/mixgemm/tuning.json"));
  EXPECT_THAT(run({"explain", "--m", "4", "--n", "64", "--k", "128"}).out, HasSubstr("tuned: "));
}

TEST_F(TuneProgram, GoesOnWhereItStopped) {
  ASSERT_EQ(run(tune({"--layer", "b"})).exit_code, 0);
  const auto rest = run(tune({"--json"}));
  EXPECT_EQ(rest.json()["known"], 2);
  EXPECT_EQ(rest.json()["tuned"], 2);
  EXPECT_EQ(run(tune({"--json"})).json()["tuned"], 0);
  EXPECT_EQ(run(tune({"--json", "--force"})).json()["tuned"], 4);
}

TEST_F(TuneProgram, CtrlCKeepsWhatItHas) {
  write("many.json",
        R"({"shapes": [{"n": 512, "k": 512}, {"n": 528, "k": 512}, {"n": 544, "k": 512},
                       {"n": 560, "k": 512}, {"n": 576, "k": 512}, {"n": 592, "k": 512}]})");
  // The signal comes as soon as the first result is on disk, long before the last.
  const std::string interrupt = write("interrupt.sh",
                                      "\"$@\" & pid=$!\n"
                                      "while kill -0 $pid && ! [ -s '" +
                                          path("cache.json") +
                                          "' ]; do sleep 0.05; done\n"
                                          "kill -INT $pid; wait $pid\n");
  const auto outcome = run({"tune", "--shapes", path("many.json"), "--m", "1,2,3,4,5,6,7,8", "-o",
                            path("cache.json"), "--seconds", "60"},
                           "sh '" + interrupt + "'");
  EXPECT_EQ(outcome.exit_code, 130) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("interrupted; the same command goes on from here"));
  const auto cache = TuningCache::load(path("cache.json"));
  ASSERT_TRUE(cache) << cache.status().message();
  EXPECT_GE(cache->entries().size(), 1u);
  EXPECT_LT(cache->entries().size(), 48u);
  for (const auto& file : std::filesystem::directory_iterator(folder_)) {
    EXPECT_THAT(file.path().filename().string(), testing::Not(HasSubstr(".tmp-")));
  }
}

TEST_F(TuneProgram, ABrokenCacheIsNotOverwritten) {
  write("cache.json", "{}");
  const auto outcome = run(tune());
  EXPECT_EQ(outcome.exit_code, 5);
  EXPECT_THAT(outcome.err, HasSubstr("must be an object with \"mixgemm_tuning\""));
  EXPECT_EQ(read(path("cache.json")), "{}");
}

TEST_F(TuneProgram, ABrokenCacheDoesNotStopOthersFromWorking) {
  const std::string broken = write("broken.json", "[");
  const auto outcome =
      run({"explain", "--m", "4", "--n", "64", "--k", "128"}, "MIXGEMM_TUNING='" + broken + "'");
  EXPECT_EQ(outcome.exit_code, 0);
  EXPECT_THAT(outcome.err, HasSubstr("tuning cache " + broken + ": must be JSON"));
  const auto quiet = run({"explain", "--m", "4", "--n", "64", "--k", "128"},
                         "MIXGEMM_LOG=off MIXGEMM_TUNING='" + broken + "'");
  EXPECT_EQ(quiet.err, "");
  const auto info = run({"info"}, "MIXGEMM_LOG=off MIXGEMM_TUNING='" + broken + "'");
  EXPECT_THAT(info.out, HasSubstr("broken.json: 0 entries, ignored: "));
}

TEST_F(TuneProgram, CachesAreMergedComparedAndChecked) {
  ASSERT_EQ(run(tune({"--layer", "a"})).exit_code, 0);
  const auto a = TuningCache::load(path("cache.json")).value();
  TuningCache b;
  TuningEntry slower = a.entries()[0];
  slower.us *= 10;
  slower.noise = 0;
  b.add(slower);
  TuningEntry other = slower;
  other.problem.m = 77;
  other.library = "0.0.1";
  other.config = "cpu_f16_i4_g_gone@g128_t1";
  b.add(other);
  ASSERT_TRUE(b.save(path("b.json")).ok());

  const auto merged =
      run({"tuning", "merge", path("cache.json"), path("b.json"), "-o", path("all.json")});
  EXPECT_THAT(merged.out, HasSubstr("3 entries"));
  const auto all = TuningCache::load(path("all.json")).value();
  EXPECT_NEAR(all.find(slower.device, slower.library, slower.problem)->us, slower.us, 1e-2);

  auto old = a;
  TuningEntry calm = a.entries()[0];
  calm.noise = 0;
  old.add(calm);
  ASSERT_TRUE(old.save(path("old.json")).ok());
  const auto diff = run({"tuning", "diff", path("old.json"), path("b.json"), "--json"}).json();
  std::vector<std::string> what;
  for (const auto& row : diff["differences"]) what.push_back(row["what"]);
  EXPECT_THAT(what, testing::UnorderedElementsAre("slower", "gone", "new"));
  EXPECT_THAT(run({"tuning", "diff", path("b.json"), path("b.json")}).out,
              HasSubstr("no difference"));

  const auto checked = run({"tuning", "validate", path("all.json")});
  EXPECT_THAT(checked.out, HasSubstr("library 0.0.1: 1 entries, not used: this is "));
  EXPECT_THAT(checked.out, HasSubstr("1 name a kernel that this build doesn't have"));
  EXPECT_THAT(checked.out, HasSubstr("the cost model's pick ÷ the tuned one: geometric mean "));
  EXPECT_EQ(run({"tuning", "validate", write("bad.json", "x")}).exit_code, 5);
  EXPECT_EQ(run({"tuning", "merge", path("b.json")}).exit_code, 2);
  EXPECT_EQ(run({"tuning", "diff", path("b.json")}).exit_code, 2);
}

TEST_F(TuneProgram, BenchShowsARegressionBetweenTwoFiles) {
  const auto row = [](double us) {
    const nlohmann::ordered_json json = {
        {"gpu", "X"},   {"config", "k@g128"}, {"auto", true}, {"act", "fp16"}, {"weight", "int4"},
        {"group", 128}, {"zero", "none"},     {"pdl", true},  {"m", 16},       {"n", 64},
        {"k", 64},      {"layer", "a"},       {"us", us},     {"us_min", us},  {"us_max", us},
        {"ok", true}};
    return json.dump() + "\n";
  };
  const std::string before = write("old.jsonl", row(10)), after = write("new.jsonl", row(10.7));
  EXPECT_EQ(run({"bench", "--compare", before, "--rows", before}).exit_code, 0);
  const auto slower = run({"bench", "--compare", before, "--rows", after});
  EXPECT_EQ(slower.exit_code, 7);
  EXPECT_THAT(slower.out, HasSubstr("1 slower"));
  EXPECT_EQ(run({"bench", "--compare", before, "--rows", after, "--threshold", "10"}).exit_code, 0);
  EXPECT_EQ(run({"bench", "--compare", before, "--rows", write("x.jsonl", "{")}).exit_code, 5);
  EXPECT_EQ(run({"bench", "--rows", before}).exit_code, 2);
  // After a measurement, too: rows of a CPU run against themselves' like.
  const std::vector<std::string> bench = {"bench",   "--shapes", write("shapes.json", kShapes),
                                          "--m",     "1",        "--no-baselines",
                                          "--layer", "b"};
  auto first = bench, second = bench;
  first.insert(first.end(), {"-o", path("cpu.jsonl")});
  ASSERT_EQ(run(first).exit_code, 0);
  second.insert(second.end(), {"--compare", path("cpu.jsonl"), "--threshold", "1000000"});
  const auto again = run(second);
  EXPECT_EQ(again.exit_code, 0) << again.err;
  EXPECT_THAT(again.out, HasSubstr("1 the same"));
}

TEST_F(TuneProgram, ReportTakesRowsAndCaches) {
  ASSERT_EQ(run(tune({"--layer", "b"})).exit_code, 0);
  ASSERT_EQ(run({"bench", "--shapes", path("shapes.json"), "--m", "1,4", "--all-configs",
                 "--no-baselines", "-o", path("rows.jsonl")})
                .exit_code,
            0);
  const auto outcome =
      run({"report", path("rows.jsonl"), path("cache.json"), "-o", path("report.html")});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const std::string html = read(path("report.html"));
  EXPECT_THAT(html, HasSubstr("<h3>Time over M</h3>"));
  EXPECT_THAT(html, HasSubstr("<h3>Kernel × M</h3>"));
  EXPECT_THAT(html, HasSubstr("Cost model against measurement"));
  EXPECT_TRUE(html.ends_with("</html>\n"));
  EXPECT_EQ(run({"report", path("none.jsonl")}).exit_code, 3);
  EXPECT_EQ(run({"report", path("rows.jsonl"), "-o", path("none/r.html")}).exit_code, 4);
}

TEST_F(TuneProgram, ExplainNamesTheRuleAndListsWhatIsOut) {
  const auto out =
      run({"explain", "--m", "300", "--n", "64", "--k", "128", "--batch-invariant", "--json"});
  ASSERT_EQ(out.exit_code, 0) << out.err;
  const auto json = out.json();
  EXPECT_EQ(json["kernel"], "cpu_f16_i4_g_simd");
  bool explained = false;
  for (const auto& c : json["candidates"]) explained = explained || c.contains("why_not");
  EXPECT_TRUE(explained);
  EXPECT_EQ(run({"explain", "--m", "0", "--n", "64", "--k", "128"}).exit_code, 2);
  EXPECT_EQ(run({"explain", "--m", "1", "--n", "64"}).exit_code, 2);
}

}  // namespace
}  // namespace mixgemm
