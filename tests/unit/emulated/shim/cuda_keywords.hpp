// SPDX-License-Identifier: Apache-2.0
// CUDA C++ as far as the kernels use it, for the host compiler.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "emulator.hpp"

#define __device__
#define __host__
#define __global__
#define __shared__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define threadIdx ::mixgemm::emulator::thread_idx
#define blockIdx ::mixgemm::emulator::block_idx
#define gridDim ::mixgemm::emulator::grid_dim

struct int3 {
  int x, y, z;
};
struct uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline int3 make_int3(int x, int y, int z) { return {x, y, z}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline float __uint_as_float(std::uint32_t bits) { return std::bit_cast<float>(bits); }
inline std::uint32_t __float_as_uint(float value) { return std::bit_cast<std::uint32_t>(value); }
inline float __int_as_float(int bits) { return std::bit_cast<float>(bits); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline int __clz(int value) { return std::countl_zero(static_cast<unsigned>(value)); }
inline float4 __ldcg(const float4* p) { return *p; }
inline void __syncthreads() { ::mixgemm::emulator::sync_cta(); }
inline void __syncwarp() { ::mixgemm::emulator::sync_warp(); }
/// Between two looks at a flag.
inline void __nanosleep(unsigned) { ::mixgemm::emulator::wait_for_flag(); }

namespace mixgemm {
using std::fmaf;
using std::max;
using std::min;
}  // namespace mixgemm
