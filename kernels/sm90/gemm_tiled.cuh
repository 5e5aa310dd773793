// SPDX-License-Identifier: Apache-2.0
// The tiled Hopper kernel: Y[M,N] = epilogue(X[M,K] · dequant(W)[N,K]ᵀ) for prefill and mid-size M.
// docs/sm90_kernel.md explains it with pictures; this file reads top to bottom.
//
// Operands are swapped: the tensor cores compute Yᵀ = W · Xᵀ, so the weight is wgmma's A operand,
// which may come from registers, where it is dequantized, and the tokens are its N, which may be 8.
//
//   global         shared memory (ring of stages)          registers of a consumer warpgroup
//   codes  ──TMA──▶ W  tile_n × tile_k codes    ──LDS──▶ words ─lop3,fma▶ A fragment ┐
//   scales ──TMA──▶ S  tile_n × groups          ──LDS──▶ group constants ────────────┘ wgmma ▶ Yᵀ
//   X      ──TMA──▶ X  tile_m × tile_k, swizzled ────────── descriptor ───────────────┘
//
//   Yᵀ ─ epilogue ─ stmatrix.trans ─▶ staging (rows of Y) ─ 16-byte stores ─▶ global
//
// One producer warpgroup feeds the ring, a warp of it with codes and scales and another one with X;
// the others consume it. cooperative: all consumer warpgroups share a tile, 64·r rows each.
// pingpong: they take tiles in turn, so that one's epilogue runs under the other's MMAs. warp_mma:
// as cooperative, but every warp multiplies its strips by itself with mma.sync, X through ldmatrix:
// wgmma with A from registers takes about as long for 16 tokens as for 64. Persistent: a CTA walks
// the list of its TileScheduler.
//
// PDL contract: before griddepcontrol.wait nothing is touched but codes, scales, zeros and tensor
// maps. Every role waits for itself before it touches anything else, and every CTA waits.
#pragma once

#include <cstdint>

#include "device/output.cuh"
#include "device/params.cuh"
#include "device/ring.cuh"
#include "device/tile_scheduler.cuh"
#include "epilogues/standard.cuh"
#include "kernel_config.hpp"
#include "ptx/mbarrier.cuh"
#include "ptx/sync.cuh"
#include "ptx/tma.cuh"
#include "sm90/stage_math.cuh"

namespace mixgemm {

/// Variant::config: the KernelConfig, Variant::Epilogue: the epilogue. A tag type instead of a
/// class template argument, which breaks nvcc's host stub inside a namespace.
template <class Variant>
struct TiledKernel {
  static constexpr KernelConfig kConfig = Variant::config;
  static_assert(is_legal(kConfig), "illegal KernelConfig: ask why_illegal() for the rule");
  static_assert(kConfig.schedule == Schedule::cooperative ||
                kConfig.schedule == Schedule::pingpong || kConfig.schedule == Schedule::warp_mma);

  static constexpr bool kPingpong = kConfig.schedule == Schedule::pingpong;
  static constexpr int kConsumers = kConfig.consumer_warpgroups;
  // Cooperative: warpgroups of a team, each with rows of its own.
  static constexpr int kTeam = storing_warpgroups(kConfig);
  using Math = StageMath<kConfig>;
  static constexpr int kRowBlocks = Math::kRowBlocks;
  static constexpr int kTileM = Math::kTileM;
  static constexpr int kKBlocks = Math::kKBlocks;
  static constexpr int kStrips = Math::kStrips;
  static constexpr int kStageBytes = Math::kStageBytes;
  static constexpr int kXBytes = Math::kXBytes;
  static constexpr int kWBytes = Math::kWBytes;
  // The producer's warps: codes and scales; X, or a part of it; X or barriers; X, or the check of
  // scales.
  static constexpr bool kChecked = Math::kChecked;
  static constexpr int kXCopyThreads = kWarpgroupThreads - (kChecked ? 2 : 1) * kWarpSize;
  // Warps that release a stage: all consumers share it, or one pingpong warpgroup owns it.
  static constexpr int kReleasingWarps = kPingpong ? 4 : 4 * kConsumers;

  using Epilogue = typename Variant::Epilogue;
  using Output = device::Output<kConfig, Epilogue>;
  using Accumulators = typename Math::Accumulators;

