// SPDX-License-Identifier: Apache-2.0
// Device side of the GPU tests: an fp64 product, checks of outputs and guard bands, and kernels
// that behave badly on purpose. Plain code that shares nothing with the library's kernels.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "mixgemm/types.hpp"

namespace mixgemm::gpu_test {

/// A matrix of 16-bit floats inside a larger allocation, everything else of which is guard.
struct Matrix {
  std::uint16_t* allocation = nullptr;
  std::size_t elems = 0;  ///< of the allocation
  std::size_t first = 0;  ///< element (0, 0)
  int rows = 0, cols = 0;
  std::int64_t ld = 0;

  constexpr std::uint16_t* data() const { return allocation + first; }
};

/// Interior: uniform in [low, high), a function of (seed, row, column) alone, so that matrices with
/// other strides hold the same numbers. Guards and row padding: 0xffff, a NaN in both formats.
void fill_matrix(const Matrix& matrix, DataType type, std::uint32_t seed, float low, float high,
                 cudaStream_t stream);

/// Canonical weight on the device → dense [N, K]: exact, and rounded once to the 16-bit type.
struct CanonicalOnDevice {
  const std::uint8_t* codes = nullptr;          ///< [N, K]
  const std::uint16_t* scales = nullptr;        ///< [N, G]
  const std::uint8_t* zeros = nullptr;          ///< [N, G] for ZeroKind::integer
  const std::uint16_t* scaled_zeros = nullptr;  ///< [N, G] for ZeroKind::scaled
  int n = 0, k = 0;
  QuantSpec spec;
};
void make_dense(const CanonicalOnDevice& weight, double* exact, float* rounded,
                cudaStream_t stream);

/// What a reference holds for each output: Σ x·w with the exact and with the rounded weight, and
/// Σ (x·w)², which bounds what rounding of weights can do. [M, N] each.
struct Sums {
  double* exact = nullptr;
  double* rounded = nullptr;
  double* squares = nullptr;
};
void reference_sums(const Matrix& x, DataType type, const double* exact, const float* rounded,
                    int n, const Sums& sums, cudaStream_t stream);

/// What one launch's checks found; accumulated by atomics, so zero it first.
struct Findings {
  double error2 = 0;            ///< Σ (y − exact)²
  double reference_error2 = 0;  ///< Σ (16-bit product of rounded weights − exact)²
  double norm2 = 0;             ///< Σ exact²
  double slack2 = 0;            ///< Σ (rounding unit of an output and of its weights)²
  float worst_ratio = 0;        ///< largest |y − exact| ÷ the bound of its element
  unsigned nans = 0;            ///< outputs that are NaN: never written, or wrong
  unsigned strays = 0;          ///< guard or padding bytes that changed
  unsigned differing = 0;       ///< elements that differ from an earlier run's
};

/// Epilogue as the checks apply it, in fp64.
struct CheckedEpilogue {
  float alpha = 1.0f;
  Activation activation = Activation::none;
  const std::uint16_t* bias = nullptr;
  const std::uint16_t* residual = nullptr;
  std::int64_t ldr = 0;
};

/// Compares Y with the reference; every element of the allocation outside Y must still be 0xffff.
void check_output(const Matrix& y, DataType type, const Sums& sums, int k,
                  const CheckedEpilogue& epilogue, Findings* findings, cudaStream_t stream);

/// Counts elements of two equally laid out matrices that differ in any bit.
void check_same(const Matrix& a, const Matrix& b, Findings* findings, cudaStream_t stream);

/// Counts elements outside the matrix that aren't 0xffff.
void check_guards(const Matrix& matrix, Findings* findings, cudaStream_t stream);

/// Counts bytes that differ from `value`.
void check_bytes(const void* bytes, std::size_t count, std::uint8_t value, Findings* findings,
                 cudaStream_t stream);

/// Lets the next kernel of the stream start at once (programmatic dependent launch), sleeps, and
/// only then copies `count` elements. A kernel that runs ahead of its turn sees the old target, or
/// changes the source before it is read.
void late_copy(std::uint16_t* target, const std::uint16_t* source, std::size_t count, int sleep_us,
               cudaStream_t stream);

/// An illegal instruction: the context is lost.
void trap(cudaStream_t stream);

}  // namespace mixgemm::gpu_test
