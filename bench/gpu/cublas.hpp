// SPDX-License-Identifier: Apache-2.0
// The dense baseline: cuBLASLt, loaded at run time, so that no program of this project depends on
// it.
#pragma once

#include <cublasLt.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "gpu/cuda_support.hpp"
#include "mixgemm/types.hpp"

namespace mixgemm::bench {

/// Places where cuBLASLt may lie, in the order they are tried: $MIXGEMM_CUBLASLT (a file; "none":
/// don't look), the loader's own search, CUDA toolkits, and the packages of Python environments
/// ($VIRTUAL_ENV, $CONDA_PREFIX, the environment of the python3 on $PATH, the system's).
std::vector<std::string> cublas_candidates();

class CublasLt {
 public:
  /// nullptr where the library can't be found or lacks a function.
  static std::unique_ptr<CublasLt> load();
  ~CublasLt();
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;

  /// File name and version, e.g. "libcublasLt.so.13 130100".
  std::string description() const;

  /// Y[M,N] = X[M,K] · W[N,K]ᵀ, all 16-bit floats of one type, row-major and dense, fp32 sums.
  class Product {
   public:
    Product(const CublasLt& library, std::int64_t m, std::int64_t n, std::int64_t k, DataType type);
    ~Product();
    Product(const Product&) = delete;
    Product& operator=(const Product&) = delete;

    /// How many of the library's heuristics serve this product: 1 to 6, best guess first.
    std::size_t num_heuristics() const { return heuristics_.size(); }
    /// Enqueues. Throws Error.
    void run(std::size_t heuristic, const void* x, const void* w, void* y,
             cudaStream_t stream) const;

   private:
    void release();

    const CublasLt& library_;
    cublasLtMatmulDesc_t operation_ = nullptr;
    cublasLtMatrixLayout_t x_ = nullptr, w_ = nullptr, y_ = nullptr;
    std::vector<cublasLtMatmulHeuristicResult_t> heuristics_;
  };

 private:
  CublasLt() = default;

  struct Functions {
    decltype(&cublasLtCreate) create;
    decltype(&cublasLtDestroy) destroy;
    decltype(&cublasLtGetVersion) get_version;
    decltype(&cublasLtMatmul) matmul;
    decltype(&cublasLtMatmulAlgoGetHeuristic) get_heuristic;
    decltype(&cublasLtMatmulDescCreate) desc_create;
    decltype(&cublasLtMatmulDescDestroy) desc_destroy;
    decltype(&cublasLtMatmulDescSetAttribute) desc_set;
    decltype(&cublasLtMatrixLayoutCreate) layout_create;
    decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
    decltype(&cublasLtMatmulPreferenceCreate) preference_create;
    decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
    decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
  };
  static bool find_functions(const SharedLibrary& library, Functions& f);

  SharedLibrary library_;
  Functions f_{};
  cublasLtHandle_t handle_ = nullptr;
  DeviceBuffer workspace_;
};

}  // namespace mixgemm::bench
