// SPDX-License-Identifier: Apache-2.0
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "gpu_kernels.hpp"
#include "ptx/sync.cuh"

namespace mixgemm::gpu_test {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxBlocks = 264;

int blocks_for(std::size_t count) {
  const std::size_t blocks = (count + kThreads - 1) / kThreads;
  return blocks < 1 ? 1 : blocks > kMaxBlocks ? kMaxBlocks : static_cast<int>(blocks);
}

__device__ double to_double(std::uint16_t bits, DataType type) {
  return type == DataType::bf16
             ? static_cast<double>(__uint_as_float(static_cast<std::uint32_t>(bits) << 16))
             : static_cast<double>(__half2float(__ushort_as_half(bits)));
}
__device__ std::uint16_t round16(double value, DataType type) {
  return type == DataType::bf16 ? __bfloat16_as_ushort(__double2bfloat16(value))
                                : __half_as_ushort(__double2half(value));
}

__device__ std::uint32_t mix(std::uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ x >> 16;
}

/// Position of an element of the allocation: row and column, or outside.
struct Position {
  bool inside;
  int row, col;
};
__device__ Position position_of(const Matrix& m, std::size_t i) {
  if (i < m.first) return {false, 0, 0};
  const std::size_t at = i - m.first;
  const std::size_t row = at / static_cast<std::size_t>(m.ld);
  const std::size_t col = at % static_cast<std::size_t>(m.ld);
  const bool inside =
      row < static_cast<std::size_t>(m.rows) && col < static_cast<std::size_t>(m.cols);
  return {inside, static_cast<int>(row), static_cast<int>(col)};
}

__global__ void fill_matrix_kernel(Matrix m, DataType type, std::uint32_t seed, float low,
                                   float high) {
  for (std::size_t i = blockIdx.x * static_cast<std::size_t>(blockDim.x) + threadIdx.x; i < m.elems;
       i += static_cast<std::size_t>(gridDim.x) * blockDim.x) {
    const Position at = position_of(m, i);
    std::uint16_t bits = 0xffff;
    if (at.inside) {
      const std::uint32_t random =
          mix(mix(static_cast<std::uint32_t>(at.row) * 0x9e3779b9u + seed) +
              static_cast<std::uint32_t>(at.col));
      bits = round16(low + (high - low) * ((random >> 8) * (1.0 / 16777216.0)), type);
    }
    m.allocation[i] = bits;
  }
}

__global__ void make_dense_kernel(CanonicalOnDevice w, double* exact, float* rounded) {
  const int groups = static_cast<int>(num_groups(w.k, w.spec.group_size));
  const std::size_t count = static_cast<std::size_t>(w.n) * w.k;
  for (std::size_t i = blockIdx.x * static_cast<std::size_t>(blockDim.x) + threadIdx.x; i < count;
       i += static_cast<std::size_t>(gridDim.x) * blockDim.x) {
    const int n = static_cast<int>(i / w.k);
    const int k = static_cast<int>(i % w.k);
    const std::size_t at =
        static_cast<std::size_t>(n) * groups + (w.spec.group_size == 0 ? 0 : k / w.spec.group_size);
    const double scale = to_double(w.scales[at], w.spec.scale_type);
    const double q = w.codes[i];
    double value = 0;
    switch (w.spec.zero) {
      case ZeroKind::none: value = (q - implicit_zero(w.spec.type)) * scale; break;
      case ZeroKind::integer: value = (q - w.zeros[at]) * scale; break;
      case ZeroKind::scaled:
        value = q * scale - to_double(w.scaled_zeros[at], w.spec.scale_type);
        break;
    }
    exact[i] = value;
    rounded[i] =
        static_cast<float>(to_double(round16(value, w.spec.scale_type), w.spec.scale_type));
  }
}

constexpr int kTile = 16;

/// One output per thread, 16 × 16 of them per block, 16 k at a time through shared memory.
__global__ void reference_sums_kernel(Matrix x, DataType type, const double* exact,
                                      const float* rounded, int n_total, Sums sums) {
  __shared__ double xs[kTile][kTile + 1], ws[kTile][kTile + 1];
  __shared__ float rs[kTile][kTile + 1];
  const int n0 = blockIdx.x * kTile, m0 = blockIdx.y * kTile;
  const int tx = threadIdx.x % kTile, ty = threadIdx.x / kTile;
  double sum = 0, sum_rounded = 0, squares = 0;
  for (int k0 = 0; k0 < x.cols; k0 += kTile) {
    const int k = k0 + tx;
    const bool has_x = m0 + ty < x.rows && k < x.cols;
    const bool has_w = n0 + ty < n_total && k < x.cols;
    const std::size_t at = static_cast<std::size_t>(n0 + ty) * x.cols + k;
    xs[ty][tx] = has_x ? to_double(x.data()[(m0 + ty) * x.ld + k], type) : 0.0;
    ws[ty][tx] = has_w ? exact[at] : 0.0;
    rs[ty][tx] = has_w ? rounded[at] : 0.0f;
    __syncthreads();
    for (int i = 0; i < kTile; ++i) {
      const double product = xs[ty][i] * ws[tx][i];
      sum += product;
      squares += product * product;
      sum_rounded += xs[ty][i] * rs[tx][i];
    }
    __syncthreads();
  }
  if (m0 + ty < x.rows && n0 + tx < n_total) {
    const std::size_t at = static_cast<std::size_t>(m0 + ty) * n_total + n0 + tx;
    sums.exact[at] = sum;
    sums.rounded[at] = sum_rounded;
    sums.squares[at] = squares;
  }
}

__device__ double activate(Activation activation, double v) {
  switch (activation) {
    case Activation::none: return v;
    case Activation::relu: return v < 0 ? 0 : v;
    case Activation::gelu:
      return 0.5 * v * (1 + tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)));
    case Activation::silu: return v / (1 + exp(-v));
  }
  return v;
}

