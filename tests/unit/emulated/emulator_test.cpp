// SPDX-License-Identifier: Apache-2.0
// The emulator notices what the kernels' tests rely on it to notice.
#include "emulator.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <functional>

#include "cuda_keywords.hpp"
#include "ptx/cp_async.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/sync.cuh"
#include "ptx/wgmma.cuh"

namespace mixgemm {
namespace {

constexpr std::uint32_t kBarrierAt = 1024, kDataAt = 2048;

emulator::Launch small_launch() {
  emulator::Launch launch;
  launch.threads = 32;
  launch.smem_bytes = 4096;
  launch.name = "a test of the emulator";
  return launch;
}

/// Thread 0 announces `announced` bytes and copies 64 of `source` to kDataAt.
void copy_64(const void* source, std::uint32_t announced) {
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(kBarrierAt, 1);
    ptx::mbarrier_arrive_expect_tx(kBarrierAt, announced);
    ptx::cp_async_bulk(kDataAt, source, 64, kBarrierAt, kEvictNormal);
  }
  __syncwarp();
}

class Emulator : public testing::Test {
 protected:
  Emulator() {
    source.fill(1.5f);
    emulator::forget_memory();
    emulator::register_memory(source.data(), sizeof(source));
  }
  alignas(16) std::array<float, 16> source;
};
using EmulatorDeathTest = Emulator;

TEST_F(Emulator, BytesLandWhenTheirBarrierIsWaitedFor) {
  float before = 0.0f, after = 0.0f;
  emulator::run(small_launch(), [&] {
    copy_64(source.data(), 64);
    if (threadIdx.x == 5) before = ptx::ld_shared_f32(kDataAt + 20);
    ptx::mbarrier_wait(kBarrierAt, 0);
    if (threadIdx.x == 5) after = ptx::ld_shared_f32(kDataAt + 20);
  });
  EXPECT_TRUE(std::isnan(before));
  EXPECT_EQ(after, 1.5f);
}

TEST_F(Emulator, MmasReadTheirFragmentWhenTheyAreWaitedFor) {
  constexpr std::uint32_t kOnes = 0x3c003c00u, kTwos = 0x40004000u;  // fp16
  float early = -1.0f, late = -1.0f;
  emulator::run(small_launch(), [&] {
    for (int i = 0; i < 32; ++i) {  // B: ones, 8 tokens × 64 k
      smem[1024 + 32 * threadIdx.x + i] = i % 2 == 0 ? 0x00 : 0x3c;
    }
    __syncwarp();
    float d[4] = {};
    std::uint32_t a[4] = {kOnes, kOnes, kOnes, kOnes};
    ptx::wgmma_fence();
    ptx::WgmmaRs<DataType::f16, 8>::mma(d, a, ptx::wgmma_descriptor(1024));
    ptx::wgmma_commit_group();
    if (threadIdx.x == 9) early = d[0];
    for (std::uint32_t& pair : a) pair = kTwos;
    ptx::wgmma_wait_group<0>();
    if (threadIdx.x == 9) late = d[0];
  });
  EXPECT_EQ(early, 0.0f);
  EXPECT_EQ(late, 32.0f);
}

TEST_F(EmulatorDeathTest, DeadlocksSayWhoWaitsForWhat) {
  EXPECT_DEATH(emulator::run(small_launch(),
                             [&] {
                               copy_64(source.data(), 80);
                               if (threadIdx.x >= 8) ptx::mbarrier_wait(kBarrierAt, 0);
                               __syncthreads();
                             }),
               "threads 8 to 31 wait for mbarrier 0x400, parity 0: phase 0 lacks 0 of 1 arrivals "
               "and 16 bytes");
}

TEST_F(EmulatorDeathTest, CopiesReadOnlyTheProblem) {
  EXPECT_DEATH(emulator::run(small_launch(), [&] { copy_64(source.data() + 4, 64); }),
               "a copy reads memory that isn't the problem's");
}

TEST_F(EmulatorDeathTest, CopiesStayWithinSharedMemory) {
  EXPECT_DEATH(emulator::run(small_launch(),
                             [&] {
                               ptx::mbarrier_init(8 * threadIdx.x, 1);
                               ptx::cp_async_bulk(4064, source.data(), 64, 8 * threadIdx.x,
                                                  kEvictNormal);
                             }),
               "an access beyond the launch's shared memory");
}

TEST_F(EmulatorDeathTest, BarriersCountArrivals) {
  EXPECT_DEATH(emulator::run(small_launch(),
                             [&] {
                               copy_64(source.data(), 64);
                               ptx::mbarrier_arrive(kBarrierAt);
                             }),
               "more arrivals than the mbarrier counts");
}

TEST_F(EmulatorDeathTest, ActivationsAreReadAfterTheKernelBefore) {
  emulator::Launch launch = small_launch();
  launch.before_completes = [] {};
  EXPECT_DEATH(emulator::run(launch, [&] { copy_64(source.data(), 64); }),
               "a copy reads activations, and its thread hasn't waited");
}

}  // namespace
}  // namespace mixgemm