  const Params& p;
  const device::Ring ring;
  const std::uint32_t stages_base;  // shared-window address of stage 0
  char* const smem;                 // the same as a pointer
  const int3 place;                 // in the cluster: x along n, y along m, z along k
  const int cluster, num_clusters;

  __device__ __forceinline__ int rank() const {
    return place.x + p.cluster_n * (place.y + p.cluster_m * place.z);
  }
  __device__ __forceinline__ int slot() const { return cluster * cluster_size() + rank(); }
  __device__ __forceinline__ int cluster_size() const {
    return p.cluster_n * p.cluster_m * p.cluster_k;
  }
  __device__ __forceinline__ device::TileScheduler scheduler() const {
    return device::TileScheduler(p, cluster, num_clusters, place);
  }
  /// This CTA's share of an item's k range: all of it, unless the cluster splits K.
  __device__ __forceinline__ void k_range(const device::WorkItem& item, int& begin,
                                          int& end) const {
    begin = item.k_begin;
    end = item.k_end;
    if (p.cluster_k > 1) {
      const int length = end - begin;
      end = begin + divide(length * (place.z + 1), p.by_cluster_k);
      begin += divide(length * place.z, p.by_cluster_k);
    }
  }

  // ---- producer -------------------------------------------------------------------------------

  /// Codes, scales and zeros of one stage: all that may be read before griddepcontrol.wait.
  __device__ __forceinline__ void load_weights(int stage, int tile_n, int k_tile) const {
    const std::uint32_t base = stages_base + stage * kStageBytes;
    constexpr int kZeroBoxes = kConfig.quant == Quant::group_zero ? 1 : 0;
    if constexpr (kChecked) {
      ptx::mbarrier_arrive_expect_tx(ring.scales(stage), p.scale_box_bytes);
      load_scales(stage, tile_n, k_tile, ring.scales(stage));
      ptx::mbarrier_arrive_expect_tx(ring.full(stage), kWBytes);
    } else {
      ptx::mbarrier_arrive_expect_tx(ring.full(stage),
                                     kWBytes + p.scale_box_bytes * (1 + kZeroBoxes));
    }
    const std::uint32_t full = ring.full(stage);
    const int first_strip = tile_n * kStrips;
#pragma unroll 1  // unrolled, it runs out of the producer's registers
    for (int box = 0; box < Math::kBoxes; ++box) {
      const std::uint32_t dst = base + kXBytes + box * kStrips * Math::kBoxRowBytes;
      const int word = (k_tile * Math::kBoxes + box) * (Math::kBoxRowBytes / 4);
      if (p.cluster_m == 1) {
        ptx::cp_async_bulk_tensor_2d(dst, p.codes_map, word, first_strip, full, p.codes_policy);
      } else {  // each CTA of a column loads its share of the strips for all of them
        const int share = p.codes_box_strips;
        const int first_rank = rank() - place.y * p.cluster_n;
        std::uint32_t mask = 0;
        for (int i = 0; i < p.cluster_m; ++i) mask |= 1u << (first_rank + i * p.cluster_n);
        ptx::cp_async_bulk_tensor_2d_multicast(
            dst + place.y * share * Math::kBoxRowBytes, p.codes_map, word,
            first_strip + place.y * share, full, static_cast<std::uint16_t>(mask), p.codes_policy);
      }
    }
    if constexpr (!kChecked) load_scales(stage, tile_n, k_tile, full);
  }
  /// Scales and zeros of one stage, whose bytes `barrier` counts.
  __device__ __forceinline__ void load_scales(int stage, int tile_n, int k_tile,
                                              std::uint32_t barrier) const {
    if constexpr (kConfig.quant == Quant::column) return;
    const std::uint32_t base = stages_base + stage * kStageBytes;
    const int first = ((k_tile * kConfig.tile_k) >> p.group_shift) * layout::kStripRows;
    ptx::cp_async_bulk_tensor_2d(base + Math::kScaleOffset, p.scales_map, first, tile_n * kStrips,
                                 barrier, p.codes_policy);
    if constexpr (kConfig.quant == Quant::group_zero) {
      ptx::cp_async_bulk_tensor_2d(base + Math::kZeroOffset, p.zeros_map, first, tile_n * kStrips,
                                   barrier, p.codes_policy);
    }
  }

