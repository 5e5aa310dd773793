// SPDX-License-Identifier: Apache-2.0
// Copies global → shared without registers: cp.async (16 bytes a thread) and cp.async.bulk (a run
// of bytes, one thread), both completing on an mbarrier.
#pragma once

#include <cstdint>

namespace mixgemm::ptx {

/// 16 bytes, of which the first `bytes` are read and the rest are zeroed. Both addresses 16-byte
/// aligned. Bypasses L1 (.cg).
__device__ __forceinline__ void cp_async_16(std::uint32_t dst, const void* src, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(bytes)
               : "memory");
}

/// The same where `copies`, without a branch.
__device__ __forceinline__ void cp_async_16_if(bool copies, std::uint32_t dst, const void* src,
                                               int bytes) {
  asm volatile(
      "{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %3, 0;\n\t"
      "@p cp.async.cg.shared.global [%0], [%1], 16, %2;\n\t}" ::"r"(dst),
      "l"(src), "r"(bytes), "r"(static_cast<int>(copies))
      : "memory");
}

/// cp_async_16 under an L2 policy (kEvict…).
__device__ __forceinline__ void cp_async_16(std::uint32_t dst, const void* src, int bytes,
                                            std::uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(dst),
               "l"(src), "r"(bytes), "l"(policy)
               : "memory");
}

/// Closes a group: this thread's copies since the group before.
__device__ __forceinline__ void cp_async_commit_group() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
/// Returns when all but the last kPending groups of this thread have landed.
template <int kPending>
__device__ __forceinline__ void cp_async_wait_group() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
/// The same for a count known at run time; above 6 it waits for more groups than it need.
/// Comparisons, because a switch would jump through a table in memory.
__device__ __forceinline__ void cp_async_wait_groups(int pending) {
  if (pending >= 6) return cp_async_wait_group<6>();
  if (pending >= 3) {
    if (pending == 3) return cp_async_wait_group<3>();
    return pending == 4 ? cp_async_wait_group<4>() : cp_async_wait_group<5>();
  }
  if (pending == 2) return cp_async_wait_group<2>();
  return pending == 1 ? cp_async_wait_group<1>() : cp_async_wait_group<0>();
}

/// Arrives on the barrier once all earlier cp.async of this thread have landed; the arrival is one
/// of those the barrier was initialized for (.noinc).
__device__ __forceinline__ void cp_async_mbarrier_arrive(std::uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void cp_async_wait_all() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

/// A run of bytes (a multiple of 16, both addresses 16-byte aligned), counted by the barrier.
__device__ __forceinline__ void cp_async_bulk(std::uint32_t dst, const void* src,
                                              std::uint32_t bytes, std::uint32_t barrier,
                                              std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1], %2, [%3], %4;" ::"r"(dst),
      "l"(src), "r"(bytes), "r"(barrier), "l"(policy)
      : "memory");
}

/// The same under L2's default policy.
__device__ __forceinline__ void cp_async_bulk(std::uint32_t dst, const void* src,
                                              std::uint32_t bytes, std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(dst),
      "l"(src), "r"(bytes), "r"(barrier)
      : "memory");
}

}  // namespace mixgemm::ptx
