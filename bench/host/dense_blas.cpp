// SPDX-License-Identifier: Apache-2.0
#include "dense_blas.hpp"

#include <dlfcn.h>

namespace mixgemm::bench {

std::optional<DenseBlas> DenseBlas::find() {
  const cpu::Blas& found = cpu::blas();
  if (found.sgemm == nullptr) return std::nullopt;
  DenseBlas blas;
  blas.blas_ = &found;
  blas.sgemv_ = reinterpret_cast<SgemvFunction>(dlsym(found.library, "sgemv_"));
  return blas;
}

// To a Fortran routine the row-major matrices are their column-major transposes: yᵀ = w · xᵀ.
void DenseBlas::gemm(std::int64_t m, std::int64_t n, std::int64_t k, const float* x, const float* w,
                     float* y) const {
  const float one = 1.0f, zero = 0.0f;
  blas_->sgemm("T", "N", &n, &m, &k, &one, w, &k, x, &k, &zero, y, &n, 1, 1);
}

void DenseBlas::gemv(std::int64_t n, std::int64_t k, const float* x, const float* w,
                     float* y) const {
  if (sgemv_ == nullptr) return gemm(1, n, k, x, w, y);
  const float one = 1.0f, zero = 0.0f;
  const std::int64_t step = 1;
  sgemv_("T", &k, &n, &one, w, &k, x, &step, &zero, y, &step, 1);
}

}  // namespace mixgemm::bench
