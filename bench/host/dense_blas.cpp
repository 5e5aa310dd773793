// SPDX-License-Identifier: Apache-2.0
#include "dense_blas.hpp"

#include <dlfcn.h>

#include <cstdlib>
#include <vector>

#include "util/parallel.hpp"

namespace mixgemm::bench {
namespace {

// CBLAS's enumerators and prototypes, as its standard fixes them (32-bit integers).
constexpr int kRowMajor = 101, kNoTrans = 111, kTrans = 112;
using Sgemm = void (*)(int order, int trans_a, int trans_b, int m, int n, int k, float alpha,
                       const float* a, int lda, const float* b, int ldb, float beta, float* c,
                       int ldc);
using Sgemv = void (*)(int order, int trans, int m, int n, float alpha, const float* a, int lda,
                       const float* x, int incx, float beta, float* y, int incy);

}  // namespace

std::optional<DenseBlas> DenseBlas::find(int num_threads) {
  std::vector<std::string> names = {"libopenblas.so.0", "libopenblas.so", "libblas.so.3",
                                    "libcblas.so.3"};
  if (const char* chosen = std::getenv("MIXGEMM_BLAS"); chosen != nullptr && *chosen != '\0') {
    if (std::string(chosen) == "none") return std::nullopt;
    names = {chosen};
  }
  for (const auto& name : names) {
    void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) continue;
    DenseBlas blas;
    blas.name_ = name;
    blas.gemm_ = dlsym(library, "cblas_sgemm");
    blas.gemv_ = dlsym(library, "cblas_sgemv");
    if (blas.gemm_ == nullptr || blas.gemv_ == nullptr) {
      dlclose(library);
      continue;
    }
    if (void* set_threads = dlsym(library, "openblas_set_num_threads")) {
      reinterpret_cast<void (*)(int)>(set_threads)(num_threads > 0 ? num_threads
                                                                   : default_num_threads());
    }
    return blas;
  }
  return std::nullopt;
}

void DenseBlas::gemm(std::int64_t m, std::int64_t n, std::int64_t k, const float* x, const float* w,
                     float* y) const {
  reinterpret_cast<Sgemm>(gemm_)(
      kRowMajor, kNoTrans, kTrans, static_cast<int>(m), static_cast<int>(n), static_cast<int>(k),
      1.0f, x, static_cast<int>(k), w, static_cast<int>(k), 0.0f, y, static_cast<int>(n));
}

void DenseBlas::gemv(std::int64_t n, std::int64_t k, const float* x, const float* w,
                     float* y) const {
  reinterpret_cast<Sgemv>(gemv_)(kRowMajor, kNoTrans, static_cast<int>(n), static_cast<int>(k),
                                 1.0f, w, static_cast<int>(k), x, 1, 0.0f, y, 1);
}

}  // namespace mixgemm::bench