  /// Activations of one stage by TMA; with cluster_n > 1 each CTA of a row loads its share of the
  /// tokens for all of them.
  __device__ __forceinline__ void load_x(int stage, int tile_m, int k_tile) const {
    const std::uint32_t base = stages_base + stage * kStageBytes;
    const std::uint32_t full = ring.full(stage);
#pragma unroll
    for (int block = 0; block < kKBlocks; ++block) {
      const std::uint32_t dst = base + block * (kTileM * 128);
      const int k = (k_tile * kKBlocks + block) * layout::kBlockK;
      if (p.cluster_n == 1) {
        ptx::cp_async_bulk_tensor_2d(dst, p.x_map, k, tile_m * kTileM, full, p.x_policy);
      } else {
        const int share = p.x_box_tokens;
        const std::uint32_t mask = ((1u << p.cluster_n) - 1u) << (rank() - place.x);
        ptx::cp_async_bulk_tensor_2d_multicast(dst + place.x * share * 128, p.x_map, k,
                                               tile_m * kTileM + place.x * share, full,
                                               static_cast<std::uint16_t>(mask), p.x_policy);
      }
    }
  }

  /// Activations of one stage by three producer warps, for addresses or leading dimensions that
  /// TMA refuses: 2-byte loads, zero beyond M and K, stored where the 128-byte swizzle puts them.
  __device__ __forceinline__ void copy_x(int stage, int tile_m, int k_tile) const {
    char* const base = smem + stage * kStageBytes;
    const auto* const x = static_cast<const std::uint16_t*>(p.x);
    const int pair = threadIdx.x % 32;  // two neighbouring k of a 64-k row
    for (int row = threadIdx.x / 32 % 4 - 1; row < kTileM * kKBlocks; row += kXCopyThreads / 32) {
      const int block = row / kTileM;
      const int token = row % kTileM;
      const int m = tile_m * kTileM + token;
      const int k = (k_tile * kKBlocks + block) * layout::kBlockK + 2 * pair;
      const std::uint16_t* const source = x + m * p.ldx + k;
      std::uint32_t value = 0;
      if (m < p.m && k < p.k) value = source[0];
      if (m < p.m && k + 1 < p.k) value |= std::uint32_t(source[1]) << 16;
      const int chunk = (pair / 4) ^ (token % 8);  // 16-byte chunks, swizzled within 8 rows
      *reinterpret_cast<std::uint32_t*>(base + row * 128 + chunk * 16 + pair % 4 * 4) = value;
    }
    ptx::fence_proxy_async_shared();
    ptx::mbarrier_arrive(ring.full(stage));
  }

  /// Calls load(stage, item, k_tile) for every stage of every item, in order, once it is free;
  /// ready() before the first, when it is known which one that is. Returns the stage after the
  /// last.
  template <class Ready, class Load>
  __device__ __forceinline__ device::RingCursor fill_ring(const Ready& ready,
                                                          const Load& load) const {
    device::RingCursor cursor(p.stages);
    device::WorkItem item;
    device::TileScheduler work = scheduler();
    for (bool first = true;; first = false) {
      const bool more = work.next(item);
      int k_begin = 0, k_end = 0;
      if (more) k_range(item, k_begin, k_end);
      if (first) ready();
      if (!more) return cursor;
      for (int k_tile = k_begin; k_tile < k_end; ++k_tile, cursor.advance()) {
        ring.wait_empty(cursor);
        load(cursor.stage, item, k_tile);
      }
    }
  }

  /// A warp. Weights don't depend on the kernels before this one, so it never waits for those.
  /// Returns the stage after the last.
  __device__ __forceinline__ device::RingCursor produce_weights() const {
    return fill_ring([&] { producer_meets(); },
                     [&](int stage, const device::WorkItem& item, int k_tile) {
                       if (ptx::elect_one()) load_weights(stage, item.tile_n, k_tile);
                     });
  }

