// SPDX-License-Identifier: Apache-2.0
#include "api/kernel_names.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace mixgemm {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(KernelNames, NearestFirstAndTiesInOrder) {
  const std::vector<std::string> names = {"abcd", "abce", "zzzz", "abc"};
  EXPECT_THAT(nearest_names("abcd", names), ElementsAre("abcd", "abce", "abc"));
  EXPECT_THAT(nearest_names("abcd", names, 1), ElementsAre("abcd"));
  EXPECT_THAT(nearest_names("", {}), IsEmpty());
}

TEST(KernelNames, NotFoundNamesKernelNeighboursAndWhereToLook) {
  const Status status = kernel_not_found("cpu_f16_i4_g_smid", {"cpu_f16_i4_g_simd"}, "the hint");
  EXPECT_EQ(status.code(), StatusCode::not_found);
  EXPECT_THAT(status.message(), HasSubstr("\"cpu_f16_i4_g_smid\""));
  EXPECT_THAT(status.message(), HasSubstr("nearest: cpu_f16_i4_g_simd"));
  EXPECT_THAT(status.message(), HasSubstr("`mixgemm kernels`"));
  EXPECT_THAT(status.message(), HasSubstr("the hint"));
}

TEST(KernelNames, EndlessNamesStayShort) {
  const Status status = kernel_not_found(std::string(1 << 20, 'x'), {"a", "b"});
  EXPECT_LT(status.message().size(), 400u);
  EXPECT_THAT(status.message(), HasSubstr("xxx...\""));
}

}  // namespace
}  // namespace mixgemm
