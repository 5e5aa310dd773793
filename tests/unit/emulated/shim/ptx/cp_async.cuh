// SPDX-License-Identifier: Apache-2.0
// kernels/ptx/cp_async.cuh on the host.
#pragma once

#include <vector>

#include "cuda_keywords.hpp"
#include "kernel_config.hpp"

namespace mixgemm::ptx {

inline void check_policy(std::uint64_t policy) {
  if (policy != kEvictNormal && policy != kEvictFirst && policy != kEvictLast) {
    emulator::fail("an L2 policy that createpolicy doesn't make");
  }
}

inline void cp_async_16(std::uint32_t dst, const void* src, int bytes) {
  emulator::copy_async(dst, src, bytes);
}
inline void cp_async_16(std::uint32_t dst, const void* src, int bytes, std::uint64_t policy) {
  check_policy(policy);
  emulator::copy_async(dst, src, bytes);
}
inline void cp_async_16_if(bool copies, std::uint32_t dst, const void* src, int bytes) {
  if (copies) cp_async_16(dst, src, bytes);
}
inline void cp_async_commit_group() { emulator::commit_copies(); }
inline void cp_async_wait_groups(int pending) {
  emulator::wait_copies(static_cast<std::size_t>(pending));
}
inline void cp_async_mbarrier_arrive(std::uint32_t barrier) {
  emulator::arrive_after_copies(barrier);
}

inline void cp_async_bulk(std::uint32_t dst, const void* src, std::uint32_t bytes,
                          std::uint32_t barrier, std::uint64_t policy) {
  check_policy(policy);
  if (dst % 16 != 0 || reinterpret_cast<std::uintptr_t>(src) % 16 != 0 || bytes % 16 != 0 ||
      bytes == 0) {
    emulator::fail("cp.async.bulk of something that isn't 16-byte pieces");
  }
  emulator::check_readable(src, bytes);
  const char* const from = static_cast<const char*>(src);
  emulator::copy_bulk(dst, std::vector<char>(from, from + bytes), barrier, 0);
}

}  // namespace mixgemm::ptx
