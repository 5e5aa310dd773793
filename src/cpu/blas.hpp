// SPDX-License-Identifier: Apache-2.0
// A BLAS found at run time: the library links none, so that it depends on nothing but libc,
// libstdc++ and libm, and uses the machine's best if there is one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace mixgemm::cpu {

/// Fortran interface of sgemm. Integers are passed as addresses of 64-bit variables, which BLAS
/// libraries with 32-bit integers read correctly too on little-endian machines.
using SgemmFunction = void (*)(const char* transa, const char* transb, const std::int64_t* m,
                               const std::int64_t* n, const std::int64_t* k, const float* alpha,
                               const float* a, const std::int64_t* lda, const float* b,
                               const std::int64_t* ldb, const float* beta, float* c,
                               const std::int64_t* ldc, std::size_t transa_length,
                               std::size_t transb_length);

struct Blas {
  void* library = nullptr;        ///< dlopen's handle, never closed
  SgemmFunction sgemm = nullptr;  ///< null: there is none
  bool fast = false;              ///< a known optimized library, not a reference implementation
  std::string description;        ///< its name and file, or why there is none
};

/// Looks for a BLAS: the file that the environment variable MIXGEMM_BLAS names ("none": don't
/// look), else well-known names. Searched once per value of the variable; thread-safe.
const Blas& blas();

}  // namespace mixgemm::cpu
