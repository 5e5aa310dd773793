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

#include "device/dequant.cuh"
#include "device/output.cuh"
#include "device/params.cuh"
#include "device/ring.cuh"
#include "device/tile_scheduler.cuh"
#include "device/units.cuh"
#include "epilogues/standard.cuh"
#include "kernel_config.hpp"
#include "ptx/matrix.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/mma_sync.cuh"
#include "ptx/sync.cuh"
#include "ptx/tma.cuh"
#include "ptx/wgmma.cuh"

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
  static constexpr bool kWarpMma = kConfig.schedule == Schedule::warp_mma;
  static constexpr int kConsumers = kConfig.consumer_warpgroups;
  static constexpr int kRowBlocks = rows_per_warpgroup(kConfig) / kWarpgroupRows;
  static constexpr int kTileM = kConfig.tile_m;
  static constexpr int kKBlocks = kConfig.tile_k / layout::kBlockK;
  static constexpr int kStrips = kConfig.tile_n / layout::kStripRows;
  static constexpr int kBits = bits_of(kConfig.weight);
  static constexpr int kCellBytes = layout::cell_bytes(kBits);
  static constexpr int kStageBytes = stage_bytes(kConfig);
  static constexpr int kXBytes = x_stage_bytes(kConfig);
  static constexpr int kWBytes = w_stage_bytes(kConfig);
  static constexpr int kScaleOffset = kXBytes + kWBytes;
  static constexpr int kZeroOffset = kScaleOffset + scale_stage_bytes(kConfig);
  // A box of codes holds up to 256 words of a strip: two int4 k-blocks, or one of int8.
  static constexpr int kBoxKBlocks = kKBlocks * kCellBytes > 1024 ? 1024 / kCellBytes : kKBlocks;
  static constexpr int kBoxes = kKBlocks / kBoxKBlocks;
  static constexpr int kBoxRowBytes = kBoxKBlocks * kCellBytes;
  static constexpr int kWords = 4 * (kBits / 4);  // of a thread in a k-block of a strip
  static constexpr int kXCopyThreads = kWarpgroupThreads - kWarpSize;
  // Warps that release a stage: all consumers share it, or one pingpong warpgroup owns it.
  static constexpr int kReleasingWarps = kPingpong ? 4 : 4 * kConsumers;

  using Epilogue = typename Variant::Epilogue;
  static constexpr bool kFolded = folds_scales(kConfig);
  using Dequant = device::Dequantizer<kConfig.act, kConfig.weight, kConfig.quant, kFolded>;
  using Output = device::Output<kConfig, Epilogue>;
  using Accumulators = float[kRowBlocks][kTileM / 2];
  using Units = typename device::UnitsOf<kFolded, kConfig.act, kConfig.weight>::Type;

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
    const std::uint32_t full = ring.full(stage);
    const int first_strip = tile_n * kStrips;
