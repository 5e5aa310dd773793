// SPDX-License-Identifier: Apache-2.0
// The built-in epilogue: y = activation(alpha · sum + bias[n]) + residual[m, n], in fp32, before
// the one rounding to the output type. What it does is chosen at run time by Params, since each
// choice costs a few instructions per output element and none in the main loop.
//
// An epilogue is a struct with this apply(); docs/add_an_epilogue.md shows how to add one.
#pragma once

#include "kernel_config.hpp"
#include "ptx/arith.cuh"

namespace mixgemm {

struct StandardEpilogue {
  /// Optional for an epilogue, with apply_plain(): the common case, in few enough instructions that
  /// a kernel which has just finished its main loop doesn't wait for them to be fetched. Asked once
  /// per tile.
  static __device__ __forceinline__ bool is_plain(const Params& p) {
    return !p.gated && p.residual == nullptr;
  }
  /// What apply() does where is_plain() holds: alpha · sum + bias, and ReLU.
  template <int kCount>
  static __device__ __forceinline__ void apply_plain(const Params& p, float (&sum)[kCount],
                                                     const float (&bias)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      sum[i] = ptx::max_nan(fmaf(p.alpha, sum[i], bias[i]), p.relu_floor);
    }
  }

  /// sum: kCount fp32 sums of X·Wᵀ, replaced by what is to be stored. bias and residual are 0 where
  /// the problem has none. n, m: output feature and token of each element (n may reach past N and m
  /// past M at the edges: those elements are computed, not stored).
  template <int kCount>
  static __device__ __forceinline__ void apply(const Params& p, float (&sum)[kCount],
                                               const float (&bias)[kCount],
                                               const float (&residual)[kCount],
                                               const int (&n)[kCount], const int (&m)[kCount]) {
    (void)n;
    (void)m;
#pragma unroll
    for (int i = 0; i < kCount; ++i) sum[i] = fmaf(p.alpha, sum[i], bias[i]);
    if (p.gated) {
      // y · sigmoid(y · (linear + cubic · y²)) is SiLU or the tanh form of GELU.
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const float y = sum[i];
        constexpr float kLog2E = 1.4426950408889634f;
        const float z = y * fmaf(p.gate_cubic, y * y, p.gate_linear);
        sum[i] = y * ptx::rcp_approx(1.f + ptx::ex2_approx(-kLog2E * z));
      }
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) sum[i] = ptx::max_nan(sum[i], p.relu_floor) + residual[i];
  }
};

}  // namespace mixgemm
