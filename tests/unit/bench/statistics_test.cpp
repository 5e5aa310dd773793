// SPDX-License-Identifier: Apache-2.0
#include "common/statistics.hpp"

#include <gtest/gtest.h>

#include <limits>

namespace mixgemm::bench {
namespace {

TEST(Copies, WorkingSetExceedsTheCacheForEveryWeightThatCan) {
  for (double bytes = 0.8e6; bytes < 1e9; bytes *= 1.37) {
    for (const bool overlapping : {false, true}) {
      const int copies = num_copies(bytes, overlapping);
      EXPECT_GT(copies * bytes, kWorkingSetBytes) << bytes;
      EXPECT_GE(copies, overlapping ? kMinCopiesOverlapping : kMinCopies) << bytes;
      EXPECT_LE(copies, kMaxLaunches);
    }
  }
  EXPECT_EQ(num_copies(1, true), kMaxLaunches);
  EXPECT_EQ(num_copies(8.4e6, true), 48);
  EXPECT_EQ(num_copies(235e6, true), 4);
  EXPECT_EQ(num_copies(235e6, false), 2);
}

TEST(Copies, OfALayerMakeItsModelWhichMayFitACache) {
  EXPECT_EQ(model_copies(1e6, 20e6), 20);
  EXPECT_EQ(model_copies(3e6, 20e6), 7);
  EXPECT_EQ(model_copies(5e6, 5e6), 1);     // a model of one layer
  EXPECT_EQ(model_copies(20e6, 16e9), 20);  // of a large one, the working set of the protocol
  EXPECT_EQ(model_copies(900e6, 16e9), 1);  // larger than that by itself
  EXPECT_EQ(model_copies(1e3, 1e9), kMaxLaunches);
}

TEST(Launches, EveryCopyCountsAlikeAndGraphsLastLongEnough) {
  for (const int copies : {1, 2, 4, 7, 48, 300, 512}) {
    for (double us = 0.5; us < 2e4; us *= 1.9) {
      const int launches = num_launches(us, copies);
      EXPECT_GE(launches, 1);
      EXPECT_LE(launches, kMaxLaunches);
      if (copies * us <= kGraphUs) {
        EXPECT_EQ(launches % copies, 0) << copies << " " << us;
        if (launches + copies <= kMaxLaunches) {
          EXPECT_GE(launches * us, kGraphUs) << copies << " " << us;
        }
      } else {  // no more load than the time needs: part of a round
        EXPECT_GE(launches * us, kGraphUs) << copies << " " << us;
        EXPECT_LT((launches - 1) * us, kGraphUs) << copies << " " << us;
      }
    }
  }
}

TEST(Launches, GraphsWalkOnThroughTheCopies) {
  EXPECT_EQ(num_graphs(12, 4), 1);
  EXPECT_EQ(num_graphs(1, 4), 4);
  EXPECT_EQ(num_graphs(6, 31), 31);
  EXPECT_EQ(num_graphs(6, 4), 2);
}

TEST(Spread, MedianOfOddAndEvenSamples) {
  const Spread odd = spread_of({5, 1, 3});
  EXPECT_EQ(odd.median, 3);
  EXPECT_EQ(odd.min, 1);
  EXPECT_EQ(odd.max, 5);
  EXPECT_EQ(spread_of({4, 1, 2, 3}).median, 2.5);
  EXPECT_EQ(spread_of({7}).median, 7);
}

TEST(GeometricMean, OfPowers) {
  EXPECT_DOUBLE_EQ(geometric_mean({2, 8}), 4);
  EXPECT_EQ(geometric_mean({}), 0);
}

TEST(Contract, RefusesWrongSumsSingleElementsAndPoison) {
  const ErrorNorms dense{.relative = 3e-4, .worst = 2e-3, .bad = 0};
  EXPECT_TRUE(keeps_contract({3e-4, 2e-3, 0}, dense));
  EXPECT_TRUE(keeps_contract({3.2e-4, 4.9e-3, 0}, dense));
  EXPECT_FALSE(keeps_contract({3.3e-4, 2e-3, 0}, dense));
  EXPECT_FALSE(keeps_contract({3e-4, 5.1e-3, 0}, dense));
  EXPECT_FALSE(keeps_contract({3e-4, 2e-3, 1}, dense));
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_FALSE(keeps_contract({nan, 2e-3, 0}, dense));
}

}  // namespace
}  // namespace mixgemm::bench
