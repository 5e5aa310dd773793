// SPDX-License-Identifier: Apache-2.0
// step_clocks: what a k16 step of 64 weight rows takes an SM, in clocks, when nothing else has to
// be waited for: codes and activations lie in shared memory, no barriers, no copies. Times a loop
// of 16 steps (256 k) like the tiled kernel's for 8 to 128 tokens and one to four warpgroups:
//
//   step     codes dequantized (f16, int4, folded scales), wgmma with A from registers
//   bare     the same fragments over and over, no dequantization
//   latency  bare, each product awaited
//
// and the SM clock under that load, from the clock counter and the nanosecond timer of the device.
// docs/performance.md has a table of it.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "device/dequant.cuh"
#include "ptx/matrix.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/sync.cuh"
#include "ptx/wgmma.cuh"

namespace {

using namespace mixgemm;

constexpr int kSteps = 16, kLoops = 400, kFragments = 4;
enum class What { step, bare, latency };

struct Result {
  long long clocks, nanoseconds;
};

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "step_clocks: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

__device__ long long time_ns() { return static_cast<long long>(ptx::globaltimer_ns()); }

template <int kTokens, What kWhat, int kWarpgroups>
__global__ void __launch_bounds__(kWarpgroups * 128, 1)
    steps(const std::uint32_t* random, Result* result, float* sums) {
  extern __shared__ char dynamic_smem[];
  char* const smem = dynamic_smem + (-ptx::smem_address(dynamic_smem) & 1023u);
  constexpr int kXWords = kTokens * 16 * kSteps / 2, kCodeWords = kWarpgroups * 128 * kSteps;
  auto* const words = reinterpret_cast<std::uint32_t*>(smem);
  for (int i = threadIdx.x; i < kXWords + kCodeWords; i += blockDim.x) {
    // Activations: fp16 from 0.5 to 1, of either sign.
    words[i] = i < kXWords ? (random[i] & 0x83ff83ffu) | 0x38003800u : random[i];
  }
  ptx::fence_proxy_async_shared();
  __syncthreads();
  using Mma = ptx::WgmmaRs<DataType::f16, kTokens>;
  using Dequant = device::Dequantizer<DataType::f16, WeightType::int4, Quant::group, true>;
  const std::uint64_t x =
      ptx::wgmma_descriptor(ptx::uniform(static_cast<int>(ptx::smem_address(smem))));
  const std::uint32_t codes = ptx::smem_address(smem) + kXWords * 4 + threadIdx.x * 16;
  device::GroupConstants group;
  for (int row = 0; row < 2; ++row) {
    group.scale[row] = 0x24002401u + threadIdx.x % 8 * 0x10001u;
    group.addend[row] = 0x1c001c00u + threadIdx.x % 4 * 0x10001u;
  }
  float acc[kTokens / 2] = {};
  std::uint32_t a[kFragments][4];
  for (int i = 0; i < 4 * kFragments; ++i)
    a[i / 4][i % 4] = 0x24002400u + threadIdx.x * 0x10001u + i;
  __syncthreads();
  const long long clock_begin = clock64(), begin = time_ns();
#pragma unroll 1
  for (int loop = 0; loop < kLoops; ++loop) {
    std::uint32_t w[kSteps / 4][4];
    if (kWhat == What::step) {
#pragma unroll
      for (int block = 0; block < kSteps / 4; ++block) {
        ptx::ld_shared_v4(codes + block * kWarpgroups * 2048, w[block][0], w[block][1], w[block][2],
                          w[block][3]);
      }
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      if constexpr (kWhat == What::step) {
        const std::uint32_t word[1] = {w[step / 4][step % 4]};
        Dequant::step(word, group, a[step % kFragments]);
      }
      ptx::wgmma_fence();
      Mma::mma(acc, a[step % kFragments], x + step / 4 * (kTokens * 8) + 2 * (step % 4));
      ptx::wgmma_commit_group();
      ptx::wgmma_wait_group<kWhat == What::latency ? 0 : kFragments - 1>();
    }
    ptx::wgmma_wait_group<0>();
  }
  const long long clocks = clock64() - clock_begin, duration = time_ns() - begin;
  float sum = 0;
  for (const float value : acc) sum += value;
  sums[blockIdx.x * blockDim.x + threadIdx.x] = sum;
  if (threadIdx.x == 0 && blockIdx.x == 0) *result = {clocks, duration};
}

const std::uint32_t* random_words;
Result* result_there;
float* sums;
int num_sms;
double worst_ghz = 1e9, best_ghz = 0;

/// Clocks of the SM for a step of 64 rows.
template <int kTokens, What kWhat, int kWarpgroups>
double measure() {
  const auto kernel = steps<kTokens, kWhat, kWarpgroups>;
  const int smem = kTokens * 16 * kSteps * 2 + kWarpgroups * 128 * kSteps * 4 + 1024;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, smem));
  for (int run = 0; run < 3; ++run) {
    kernel<<<num_sms, kWarpgroups * 128, smem>>>(random_words, result_there, sums);
  }
  check(cudaGetLastError());
  Result result;
  check(cudaMemcpy(&result, result_there, sizeof(result), cudaMemcpyDeviceToHost));
  const double ghz = static_cast<double>(result.clocks) / static_cast<double>(result.nanoseconds);
  worst_ghz = ghz < worst_ghz ? ghz : worst_ghz;
  best_ghz = ghz > best_ghz ? ghz : best_ghz;
  return static_cast<double>(result.clocks) / (kLoops * kSteps * kWarpgroups);
}

template <int kTokens>
void measure_tokens() {
  std::printf("%7d", kTokens);
  std::printf(" %7.1f %7.1f %7.1f", measure<kTokens, What::step, 1>(),
              measure<kTokens, What::step, 2>(), measure<kTokens, What::step, 3>());
  if constexpr (kTokens <= 64) {  // with more, registers run out
    std::printf(" %7.1f", measure<kTokens, What::step, 4>());
  } else {
    std::printf("       -");
  }
  std::printf("  %7.1f %7.1f  %7.1f\n", measure<kTokens, What::bare, 1>(),
              measure<kTokens, What::bare, 3>(), measure<kTokens, What::latency, 1>());
}

}  // namespace

int main() {
  int device = 0, major = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      major != 9) {
    std::fprintf(stderr, "step_clocks: needs a Hopper GPU\n");
    return 77;
  }
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device));
  num_sms = properties.multiProcessorCount;
  std::vector<std::uint32_t> words(1 << 16);
  std::uint64_t state = 1;
  for (std::uint32_t& word : words) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    word = static_cast<std::uint32_t>(state >> 32);
  }
  void* memory = nullptr;
  check(cudaMalloc(&memory, words.size() * 4));
  check(cudaMemcpy(memory, words.data(), words.size() * 4, cudaMemcpyHostToDevice));
  random_words = static_cast<const std::uint32_t*>(memory);
  check(cudaMalloc(&memory, sizeof(Result)));
  result_there = static_cast<Result*>(memory);
  check(cudaMalloc(&memory, sizeof(float) * 512 * static_cast<std::size_t>(num_sms)));
  sums = static_cast<float*>(memory);
  std::printf("%s: clocks of an SM for 64 rows x 16 k\n", properties.name);
  std::printf(" tokens  step, warpgroups: 1   2       3       4   bare, 1       3  latency\n");
  measure_tokens<8>();
  measure_tokens<16>();
  measure_tokens<32>();
  measure_tokens<64>();
  measure_tokens<128>();
  std::printf("SM clock meanwhile: %.2f to %.2f GHz\n", worst_ghz, best_ghz);
  return 0;
}