  /// kChecked, a warp: what every stage's scales mean for the warpgroups' units. The stage is full
  /// only then.
  __device__ __forceinline__ void check_scales() const {
    producer_meets();
    typename Math::UnitsCheck check;
    device::RingCursor cursor(p.stages);
    device::WorkItem item;
    int turn = 0;
    for (device::TileScheduler work = scheduler(); work.next(item); ++turn) {
      int k_begin, k_end;
      k_range(item, k_begin, k_end);
      for (int k_tile = k_begin; k_tile < k_end; ++k_tile, cursor.advance()) {
        ring.wait_scales(cursor);
        const std::uint32_t verdict =
            check.look_at(p, stages_base + cursor.stage * kStageBytes + Math::kScaleOffset, turn);
        if (!ptx::elect_one()) continue;
        ptx::exchange_shared_u32(ring.verdict(cursor.stage), verdict);
        ptx::mbarrier_arrive(ring.full(cursor.stage));
      }
    }
  }

  /// cluster_k, a warp, `next` being the stage it would fill next: tells all CTAs of the cluster
  /// when what its exchange takes the place of has been read for the last time.
  __device__ __forceinline__ void offer_room(device::RingCursor next) const {
    for (int i = 0; i < p.stages; ++i, next.advance()) {
      const int of_exchange = next.stage - p.exchange_stage;
      if (of_exchange >= 0 && of_exchange < p.exchange_stages) ring.wait_empty(next);
    }
    const int lane = threadIdx.x % kWarpSize;
    const int sharers = p.cluster_n * p.cluster_m;
    ptx::mbarrier_arrive_cluster_if(
        lane < p.cluster_k,
        ptx::mapa(ring.room(), rank() + (min(lane, p.cluster_k - 1) - place.z) * sharers));
  }

  /// kByTma: a warp; otherwise kXCopyThreads.
  template <bool kByTma>
  __device__ __forceinline__ void produce_x() const {
    const auto ready = [&] {
      producer_meets();
      if (p.pdl) ptx::griddepcontrol_wait();
    };
    fill_ring(ready, [&](int stage, const device::WorkItem& item, int k_tile) {
      if constexpr (!kByTma) {
        copy_x(stage, item.tile_m, k_tile);
      } else if (ptx::elect_one()) {
        ptx::mbarrier_arrive_expect_tx(ring.full(stage), kXBytes);
        load_x(stage, item.tile_m, k_tile);
      }
    });
  }

  /// The producer warpgroup: its first warp loads weights, the second X, or the others copy X; the
  /// fourth one looks at scales where kChecked. The last two make the barriers, meanwhile the first
  /// two find out what to load.
  __device__ __forceinline__ void produce(int warp) const {
    if (warp == 2) {
      if (ptx::elect_one()) {
        ring.init(1 + kChecked + (p.x_by_tma ? 1 : kXCopyThreads),
                  kReleasingWarps * p.cluster_n * p.cluster_m, p.cluster_k, 4 * kTeam);
        ptx::fence_mbarrier_init();
      }
      __syncwarp();
    }
    device::RingCursor next(p.stages);
    if (warp == 0) {
      next = produce_weights();
    } else if (kChecked && warp == 3) {
      if (ptx::elect_one()) {
        ring.init_scales();
        ptx::fence_mbarrier_init();
      }
      __syncwarp();
      if constexpr (kChecked) check_scales();
    } else if (!p.x_by_tma) {
      produce_x<false>();
    } else if (warp == 1) {
      produce_x<true>();
    } else {
      producer_meets();
    }
    __syncwarp();
    meet_late();
    if (warp == 0 && p.cluster_k > 1 && has_tile()) offer_room(next);
  }

  // Everybody: barriers are there, in this CTA and, where CTAs multicast into each other's stages,
  // in those of the cluster. Producers need no consumer for their first copies, so they meet among
  // themselves and say so.
  __device__ __forceinline__ void producer_meets() const {
    if (meets_cluster()) return;
    ptx::barrier_sync(device::kProducersBarrier, kWarpgroupThreads);
    ptx::barrier_arrive(device::kSetupBarrier, num_threads(kConfig));
  }
  __device__ __forceinline__ void consumer_meets() const {
    if (meets_cluster()) return;
    ptx::barrier_sync(device::kSetupBarrier, num_threads(kConfig));
  }
  __device__ __forceinline__ bool meets_cluster() const {
    if (cluster_size() > 1) ptx::barrier_cluster_arrive_relaxed();
    const bool waits = p.cluster_n * p.cluster_m > 1;
    if (waits) ptx::barrier_cluster_wait();
    return waits;
  }

