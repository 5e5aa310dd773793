// SPDX-License-Identifier: Apache-2.0
// X's columns in the order of a permuted weight's: gathered[m, j] = x[m, permutation[j]].
//
//   permutation  [K] i32     ──── 8 indices per thread, in registers for all rows of the CTA
//   x            [M, K] u16  ──── rows → shared memory (16-byte copies), read there at random
//   gathered     [M, K] u16  ──── one 16-byte store per thread and row
//
// The contract of programmatic dependent launch holds as for the products: before its wait the
// kernel reads the permutation alone, which belongs to the weight; X and the workspace, which the
// kernel before may still write and read, come after. Every CTA waits, so that whoever waits for
// this grid has waited for all before it.
#include "gather_columns.hpp"
#include "ptx/cp_async.cuh"
#include "ptx/sync.cuh"

namespace mixgemm::gather {
namespace {

/// The indices of columns 8v .. 8v + 7; −1 beyond K, and where the index is none of 0 .. K − 1:
/// such a permutation gives zeros instead of an access outside of X.
__device__ __forceinline__ void load_indices(const Params& p, int v, int (&at)[kVector]) {
  if ((v + 1) * kVector <= p.k) {
    const auto* from = reinterpret_cast<const int4*>(p.permutation) + 2 * v;
    const int4 low = __ldg(from), high = __ldg(from + 1);
    at[0] = low.x, at[1] = low.y, at[2] = low.z, at[3] = low.w;
    at[4] = high.x, at[5] = high.y, at[6] = high.z, at[7] = high.w;
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const int j = v * kVector + i;
      at[i] = j < p.k ? __ldg(p.permutation + j) : -1;
    }
  }
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    if (static_cast<unsigned>(at[i]) >= static_cast<unsigned>(p.k)) at[i] = -1;
  }
}

/// Eight elements of a row, as one vector.
__device__ __forceinline__ uint4 pick(const std::uint16_t* row, const int (&at)[kVector]) {
  std::uint32_t element[kVector];
#pragma unroll
  for (int i = 0; i < kVector; ++i) element[i] = at[i] < 0 ? 0 : row[at[i]];
  return make_uint4(element[0] | element[1] << 16, element[2] | element[3] << 16,
                    element[4] | element[5] << 16, element[6] | element[7] << 16);
}

/// Rows of X into shared memory, `pitch` elements apart.
__device__ __forceinline__ void stage_rows(const Params& p, std::int64_t first_row, int rows,
                                           int pitch, std::uint16_t* staged) {
  for (int r = 0; r < rows; ++r) {
    const std::uint16_t* from = p.x + (first_row + r) * p.ldx;
    std::uint16_t* to = staged + r * pitch;
    int done = 0;
    if (p.x_vectors) {
      done = p.k / kVector * kVector;
      const auto base = static_cast<std::uint32_t>(__cvta_generic_to_shared(to));
      for (int j = static_cast<int>(threadIdx.x) * kVector; j < done; j += kThreads * kVector) {
        ptx::cp_async_16(base + 2 * static_cast<std::uint32_t>(j), from + j, 16);
      }
    }
#pragma unroll 4
    for (int j = done + static_cast<int>(threadIdx.x); j < p.k; j += kThreads) to[j] = from[j];
  }
  ptx::cp_async_wait_all();
  __syncthreads();
}

template <bool kStaged>
__global__ void __launch_bounds__(kThreads) gather_columns(const __grid_constant__ Params p) {
  extern __shared__ uint4 staged_vectors[];
  auto* const staged = reinterpret_cast<std::uint16_t*>(staged_vectors);
  const int vectors = (p.k + kVector - 1) / kVector;
  const int pitch = vectors * kVector;
  const std::int64_t first_row = static_cast<std::int64_t>(blockIdx.x) * p.rows;
  const int rows = static_cast<int>(min(static_cast<std::int64_t>(p.rows), p.m - first_row));
  const int step = static_cast<int>(gridDim.y) * kThreads;
  int v = static_cast<int>(blockIdx.y * kThreads + threadIdx.x);
  int at[kVector];
  if (v < vectors) load_indices(p, v, at);
#if __CUDA_ARCH__ >= 900
  ptx::griddepcontrol_launch_dependents();
  ptx::griddepcontrol_wait();
#endif
  if (kStaged) stage_rows(p, first_row, rows, pitch, staged);
  while (v < vectors) {
#pragma unroll 2
    for (int r = 0; r < rows; ++r) {
      const std::int64_t row = first_row + r;
      const std::uint16_t* from = kStaged ? staged + r * pitch : p.x + row * p.ldx;
      *reinterpret_cast<uint4*>(p.gathered + row * p.ldg + v * kVector) = pick(from, at);
    }
    v += step;
    if (v < vectors) load_indices(p, v, at);
  }
}

}  // namespace

cudaError_t allow_shared_memory() {
  return cudaFuncSetAttribute(gather_columns<true>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(kMaxStagedBytes));
}

cudaError_t enqueue(const Params& params, const Launch& launch, bool pdl, cudaStream_t stream) {
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(launch.ctas), static_cast<unsigned>(launch.slices));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = launch.smem_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = pdl ? 1 : 0;
  return launch.staged ? cudaLaunchKernelEx(&config, gather_columns<true>, params)
                       : cudaLaunchKernelEx(&config, gather_columns<false>, params);
}

}  // namespace mixgemm::gather
