// SPDX-License-Identifier: Apache-2.0
// Tensor memory accelerator: cp.async.bulk.tensor, global → shared (PTX ISA, same name).
#pragma once

#include <cstdint>

#include "kernel_config.hpp"

namespace mixgemm::ptx {

/// Brings a tensor map into the descriptor cache, so that the first copy doesn't wait for it.
__device__ __forceinline__ void prefetch_tensormap(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

/// One box to this CTA; `column` is the inner coordinate. Completes on `barrier` by bytes.
__device__ __forceinline__ void cp_async_bulk_tensor_2d(std::uint32_t dst, const TensorMap& map,
                                                        int column, int row, std::uint32_t barrier,
                                                        std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(dst),
      "l"(&map), "r"(column), "r"(row), "r"(barrier), "l"(policy)
      : "memory");
}

/// One box to the same offset of every CTA in `cta_mask`, completing on each one's barrier.
__device__ __forceinline__ void cp_async_bulk_tensor_2d_multicast(std::uint32_t dst,
                                                                  const TensorMap& map, int column,
                                                                  int row, std::uint32_t barrier,
                                                                  std::uint16_t cta_mask,
                                                                  std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster.L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5, %6;" ::"r"(dst),
      "l"(&map), "r"(column), "r"(row), "r"(barrier), "h"(cta_mask), "l"(policy)
      : "memory");
}

}  // namespace mixgemm::ptx
