// SPDX-License-Identifier: Apache-2.0
// The end of a sum that lies in shared memory or in a workspace: four neighbouring features of one
// token through scale, epilogue and rounding to Y.
#pragma once

#include <cstdint>

#include "kernel_config.hpp"
#include "ptx/arith.cuh"

namespace mixgemm::device {

template <KernelConfig kConfig, class Epilogue>
struct Quad {
  static constexpr bool kF16 = kConfig.act == DataType::f16;

  static __device__ __forceinline__ float to_float(std::uint16_t bits) {
    return kF16 ? ptx::cvt_f32_f16(bits) : __uint_as_float(std::uint32_t(bits) << 16);
  }
  static __device__ __forceinline__ std::uint32_t pack(float low, float high) {
    return kF16 ? ptx::cvt_f16x2_f32(low, high) : ptx::cvt_bf16x2_f32(low, high);
  }

  /// Features first_n .. first_n + 3 (first_n a multiple of 4; those beyond N are left out) of
  /// `token`, which is below M.
  static __device__ __forceinline__ void finish(const Params& p, float (&sum)[4], int first_n,
                                                int token) {
    const auto* const bias = static_cast<const std::uint16_t*>(p.bias);
    float b[4], r[4] = {0.f, 0.f, 0.f, 0.f};
    int n[4], m[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      n[i] = first_n + i;
      m[i] = token;
      const bool inside = n[i] < p.n;
      if constexpr (kConfig.quant == Quant::column) {
        sum[i] *= inside ? to_float(p.scales[layout::scale_index(n[i], 0, p.groups_pitch)]) : 1.f;
      }
      b[i] = bias != nullptr && inside ? to_float(bias[n[i]]) : 0.f;
    }
    if (p.residual != nullptr) {
      const auto* const row =
          static_cast<const std::uint16_t*>(p.residual) + token * p.ldr + first_n;
      if (p.r_vectors && first_n + 4 <= p.n) {
        const uint2 v = *reinterpret_cast<const uint2*>(row);
        r[0] = to_float(static_cast<std::uint16_t>(v.x));
        r[1] = to_float(static_cast<std::uint16_t>(v.x >> 16));
        r[2] = to_float(static_cast<std::uint16_t>(v.y));
        r[3] = to_float(static_cast<std::uint16_t>(v.y >> 16));
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) r[i] = n[i] < p.n ? to_float(row[i]) : 0.f;
      }
    }
    Epilogue::apply(p, sum, b, r, n, m);
    const std::uint32_t words[2] = {pack(sum[0], sum[1]), pack(sum[2], sum[3])};
    auto* const row = static_cast<std::uint16_t*>(p.y) + token * p.ldy + first_n;
    if (p.y_vectors && first_n + 4 <= p.n) {
      *reinterpret_cast<uint2*>(row) = make_uint2(words[0], words[1]);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (n[i] < p.n) row[i] = static_cast<std::uint16_t>(words[i / 2] >> (16 * (i % 2)));
      }
    }
  }
};

}  // namespace mixgemm::device
