// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "gpu/floor.hpp"
#include "gpu/launch.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/sync.cuh"

namespace mixgemm::bench {
namespace {

constexpr int kMaxFloorStages = 24;
constexpr int kStaticBytes = kMaxFloorStages * 8;  // barriers

/// Reads `num_chunks` chunks once, CTAs interleaved, the last one of `last_bytes`, through a ring
/// of `stages` bulk copies. One thread does everything: it issues copies and reuses a slot as soon
/// as its copy has landed, since nobody reads the slot. Keeps the PDL contract: dependents may
/// start at once, and no CTA exits before the grid ahead of it is complete. No division: it would
/// delay the first copy, which counts on the smallest layers.
__global__ void __launch_bounds__(32)
    floor_kernel(const std::uint8_t* codes, unsigned num_chunks, unsigned chunk_bytes,
                 unsigned last_bytes, int stages) {
  extern __shared__ __align__(128) std::uint8_t ring[];
#if __CUDA_ARCH__ >= 900
  __shared__ __align__(8) std::uint64_t full[kMaxFloorStages];
  if (threadIdx.x != 0) return;

  ptx::griddepcontrol_launch_dependents();
  for (int i = 0; i < stages; ++i) ptx::mbarrier_init(ptx::smem_address(&full[i]), 1);
  ptx::fence_mbarrier_init();

  unsigned next = blockIdx.x;
  const auto issue_next = [&](int stage) {
    const unsigned size = next + 1 == num_chunks ? last_bytes : chunk_bytes;
    const std::uint32_t barrier = ptx::smem_address(&full[stage]);
    ptx::mbarrier_arrive_expect_tx(barrier, size);
    ptx::cp_async_bulk(ptx::smem_address(ring) + stage * chunk_bytes,
                       codes + static_cast<std::uint64_t>(next) * chunk_bytes, size, barrier);
    next += gridDim.x;
  };

  for (int i = 0; i < stages && next < num_chunks; ++i) issue_next(i);
  int stage = 0;
  std::uint32_t phase = 0;
  for (unsigned chunk = blockIdx.x; chunk < num_chunks; chunk += gridDim.x) {
    ptx::mbarrier_wait(ptx::smem_address(&full[stage]), phase);
    if (next < num_chunks) issue_next(stage);
    if (++stage == stages) {
      stage = 0;
      phase ^= 1u;
    }
  }
  ptx::griddepcontrol_wait();
#else  // no bulk copies: the warp copies a chunk, 16 bytes a lane at a time
  unsigned next = blockIdx.x;
  const auto issue_next = [&](int stage) {
    const unsigned size = next >= num_chunks       ? 0
                          : next + 1 == num_chunks ? last_bytes
                                                   : chunk_bytes;
    const std::uint8_t* const source = codes + static_cast<std::uint64_t>(next) * chunk_bytes;
    const std::uint32_t slot = ptx::smem_address(ring) + stage * chunk_bytes;
    for (unsigned at = threadIdx.x * 16; at < size; at += 32 * 16) {
      ptx::cp_async_16(slot + at, source + at, 16);
    }
    ptx::cp_async_commit_group();
    next += gridDim.x;
  };
  for (int i = 0; i < stages; ++i) issue_next(i);
  int stage = 0;
  for (unsigned chunk = blockIdx.x; chunk < num_chunks; chunk += gridDim.x) {
    ptx::cp_async_wait_groups(stages - 1);
    issue_next(stage);
    if (++stage == stages) stage = 0;
  }
  ptx::cp_async_wait_all();
#endif
}

constexpr int kKiB = 1024;

// Deep rings hide latency; rings of at most 112 KB per SM in all let two grids share an SM, so that
// the next launch's copies are in flight while this one's last ones land; small chunks balance
// small layers. Which wins depends on the layer (docs/measurement.md).
constexpr FloorRing kRings[] = {
    {12, 16 * kKiB, 1}, {13, 16 * kKiB, 1}, {24, 8 * kKiB, 1}, {7, 16 * kKiB, 1},
    {6, 16 * kKiB, 1},  {4, 16 * kKiB, 1},  {13, 8 * kKiB, 1}, {6, 16 * kKiB, 2},
    {3, 16 * kKiB, 2},  {12, 8 * kKiB, 2},  {6, 8 * kKiB, 2},  {24, 4 * kKiB, 2},
    {4, 16 * kKiB, 3},  {8, 8 * kKiB, 3},   {4, 8 * kKiB, 4},  {12, 4 * kKiB, 4},
};

/// The largest ring that the current device gives a CTA.
int largest_ring_bytes() {
  int device = 0, limit = 0;
  check(cudaGetDevice(&device), "the current device");
  check(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "its shared memory");
  int largest = 0;
  for (const FloorRing& ring : kRings) {
    const int bytes = ring.stages * ring.chunk_bytes;
    if (bytes + kStaticBytes <= limit) largest = std::max(largest, bytes);
  }
  return largest;
}

}  // namespace

std::string to_string(const FloorRing& ring) {
  return std::to_string(ring.stages) + "x" + std::to_string(ring.chunk_bytes / kKiB) + "K/" +
         std::to_string(ring.ctas_per_sm);
}

Floor measure_floor(const GraphTimer& timer, const std::uint8_t* codes, std::size_t bytes,
                    std::size_t stride_bytes, int copies, int num_sms, bool pdl) {
  // Once for all rings: the limit is only a cap, and what isn't shared memory would be L1, which
  // bulk copies don't use.
  const int largest = largest_ring_bytes();
  check(cudaFuncSetAttribute(floor_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, largest),
        "shared memory of floor_kernel");
  check(cudaFuncSetAttribute(floor_kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                             cudaSharedmemCarveoutMaxShared),
        "shared memory carve-out of floor_kernel");
  std::vector<GraphTimer::Launch> candidates;
  std::vector<FloorRing> rings;
  for (const FloorRing& ring : kRings) {
    const int smem_bytes = ring.stages * ring.chunk_bytes;
    if (smem_bytes > largest) continue;
    rings.push_back(ring);
    const std::size_t num_chunks = (bytes + ring.chunk_bytes - 1) / ring.chunk_bytes;
    const std::size_t last_bytes = bytes - (num_chunks - 1) * ring.chunk_bytes;
    candidates.push_back([=](int copy, cudaStream_t stream) {
      launch(LaunchSpec{.grid = num_sms * ring.ctas_per_sm,
                        .block = 32,
                        .smem_bytes = smem_bytes,
                        .pdl = pdl,
                        .stream = stream,
                        .name = "floor_kernel"},
             floor_kernel, codes + static_cast<std::size_t>(copy) * stride_bytes, num_chunks,
             ring.chunk_bytes, last_bytes, ring.stages);
    });
  }
  constexpr int kFinalists = 3;
  const GraphTimer::Best best = timer.best_of(candidates, copies, kFinalists);
  return {best.timing.us.median, rings[best.index]};
}

}  // namespace mixgemm::bench
