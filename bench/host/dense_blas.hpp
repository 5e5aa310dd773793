// SPDX-License-Identifier: Apache-2.0
// The baseline on the CPU: a dense fp32 product by the BLAS that the CPU backend found.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "cpu/blas.hpp"

namespace mixgemm::bench {

class DenseBlas {
 public:
  /// Nothing when the machine has no BLAS, or MIXGEMM_BLAS is "none".
  static std::optional<DenseBlas> find();

  /// y[M,N] = x[M,K] · w[N,K]ᵀ, all row-major without gaps.
  void gemm(std::int64_t m, std::int64_t n, std::int64_t k, const float* x, const float* w,
            float* y) const;
  /// The same for M = 1 through the matrix-vector routine, which is the faster one in some BLAS.
  void gemv(std::int64_t n, std::int64_t k, const float* x, const float* w, float* y) const;
  /// E.g. "OpenBLAS 0.3.21 (libopenblas.so.0)".
  const std::string& name() const { return blas_->description; }

 private:
  using SgemvFunction = void (*)(const char* trans, const std::int64_t* m, const std::int64_t* n,
                                 const float* alpha, const float* a, const std::int64_t* lda,
                                 const float* x, const std::int64_t* incx, const float* beta,
                                 float* y, const std::int64_t* incy, std::size_t trans_length);
  const cpu::Blas* blas_ = nullptr;
  SgemvFunction sgemv_ = nullptr;
};

}  // namespace mixgemm::bench
