// SPDX-License-Identifier: Apache-2.0
// One small problem for each kind of kernel and launch: what compute-sanitizer is run over, which
// slows kernels down by orders of magnitude.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>

#include "gpu_case.hpp"
#include "some_kernels.hpp"

namespace mixgemm::gpu_test {
namespace {

// Every kShares-th kernel of the list: a sanitizer is slow, and tests can run side by side
// (GTEST_TOTAL_SHARDS).
constexpr int kShares = 8;

class Sanitizer : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Share, Sanitizer, testing::Range(0, kShares));

TEST_P(Sanitizer, OneOfEachKind) {
  MIXGEMM_NEED_DEVICE();
  Session& session = Session::instance();
  session.arena->reset();
  Runner runner(*session.arena, session.stream, 150 * 400, std::size_t{64} << 20);
  const std::size_t mark = session.arena->mark();
  int number = 0;
  for (const int m : {5, 130}) {
    for (const SomeKernel& kernel : some_kernels(m, 512, Rings::racecheck)) {
      if (number++ % kShares != GetParam()) continue;
      const TestWeight weight(*session.arena, 300, 520, kernel.spec, 3, session.stream);
      const TestInputs in(*session.arena, weight, m, kernel.act, 4, session.stream);
      TestRun run;
      run.epilogue = {true, true, Activation::gelu};
      run.repeat = true;
      run.mechanism = "sanitizer set";
      // Named before it runs: under a sanitizer, some take a minute, and a log should say which.
      std::printf("M = %d, %s: ", m, kernel.config_id.c_str());
      std::fflush(stdout);
      const auto start = std::chrono::steady_clock::now();
      runner.run(weight, in, kernel.config_id, run);
      runner.collect();
      const std::chrono::duration<double, std::milli> took =
          std::chrono::steady_clock::now() - start;
      std::printf("%.0f ms\n", took.count());
      session.arena->reset(mark);
    }
  }
}

}  // namespace
}  // namespace mixgemm::gpu_test