#pragma unroll 1  // unrolled, it runs out of the producer's registers
    for (int box = 0; box < kBoxes; ++box) {
      const std::uint32_t dst = base + kXBytes + box * kStrips * kBoxRowBytes;
      const int word = (k_tile * kBoxes + box) * (kBoxRowBytes / 4);
      if (p.cluster_m == 1) {
        ptx::cp_async_bulk_tensor_2d(dst, p.codes_map, word, first_strip, full, p.codes_policy);
      } else {  // each CTA of a column loads its share of the strips for all of them
        const int share = p.codes_box_strips;
        const int first_rank = rank() - place.y * p.cluster_n;
        std::uint32_t mask = 0;
        for (int i = 0; i < p.cluster_m; ++i) mask |= 1u << (first_rank + i * p.cluster_n);
        ptx::cp_async_bulk_tensor_2d_multicast(dst + place.y * share * kBoxRowBytes, p.codes_map,
                                               word, first_strip + place.y * share, full,
                                               static_cast<std::uint16_t>(mask), p.codes_policy);
      }
    }
    if constexpr (kConfig.quant != Quant::column) {
      const int group = (k_tile * kConfig.tile_k) >> p.group_shift;
      ptx::cp_async_bulk_tensor_2d(base + kScaleOffset, p.scales_map, group * layout::kStripRows,
                                   first_strip, full, p.codes_policy);
      if constexpr (kConfig.quant == Quant::group_zero) {
        ptx::cp_async_bulk_tensor_2d(base + kZeroOffset, p.zeros_map, group * layout::kStripRows,
                                     first_strip, full, p.codes_policy);
      }
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
  /// ready() before the first, when it is known which one that is.
  template <class Ready, class Load>
  __device__ __forceinline__ void fill_ring(const Ready& ready, const Load& load) const {
    device::RingCursor cursor(p.stages);
    device::WorkItem item;
    device::TileScheduler work = scheduler();
    for (bool first = true;; first = false) {
      const bool more = work.next(item);
      int k_begin = 0, k_end = 0;
      if (more) k_range(item, k_begin, k_end);
      if (first) ready();
      if (!more) return;
      for (int k_tile = k_begin; k_tile < k_end; ++k_tile, cursor.advance()) {
        ring.wait_empty(cursor);
        load(cursor.stage, item, k_tile);
      }
    }
  }

  /// A warp. Weights don't depend on the kernels before this one, so it never waits for those.
  __device__ __forceinline__ void produce_weights() const {
    const int bytes = kWBytes + p.scale_box_bytes * (kConfig.quant == Quant::group_zero ? 2 : 1);
    fill_ring([&] { meet(); },
              [&](int stage, const device::WorkItem& item, int k_tile) {
                if (!ptx::elect_one()) return;
                ptx::mbarrier_arrive_expect_tx(ring.full(stage), bytes);
                load_weights(stage, item.tile_n, k_tile);
              });
  }

  /// kByTma: a warp; otherwise kXCopyThreads.
  template <bool kByTma>
  __device__ __forceinline__ void produce_x() const {
    const auto ready = [&] {
      meet();
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

  /// The producer warpgroup: its first warp loads weights, the second X, or all others copy X. The
  /// third one makes the barriers, meanwhile the first two find out what to load.
  __device__ __forceinline__ void produce() const {
    const int warp = ptx::uniform(threadIdx.x / kWarpSize % 4);
    if (warp == 2 && ptx::elect_one()) {
      ring.init(1 + (p.x_by_tma ? 1 : kXCopyThreads), kReleasingWarps * p.cluster_n * p.cluster_m,
                p.cluster_k);
      ptx::fence_mbarrier_init();
    }
    __syncwarp();
    if (warp == 0) {
      produce_weights();
    } else if (!p.x_by_tma) {
      produce_x<false>();
    } else if (warp == 1) {
      produce_x<true>();
    } else {
      meet();
    }
    __syncwarp();
  }

  /// Everybody: barriers are there, in this CTA and, where CTAs multicast into each other's stages,
  /// in those of the cluster.
  __device__ __forceinline__ void meet() const {
    if (cluster_size() > 1) ptx::barrier_cluster_arrive_relaxed();
    if (p.cluster_n * p.cluster_m > 1) {
      ptx::barrier_cluster_wait();
    } else {
      ptx::barrier_sync(device::kSetupBarrier, num_threads(kConfig));
    }
  }

  /// Every other warp, in a cluster that only splits K: by now its other CTAs have barriers, too.
  __device__ __forceinline__ void meet_late() const {
    if (only_splits_k()) ptx::barrier_cluster_wait();
  }
  __device__ __forceinline__ bool only_splits_k() const {
    return p.cluster_k > 1 && p.cluster_n * p.cluster_m == 1;
  }
  /// Whether consumers leave in add_up_cluster, before the epilogue: a cluster that has a tile.
  __device__ __forceinline__ bool leaves_early() const {
    return only_splits_k() && cluster < p.cluster_tiles_n * p.cluster_tiles_m;
  }

  // No CTA of a cluster may exit while others multicast into its memory or arrive on its barriers,
  // or while a copy of its sums is on the way to them.

  /// Every warp, once: it needs nothing more of the other CTAs' memory.
  __device__ __forceinline__ void leave() const {
    if (cluster_size() > 1) ptx::barrier_cluster_arrive_relaxed();
  }
  /// Every warp, before it exits.
  __device__ __forceinline__ void await_others() const {
    if (cluster_size() > 1) ptx::barrier_cluster_wait();
  }

  // ---- consumer -------------------------------------------------------------------------------

  /// Where a consumer thread finds its part of stage 0, as shared-window addresses; stage s lies
  /// s · kStageBytes further. Made once: between a stage's barrier and its first MMA stands little
  /// but loads.
  struct Part {
    std::uint32_t words;  ///< of its first strip
    std::uint32_t
        scales;  ///< of its first strip's rows g; those of the others lie strip_scales apart
    std::uint32_t strip_scales;
  };
  __device__ __forceinline__ Part part_of(int first_strip, int lane) const {
    Part part;
    part.words = stages_base + kXBytes + first_strip * kBoxRowBytes + lane * 16;
    part.strip_scales = p.scale_box_groups * layout::kStripRows * 2;
    part.scales = stages_base + kScaleOffset + first_strip * part.strip_scales + lane / 4 * 2;
    return part;
  }

  // Row block r of a warpgroup is the strip 4·r after the warp's first.

  /// The thread's words of a k-block of row block r.
  __device__ __forceinline__ void load_words(std::uint32_t words_at, int r, int block,
                                             std::uint32_t (&words)[kWords]) const {
    const std::uint32_t cell = words_at + (block / kBoxKBlocks * kStrips + 4 * r) * kBoxRowBytes +
                               block % kBoxKBlocks * kCellBytes;
#pragma unroll
    for (int plane = 0; plane < layout::planes(kBits); ++plane) {
      ptx::ld_shared_v4(cell + plane * layout::kPlaneBytes, words[4 * plane], words[4 * plane + 1],
                        words[4 * plane + 2], words[4 * plane + 3]);
    }
  }

  /// Where the scales of row block r at k `k_in_stage` of the stage lie, row g's: see
  /// load_constants.
  __device__ __forceinline__ std::uint32_t group_at(std::uint32_t scales_at, const Part& part,
                                                    int r, int k_in_stage) const {
    return scales_at + 4 * r * part.strip_scales +
           (k_in_stage >> p.group_shift) * (layout::kStripRows * 2);
  }

  /// Scales and, gz, zeros of a group for the thread's rows g and g + 8.
  static __device__ __forceinline__ void load_group(std::uint32_t at, std::uint16_t (&scale)[2],
                                                    std::uint16_t (&zero)[2]) {
    scale[0] = ptx::ld_shared_u16(at);
    scale[1] = ptx::ld_shared_u16(at + 16);
    if constexpr (kConfig.quant == Quant::group_zero) {
      constexpr int kZeros = kZeroOffset - kScaleOffset;
      zero[0] = ptx::ld_shared_u16(at + kZeros);
      zero[1] = ptx::ld_shared_u16(at + kZeros + 16);
    } else {
      zero[0] = zero[1] = 0;
    }
  }

  /// The constants of row block r at k `k_in_stage` of the stage, whose groups begin with it: a
  /// stage is some groups, or lies within one.
  __device__ __forceinline__ device::GroupConstants load_constants(std::uint32_t scales_at,
                                                                   const Part& part, int r,
                                                                   int k_in_stage) const {
    std::uint16_t scale[2], zero[2];
    load_group(group_at(scales_at, part, r, k_in_stage), scale, zero);
    return Dequant::constants(scale, zero, p.zeros_scaled);
  }

  // The constants of a group serve kShare k16 steps, as many as the launch's group size lets: one
  // of two loops, in each of which the compiler knows where constants begin.
  static constexpr int kSteps = 4 * kKBlocks;  // of a stage
  static constexpr int kLeastShare = kConfig.fine_groups ? 1 : 4;
  static constexpr int kMostShare = [] {
    if (kConfig.quant == Quant::column) return kLeastShare;
    if (kConfig.fine_groups) return 2;
    // From 64 sums a thread up folded f16 is slower so, for all that it has fewer instructions
    // (128x128x128, H100), and int8 runs out of registers.
    const bool folded_f16 = kFolded && kConfig.act == DataType::f16 && kConsumers < 3;
    const bool slower = kRowBlocks * kTileM >= 128 && (folded_f16 || kBits == 8);
    return kKBlocks > 1 && !slower ? 8 : kLeastShare;
  }();
  template <int kShare>
  using Constants = device::GroupConstants[kSteps / kShare][kRowBlocks];

  // Fragments of steps at a time, each of an MMA on its way: as many as registers allow.
  static constexpr int kFragments = consumer_registers(kConfig) >= 150 ? 4 : 2;
  // Whether stages follow each other without a pause: multiply_stages. Two warpgroups with
  // registers for four fragments gain 1-5 % (H200, M = 16 to 256); three and four hide each other's
  // pauses, and one or two of small CTAs lose up to 4 %: the ring's depth counts for more there,
  // and a stage is let go of later. MMAs of 256 tokens hide the pause (1-1.5 % slower without).
  // Two row blocks, or many constants beside many sums, spill.
  static constexpr bool kPipelined = [] {
    if (kWarpMma || kConsumers != 2 || kFragments != 4 || kConfig.fine_groups) return false;
    const bool many_constants = kConfig.quant == Quant::group_zero && kKBlocks > 1;
    return kRowBlocks == 1 && kTileM <= (many_constants ? 96 : 128);
  }();

  /// What the constants of a stage are made of, as it lies in shared memory.
  template <int kShare>
  struct GroupValues {
    std::uint16_t scale[kSteps / kShare][kRowBlocks][2];
    std::uint16_t zero[kSteps / kShare][kRowBlocks][2];
  };
  template <int kShare>
  __device__ __forceinline__ void load_values(std::uint32_t scales_at, const Part& part,
                                              GroupValues<kShare>& values) const {
#pragma unroll
    for (int r = 0; r < kRowBlocks; ++r) {
#pragma unroll
      for (int g = 0; g < kSteps / kShare; ++g) {
        load_group(group_at(scales_at, part, r, g * kShare * 16), values.scale[g][r],
                   values.zero[g][r]);
      }
    }
  }

  /// The constants of a stage; folded: in units that fit. Sums of MMAs on their way may be in
  /// `acc`, all of them in the units so far.
  template <int kShare>
  __device__ __forceinline__ void make_constants(const GroupValues<kShare>& values,
                                                 Units (&units)[kRowBlocks], Accumulators& acc,
                                                 Constants<kShare>& group) const {
    constexpr int kGroups = kSteps / kShare;
    if constexpr (kFolded) {
      std::uint32_t outside = 0;
#pragma unroll
      for (int r = 0; r < kRowBlocks; ++r) {
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
          outside |= units[r].outside(values.scale[g][r][0], values.scale[g][r][1]);
          group[g][r] = units[r].constants(values.scale[g][r]);
        }
      }
      bool adapts = (outside & Units::kOutside) != 0;
      if constexpr (kPipelined) adapts = ptx::any(adapts);  // wgmma_wait_group is for whole warps
      if (!adapts) return;
      if constexpr (kPipelined) ptx::wgmma_wait_group<0>();
#pragma unroll
      for (int r = 0; r < kRowBlocks; ++r) {
        std::uint16_t scales[kGroups][2];
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
          scales[g][0] = values.scale[g][r][0];
          scales[g][1] = values.scale[g][r][1];
        }
        units[r].adapt(scales, acc[r]);
#pragma unroll
        for (int g = 0; g < kGroups; ++g) group[g][r] = units[r].constants_of_any(scales[g]);
      }
    } else {
#pragma unroll
      for (int r = 0; r < kRowBlocks; ++r) {
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
          group[g][r] = Dequant::constants(values.scale[g][r], values.zero[g][r], p.zeros_scaled);
        }
      }
    }
  }

  /// A k16 step of a k-block: words → fragment.
  static __device__ __forceinline__ void dequantize(const std::uint32_t (&words)[kWords], int step,
                                                    const device::GroupConstants& group,
                                                    std::uint32_t (&a)[4]) {
    std::uint32_t step_words[Dequant::kWordsPerStep];
#pragma unroll
    for (int w = 0; w < Dequant::kWordsPerStep; ++w) {
      step_words[w] = words[step * Dequant::kWordsPerStep + w];
    }
    Dequant::step(step_words, group, a);
  }

  // K-blocks whose words are in registers, or on their way there: all of a stage, or two.
  static constexpr int kWordBlocks =
      consumer_registers(kConfig) < 150 && kKBlocks > 2 ? 2 : kKBlocks;
  // Whether constants are loaded with the words of their first k-block, or before their first step.
  static constexpr bool kBlockGroups =
      kConfig.quant != Quant::column && !kConfig.fine_groups && !kFolded;
  static constexpr bool kStepGroups = kConfig.fine_groups && !kFolded;

  /// One stage: dequantize a k16 step while the tensor cores multiply the one before.
  template <int kShare>
  __device__ __forceinline__ void multiply_stage(int stage, const Part& part,
                                                 Units (&units)[kRowBlocks],
                                                 Accumulators& acc) const {
    using Mma = ptx::WgmmaRs<kConfig.act, kTileM>;
    const std::uint32_t offset = stage * kStageBytes;
    std::uint32_t words[kWordBlocks][kRowBlocks][kWords];
    Constants<kShare> group;
    const auto load_block = [&](int block) {
#pragma unroll
      for (int r = 0; r < kRowBlocks; ++r) {
        load_words(part.words + offset, r, block, words[block % kWordBlocks][r]);
        if (kBlockGroups && 4 * block % kShare == 0) {
          group[4 * block / kShare][r] =
              load_constants(part.scales + offset, part, r, block * layout::kBlockK);
        }
      }
    };
#pragma unroll
    for (int block = 0; block < kWordBlocks; ++block) load_block(block);
    if constexpr (kFolded) {
      GroupValues<kShare> values;
      load_values<kShare>(part.scales + offset, part, values);
      make_constants<kShare>(values, units, acc, group);
    }
    // Uniform, or each MMA would move its descriptor from ordinary registers.
    const std::uint64_t x =
        ptx::wgmma_descriptor(ptx::uniform(static_cast<int>(stages_base + offset)));
    std::uint32_t a[kFragments][kRowBlocks][4];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int block = step / 4;
#pragma unroll
      for (int r = 0; r < kRowBlocks; ++r) {
        if (kStepGroups && step % kShare == 0) {
          group[step / kShare][r] = load_constants(part.scales + offset, part, r, 16 * step);
        }
        dequantize(words[block % kWordBlocks][r], step % 4, group[step / kShare][r],
                   a[step % kFragments][r]);
      }
      if (step % 4 == 3 && block + kWordBlocks < kKBlocks) load_block(block + kWordBlocks);
      ptx::wgmma_fence();
#pragma unroll
      for (int r = 0; r < kRowBlocks; ++r) {
        Mma::mma(acc[r], a[step % kFragments][r], x + block * (kTileM * 128 / 16) + 2 * (step % 4));
      }
      ptx::wgmma_commit_group();
      // An MMA that is done lets its fragment be overwritten.
      ptx::wgmma_wait_group<kFragments - 1>();
    }
    ptx::wgmma_wait_group<0>();
  }

  /// All stages of an item, each step dequantized while the tensor cores multiply the one before
  /// the one before; what the first step of a stage needs is asked for kEarly steps earlier, and
  /// MMAs go on across the border. So a stage is released when the next one's are under way.
  template <int kShare, class Release>
  __device__ __forceinline__ void multiply_stages(device::RingCursor& cursor, int stages_left,
                                                  const Part& part, Units (&units)[kRowBlocks],
                                                  Accumulators& acc, const Release& release) const {
    using Mma = ptx::WgmmaRs<kConfig.act, kTileM>;
    constexpr int kPending = kFragments - 2;  // MMAs on their way while a fragment is written
    constexpr int kEarly = 2;
    static_assert(kSteps - kEarly >= kPending);
    if (stages_left <= 0) return;
    std::uint32_t words[2][kRowBlocks][kWords];
    std::uint32_t a[kFragments][kRowBlocks][4];
    GroupValues<kShare> values;
    Constants<kShare> group;
    std::uint32_t offset = cursor.stage * kStageBytes;
    const auto load_block = [&](int block, std::uint32_t(&to)[kRowBlocks][kWords]) {
#pragma unroll
      for (int r = 0; r < kRowBlocks; ++r) load_words(part.words + offset, r, block, to[r]);
    };
    const auto load_first = [&](std::uint32_t(&to)[kRowBlocks][kWords]) {
      load_block(0, to);
      if constexpr (kConfig.quant != Quant::column) {
        load_values<kShare>(part.scales + offset, part, values);
      }
    };
    const auto make_group = [&] {
      if constexpr (kConfig.quant != Quant::column) {
        make_constants<kShare>(values, units, acc, group);
      }
    };
    const auto make_fragment = [&](int step) {
#pragma unroll
      for (int r = 0; r < kRowBlocks; ++r) {
        dequantize(words[step / 4 % 2][r], step % 4, group[step / kShare][r],
                   a[step % kFragments][r]);
      }
    };
    ring.wait_full(cursor);
    load_first(words[0]);
    make_group();
    make_fragment(0);
    for (int previous = -1;;) {
      const int stage = cursor.stage;
      const bool more = --stages_left > 0;
      // Uniform, or each MMA would move its descriptor from ordinary registers.
      const std::uint64_t x =
          ptx::wgmma_descriptor(ptx::uniform(static_cast<int>(stages_base + offset)));
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const int block = step / 4;
        if (step % 4 == 0 && block + 1 < kKBlocks) load_block(block + 1, words[(block + 1) % 2]);
        ptx::wgmma_wait_group<kPending>();
        if (step == kPending && previous >= 0) release(previous);  // none of its MMAs is left
        // NOTE: after the release, or a ring of two stages would wait for itself.
        if (step == kSteps - kEarly) {
          cursor.advance();
          if (more) {
            ring.wait_full(cursor);
            offset = cursor.stage * kStageBytes;
          }
          load_first(words[kKBlocks % 2]);  // after the last stage its own again, for nothing
        }
        if (step + 1 < kSteps) make_fragment(step + 1);
        ptx::wgmma_fence();
#pragma unroll
        for (int r = 0; r < kRowBlocks; ++r) {
          Mma::mma(acc[r], a[step % kFragments][r],
                   x + block * (kTileM * 128 / 16) + 2 * (step % 4));
        }
        ptx::wgmma_commit_group();
      }
      previous = stage;
      if (!more) {
        ptx::wgmma_wait_group<0>();
        release(previous);
        return;
      }
      if constexpr (kKBlocks % 2 != 0) {
#pragma unroll
        for (int r = 0; r < kRowBlocks; ++r) {
#pragma unroll
          for (int w = 0; w < kWords; ++w) words[0][r][w] = words[1][r][w];
        }
      }
      make_group();
      ptx::wgmma_wait_group<kPending>();
      make_fragment(0);
    }
  }

  /// The same with mma.sync: a warp's strips times all tokens. What the next steps need is asked
  /// for before this one's products. x: of stage 0, where this lane's ldmatrix reads.
  template <int kShare>
  __device__ __forceinline__ void multiply_stage_by_warps(int stage, const Part& part,
                                                          std::uint32_t x,
                                                          Units (&units)[kRowBlocks],
                                                          Accumulators& acc) const {
    constexpr int kTokenPairs = kTileM / 16;  // pairs of the instruction's 8 tokens
    const std::uint32_t offset = stage * kStageBytes;
    x += offset;
    std::uint32_t words[2][kRowBlocks][kWords];
    std::uint32_t tokens[2][kTokenPairs][4];
    Constants<kShare> group;
    if constexpr (kFolded) {
      GroupValues<kShare> values;
      load_values<kShare>(part.scales + offset, part, values);
      make_constants<kShare>(values, units, acc, group);
    }
    const auto load_block = [&](int block) {
#pragma unroll
      for (int r = 0; r < kRowBlocks; ++r) {
        load_words(part.words + offset, r, block, words[block % 2][r]);
        if (kBlockGroups && 4 * block % kShare == 0) {
          group[4 * block / kShare][r] =
              load_constants(part.scales + offset, part, r, block * layout::kBlockK);
        }
      }
    };
    const auto load_tokens = [&](int step) {
#pragma unroll
      for (int pair = 0; pair < kTokenPairs; ++pair) {
        ptx::ldmatrix_x4(tokens[step % 2][pair],
                         (x ^ (step % 4 * 32)) + step / 4 * (kTileM * 128) + pair * 16 * 128);
      }
    };
    load_block(0);
    load_tokens(0);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int block = step / 4;
      if (step % 4 == 1 && block + 1 < kKBlocks) load_block(block + 1);
      if (step + 1 < kSteps) load_tokens(step + 1);
#pragma unroll
      for (int r = 0; r < kRowBlocks; ++r) {
        if (kStepGroups && step % kShare == 0) {
          group[step / kShare][r] = load_constants(part.scales + offset, part, r, 16 * step);
        }
        std::uint32_t a[4];
        dequantize(words[block % 2][r], step % 4, group[step / kShare][r], a);
#pragma unroll
        for (int j = 0; j < kTileM / 8; ++j) {
          ptx::mma_m16n8k16<kConfig.act>(*reinterpret_cast<float(*)[4]>(&acc[r][4 * j]), a,
                                         tokens[step % 2][j / 2][j % 2 * 2],
                                         tokens[step % 2][j / 2][j % 2 * 2 + 1]);
        }
      }
    }
  }

  __device__ __forceinline__ void consume(int warpgroup) const {
    const int warp = ptx::uniform(threadIdx.x / kWarpSize % 4);
    const int lane = threadIdx.x % kWarpSize;
    const int in_tile = kPingpong ? 0 : warpgroup;
    const int sharers = p.cluster_n * p.cluster_m;
    const Part part = part_of(in_tile * kRowBlocks * 4 + warp, lane);
    // ldmatrix: matrices 0, 1 are tokens 0–7 at k 0–7, 8–15; matrices 2, 3 the same of tokens 8–15.
    // Row t's 16-byte chunks lie swizzled by t % 8.
    const std::uint32_t lane_x =
        stages_base + (lane / 16 * 8 + lane % 8) * 128 + ((lane / 8 % 2) ^ (lane % 8)) * 16;
    const std::uint32_t empty_there =
        ptx::mapa(ring.empty(0), place.z * sharers + min(lane, sharers - 1));
    const bool releases_here = sharers == 1 && lane == 0;
    const bool releases_there = sharers > 1 && lane < sharers;
    meet_late();
    Output output(p, smem + p.ring_bytes, warpgroup);
    const bool shares_most = (1 << p.group_shift) >= 16 * kMostShare;
    Units units[kRowBlocks];
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
      const auto multiply = [&]<int kShare>() {
        const auto release = [&](int stage) {
          ptx::mbarrier_arrive_if(releases_here, ring.empty(stage));
          ptx::mbarrier_arrive_cluster_if(releases_there, empty_there + 8 * stage);
        };
        if constexpr (kPipelined) {
          multiply_stages<kShare>(cursor, k_end - k_begin, part, units, acc, release);
        } else {
          for (int k_tile = k_begin; k_tile < k_end; ++k_tile, cursor.advance()) {
            ring.wait_full(cursor);
            if constexpr (kWarpMma) {
              multiply_stage_by_warps<kShare>(cursor.stage, part, lane_x, units, acc);
              __syncwarp();
            } else {
              multiply_stage<kShare>(cursor.stage, part, units, acc);
            }
            release(cursor.stage);
          }
        }
      };
      if (kMostShare > kLeastShare && shares_most) {
        multiply.template operator()<kMostShare>();
      } else {
        multiply.template operator()<kLeastShare>();
      }
      if constexpr (kPingpong) ring.pass_turn(warpgroup, lane);
      if constexpr (kFolded) {
#pragma unroll
        for (int r = 0; r < kRowBlocks; ++r) units[r].undo(acc[r]);
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
                             num_clusters * cluster_size(),
                             [&](int i) { return work.contributes(first + i); });
      }
      output.store(acc, item, tokens);
    }
  }

  /// cluster_k: the sums of all CTAs of the cluster for this one's share of the tokens. A cluster
  /// has one tile.
  __device__ __forceinline__ void add_up_cluster(const Output& output, Accumulators& acc,
                                                 const typename Output::Tokens& share) const {
    const int sharers = p.cluster_n * p.cluster_m;
    const int first_rank = rank() - place.z * sharers;
    const int thread = threadIdx.x;
    const auto consumers_meet = [] {
      ptx::bar_sync(device::kConsumersBarrier, kConsumers * kWarpgroupThreads);
    };
    consumers_meet();  // nobody here reads the ring any longer
    if (thread < p.cluster_k) {
      ptx::mbarrier_arrive_cluster_if(true,
                                      ptx::mapa(ring.drained(), first_rank + thread * sharers));
    }
    output.put_shares(acc, stages_base);
    typename Output::Parcel parcel{};
    if (thread < p.cluster_k) {
      parcel = output.parcel(stages_base, ring.received(), place.z, thread,
                             first_rank + thread * sharers);
    }
    ptx::fence_proxy_async_shared();
    consumers_meet();
    if (thread < kWarpSize) {
      if (thread == 0) {
        ptx::mbarrier_arrive_expect_tx(ring.received(), output.bytes_received(share));
      }
      ptx::mbarrier_wait(ring.drained(), 0);
      if (thread < p.cluster_k && thread != place.z) output.send(parcel);
    }
    ptx::mbarrier_wait(ring.received(), 0);
    if (only_splits_k()) leave();
    output.take_share(acc, stages_base, share, place.z);
  }
};

