// SPDX-License-Identifier: Apache-2.0
// Of kernels/ptx/mbarrier.cuh, what the kernels for SM80 use.
#pragma once

#include "cuda_keywords.hpp"

namespace mixgemm::ptx {

inline std::uint32_t smem_address(const void* p) {
  return static_cast<std::uint32_t>(static_cast<const char*>(p) - emulator::shared_memory());
}

}  // namespace mixgemm::ptx
