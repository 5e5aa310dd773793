// SPDX-License-Identifier: Apache-2.0
// The ring between producer and consumers: full and empty barriers, and a cursor over stages.
#pragma once

#include <cstdint>

#include "kernel_config.hpp"
#include "ptx/mbarrier.cuh"

namespace mixgemm::device {

/// A place in the endless sequence of stages: slot and parity.
struct RingCursor {
  int stages;
  int stage = 0;
  std::uint32_t phase = 0;

  __device__ __forceinline__ explicit RingCursor(int num_stages) : stages(num_stages) {}

  __device__ __forceinline__ void advance() {
    if (++stage == stages) {
      stage = 0;
      phase ^= 1u;
    }
  }
  /// Passes over `count` stages that somebody else consumes.
  __device__ __forceinline__ void skip(int count) {
    stage += count;
    phase ^= (stage / stages) & 1u;
    stage %= stages;
  }
};

/// The barriers. full: the producer announced the bytes, the copy engine delivered them. empty: all
/// warps that read the stage, in every CTA that its multicasts reach, have let go of it. scales: as
/// full, of the scales alone, where a warp looks at them first and leaves a word about the stage.
class Ring {
 public:
  __device__ __forceinline__ Ring(std::uint32_t barriers, int stages)
      : barriers_(barriers), stages_(stages) {}

  __device__ __forceinline__ std::uint32_t full(int stage) const { return barriers_ + 8 * stage; }
  __device__ __forceinline__ std::uint32_t empty(int stage) const {
    return barriers_ + 8 * (kMaxStages + stage);
  }

  __device__ __forceinline__ std::uint32_t turn_barrier(int warpgroup) const {
    return barriers_ + 8 * (2 * kMaxStages + warpgroup);
  }

  __device__ __forceinline__ std::uint32_t scales(int stage) const {
    return barriers_ + 8 * (2 * kMaxStages + 2 + stage);
  }
  /// What that warp found, before it arrived on full: a bit for each consumer warpgroup.
  __device__ __forceinline__ std::uint32_t verdict(int stage) const {
    return barriers_ + 8 * (3 * kMaxStages + 2) + 4 * stage;
  }

  // cluster_k: every CTA of the cluster has room for sums; the others' sums are here. One phase
  // each.
  __device__ __forceinline__ std::uint32_t room() const { return turn_barrier(0); }
  __device__ __forceinline__ std::uint32_t received() const { return turn_barrier(1); }

  /// adding_warps: those that receive the sums of the cluster's other CTAs.
  __device__ __forceinline__ void init(int producer_arrivals, int consumer_arrivals, int cluster_k,
                                       int adding_warps) const {
    constexpr int kWarps = kWarpgroupThreads / kWarpSize;
    ptx::mbarrier_init(turn_barrier(0), cluster_k > 1 ? cluster_k : kWarps);
    ptx::mbarrier_init(turn_barrier(1), cluster_k > 1 ? adding_warps : kWarps);
#pragma unroll 1  // it stands before the first copy, where every instruction has to be fetched
    for (int i = 0; i < stages_; ++i) {
      ptx::mbarrier_init(full(i), producer_arrivals);
      ptx::mbarrier_init(empty(i), consumer_arrivals);
    }
  }
  __device__ __forceinline__ void init_scales() const {
#pragma unroll 1
    for (int i = 0; i < stages_; ++i) ptx::mbarrier_init(scales(i), 1);
  }
  __device__ __forceinline__ void wait_scales(const RingCursor& at) const {
    ptx::mbarrier_wait(scales(at.stage), at.phase);
  }
  __device__ __forceinline__ void wait_full(const RingCursor& at) const {
    ptx::mbarrier_wait(full(at.stage), at.phase);
  }
  /// A fresh barrier counts as having completed the phase before its first, so the first round of
  /// the ring passes at once.
  __device__ __forceinline__ void wait_empty(const RingCursor& at) const {
    ptx::mbarrier_wait(empty(at.stage), at.phase ^ 1u);
  }
  // pingpong: a warpgroup may start on its item's stages only when the other has waited for all of
  // its own. NOTE: a barrier tells apart a phase and the one before, no more. A warpgroup that ran
  // ahead would wait for a phase further on and be let through by an older one of equal parity.
  __device__ __forceinline__ void wait_turn(int warpgroup, int turn) const {
    if (turn > 0) ptx::mbarrier_wait(turn_barrier(warpgroup), (turn - 1) / 2 & 1);
  }
  __device__ __forceinline__ void pass_turn(int warpgroup, int lane) const {
    if (lane == 0) ptx::mbarrier_arrive(turn_barrier(warpgroup ^ 1));
  }

 private:
  std::uint32_t barriers_;
  int stages_;
};

}  // namespace mixgemm::device