__device__ double warp_sum(double value) {
  for (int o = 16; o > 0; o /= 2) value += __shfl_xor_sync(~0u, value, o);
  return value;
}
__device__ unsigned warp_sum(unsigned value) { return __reduce_add_sync(~0u, value); }

__global__ void check_output_kernel(Matrix y, DataType type, Sums sums, int k, CheckedEpilogue e,
                                    Findings* findings) {
  // Half a unit in the last place, relative: 11 significant bits, or 8.
  const double unit = type == DataType::bf16 ? 0x1p-8 : 0x1p-11;
  // |gelu'| and |silu'| stay below 1.13.
  const double slope =
      (e.activation == Activation::gelu || e.activation == Activation::silu ? 1.13 : 1.0) *
      fabs(static_cast<double>(e.alpha));
  double error2 = 0, reference_error2 = 0, norm2 = 0, slack2 = 0;
  float worst = 0;
  unsigned nans = 0, strays = 0;
  for (std::size_t i = blockIdx.x * static_cast<std::size_t>(blockDim.x) + threadIdx.x; i < y.elems;
       i += static_cast<std::size_t>(gridDim.x) * blockDim.x) {
    const Position at = position_of(y, i);
    const std::uint16_t bits = y.allocation[i];
    if (!at.inside) {
      strays += bits != 0xffff;
      continue;
    }
    const std::size_t o = static_cast<std::size_t>(at.row) * y.cols + at.col;
    const double bias = e.bias != nullptr ? to_double(e.bias[at.col], type) : 0;
    const double residual =
        e.residual != nullptr ? to_double(e.residual[at.row * e.ldr + at.col], type) : 0;
    const double exact = activate(e.activation, e.alpha * sums.exact[o] + bias) + residual;
    const double reference = to_double(
        round16(activate(e.activation, e.alpha * sums.rounded[o] + bias) + residual, type), type);
    const double value = to_double(bits, type);
    if (isnan(value)) {
      ++nans;
      continue;
    }
    // Rounding of the output, of the weights (errors of ± unit each, five standard deviations of
    // their sum), and of fp32 accumulation.
    const double spread = slope * sqrt(sums.squares[o]);
    const double bound = unit * fabs(exact) + 2.9 * unit * spread +
                         4 * spread * (k * 0x1p-26 + 0x1p-20) +
                         1e-6 * (fabs(exact) + fabs(bias) + fabs(residual)) + 0x1p-24;
    const double error = value - exact;
    error2 += error * error;
    reference_error2 += (reference - exact) * (reference - exact);
    norm2 += exact * exact;
    slack2 += unit * unit * (exact * exact + spread * spread) + 0x1p-48;
    worst = fmaxf(worst, static_cast<float>(fabs(error) / bound));
  }
  error2 = warp_sum(error2);
  reference_error2 = warp_sum(reference_error2);
  norm2 = warp_sum(norm2);
  slack2 = warp_sum(slack2);
  nans = warp_sum(nans);
  strays = warp_sum(strays);
  for (int o = 16; o > 0; o /= 2) worst = fmaxf(worst, __shfl_xor_sync(~0u, worst, o));
  if (threadIdx.x % 32 != 0) return;
  atomicAdd(&findings->error2, error2);
  atomicAdd(&findings->reference_error2, reference_error2);
  atomicAdd(&findings->norm2, norm2);
  atomicAdd(&findings->slack2, slack2);
  // Bits of non-negative floats order like the floats.
  atomicMax(reinterpret_cast<unsigned*>(&findings->worst_ratio), __float_as_uint(worst));
  if (nans > 0) atomicAdd(&findings->nans, nans);
  if (strays > 0) atomicAdd(&findings->strays, strays);
}

