// SPDX-License-Identifier: Apache-2.0
#include "common/watchdog.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <thread>

#include "bench_api.hpp"

namespace mixgemm::bench {
namespace {

using namespace std::chrono_literals;

void hang() {
  Watchdog dog(0.05);
  const auto watch = dog.watch([] { std::fputs("kernel 42 hangs\n", stderr); });
  std::this_thread::sleep_for(1h);
}

TEST(WatchdogDeathTest, HangIsReportedAndEndsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(hang(), ::testing::ExitedWithCode(kHangExitCode), "kernel 42 hangs");
}

TEST(Watchdog, WhatEndsInTimeIsLeftAlone) {
  Watchdog dog(3600);
  for (int i = 0; i < 100; ++i) {
    const auto watch = dog.watch([] { FAIL(); });
  }
  Watchdog never(0);
  const auto watch = never.watch([] { FAIL(); });
  std::this_thread::sleep_for(10ms);
}

}  // namespace
}  // namespace mixgemm::bench
