// SPDX-License-Identifier: Apache-2.0
// kernels/ptx/cp_async.cuh on the host.
#pragma once

#include "cuda_keywords.hpp"

namespace mixgemm::ptx {

inline void cp_async_16(std::uint32_t dst, const void* src, int bytes) {
  emulator::copy_async(dst, src, bytes);
}
inline void cp_async_16_if(bool copies, std::uint32_t dst, const void* src, int bytes) {
  if (copies) cp_async_16(dst, src, bytes);
}
inline void cp_async_commit_group() { emulator::commit_copies(); }
inline void cp_async_wait_groups(int pending) {
  emulator::wait_copies(static_cast<std::size_t>(pending));
}

}  // namespace mixgemm::ptx
