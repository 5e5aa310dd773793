// SPDX-License-Identifier: Apache-2.0
// The GPU tests, one program that carries: mixgemm_gpu_tests [--summary FILE] [--commit HASH]
// [--exact-allocations] [GoogleTest options]. Without a usable device every test is skipped.
#include <gtest/gtest.h>

#include <cstdio>
#include <string_view>

#include "gpu_case.hpp"

namespace mixgemm::gpu_test {
void register_registry_tests();
}

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  std::string summary, commit = "unknown";
  for (int i = 1; i < argc; ++i) {
    const std::string_view arg = argv[i];
    if (arg == "--summary" && i + 1 < argc) {
      summary = argv[++i];
    } else if (arg == "--commit" && i + 1 < argc) {
      commit = argv[++i];
    } else if (arg == "--exact-allocations") {
      mixgemm::gpu_test::Arena::exact = true;
    } else {
      std::fprintf(stderr, "mixgemm_gpu_tests: unknown argument \"%s\"\n", argv[i]);
      return 2;
    }
  }
  mixgemm::gpu_test::register_registry_tests();
  int status = RUN_ALL_TESTS();
  if (!mixgemm::gpu_test::why_no_device().empty()) {
    std::printf("mixgemm_gpu_tests: skipped, %s\n", mixgemm::gpu_test::why_no_device().c_str());
  }
  const auto& unit = *testing::UnitTest::GetInstance();
  if (!summary.empty() && !mixgemm::gpu_test::Summary::instance().write(
                              summary, commit, unit.failed_test_count(),
                              unit.successful_test_count(), unit.skipped_test_count())) {
    std::fprintf(stderr, "mixgemm_gpu_tests: can't write \"%s\"\n", summary.c_str());
    status = 1;
  }
  return status;
}
