// SPDX-License-Identifier: Apache-2.0
// kernels/ptx/mbarrier.cuh on the host.
#pragma once

#include "cuda_keywords.hpp"

namespace mixgemm::ptx {

inline std::uint32_t smem_address(const void* p) {
  return emulator::shared_address(static_cast<const char*>(p));
}

inline void mbarrier_init(std::uint32_t barrier, std::uint32_t arrivals) {
  emulator::init_barrier(barrier, arrivals);
}
inline void fence_mbarrier_init() {}

inline void mbarrier_arrive(std::uint32_t barrier) { emulator::arrive(barrier, 0); }
inline void mbarrier_arrive_if(bool arrive, std::uint32_t barrier) {
  if (arrive) emulator::arrive(barrier, 0);
}
inline void mbarrier_arrive_cluster_if(bool arrive, std::uint32_t remote) {
  if (arrive) emulator::arrive_remote(remote);
}
inline std::uint32_t mapa(std::uint32_t address, std::uint32_t rank) {
  return emulator::map_rank(address, rank);
}
inline void cp_async_bulk_to_cluster(std::uint32_t remote, std::uint32_t from, std::uint32_t bytes,
                                     std::uint32_t remote_barrier) {
  emulator::copy_to_cluster(remote, from, bytes, remote_barrier);
}
inline void mbarrier_arrive_expect_tx(std::uint32_t barrier, std::uint32_t bytes) {
  emulator::arrive(barrier, bytes);
}
inline void mbarrier_wait(std::uint32_t barrier, std::uint32_t parity) {
  emulator::wait_parity(barrier, parity);
}

}  // namespace mixgemm::ptx
