// SPDX-License-Identifier: Apache-2.0
// stmatrix and ldmatrix, transposed: between the fragments of Yᵀ and rows of Y in shared memory.
#pragma once

#include <cstdint>

namespace mixgemm::ptx {

/// Four 8×8 matrices of 16-bit elements, each stored transposed; lane l gives the address of row
/// l % 8 of matrix l / 8.
__device__ __forceinline__ void stmatrix_x4_trans(std::uint32_t row, const std::uint32_t (&v)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row),
               "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3])
               : "memory");
}

/// Two matrices; lanes 0–15 give the addresses.
__device__ __forceinline__ void stmatrix_x2_trans(std::uint32_t row, std::uint32_t v0,
                                                  std::uint32_t v1) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(row), "r"(v0),
               "r"(v1)
               : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(std::uint32_t (&v)[4], std::uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
               : "r"(row)
               : "memory");
}

__device__ __forceinline__ void ldmatrix_x2_trans(std::uint32_t& v0, std::uint32_t& v1,
                                                  std::uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(v0), "=r"(v1)
               : "r"(row)
               : "memory");
}

}  // namespace mixgemm::ptx