template <class Variant>
__global__ void __launch_bounds__(num_threads(Variant::config), Variant::config.ctas_per_sm)
    gemm_tiled(const __grid_constant__ Params p) {
  using Kernel = TiledKernel<Variant>;
  constexpr KernelConfig kConfig = Variant::config;
  extern __shared__ char dynamic_smem[];
  // The swizzle pattern repeats every 1024 bytes of address. Added to the pointer, not computed
  // from it as an integer: that would lose the address space, and loads would be generic.
  char* const smem = dynamic_smem + (-ptx::smem_address(dynamic_smem) & 1023u);

  const Kernel kernel{
      p,
      device::Ring(ptx::smem_address(smem) + p.ring_bytes + staging_bytes(kConfig), p.stages),
      ptx::smem_address(smem),
      smem,
      ptx::cluster_ctaid(),
      ptx::clusterid_z(),
      ptx::nclusterid_z()};
  const int warp = ptx::uniform(threadIdx.x / kWarpSize);
  const bool produces = warp >= 4 * Kernel::kConsumers;
  if (produces) {
    ptx::setmaxnreg_dec<kProducerRegisters>();
    kernel.produce();
    kernel.meet_late();
    kernel.leave();
  } else {
    if (threadIdx.x == 0) {
      if (p.x_by_tma) ptx::prefetch_tensormap(p.x_map);
      ptx::prefetch_tensormap(p.codes_map);
      if constexpr (kConfig.quant != Quant::column) ptx::prefetch_tensormap(p.scales_map);
      if constexpr (kConfig.quant == Quant::group_zero) ptx::prefetch_tensormap(p.zeros_map);
    }
    // The slab is used by epilogues only.
    auto* const slab = reinterpret_cast<std::uint32_t*>(smem + p.ring_bytes);
    if (warp < 4 && threadIdx.x % kWarpSize == 1) device::touch_params(p, slab, warp, 4);
    kernel.meet();
    if (p.pdl) ptx::griddepcontrol_launch_dependents();
    ptx::setmaxnreg_inc<consumer_registers(kConfig)>();
    kernel.consume(warp / 4);
    if (!kernel.leaves_early()) kernel.leave();
  }
  kernel.await_others();
}

}  // namespace mixgemm
