// SPDX-License-Identifier: Apache-2.0
// An epilogue from outside the tree: logits soft-capping, y = cap · tanh((x · w + bias) / cap).
// docs/add_an_epilogue.md walks through it.
#pragma once

#include "kernel_config.hpp"

namespace example {

struct SoftCap {
  static constexpr float kCap = 1.0f;

  template <int kCount>
  static __device__ __forceinline__ void apply(const mixgemm::Params&, float (&sum)[kCount],
                                               const float (&bias)[kCount], const float (&)[kCount],
                                               const int (&)[kCount], const int (&)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) sum[i] = kCap * tanhf((sum[i] + bias[i]) / kCap);
  }
};

}  // namespace example
