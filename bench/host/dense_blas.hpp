// SPDX-License-Identifier: Apache-2.0
// The baseline on the CPU: a dense fp32 product by whatever BLAS the machine has.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace mixgemm::bench {

/// A CBLAS library, opened at run time and kept for the life of the process.
class DenseBlas {
 public:
  /// Looks for OpenBLAS, then for any CBLAS; MIXGEMM_BLAS names a library to use, or "none".
  /// Nothing when there is none.
  static std::optional<DenseBlas> find(int num_threads);

  /// y[M,N] = x[M,K] · w[N,K]ᵀ, all row-major without gaps.
  void gemm(std::int64_t m, std::int64_t n, std::int64_t k, const float* x, const float* w,
            float* y) const;
  /// The same for M = 1 through the matrix-vector routine, which is the faster one in some BLAS.
  void gemv(std::int64_t n, std::int64_t k, const float* x, const float* w, float* y) const;
  /// The file that was opened.
  const std::string& name() const { return name_; }

 private:
  DenseBlas() = default;
  std::string name_;
  void* gemm_ = nullptr;
  void* gemv_ = nullptr;
};

}  // namespace mixgemm::bench