__global__ void check_same_kernel(Matrix a, Matrix b, Findings* findings) {
  unsigned differing = 0;
  const std::size_t count = static_cast<std::size_t>(a.rows) * a.cols;
  for (std::size_t i = blockIdx.x * static_cast<std::size_t>(blockDim.x) + threadIdx.x; i < count;
       i += static_cast<std::size_t>(gridDim.x) * blockDim.x) {
    const std::int64_t row = static_cast<std::int64_t>(i / a.cols), col = i % a.cols;
    differing += a.data()[row * a.ld + col] != b.data()[row * b.ld + col];
  }
  differing = warp_sum(differing);
  if (threadIdx.x % 32 == 0 && differing > 0) atomicAdd(&findings->differing, differing);
}

__global__ void check_guards_kernel(Matrix m, Findings* findings) {
  unsigned strays = 0;
  for (std::size_t i = blockIdx.x * static_cast<std::size_t>(blockDim.x) + threadIdx.x; i < m.elems;
       i += static_cast<std::size_t>(gridDim.x) * blockDim.x) {
    strays += !position_of(m, i).inside && m.allocation[i] != 0xffff;
  }
  strays = warp_sum(strays);
  if (threadIdx.x % 32 == 0 && strays > 0) atomicAdd(&findings->strays, strays);
}

__global__ void check_bytes_kernel(const std::uint8_t* bytes, std::size_t count, std::uint8_t value,
                                   Findings* findings) {
  unsigned strays = 0;
  for (std::size_t i = blockIdx.x * static_cast<std::size_t>(blockDim.x) + threadIdx.x; i < count;
       i += static_cast<std::size_t>(gridDim.x) * blockDim.x) {
    strays += bytes[i] != value;
  }
  strays = warp_sum(strays);
  if (threadIdx.x % 32 == 0 && strays > 0) atomicAdd(&findings->strays, strays);
}

__global__ void late_copy_kernel(std::uint16_t* target, const std::uint16_t* source,
                                 std::size_t count, int sleep_us) {
  ptx::griddepcontrol_launch_dependents();
  const std::uint64_t begin = ptx::globaltimer_ns();
  do {
    __nanosleep(1000);
  } while (ptx::globaltimer_ns() - begin < static_cast<std::uint64_t>(sleep_us) * 1000);
  for (std::size_t i = blockIdx.x * static_cast<std::size_t>(blockDim.x) + threadIdx.x; i < count;
       i += static_cast<std::size_t>(gridDim.x) * blockDim.x) {
    target[i] = source[i];
  }
}

__global__ void trap_kernel() { __trap(); }

}  // namespace

void fill_matrix(const Matrix& matrix, DataType type, std::uint32_t seed, float low, float high,
                 cudaStream_t stream) {
  fill_matrix_kernel<<<blocks_for(matrix.elems), kThreads, 0, stream>>>(matrix, type, seed, low,
                                                                        high);
}

void make_dense(const CanonicalOnDevice& weight, double* exact, float* rounded,
                cudaStream_t stream) {
  make_dense_kernel<<<blocks_for(static_cast<std::size_t>(weight.n) * weight.k), kThreads, 0,
                      stream>>>(weight, exact, rounded);
}

void reference_sums(const Matrix& x, DataType type, const double* exact, const float* rounded,
                    int n, const Sums& sums, cudaStream_t stream) {
  const dim3 grid((n + kTile - 1) / kTile, (x.rows + kTile - 1) / kTile);
  reference_sums_kernel<<<grid, kTile * kTile, 0, stream>>>(x, type, exact, rounded, n, sums);
}

void check_output(const Matrix& y, DataType type, const Sums& sums, int k,
                  const CheckedEpilogue& epilogue, Findings* findings, cudaStream_t stream) {
  check_output_kernel<<<blocks_for(y.elems), kThreads, 0, stream>>>(y, type, sums, k, epilogue,
                                                                    findings);
}

void check_same(const Matrix& a, const Matrix& b, Findings* findings, cudaStream_t stream) {
  check_same_kernel<<<blocks_for(static_cast<std::size_t>(a.rows) * a.cols), kThreads, 0, stream>>>(
      a, b, findings);
}

void check_guards(const Matrix& matrix, Findings* findings, cudaStream_t stream) {
  check_guards_kernel<<<blocks_for(matrix.elems), kThreads, 0, stream>>>(matrix, findings);
}

void check_bytes(const void* bytes, std::size_t count, std::uint8_t value, Findings* findings,
                 cudaStream_t stream) {
  check_bytes_kernel<<<blocks_for(count), kThreads, 0, stream>>>(
      static_cast<const std::uint8_t*>(bytes), count, value, findings);
}

void late_copy(std::uint16_t* target, const std::uint16_t* source, std::size_t count, int sleep_us,
               cudaStream_t stream) {
  late_copy_kernel<<<4, kThreads, 0, stream>>>(target, source, count, sleep_us);
}

void trap(cudaStream_t stream) { trap_kernel<<<1, 1, 0, stream>>>(); }

}  // namespace mixgemm::gpu_test
