// SPDX-License-Identifier: Apache-2.0
// The cache as a value and as a file: what it finds, what it refuses, and that it survives a trip
// through its own text.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "support.hpp"

namespace mixgemm {
namespace {

using testing::HasSubstr;

TuningCache cache_of(const std::vector<TuningEntry>& entries) {
  TuningCache cache;
  for (const TuningEntry& e : entries) cache.add(e);
  return cache;
}

const TuningEntry* at_m(const TuningCache& cache, std::int64_t m) {
  return cache.lookup(h100(), layer(m));
}

TEST(TuningLookup, ExactMWins) {
  const auto cache = cache_of({entry(layer(16), 16), entry(layer(17), 32), entry(layer(32), 32)});
  EXPECT_EQ(at_m(cache, 17)->problem.m, 17);
}

TEST(TuningLookup, BetweenTunedMTheNeighbourWhoseTileFits) {
  const auto cache = cache_of({entry(layer(8), 8), entry(layer(16), 16), entry(layer(32), 32)});
  // 9 tokens need a second tile of the configuration for 8; that for 16 holds them.
  EXPECT_EQ(at_m(cache, 9)->problem.m, 16);
  EXPECT_EQ(at_m(cache, 17)->problem.m, 32);
  EXPECT_EQ(at_m(cache, 31)->problem.m, 32);
}

TEST(TuningLookup, OfTwoThatFitTheNearerByRatio) {
  const auto cache = cache_of({entry(layer(16), 64), entry(layer(32), 64)});
  EXPECT_EQ(at_m(cache, 22)->problem.m, 16);
  EXPECT_EQ(at_m(cache, 23)->problem.m, 32);
}

TEST(TuningLookup, NoFurtherThanAFactorOfTwo) {
  const auto cache = cache_of({entry(layer(8), 64), entry(layer(2048), 256)});
  EXPECT_NE(at_m(cache, 4), nullptr);
  EXPECT_EQ(at_m(cache, 3), nullptr);
  EXPECT_NE(at_m(cache, 16), nullptr);
  EXPECT_EQ(at_m(cache, 17), nullptr);
  EXPECT_NE(at_m(cache, 2000), nullptr);  // eight tiles either way
  EXPECT_EQ(at_m(cache, 1792), nullptr);  // seven
}

TEST(TuningLookup, OtherDevicesLibrariesAndProblemsDontAnswer) {
  const auto cache = cache_of({entry(layer(16), 16)});
  TuningDevice device = h100();
  device.name = "NVIDIA H100 PCIe";
  EXPECT_EQ(cache.lookup(device, layer(16)), nullptr);
  device = h100();
  device.num_sms = 114;
  EXPECT_EQ(cache.lookup(device, layer(16)), nullptr);
  EXPECT_EQ(cache.find(h100(), "0.0.9", layer(16)), nullptr);
  for (const auto& change : std::vector<void (*)(Problem&)>{
           [](Problem& p) { p.n = 4112; }, [](Problem& p) { p.k = 4160; },
           [](Problem& p) { p.act = DataType::bf16; },
           [](Problem& p) { p.weight.type = WeightType::int8; },
           [](Problem& p) { p.weight.group_size = 64; },
           [](Problem& p) { p.weight.zero = ZeroKind::integer; },
           [](Problem& p) { p.batch_invariant = true; }}) {
    Problem other = layer(16);
    change(other);
    EXPECT_EQ(cache.lookup(h100(), other), nullptr);
  }
  Problem same = layer(16);
  same.epilogue.bias = true;
  same.weight.scale_type = DataType::bf16;
  EXPECT_NE(cache.lookup(h100(), same), nullptr);
}

TEST(TuningCache, LaterEntriesReplaceAndMergeTakesTheOther) {
  auto cache = cache_of({entry(layer(16), 16, 5), entry(layer(16), 32, 4)});
  ASSERT_EQ(cache.entries().size(), 1u);
  EXPECT_EQ(cache.entries()[0].us, 4);
  cache.merge(cache_of({entry(layer(16), 64, 3), entry(layer(32), 64, 7)}));
  ASSERT_EQ(cache.entries().size(), 2u);
  EXPECT_EQ(at_m(cache, 16)->us, 3);
}

TEST(TuningCache, TextReadsBackAsItWas) {
  std::mt19937 random(5);
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  TuningCache cache;
  for (int i = 0; i < 300; ++i) {
    Problem p = layer(pick(1, 40), 16 * pick(1, 3), 64 * pick(1, 3));
    const int groups[] = {0, 16, 32, 64, 128};
    p.weight.group_size = groups[pick(0, 4)];
    p.weight.zero = static_cast<ZeroKind>(pick(0, 2));
    p.act = p.weight.scale_type = pick(0, 1) == 0 ? DataType::f16 : DataType::bf16;
    p.batch_invariant = pick(0, 5) == 0;
    TuningEntry e = entry(p, 8 * pick(1, 32), 0.001 * pick(1, 1 << 24));
    e.library = pick(0, 4) == 0 ? "0.0.1" : version();
    e.device.num_sms = 130 + pick(0, 2);
    e.device.device = p.device = pick(0, 3) == 0 ? Device::cpu : Device::cuda;
    e.problem.device = p.device;
    if (pick(0, 2) == 0) e.model_config = "sm90_x@g0_c1x1_s2";
    if (pick(0, 2) == 0) e.model_us = e.us * 1.25;
    if (pick(0, 3) == 0) e.measured_on = "NVIDIA H200";
    e.noise = 0.01 * pick(0, 9);
    e.num_candidates = pick(0, 50);
    cache.add(e);
  }
  const auto back = TuningCache::parse(cache.to_json(), "text");
  ASSERT_TRUE(back) << back.status().message();
  ASSERT_EQ(back->entries().size(), cache.entries().size());
  EXPECT_EQ(back->to_json(), cache.to_json());
  for (std::size_t i = 0; i < cache.entries().size(); ++i) {
    const TuningEntry &a = cache.entries()[i], &b = back->entries()[i];
    EXPECT_EQ(a.device, b.device);
    EXPECT_EQ(a.library, b.library);
    EXPECT_EQ(a.config, b.config);
    EXPECT_NEAR(a.us, b.us, 1e-5 * a.us + 1e-3);
    EXPECT_EQ(a.measured_on, b.measured_on);
    EXPECT_EQ(a.problem.m, b.problem.m);
    EXPECT_EQ(a.problem.weight, b.problem.weight);
  }
}

TEST(TuningCache, OneEntryALineAndAnEmptyCacheIsOneToo) {
  const auto cache = cache_of({entry(layer(1), 16), entry(layer(2), 16), entry(layer(4), 16)});
  const std::string text = cache.to_json();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 3 + 4);
  EXPECT_TRUE(TuningCache::parse(TuningCache().to_json(), "empty"));
}

TEST(TuningCache, RefusesByNameFieldAndValue) {
  const std::string good = cache_of({entry(layer(16), 16)}).to_json();
  ASSERT_TRUE(TuningCache::parse(good, "x"));
  const struct {
    const char *from, *to, *complaint;
  } cases[] = {
      {"\"m\":16", "\"m\":0",
       "tables[0].entries[0].m must be an integer from 1 to 2147483647; got 0"},
      {"\"m\":16", "\"m\":\"16\"", "got \"16\""},
      {"\"m\":16", "\"m\":1e300", "got 1e+300"},
      {"\"m\":16,", "", "entries[0] must have \"m\""},
      {"\"act\":\"fp16\"", "\"act\":\"fp32\"",
       "entries[0].act must be one of fp16, bf16; got \"fp32\""},
      {"\"group\":128", "\"group\":48",
       "group_size must be 0 (per column), 16, 32, 64 or 128; got 48"},
      {"\"us\":5.0", "\"us\":-5", "us must be a number above 0; got -5"},
      {"\"us\":5.0", "\"us\":null", "us must be a number above 0; got null"},
      {"sm90_f16_i4_g", "../../etc", "config must be a configuration id"},
      {"\"num_sms\":132", "\"num_sms\":0", "tables[0].device.num_sms"},
      {"\"kind\":\"cuda\"", "\"kind\":\"tpu\"", "tables[0].device.kind must be one of cpu, cuda"},
      {"\"entries\": [", "\"rows\": [", "must have a list \"entries\""},
      {"\"tables\": [", "\"tables\": 3, \"x\": [", "must have a list \"tables\""},
      {"mixgemm_tuning", "something_else", "must be an object with \"mixgemm_tuning\""},
  };
  for (const auto& c : cases) {
    std::string text = good;
    const auto at = text.find(c.from);
    ASSERT_NE(at, text.npos) << c.from;
    text.replace(at, std::string(c.from).size(), c.to);
    const auto read = TuningCache::parse(text, "my.json");
    ASSERT_FALSE(read) << text;
    EXPECT_EQ(read.status().code(), StatusCode::corrupt_data) << c.to;
    EXPECT_THAT(read.status().message(), HasSubstr("tuning cache my.json"));
    EXPECT_THAT(read.status().message(), HasSubstr(c.complaint));
  }
  std::string newer = good;
  newer.replace(newer.find(": 1"), 3, ": 2");
  const auto read = TuningCache::parse(newer, "my.json");
  EXPECT_EQ(read.status().code(), StatusCode::version_mismatch);
  EXPECT_THAT(read.status().message(), HasSubstr("must be 1; got 2"));
}

TEST(TuningCache, AnyDamageIsRefusedOrStaysACache) {
  const std::string good =
      cache_of({entry(layer(1), 16), entry(layer(2), 16), entry(layer(4), 32)}).to_json();
  std::mt19937 random(6);
  for (int i = 0; i < 2000; ++i) {
    std::string text = good;
    for (int changes = 1 + static_cast<int>(random() % 3); changes > 0; --changes) {
      const std::size_t at = random() % text.size();
      if (random() % 3 == 0) {
        text.erase(at, 1 + random() % 20);
      } else {
        text[at] = static_cast<char>(random());
      }
      if (text.empty()) break;
    }
    const auto read = TuningCache::parse(text, "damaged");
    if (!read) {
      EXPECT_THAT(read.status().message(), HasSubstr("damaged")) << text;
    }
  }
}

TEST(TuningCache, FilesAppearWholeInFoldersThatArentThereYet) {
  const TemporaryFolder folder;
  const std::string path = folder.file("deep/er/cache.json");
  const auto cache = cache_of({entry(layer(16), 16)});
  ASSERT_TRUE(cache.save(path).ok());
  EXPECT_EQ(read_text(path), cache.to_json());
  EXPECT_EQ(TuningCache::load(path)->to_json(), cache.to_json());
  EXPECT_EQ(TuningCache::load(folder.file("none.json")).status().code(), StatusCode::not_found);
  EXPECT_FALSE(TuningCache::load(folder.file("deep")));
}

TEST(TuningVersion, AnotherMinorVersionIsForeign) {
  EXPECT_TRUE(tuning_is_current(version()));
  EXPECT_TRUE(tuning_is_current("0.1.99"));
  EXPECT_FALSE(tuning_is_current("0.2.0"));
  EXPECT_FALSE(tuning_is_current("1.1.0"));
  EXPECT_FALSE(tuning_is_current(""));
}

}  // namespace
}  // namespace mixgemm
