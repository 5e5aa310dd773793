// SPDX-License-Identifier: Apache-2.0
// mbarrier: the full and empty barriers of a ring (PTX ISA, "Parallel Synchronization: mbarrier").
// Addresses are 32-bit shared-window addresses, as the instructions take them.
#pragma once

#include <cstdint>

namespace mixgemm::ptx {

__device__ __forceinline__ std::uint32_t smem_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ void mbarrier_init(std::uint32_t barrier, std::uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

/// Makes initialized barriers visible to the copy engine and to the other CTAs of the cluster.
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// The same without a branch, for the end of a stage, here and on a barrier of another CTA of the
// cluster, whose address mapa() gives. There, the default (CTA) scope is enough and cheap: the
// arrival says that reads of a stage are done, and those have returned by then. A cluster scope
// release would put a device-wide memory barrier into every stage.
__device__ __forceinline__ void mbarrier_arrive_if(bool arrive, std::uint32_t barrier) {
  asm volatile(
      "{\n .reg .pred arrive;\n setp.ne.b32 arrive, %1, 0;\n"
      " @arrive mbarrier.arrive.shared::cta.b64 _, [%0];\n}" ::"r"(barrier),
      "r"(int(arrive))
      : "memory");
}
__device__ __forceinline__ void mbarrier_arrive_cluster_if(bool arrive, std::uint32_t remote) {
  asm volatile(
      "{\n .reg .pred arrive;\n setp.ne.b32 arrive, %1, 0;\n"
      " @arrive mbarrier.arrive.shared::cluster.b64 _, [%0];\n}" ::"r"(remote),
      "r"(int(arrive))
      : "memory");
}

/// Where CTA `rank` of the cluster has what this one has at a shared-window address.
__device__ __forceinline__ std::uint32_t mapa(std::uint32_t address, std::uint32_t rank) {
  std::uint32_t remote;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
  return remote;
}

/// Arrives and announces the bytes that the copy engine will write.
__device__ __forceinline__ void mbarrier_arrive_expect_tx(std::uint32_t barrier,
                                                          std::uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

/// A multiple of 16 bytes to another CTA of the cluster, both addresses there from mapa(); its
/// barrier counts them when they have arrived. Ordinary writes to what is copied need
/// fence_proxy_async_shared() before it.
__device__ __forceinline__ void cp_async_bulk_to_cluster(std::uint32_t remote, std::uint32_t from,
                                                         std::uint32_t bytes,
                                                         std::uint32_t remote_barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, "
      "[%3];" ::"r"(remote),
      "r"(from), "r"(bytes), "r"(remote_barrier)
      : "memory");
}

/// Waits until the phase of the given parity is complete. try_wait suspends the thread for a
/// hardware-chosen time, so the loop is no busy spin. Default (CTA) scope: the copy engine's writes
/// are made visible by their completion on the barrier, and a cluster scope acquire would
/// invalidate the L1 cache at every stage.
__device__ __forceinline__ void mbarrier_wait(std::uint32_t barrier, std::uint32_t parity) {
  asm volatile(
      "{\n .reg .pred done;\n"
      "WAIT:\n mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      " @done bra DONE;\n bra WAIT;\nDONE:\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

}  // namespace mixgemm::ptx
