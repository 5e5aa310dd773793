// SPDX-License-Identifier: Apache-2.0
// Of kernels/ptx/sync.cuh, what the kernels for SM80 use. CTAs run one after the other.
#pragma once

#include "cuda_keywords.hpp"

namespace mixgemm::ptx {

inline std::uint32_t kept(std::uint32_t value) { return value; }
inline int thread_here() { return static_cast<int>(threadIdx.x); }

inline void st_release_gpu(std::uint64_t* flag, std::uint64_t value) { *flag = value; }
inline std::uint64_t ld_acquire_gpu(const std::uint64_t* flag) { return *flag; }

}  // namespace mixgemm::ptx
