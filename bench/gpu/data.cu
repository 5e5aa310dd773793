// SPDX-License-Identifier: Apache-2.0
#include "gpu/data.hpp"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "gpu/launch.cuh"
#include "layout/packed.hpp"
#include "ptx/sync.cuh"

namespace mixgemm::bench {
namespace {

constexpr int kBlock = 256;
constexpr int kMaxGrid = 132 * 16;  // grid-stride loops: enough to fill any device

int grid_for(std::int64_t count) {
  return static_cast<int>(std::clamp<std::int64_t>((count + kBlock - 1) / kBlock, 1, kMaxGrid));
}

LaunchSpec elementwise(std::int64_t count, cudaStream_t stream, const char* name) {
  return {.grid = grid_for(count), .block = kBlock, .stream = stream, .name = name};
}

__device__ std::int64_t first_index() {
  return static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ std::int64_t index_step() { return static_cast<std::int64_t>(gridDim.x) * blockDim.x; }

/// A well-mixed 32-bit hash of (index, seed): random access instead of a generator's state.
__device__ std::uint32_t random_bits(std::uint64_t index, std::uint32_t seed) {
  std::uint64_t h = (index + 1) * 0x9e3779b97f4a7c15ull ^ (static_cast<std::uint64_t>(seed) << 32);
  h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9ull;
  h = (h ^ (h >> 27)) * 0x94d049bb133111ebull;
  return static_cast<std::uint32_t>((h ^ (h >> 31)) >> 16);
}
/// Uniform in [0, 1).
__device__ float random_unit(std::uint64_t index, std::uint32_t seed) {
  return static_cast<float>(random_bits(index, seed) >> 8) * 0x1p-24f;
}

__device__ std::uint16_t bits16(float value, DataType type) {
  return type == DataType::bf16 ? __bfloat16_as_ushort(__float2bfloat16_rn(value))
                                : __half_as_ushort(__float2half_rn(value));
}
/// Straight from fp64: going through fp32 would round twice.
__device__ std::uint16_t bits16(double value, DataType type) {
  return type == DataType::bf16 ? __bfloat16_as_ushort(__double2bfloat16(value))
                                : __half_as_ushort(__double2half(value));
}
__device__ float float_of(std::uint16_t bits, DataType type) {
  return type == DataType::bf16 ? __bfloat162float(__ushort_as_bfloat16(bits))
                                : __half2float(__ushort_as_half(bits));
}

__global__ void random_bits_kernel(std::uint32_t* p, std::int64_t words, std::uint32_t seed) {
  for (std::int64_t i = first_index(); i < words; i += index_step()) p[i] = random_bits(i, seed);
}

__global__ void activations_kernel(std::uint16_t* x, std::int64_t count, DataType type,
                                   std::uint32_t seed) {
  for (std::int64_t i = first_index(); i < count; i += index_step()) {
    x[i] = bits16(2.0f * random_unit(i, seed) - 1.0f, type);
  }
}

__global__ void scales_kernel(std::uint16_t* scales, std::uint16_t* zeros, std::int64_t count,
                              QuantSpec spec, float scale, std::uint32_t seed) {
  const float middle = static_cast<float>(implicit_zero(spec.type));
  for (std::int64_t i = first_index(); i < count; i += index_step()) {
    const std::uint16_t bits = bits16(scale * (0.5f + random_unit(i, seed)), spec.scale_type);
    scales[i] = bits;
    if (zeros == nullptr) continue;
    const float zero = floorf(middle * (0.75f + 0.5f * random_unit(i, seed + 1)) + 0.5f);
    zeros[i] = bits16(spec.zero == ZeroKind::scaled ? zero * float_of(bits, spec.scale_type) : zero,
                      spec.scale_type);
  }
}

/// One weight, exactly: fp64 holds any code times any 16-bit scale, and the difference of two such.
__device__ double dequantized(const PackedView& w, std::int64_t n, std::int64_t k) {
  const int bits = bits_of(w.spec.type);
  const layout::Place place = layout::place_of(
      {static_cast<int>(n % layout::kStripRows), static_cast<int>(k % layout::kBlockK)}, bits);
  const auto* cell = reinterpret_cast<const std::uint32_t*>(
      w.codes + n / layout::kStripRows * w.codes_pitch_bytes +
      k / layout::kBlockK * layout::cell_bytes(bits));
  const double code = (cell[place.word] >> place.bit) & ((1u << bits) - 1u);
  const std::int64_t group = w.spec.group_size == 0 ? 0 : k / w.spec.group_size;
  const std::int64_t index = layout::scale_index(n, group, w.groups_pitch);
  const double scale = float_of(w.scales[index], w.spec.scale_type);
  if (w.spec.zero == ZeroKind::none) return (code - implicit_zero(w.spec.type)) * scale;
  const double zero =
      float_of(static_cast<const std::uint16_t*>(w.zeros)[index], w.spec.scale_type);
  return w.spec.zero == ZeroKind::integer ? (code - zero) * scale : code * scale - zero;
}

__global__ void dequantize_f64_kernel(PackedView weight, bool round, double* dense) {
  const std::int64_t count = weight.n * weight.k;
  for (std::int64_t i = first_index(); i < count; i += index_step()) {
    const double value = dequantized(weight, i / weight.k, i % weight.k);
    dense[i] = round ? static_cast<double>(
                           float_of(bits16(value, weight.spec.scale_type), weight.spec.scale_type))
                     : value;
  }
}

__global__ void dequantize_16_kernel(PackedView weight, std::uint16_t* dense) {
  const std::int64_t count = weight.n * weight.k;
  for (std::int64_t i = first_index(); i < count; i += index_step()) {
    dense[i] = bits16(dequantized(weight, i / weight.k, i % weight.k), weight.spec.scale_type);
  }
}

__global__ void round_kernel(const double* from, std::uint16_t* to, std::int64_t count,
                             DataType type) {
  for (std::int64_t i = first_index(); i < count; i += index_step()) to[i] = bits16(from[i], type);
}

// The reference product: a plain register-tiled kernel. 128 tokens × 64 features a CTA, 8 × 4 of
// them a thread, so that two fp64 operands from shared memory feed 5 multiply-adds or more.
constexpr int kRefM = 128, kRefN = 64, kRefK = 16;
constexpr int kThreadM = 8, kThreadN = 4;
constexpr int kRefThreads = kRefM / kThreadM * (kRefN / kThreadN);
static_assert(kRefThreads == 256);

__global__ void __launch_bounds__(kRefThreads)
    reference_kernel(const std::uint16_t* x, DataType act, const double* w, double* y,
                     std::int64_t m, std::int64_t n, std::int64_t k) {
  // k-major, so that a thread's rows are neighbours; the padding keeps the transposing stores of a
  // warp (16 k of two rows) apart.
  __shared__ double xs[kRefK][kRefM + 2];
  __shared__ double ws[kRefK][kRefN + 2];
  const std::int64_t m0 = static_cast<std::int64_t>(blockIdx.x) * kRefM;
  const std::int64_t n0 = static_cast<std::int64_t>(blockIdx.y) * kRefN;
  const int thread_n = threadIdx.x % (kRefN / kThreadN);
  const int thread_m = threadIdx.x / (kRefN / kThreadN);

  double sums[kThreadM][kThreadN] = {};
  for (std::int64_t k0 = 0; k0 < k; k0 += kRefK) {
    __syncthreads();
    for (int i = threadIdx.x; i < kRefM * kRefK; i += kRefThreads) {
      const std::int64_t row = m0 + i / kRefK, col = k0 + i % kRefK;
      xs[i % kRefK][i / kRefK] =
          row < m && col < k ? static_cast<double>(float_of(x[row * k + col], act)) : 0.0;
    }
    for (int i = threadIdx.x; i < kRefN * kRefK; i += kRefThreads) {
      const std::int64_t row = n0 + i / kRefK, col = k0 + i % kRefK;
      ws[i % kRefK][i / kRefK] = row < n && col < k ? w[row * k + col] : 0.0;
    }
    __syncthreads();
#pragma unroll
    for (int kk = 0; kk < kRefK; ++kk) {
      double xr[kThreadM], wr[kThreadN];
#pragma unroll
      for (int i = 0; i < kThreadM; ++i) xr[i] = xs[kk][thread_m * kThreadM + i];
#pragma unroll
      for (int j = 0; j < kThreadN; ++j) wr[j] = ws[kk][thread_n + j * (kRefN / kThreadN)];
#pragma unroll
      for (int i = 0; i < kThreadM; ++i) {
#pragma unroll
        for (int j = 0; j < kThreadN; ++j) sums[i][j] = fma(xr[i], wr[j], sums[i][j]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kThreadM; ++i) {
#pragma unroll
    for (int j = 0; j < kThreadN; ++j) {
      const std::int64_t row = m0 + thread_m * kThreadM + i;
      const std::int64_t col = n0 + thread_n + j * (kRefN / kThreadN);
      if (row < m && col < n) y[row * n + col] = sums[i][j];
    }
  }
}

/// Sums over all elements; worst as the bits of a non-negative double, which order like integers.
struct ErrorSums {
  double squared_error;
  double squared_reference;
  unsigned long long worst_bits;
  unsigned long long bad;
};

__global__ void __launch_bounds__(kBlock)
    compare_kernel(const std::uint16_t* y, DataType type, const double* reference,
                   std::int64_t count, ErrorSums* sums) {
  double squared_error = 0, squared_reference = 0, worst = 0;
  unsigned long long bad = 0;
  for (std::int64_t i = first_index(); i < count; i += index_step()) {
    const double value = float_of(y[i], type), expected = reference[i];
    squared_reference += expected * expected;
    if (!isfinite(value)) {
      ++bad;
      continue;
    }
    const double error = value - expected;
    squared_error += error * error;
    worst = fmax(worst, fabs(error));
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    squared_error += __shfl_down_sync(~0u, squared_error, offset);
    squared_reference += __shfl_down_sync(~0u, squared_reference, offset);
    worst = fmax(worst, __shfl_down_sync(~0u, worst, offset));
    bad += __shfl_down_sync(~0u, bad, offset);
  }
  if (threadIdx.x % 32 != 0) return;
  atomicAdd(&sums->squared_error, squared_error);
  atomicAdd(&sums->squared_reference, squared_reference);
  atomicMax(&sums->worst_bits, static_cast<unsigned long long>(__double_as_longlong(worst)));
  atomicAdd(&sums->bad, bad);
}

__global__ void __launch_bounds__(kBlock)
    chain_link_kernel(const std::uint16_t* y, std::int64_t ldy, std::uint16_t* x, std::int64_t m,
                      std::int64_t k, DataType type) {
  ptx::griddepcontrol_launch_dependents();
  ptx::griddepcontrol_wait();
  for (std::int64_t i = first_index(); i < m * k; i += index_step()) {
    const float value = float_of(y[i / k * ldy + i % k], type);
    x[i] = bits16(value / (0.5f + fabsf(value)), type);
  }
}

__global__ void empty_kernel() {}

}  // namespace

void fill_random_bits(void* p, std::size_t bytes, std::uint32_t seed, cudaStream_t stream) {
  const auto words = static_cast<std::int64_t>(bytes / 4);
  launch(elementwise(words, stream, "random_bits_kernel"), random_bits_kernel,
         static_cast<std::uint32_t*>(p), words, seed);
}

void fill_activations(void* x, std::int64_t count, DataType type, std::uint32_t seed,
                      cudaStream_t stream) {
  launch(elementwise(count, stream, "activations_kernel"), activations_kernel,
         static_cast<std::uint16_t*>(x), count, type, seed);
}

float typical_scale(WeightType weight, std::int64_t k) {
  constexpr double kOutputDeviation = 2;
  const double num_codes = std::ldexp(1.0, bits_of(weight));
  const double code_deviation = num_codes / std::sqrt(12.0), x_deviation = 1 / std::sqrt(3.0);
  return static_cast<float>(kOutputDeviation /
                            (code_deviation * x_deviation * std::sqrt(static_cast<double>(k))));
}

void fill_scales_and_zeros(std::uint16_t* scales, std::uint16_t* zeros, std::int64_t count,
                           const QuantSpec& spec, float scale, std::uint32_t seed,
                           cudaStream_t stream) {
  launch(elementwise(count, stream, "scales_kernel"), scales_kernel, scales, zeros, count, spec,
         scale, seed);
}

void dequantize_f64(const PackedView& weight, bool round, double* dense, cudaStream_t stream) {
  launch(elementwise(weight.n * weight.k, stream, "dequantize_f64_kernel"), dequantize_f64_kernel,
         weight, round, dense);
}

void dequantize_16(const PackedView& weight, std::uint16_t* dense, cudaStream_t stream) {
  launch(elementwise(weight.n * weight.k, stream, "dequantize_16_kernel"), dequantize_16_kernel,
         weight, dense);
}

void reference_product(const void* x, DataType act, const double* w, double* y, std::int64_t m,
                       std::int64_t n, std::int64_t k, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((m + kRefM - 1) / kRefM),
                  static_cast<unsigned>((n + kRefN - 1) / kRefN));
  if (grid.y > 65535) {
    throw Error(StatusCode::unsupported, "the reference product takes N up to 4194240");
  }
  reference_kernel<<<grid, kRefThreads, 0, stream>>>(static_cast<const std::uint16_t*>(x), act, w,
                                                     y, m, n, k);
  check_launch("reference_kernel");
}

void round_to_16(const double* from, std::uint16_t* to, std::int64_t count, DataType type,
                 cudaStream_t stream) {
  launch(elementwise(count, stream, "round_kernel"), round_kernel, from, to, count, type);
}

ErrorNorms Comparer::compare(const void* y, DataType type, const double* reference,
                             std::int64_t count, cudaStream_t stream) {
  sums_.reserve(sizeof(ErrorSums), "sums of errors");
  check(cudaMemsetAsync(sums_.as<>(), 0, sizeof(ErrorSums), stream), "cudaMemsetAsync");
  launch(elementwise(count, stream, "compare_kernel"), compare_kernel,
         static_cast<const std::uint16_t*>(y), type, reference, count, sums_.as<ErrorSums>());
  ErrorSums sums{};
  check(cudaMemcpyAsync(&sums, sums_.as<>(), sizeof sums, cudaMemcpyDeviceToHost, stream),
        "copy of the sums of errors");
  check(cudaStreamSynchronize(stream), "comparison with the reference");
  double worst = 0;
  static_assert(sizeof worst == sizeof sums.worst_bits);
  std::memcpy(&worst, &sums.worst_bits, sizeof worst);
  const double rms = std::sqrt(sums.squared_reference / static_cast<double>(count));
  return {.relative = std::sqrt(sums.squared_error / sums.squared_reference),
          .worst = worst / rms,
          .bad = static_cast<std::int64_t>(sums.bad)};
}

void chain_link(const void* y, std::int64_t ldy, void* x, std::int64_t m, std::int64_t k,
                DataType type, bool pdl, cudaStream_t stream) {
  LaunchSpec spec = elementwise(m * k, stream, "chain_link_kernel");
  spec.pdl = pdl;
  launch(spec, chain_link_kernel, static_cast<const std::uint16_t*>(y), ldy,
         static_cast<std::uint16_t*>(x), m, k, type);
}

void empty_launch(cudaStream_t stream) {
  launch(LaunchSpec{.grid = 1, .block = 32, .stream = stream, .name = "empty_kernel"},
         empty_kernel);
}

}  // namespace mixgemm::bench