  /// Every other warp, in a cluster that only splits K: by now its other CTAs have barriers, too.
  __device__ __forceinline__ void meet_late() const {
    if (only_splits_k()) ptx::barrier_cluster_wait();
  }
  __device__ __forceinline__ bool only_splits_k() const {
    return p.cluster_k > 1 && p.cluster_n * p.cluster_m == 1;
  }
  /// cluster_k: whether the cluster has something to do. It has one tile then.
  __device__ __forceinline__ bool has_tile() const {
    return cluster < p.cluster_tiles_n * p.cluster_tiles_m;
  }
  /// Whether consumers leave in add_up_cluster, before the epilogue.
  __device__ __forceinline__ bool leaves_early() const { return only_splits_k() && has_tile(); }

  // No CTA of a cluster may exit while others multicast into its memory or arrive on its barriers,
  // or while a copy of its sums is on the way to them.

  /// Every warp, once: it needs nothing more of the other CTAs' memory.
  __device__ __forceinline__ void leave() const {
    if (cluster_size() > 1) ptx::barrier_cluster_arrive_relaxed();
  }
  /// The producer warpgroup, last of all: its CTA's memory is there until all have left.
  __device__ __forceinline__ void await_others() const {
    if (cluster_size() > 1) ptx::barrier_cluster_wait();
  }

  // ---- consumer -------------------------------------------------------------------------------

  __device__ __forceinline__ void consume(int warpgroup) const {
    const int warp = ptx::uniform(threadIdx.x / kWarpSize % 4);
    const int lane = threadIdx.x % kWarpSize;
    const int team = kPingpong ? 0 : warpgroup / kTeam;
    const int of_team = warpgroup % kTeam;
    const int in_tile = kPingpong ? 0 : of_team;
    const int sharers = p.cluster_n * p.cluster_m;
    const Math math{p, ring, stages_base, warpgroup};
    const typename Math::Part part = math.part_of(team, in_tile * kRowBlocks * 4 + warp, lane);
    const std::uint32_t empty_there =
        ptx::mapa(ring.empty(0), place.z * sharers + min(lane, sharers - 1));
    const bool releases_here = sharers == 1 && lane == 0;
    const bool releases_there = sharers > 1 && lane < sharers;
    meet_late();
    Output output(p, smem + p.ring_bytes, of_team);
    typename Math::Units units[kRowBlocks];
    device::RingCursor cursor(p.stages);
    device::WorkItem item;
    int turn = 0;
    for (device::TileScheduler work = scheduler(); work.next(item); ++turn) {
      int k_begin, k_end;
      k_range(item, k_begin, k_end);
      if (kPingpong && turn % 2 != warpgroup) {
        cursor.skip(k_end - k_begin);
        continue;
      }
      if constexpr (kPingpong) ring.wait_turn(warpgroup, turn);
      Accumulators acc;
#pragma unroll
      for (int r = 0; r < kRowBlocks; ++r) {
#pragma unroll
        for (int i = 0; i < kTileM / 2; ++i) acc[r][i] = 0.f;
      }
      // The first time. From then on it comes back at once.
      if (p.pdl) ptx::griddepcontrol_wait();
      math.multiply(cursor, k_end - k_begin, part, units, acc, [&](int stage) {
        ptx::mbarrier_arrive_if(releases_here, ring.empty(stage));
        ptx::mbarrier_arrive_cluster_if(releases_there, empty_there + 8 * stage);
      });
      if constexpr (kPingpong) ring.pass_turn(warpgroup, lane);
      if constexpr (Math::kFolded) {
#pragma unroll
        for (int r = 0; r < kRowBlocks; ++r) units[r].undo(acc[r]);
      }
      if (p.cluster_k > 1) await_room();
      if constexpr (kConfig.k_teams > 1) {
        output.join_teams(team, acc, p.cluster_k > 1 ? exchange() : 0);
        if (team > 0) {
          if (leaves_early()) leave();
          continue;
        }
      }
      typename Output::Tokens tokens;
      if (p.cluster_k > 1) {
        tokens = output.share_of(place.z);
        add_up_cluster(output, acc, tokens);
      } else if (!item.finishes()) {
        output.leave_partial(acc, slot(), num_clusters * cluster_size());
        continue;
      } else if (item.first_contributor >= 0) {
        const int first = item.first_contributor;
        output.take_partials(acc, first * cluster_size() + rank(), cluster_size(), cluster - first,
                             num_clusters * cluster_size());
      }
      output.store(acc, item, tokens);
    }
  }

