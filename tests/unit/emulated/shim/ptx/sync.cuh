// SPDX-License-Identifier: Apache-2.0
// Of kernels/ptx/sync.cuh, what the kernels for SM80 use. CTAs run one after the other.
#pragma once

#include "cuda_keywords.hpp"

namespace mixgemm::ptx {

inline void st_release_gpu(std::uint64_t* flag, std::uint64_t value) { *flag = value; }
inline std::uint64_t ld_acquire_gpu(const std::uint64_t* flag) { return *flag; }

}  // namespace mixgemm::ptx
