// SPDX-License-Identifier: Apache-2.0
// Puts X's columns in the order of a permuted weight's, before a product: what the host needs of
// gather_columns.cu.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "gather_launch.hpp"

namespace mixgemm::gather {

/// gathered[m, j] = x[m, permutation[j]] for j < K; zeros from there to the row's last vector.
struct Params {
  const std::uint16_t* x;           ///< [M, ldx], 16-bit elements of any type
  std::int64_t ldx;                 ///< elements
  const std::int32_t* permutation;  ///< [K], 16-byte aligned
  std::uint16_t* gathered;          ///< [M, ldg], 16-byte aligned
  std::int64_t ldg;                 ///< elements, a multiple of kVector
  std::int64_t m;
  int k;
  int rows;        ///< of one CTA
  bool x_vectors;  ///< rows of X begin on 16-byte boundaries
};

/// Lets the kernel use kMaxStagedBytes on the current device. Needed once per device, before a
/// staged launch.
cudaError_t allow_shared_memory();

/// pdl: the kernel may begin while those before it on the stream still run; it waits for them
/// before it reads x and before it writes. Needs compute capability 9.0.
cudaError_t enqueue(const Params& params, const Launch& launch, bool pdl, cudaStream_t stream);

}  // namespace mixgemm::gather
