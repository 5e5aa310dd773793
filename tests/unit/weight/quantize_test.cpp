// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "mixgemm/weight.hpp"
#include "random_weight.hpp"

namespace mixgemm {
namespace {
using testing::describe;
using testing::random_dense;
using testing::same;

TEST(Quantize, PackedInOnePassIsPackOfQuantize) {
  for (const std::int64_t n : {1, 16, 37}) {
    for (const std::int64_t k : {1, 7, 64, 100, 129, 300}) {
      for (const WeightType type : testing::kWeightTypes) {
        for (const ZeroKind zero : testing::kZeroKinds) {
          for (const int group_size : testing::kGroupSizes) {
            QuantizeOptions options;
            options.spec = {type, zero, group_size, DataType::f16};
            SCOPED_TRACE(describe(n, k, options.spec));
            const auto dense = random_dense(n, k, 3);
            const auto w = quantize(dense.data(), DataType::f32, n, k, k, options);
            ASSERT_TRUE(w.ok()) << w.status().message();
            const auto p = quantize_packed(dense.data(), DataType::f32, n, k, k, options);
            ASSERT_TRUE(p.ok()) << p.status().message();
            ASSERT_TRUE(same(*w, unpack(p->view()).value()));
          }
        }
      }
    }
  }
}
}  // namespace
}  // namespace mixgemm
