// SPDX-License-Identifier: Apache-2.0
// Loads of fragments' parts from shared-window addresses; stmatrix and ldmatrix, transposed:
// between the fragments of Yᵀ and rows of Y in shared memory.
#pragma once

#include <cstdint>

namespace mixgemm::ptx {

// Volatile, to stay behind the barrier that says the data is there.
__device__ __forceinline__ void ld_shared_v4(std::uint32_t address, std::uint32_t& a,
                                             std::uint32_t& b, std::uint32_t& c, std::uint32_t& d) {
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
               : "r"(address));
}
__device__ __forceinline__ std::uint32_t ld_shared_u32(std::uint32_t address) {
  std::uint32_t value;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
  return value;
}
/// An exchange instead of a store: to racecheck, an arrival by one lane of a warp says nothing of
/// what the others have read, so that a store after it would race with them.
__device__ __forceinline__ void exchange_shared_u32(std::uint32_t address, std::uint32_t value) {
  asm volatile("{\n .reg .b32 before;\n atom.shared.exch.b32 before, [%0], %1;\n}" ::"r"(address),
               "r"(value)
               : "memory");
}
__device__ __forceinline__ std::uint16_t ld_shared_u16(std::uint32_t address) {
  std::uint16_t v;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(address));
  return v;
}

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