  /// cluster_k: where this CTA's area for sums begins, a shared-window address.
  __device__ __forceinline__ std::uint32_t exchange() const {
    return stages_base + p.exchange_stage * kStageBytes;
  }
  /// cluster_k: until all CTAs of the cluster have room for sums. Where they multicast to each
  /// other, too, that this CTA's other warps have read its stages is known by way of other CTAs
  /// alone; the barrier says so here, and to racecheck.
  __device__ __forceinline__ void await_room() const {
    ptx::mbarrier_wait(ring.room(), 0);
    if (!only_splits_k()) ptx::bar_sync(device::kConsumersBarrier, kConsumers * kWarpgroupThreads);
  }
  /// cluster_k, each warp by itself: the sums of all CTAs of the cluster for this one's share of
  /// the tokens. A cluster has one tile.
  __device__ __forceinline__ void add_up_cluster(const Output& output, Accumulators& acc,
                                                 const typename Output::Tokens& share) const {
    const int lane = threadIdx.x % kWarpSize;
    const std::uint32_t exchange = this->exchange();
    output.put_shares(acc, exchange);
    ptx::fence_proxy_async_shared();
    __syncwarp();
    if (lane == 0) {
      ptx::mbarrier_arrive_expect_tx(ring.received(), output.bytes_received(share));
    }
    if (lane < p.cluster_k && lane != place.z) {
      output.send_share(exchange, ring.received(), place.z, lane,
                        rank() + (lane - place.z) * p.cluster_n * p.cluster_m);
    }
    __syncwarp();
    ptx::mbarrier_wait(ring.received(), 0);
    if (only_splits_k()) leave();
    output.take_share(acc, exchange, share, place.z);
  }
};

template <class Variant>
__global__ void __launch_bounds__(num_threads(Variant::config), Variant::config.ctas_per_sm)
    gemm_tiled(const __grid_constant__ Params p) {
  using Kernel = TiledKernel<Variant>;
  constexpr KernelConfig kConfig = Variant::config;
  extern __shared__ __align__(1024) char dynamic_smem[];  // the swizzle pattern repeats so
  const int warp = ptx::uniform(threadIdx.x / kWarpSize);
  // The grid is cluster_n x cluster_m x (clusters · cluster_k). From the special registers of
  // clusters it would take the compiler floating-point divisions.
  const int z = blockIdx.z;
  const int cluster = divide(z, p.by_cluster_k);
  char* const smem = dynamic_smem + kHeaderBytes;
  const Kernel kernel{
      p,
      device::Ring(ptx::smem_address(dynamic_smem), p.stages),
      ptx::smem_address(smem),
      smem,
      {static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), z - cluster * p.cluster_k},
      cluster,
      p.clusters};
  constexpr int kConsumerWarps = 4 * Kernel::kConsumers;
  const int producer = warp - kConsumerWarps;
  if (producer < 0 || producer == 3) {  // the others are in a hurry
    device::touch_params(p, producer < 0 ? warp : kConsumerWarps, kConsumerWarps + 1,
                         reinterpret_cast<std::uint32_t*>(dynamic_smem + kBarrierBytes));
  }
  if (producer >= 0) {
    ptx::setmaxnreg_dec<kProducerRegisters>();
    kernel.produce(producer);
    kernel.leave();
    kernel.await_others();
  } else {
    if (threadIdx.x == 0) {
      if (p.x_by_tma) ptx::prefetch_tensormap(p.x_map);
      ptx::prefetch_tensormap(p.codes_map);
      if constexpr (kConfig.quant != Quant::column) ptx::prefetch_tensormap(p.scales_map);
      if constexpr (kConfig.quant == Quant::group_zero) ptx::prefetch_tensormap(p.zeros_map);
    }
    kernel.consumer_meets();
    if (p.pdl) ptx::griddepcontrol_launch_dependents();
    ptx::setmaxnreg_inc<consumer_registers(kConfig)>();
    kernel.consume(warp / 4);
    if (!kernel.leaves_early()) kernel.leave();
  }
}

}  // namespace mixgemm
