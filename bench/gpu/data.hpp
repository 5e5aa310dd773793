// SPDX-License-Identifier: Apache-2.0
// Random problems made on the device, and comparison with the reference there. Everything runs on
// the given stream; nothing synchronizes except compare().
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "common/statistics.hpp"
#include "gpu/cuda_support.hpp"
#include "mixgemm/types.hpp"
#include "mixgemm/weight.hpp"

namespace mixgemm::bench {

/// Random bits over [p, p + bytes), bytes a multiple of 4: packed codes, all values equally likely.
void fill_random_bits(void* p, std::size_t bytes, std::uint32_t seed, cudaStream_t stream);

/// `count` 16-bit floats, uniform in [-1, 1).
void fill_activations(void* x, std::int64_t count, DataType type, std::uint32_t seed,
                      cudaStream_t stream);

/// The scale about which random scales are drawn (from half to one and a half times), such that Y
/// has a standard deviation near 2 for activations of fill_activations().
float typical_scale(WeightType weight, std::int64_t k);

/// Random scales of spec.scale_type and, unless zeros is nullptr, zeros of spec.zero's kind in the
/// device's form: 16-bit floats, the integers within an eighth of the code range about its middle.
void fill_scales_and_zeros(std::uint16_t* scales, std::uint16_t* zeros, std::int64_t count,
                           const QuantSpec& spec, float scale, std::uint32_t seed,
                           cudaStream_t stream);

/// The dense weight [N, K] of a packed one on the device, as fp64: unrounded, or where `round` is
/// set, rounded to the scale type first, as a dense 16-bit checkpoint would hold it.
void dequantize_f64(const PackedView& weight, bool round, double* dense, cudaStream_t stream);
/// The same rounded to 16 bits of the scale type.
void dequantize_16(const PackedView& weight, std::uint16_t* dense, cudaStream_t stream);

/// Y[M,N] = X[M,K] · W[N,K]ᵀ in fp64; x holds 16-bit floats of type `act`, all row-major, dense.
void reference_product(const void* x, DataType act, const double* w, double* y, std::int64_t m,
                       std::int64_t n, std::int64_t k, cudaStream_t stream);

/// Rounds fp64 to 16 bits of `type`: what a perfect dense product would store.
void round_to_16(const double* from, std::uint16_t* to, std::int64_t count, DataType type,
                 cudaStream_t stream);

/// Compares Y (16-bit floats) with the reference over `count` elements. Synchronizes.
class Comparer {
 public:
  ErrorNorms compare(const void* y, DataType type, const double* reference, std::int64_t count,
                     cudaStream_t stream);

 private:
  DeviceBuffer sums_;
};

/// A link of the chain benchmark: x[m, 0..k) = f(y[m, 0..k)), f(v) = v / (½ + |v|): trivial, and it
/// keeps values away from 0 and from overflow however long the chain. k ≤ ldy. With `pdl`, launched
/// under the PDL contract.
void chain_link(const void* y, std::int64_t ldy, void* x, std::int64_t m, std::int64_t k,
                DataType type, bool pdl, cudaStream_t stream);

/// A kernel that does nothing: the least that a launch can cost.
void empty_launch(cudaStream_t stream);

}  // namespace mixgemm::bench
