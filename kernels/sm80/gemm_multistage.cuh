// SPDX-License-Identifier: Apache-2.0
// The tiled kernel for Ampere and Ada: Y[M,N] = epilogue(X[M,K] · dequant(W)[N,K]ᵀ) by cp.async and
// mma.sync. docs/sm80_kernel.md explains it; this file reads top to bottom.
//
// Operands are swapped as in the Hopper kernels: the weight is operand A of mma.m16n8k16, whose
// registers a lane makes of its own packed words; the tokens are operand B.
//
//   global          shared memory (ring of stages)            registers of a warp
//   codes  ─cp.async▶ W  tile_n × tile_k codes      ──LDS──▶ words ─lop3,fma▶ A fragment ┐
//   scales ─cp.async▶ S  tile_n × groups            ──LDS──▶ group constants ────────────┤ mma ▶ Yᵀ
//   X      ─cp.async▶ X  tile_m × tile_k, swizzled  ─ldmatrix────────────▶ B fragment ────┘
//
//   Yᵀ ─▶ shared memory, fp32 [k share][token][row] ─ summed over the warps that split K ─▶
//   epilogue ─▶ Y
//
// Every warp copies its share of a stage and multiplies. Warps divide a tile's rows, then its
// tokens; what warps are left divide each stage's k-blocks. One barrier a stage says two things:
// the next stage has landed, and nobody reads this one any more, for each warp by then holds its
// last fragments. Persistent: a CTA walks the list of its TileScheduler.
#pragma once

#include <cstdint>

#include "device/dequant.cuh"
#include "device/quad.cuh"
#include "device/row_units.cuh"
#include "device/tile_scheduler.cuh"
#include "device/workspace.cuh"
#include "epilogues/standard.cuh"
#include "kernel_config.hpp"
#include "ptx/cp_async.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/mma_sync.cuh"
#include "ptx/sync.cuh"

namespace mixgemm {

template <class Variant>
struct MultistageKernel {
  static constexpr KernelConfig kConfig = Variant::config;
  static_assert(is_legal(kConfig), "illegal KernelConfig: ask why_illegal() for the rule");
  static_assert(kConfig.schedule == Schedule::multistage);

  static constexpr int kThreads = num_threads(kConfig);
  static constexpr int kTileN = kConfig.tile_n;
  static constexpr int kTileM = kConfig.tile_m;
  static constexpr int kTileStrips = kTileN / layout::kStripRows;
  static constexpr int kWarpsN = multi_warps_n(kConfig);
  static constexpr int kWarpsM = multi_warps_m(kConfig);
  static constexpr int kWarpsK = multi_warps_k(kConfig);
  static constexpr int kStrips = multi_warp_rows(kConfig) / layout::kStripRows;  // of a warp
  static constexpr int kWarpTokens = multi_warp_tokens(kConfig);
  static constexpr int kTokenPairs = kWarpTokens / 16;  // pairs of the instruction's 8 tokens
  static constexpr int kKBlocks = kConfig.tile_k / layout::kBlockK;  // of a stage
  static constexpr int kWarpBlocks = kKBlocks / kWarpsK;
  static constexpr int kSteps = 4 * kWarpBlocks;  // k16 steps of a warp in a stage
  static constexpr int kBits = bits_of(kConfig.weight);
  static constexpr int kCellBytes = layout::cell_bytes(kBits);
  static constexpr int kRunBytes = kKBlocks * kCellBytes;  // of a strip in a stage
  static constexpr int kPlaneSteps =
      4 / layout::planes(kBits);  // steps that a lane's 16 bytes hold
  static constexpr int kStageBytes = stage_bytes(kConfig);
  static constexpr int kWOffset = x_stage_bytes(kConfig);
  static constexpr int kScaleOffset = kWOffset + w_stage_bytes(kConfig);
  static constexpr int kZeroOffset = kScaleOffset + scale_stage_bytes(kConfig);
  static constexpr int kGroupBytes = kTileN * 2;  // of scales
  static constexpr bool kScaled = kConfig.quant != Quant::column;
  static constexpr bool kZeros = kConfig.quant == Quant::group_zero;

  using Epilogue = typename Variant::Epilogue;
  static constexpr bool kFolded = folds_scales(kConfig);
  using Dequant = device::Dequantizer<kConfig.act, kConfig.weight, kConfig.quant, kFolded>;
  using RowUnits = device::RowUnits<kConfig.weight>;
  using Quad = device::Quad<kConfig, Epilogue>;
  using Accumulators = float[kStrips][2 * kTokenPairs][4];

  /// What a warp holds of the ring: the words of a plane, the constants of a group (folded: also
  /// the scales of which the next ones are to be made), the tokens of two k16 steps, this one's and
  /// the next's.
  struct Fragments {
    std::uint32_t words[kStrips][4];
    device::GroupConstants group[kStrips];
    std::uint16_t scale[kStrips][1][2];
    std::uint32_t x[2][kTokenPairs][4];
  };

  const Params& p;
  char* const smem;
  const std::uint32_t smem_base;  // the same as a shared-window address
  const int warp_n, warp_m, warp_k, lane;
  // Where this lane reads of the ring's first stage: shared-window address of its row of X, byte
  // offsets of its words and of its first scale.
  std::uint32_t x_at, words_at, groups_at;
  // Shared-window addresses of the first 16 bytes that this thread copies: of the stage, were it
  // all copied in this way, and of X, whose rows' chunks are swizzled.
  std::uint32_t target, x_target;

  __device__ __forceinline__ MultistageKernel(const Params& params, char* shared)
      : p(params),
        smem(shared),
        smem_base(ptx::smem_address(shared)),
        warp_n(threadIdx.x / kWarpSize % kWarpsN),
        warp_m(threadIdx.x / kWarpSize / kWarpsN % kWarpsM),
        warp_k(threadIdx.x / kWarpSize / (kWarpsN * kWarpsM)),
        lane(threadIdx.x % kWarpSize) {
    const int block = warp_k * kWarpBlocks;
    // Matrices 0, 1 are tokens 0–7 at k 0–7, 8–15; matrices 2, 3 the same of tokens 8–15. A row's
    // 16-byte chunks lie swizzled by its number, so the eight rows of a matrix hit each bank once.
    // All of them kept: main loops would compute them anew from the thread's index.
    x_at = ptx::kept(smem_base +
                     (block * kTileM + warp_m * kWarpTokens + lane / 16 * 8 + lane % 8) * 128 +
                     ((lane / 8 % 2) ^ (lane % 8)) * 16);
    words_at = ptx::kept(kWOffset + warp_n * kStrips * kRunBytes + block * kCellBytes + lane * 16);
    groups_at = ptx::kept(kScaleOffset + (block * layout::kBlockK >> p.group_shift) * kGroupBytes +
                          (warp_n * kStrips * layout::kStripRows + lane / 4) * 2);
    target = ptx::kept(smem_base + threadIdx.x * 16);
    x_target = ptx::kept(smem_base + (threadIdx.x * 16 ^ threadIdx.x / 8 % 8 * 16));
  }

  __device__ __forceinline__ int num_strips() const {
    return (p.n + layout::kStripRows - 1) / layout::kStripRows;
  }

  // ---- loads ----------------------------------------------------------------------------------

  // A thread copies the same 16 bytes of the same strips, tokens and groups of every stage, which
  // lie a fixed number of bytes apart. What addresses them is computed once for an item, so that in
  // the main loop a copy costs the addition that leads from the one before. NOTE: no L2 eviction
  // policy on cp.async: ptxas up to 13.0 makes an illegal instruction of it for GPUs after Ada,
  // where this code runs through PTX.

  static constexpr int kCodeCopies = w_stage_bytes(kConfig) / 16 / kThreads;
  static constexpr int kStripsAtOnce = kThreads * 16 / kRunBytes;
  static_assert(kCodeCopies * kThreads * 16 == w_stage_bytes(kConfig) && kStripsAtOnce > 0);
  static constexpr int kTokensAtOnce = kThreads / 8;
  static_assert(kTileM % kTokensAtOnce == 0 && kTokensAtOnce % 8 == 0);

  /// What this thread copies of the stage to be filled next.
  struct Source {
    int k_tile, k_end;
    int whole_end;              // stages before it end neither N nor K, and X takes 16-byte copies
    const std::uint8_t* codes;  // of its first strip
    const char* x;              // of its first token
    int tokens;                 // from that to the last one of X
    std::int64_t groups;  // bytes from the scales' and the zeros' beginning to a strip's first
    bool copies_groups;   // there are fewer of them than threads

    __device__ __forceinline__ void advance() {
      ++k_tile;
      codes += kRunBytes;
      x += kConfig.tile_k * 2;
    }
  };

  __device__ __forceinline__ Source source_of(const device::WorkItem& item) const {
    const int thread = threadIdx.x;
    Source from;
    from.k_tile = item.k_begin;
    from.k_end = item.k_end;
    const bool whole = p.x_by_tma && (item.tile_n + 1) * kTileStrips <= num_strips();
    from.whole_end = whole ? min(item.k_end, p.k / kConfig.tile_k) : 0;
    const int strip = item.tile_n * kTileStrips + thread * 16 / kRunBytes;
    from.codes = p.codes + strip * p.codes_pitch_bytes + std::int64_t(item.k_begin) * kRunBytes +
                 thread * 16 % kRunBytes;
    const int token = item.tile_m * kTileM + thread / 8;
    from.tokens = p.m - token;
    from.x = reinterpret_cast<const char*>(static_cast<const std::uint16_t*>(p.x) + token * p.ldx +
                                           item.k_begin * kConfig.tile_k + thread % 8 * 8);
    if constexpr (kScaled) {  // a stage's are [group][strip][16]; beyond N the last strip's
      const int its = min(item.tile_n * kTileStrips + thread / 2 % kTileStrips, num_strips() - 1);
      from.groups = (its * p.groups_pitch + thread / (2 * kTileStrips)) * (layout::kStripRows * 2) +
                    thread % 2 * 16;
      from.copies_groups = thread < 2 * kTileStrips * p.scale_box_groups;
    }
    return from;
  }

  /// Copies one stage into the ring at byte `slot`. Beyond K zeros, where a stage isn't whole: what
  /// a padded k is multiplied by must be finite. Strips beyond N and tokens beyond M are left as
  /// they are: nobody stores their sums.
  template <bool kWhole>
  __device__ __forceinline__ void copy_stage(std::uint32_t slot, int tile_n,
                                             const Source& from) const {
    const int thread = kWhole ? threadIdx.x : ptx::thread_here();
    const std::uint32_t to = target + slot;
    const int left = kWhole ? 0 : p.k - from.k_tile * kConfig.tile_k;  // k of the stage and beyond
    const int code_k = thread * 16 % kRunBytes / kCellBytes * layout::kBlockK;
    const int strip = tile_n * kTileStrips + thread * 16 / kRunBytes;
    const std::uint8_t* codes = from.codes;
#pragma unroll
    for (int i = 0; i < kCodeCopies; ++i) {
      ptx::cp_async_16_if(kWhole || strip + i * kStripsAtOnce < num_strips(),
                          to + kWOffset + i * kThreads * 16, codes,
                          kWhole || code_k < left ? 16 : 0);
      codes += kStripsAtOnce * p.codes_pitch_bytes;
    }
    if (kWhole || p.x_by_tma) {
      const std::uint32_t x_to = x_target + slot;  // rows of 128 bytes, 64 k each
      const char* x = from.x;
#pragma unroll
      for (int i = 0; i < kTileM; i += kTokensAtOnce) {
#pragma unroll
        for (int block = 0; block < kKBlocks; ++block) {
          const int k = block * layout::kBlockK + thread % 8 * 8;
          ptx::cp_async_16_if(i < from.tokens, x_to + (block * kTileM + i) * 128, x + block * 128,
                              kWhole ? 16 : min(max(2 * (left - k), 0), 16));
        }
        x += kTokensAtOnce * 2 * p.ldx;
      }
    }
    if constexpr (kScaled) {
      const int group = from.k_tile * kConfig.tile_k >> p.group_shift;
      const int groups = kWhole ? 0 : (p.k + (1 << p.group_shift) - 1) >> p.group_shift;
      const int bytes = kWhole || group + thread / (2 * kTileStrips) < groups ? 16 : 0;
      const std::int64_t at = from.groups + group * (layout::kStripRows * 2u);
      ptx::cp_async_16_if(from.copies_groups, to + kScaleOffset,
                          reinterpret_cast<const char*>(p.scales) + at, bytes);
      if constexpr (kZeros) {
        ptx::cp_async_16_if(from.copies_groups, to + kZeroOffset,
                            reinterpret_cast<const char*>(p.zeros) + at, bytes);
      }
    }
  }

  /// X of a stage where 16-byte copies refuse it, for its address or leading dimension: 2-byte
  /// loads.
  __device__ __forceinline__ void copy_x(std::uint32_t slot, int tile_m, int k_tile) const {
    const auto* const x = static_cast<const std::uint16_t*>(p.x);
#pragma unroll 1
    for (int e = ptx::thread_here(); e < kTileM * kKBlocks * 32; e += kThreads) {
      const int row = e / 32;  // two neighbouring k of it
      const int m = tile_m * kTileM + row % kTileM;
      const int k = k_tile * kConfig.tile_k + row / kTileM * layout::kBlockK + e % 32 * 2;
      const std::uint16_t* const source = x + m * p.ldx + k;
      std::uint32_t value = 0;
      if (m < p.m && k < p.k) value = source[0];
      if (m < p.m && k + 1 < p.k) value |= std::uint32_t(source[1]) << 16;
      *reinterpret_cast<std::uint32_t*>(smem + slot + row * 128 + ((e % 32 / 4) ^ (row % 8)) * 16 +
                                        e % 4 * 4) = value;
    }
  }

  /// Fills the ring at byte `slot`, if there is a stage left, and closes the group of its copies.
  __device__ __forceinline__ void load_stage(std::uint32_t slot, const device::WorkItem& item,
                                             Source& from) const {
    if (from.k_tile < from.whole_end) {
      copy_stage<true>(slot, item.tile_n, from);
    } else if (from.k_tile < from.k_end) {
      copy_stage<false>(slot, item.tile_n, from);
      if (!p.x_by_tma) copy_x(slot, item.tile_m, from.k_tile);
    }
    from.advance();
    ptx::cp_async_commit_group();
  }

  // ---- fragments ------------------------------------------------------------------------------

  /// Words of strip `s`: of the plane that begins with this warp's k16 step number `step` of the
  /// stage at byte `slot`.
  __device__ __forceinline__ void fetch_words(std::uint32_t slot, int step, int s,
                                              Fragments& f) const {
    const char* const cells = smem + (words_at + slot) + step / 4 * kCellBytes +
                              step % 4 / kPlaneSteps * layout::kPlaneBytes;
    const uint4 v = *reinterpret_cast<const uint4*>(cells + s * kRunBytes);
    f.words[s][0] = v.x;
    f.words[s][1] = v.y;
    f.words[s][2] = v.z;
    f.words[s][3] = v.w;
  }

  /// Constants of strip `s` for the group that this warp's k16 step number `step` of a stage
  /// belongs to. Folded: its scales; settle() goes on.
  __device__ __forceinline__ void fetch_group(std::uint32_t slot, int step, int s,
                                              Fragments& f) const {
    const char* const at = smem + (groups_at + slot) + (16 * step >> p.group_shift) * kGroupBytes +
                           s * (layout::kStripRows * 2);
    const auto* const scales = reinterpret_cast<const std::uint16_t*>(at);
    if constexpr (kFolded) {
      f.scale[s][0][0] = scales[0];
      f.scale[s][0][1] = scales[8];
      return;
    }
    const std::uint16_t scale[2] = {scales[0], scales[8]};
    std::uint16_t zero[2] = {0, 0};
    if constexpr (kZeros) {
      const auto* const zeros =
          reinterpret_cast<const std::uint16_t*>(at + (kZeroOffset - kScaleOffset));
      zero[0] = zeros[0];
      zero[1] = zeros[8];
    }
    f.group[s] = Dequant::constants(scale, zero, p.zeros_scaled);
  }

  /// Folded: the constants of the scales that were fetched, in units that fit. After the last
  /// product of the group before, whose sums change with the units.
  static __device__ __forceinline__ void settle(Fragments& f, RowUnits (&units)[kStrips],
                                                Accumulators& acc) {
    std::uint32_t outside = 0;
#pragma unroll
    for (int s = 0; s < kStrips; ++s) {
      outside |= units[s].outside(f.scale[s][0][0], f.scale[s][0][1]);
      f.group[s] = units[s].constants(f.scale[s][0]);
    }
    if ((outside & RowUnits::kOutside) == 0) return;
#pragma unroll
    for (int s = 0; s < kStrips; ++s) {
      units[s].adapt(f.scale[s], sums_of(acc[s]));
      f.group[s] = units[s].constants_of_any(f.scale[s][0]);
    }
  }
  using StripSums = float[8 * kTokenPairs];
  static __device__ __forceinline__ StripSums& sums_of(float (&strip)[2 * kTokenPairs][4]) {
    return *reinterpret_cast<StripSums*>(&strip);
  }

  /// Tokens of this warp's k16 step number `step` of a stage.
  __device__ __forceinline__ void fetch_x(std::uint32_t slot, int step,
                                          std::uint32_t (&x)[kTokenPairs][4]) const {
    const std::uint32_t rows = ((x_at + slot) ^ (step % 4 * 32)) + step / 4 * (kTileM * 128);
#pragma unroll
    for (int t = 0; t < kTokenPairs; ++t) ptx::ldmatrix_x4(x[t], rows + t * 16 * 128);
  }

  /// Weights of strip `s` in this k16 step of a stage, in the order of the A fragment.
  __device__ __forceinline__ void dequantize(int step, int s, const Fragments& f,
                                             std::uint32_t (&a)[4]) const {
    std::uint32_t words[Dequant::kWordsPerStep];
#pragma unroll
    for (int w = 0; w < Dequant::kWordsPerStep; ++w) {
      words[w] = f.words[s][step % kPlaneSteps * Dequant::kWordsPerStep + w];
    }
    Dequant::step(words, f.group[s], a);
  }

  // ---- main loop ------------------------------------------------------------------------------

  /// The sums of an item's k range. Leaves no copy in flight.
  __device__ __forceinline__ void multiply(const device::WorkItem& item, Accumulators& acc) const {
    const std::uint32_t ring_bytes = p.stages * kStageBytes;
    Source from = source_of(item);
    // Byte offsets of the stage before, which is free, of this one and of the next one.
    std::uint32_t free = 0, slot = 0;
    for (; free + kStageBytes < ring_bytes; free += kStageBytes) {
      load_stage(free, item, from);
    }
    ptx::cp_async_wait_groups(p.stages - 2);
    __syncthreads();
    Fragments f;
    RowUnits units[kStrips];
    fetch_x(0, 0, f.x[0]);
#pragma unroll
    for (int s = 0; s < kStrips; ++s) {
      fetch_words(0, 0, s, f);
      if constexpr (kScaled) fetch_group(0, 0, s, f);
    }
    if constexpr (kFolded) settle(f, units, acc);

#pragma unroll 1
    while (from.k_tile < item.k_end + p.stages - 1) {
      const std::uint32_t next_slot = slot + kStageBytes == ring_bytes ? 0 : slot + kStageBytes;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const bool last = step == kSteps - 1;
        if (last) {  // all that is left to read of this stage is in registers
          ptx::cp_async_wait_groups(p.stages - 2);
          __syncthreads();
        }
        // After the range's last stage this reads what the slot happens to hold, and uses nothing.
        const std::uint32_t at = last ? next_slot : slot;
        const int next = last ? 0 : step + 1;
        fetch_x(at, next, f.x[(step + 1) % 2]);
        const auto& x = f.x[step % 2];
        // What the next step needs of a strip takes the place of what this one has used up, and
        // arrives under the products of this strip and the ones after it.
#pragma unroll
        for (int s = 0; s < kStrips; ++s) {
          std::uint32_t a[4];
          dequantize(step, s, f, a);
          if (next % kPlaneSteps == 0) fetch_words(at, next, s, f);
          if (kScaled && (kConfig.fine_groups || next % 4 == 0)) fetch_group(at, next, s, f);
#pragma unroll
          for (int t = 0; t < kTokenPairs; ++t) {
            ptx::mma_m16n8k16<kConfig.act>(acc[s][2 * t], a, x[t][0], x[t][1]);
            ptx::mma_m16n8k16<kConfig.act>(acc[s][2 * t + 1], a, x[t][2], x[t][3]);
          }
        }
        if (kFolded && next % 4 == 0) settle(f, units, acc);
        // Under the products, when there are registers to spare. The barrier that the stage before
        // ended with has freed its slot.
        if (step == 0) load_stage(free, item, from);
      }
      free = slot;
      slot = next_slot;
    }
    if constexpr (kFolded) {
#pragma unroll
      for (int s = 0; s < kStrips; ++s) units[s].undo(sums_of(acc[s]));
    }
  }

  // ---- output ---------------------------------------------------------------------------------

  static constexpr int kSlabTokens = multi_sums_tokens(kConfig);  // of each warp at a time
  static constexpr int kSlabRows = kWarpsM * kSlabTokens;
  static constexpr int kSlabPitch = multi_sums_pitch(kConfig);
  static constexpr int kQuads = kTileN / 4;
  static constexpr int kThreadQuads = kSlabRows * kQuads / kThreads;
  static constexpr int kBatch = kThreadQuads < 4 ? kThreadQuads : 4;  // at a time: loads overlap
  static_assert(kThreadQuads * kThreads == kSlabRows * kQuads && kThreadQuads % kBatch == 0);

  // Sums between warps or CTAs travel as they lie in registers, [vector][thread of the first k
  // share]: vector v is acc[v / kRowVectors][v % kRowVectors], of the warp's tokens 8·(v %
  // kRowVectors) on.
  static constexpr int kOwners = kThreads / kWarpsK;
  static constexpr int kRowVectors = 2 * kTokenPairs;
  static constexpr int kVectors = kStrips * kRowVectors;
  static_assert(kVectors * kOwners * 4 == kTileN * kTileM);

  /// Tokens of vector v that exist.
  __device__ __forceinline__ bool has_tokens(const device::WorkItem& item, int v) const {
    return item.tile_m * kTileM + warp_m * kWarpTokens + 8 * (v % kRowVectors) < p.m;
  }
  static __device__ __forceinline__ float4 vector(const Accumulators& acc, int v) {
    const float(&a)[4] = acc[v / kRowVectors][v % kRowVectors];
    return make_float4(a[0], a[1], a[2], a[3]);
  }
  static __device__ __forceinline__ void add(Accumulators& acc, int v, const float4& more) {
    float(&a)[4] = acc[v / kRowVectors][v % kRowVectors];
    a[0] += more.x;
    a[1] += more.y;
    a[2] += more.z;
    a[3] += more.w;
  }

  /// The sums of all warps that split K, in the first ones; as many vectors at a time as two ring
  /// stages hold.
  __device__ __forceinline__ void sum_over_warps(Accumulators& acc) const {
    constexpr int kFit = 2 * kStageBytes / ((kWarpsK - 1) * kOwners * 16);
    static_assert(kFit >= 1);
    constexpr int kAtATime = kFit < kVectors ? kFit : kVectors;
    auto* const shares = reinterpret_cast<float4*>(smem) + threadIdx.x % kOwners;
#pragma unroll
    for (int begin = 0; begin < kVectors; begin += kAtATime) {
      const int end = begin + kAtATime < kVectors ? begin + kAtATime : kVectors;
      __syncthreads();  // nobody reads the ring, or the vectors before, any more
      if (warp_k > 0) {
#pragma unroll
        for (int v = begin; v < end; ++v) {
          shares[((warp_k - 1) * kAtATime + v - begin) * kOwners] = vector(acc, v);
        }
      }
      __syncthreads();
      if (warp_k > 0) continue;
#pragma unroll
      for (int w = 1; w < kWarpsK; ++w) {
#pragma unroll
        for (int v = begin; v < end; ++v) {
          add(acc, v, shares[((w - 1) * kAtATime + v - begin) * kOwners]);
        }
      }
    }
  }

  __device__ __forceinline__ float4* partial(int slot) const {
    constexpr int kTile = kTileN * kTileM;
    return reinterpret_cast<float4*>(device::workspace_tile<kTile>(p, slot, gridDim.z)) +
           threadIdx.x;
  }

  /// Leaves the sums in the workspace for the CTA that finishes the tile.
  __device__ __forceinline__ void leave_partial(const Accumulators& acc,
                                                const device::WorkItem& item) const {
    const int mine = blockIdx.z;
    if (warp_k == 0) {
      float4* const out = partial(mine);
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        if (has_tokens(item, v)) out[v * kOwners] = vector(acc, v);
      }
    }
    __syncthreads();  // all of them are written, and the next item may fill the ring
    if (threadIdx.x == 0) ptx::st_release_gpu(device::workspace_flag(p, mine), p.flag_tag);
  }

  /// Adds what CTAs [first, first + count) left, in order, once it is there, and clears their flags
  /// for the next launch. What registers hold is read at once: a round trip each would add up.
  __device__ __forceinline__ void take_partials(Accumulators& acc, const device::WorkItem& item,
                                                const device::TileScheduler& work, int first,
                                                int count) const {
    constexpr int kRead = kVectors <= 16 ? 16 : kZeros ? 4 : 8;  // vectors
    constexpr int kPart = kVectors < kRead ? kVectors : kRead;
    constexpr int kAtOnce = kRead / kPart;  // CTAs
    static_assert(kVectors % kPart == 0);
    for (int c = threadIdx.x; c < count; c += kThreads) {
      if (!work.contributes(first + c)) continue;
      while (ptx::ld_acquire_gpu(device::workspace_flag(p, first + c)) != p.flag_tag) {
        __nanosleep(20);
      }
    }
    __syncthreads();
#pragma unroll 1
    for (int c = 0; warp_k == 0 && c < count; c += kAtOnce) {
      bool adds[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) adds[i] = c + i < count && work.contributes(first + c + i);
#pragma unroll
      for (int begin = 0; begin < kVectors; begin += kPart) {
        float4 more[kAtOnce][kPart];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const float4* const in = partial(first + c + i);
#pragma unroll
          for (int v = 0; v < kPart; ++v) {
            if (adds[i] && has_tokens(item, begin + v)) {
              more[i][v] = __ldcg(in + (begin + v) * kOwners);
            }
          }
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
          for (int v = 0; v < kPart; ++v) {
            if (adds[i] && has_tokens(item, begin + v)) add(acc, begin + v, more[i][v]);
          }
        }
      }
    }
    for (int c = threadIdx.x; c < count; c += kThreads) {
      if (work.contributes(first + c)) *device::workspace_flag(p, first + c) = 0;
    }
  }

  /// This warp's sums of its tokens [first, first + kSlabTokens) → slab.
  __device__ __forceinline__ void put_sums(const Accumulators& acc, int first) const {
    float* const rows = reinterpret_cast<float*>(smem) +
                        (warp_k * kSlabRows + warp_m * kSlabTokens + 2 * (lane % 4)) * kSlabPitch +
                        warp_n * multi_warp_rows(kConfig) + lane / 4;
#pragma unroll
    for (int j = 0; j < kRowVectors; ++j) {
      if (8 * j / kSlabTokens * kSlabTokens != first) continue;
#pragma unroll
      for (int s = 0; s < kStrips; ++s) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          rows[(8 * j % kSlabTokens + i % 2) * kSlabPitch + s * layout::kStripRows + 8 * (i / 2)] =
              acc[s][j][i];
        }
      }
    }
  }

  /// A whole tile → Y, or one of several ranges along K: to the workspace, or with what others left
  /// there to Y. kSlabTokens tokens of each warp at a time go through the epilogue.
  __device__ __forceinline__ void finish(Accumulators& acc, const device::WorkItem& item,
                                         const device::TileScheduler& work) const {
    const int first = item.first_contributor;
    const bool split = !item.finishes() || first >= 0;
    if (split) {
      if constexpr (kWarpsK > 1) sum_over_warps(acc);
      if (!item.finishes()) return leave_partial(acc, item);
      take_partials(acc, item, work, first, static_cast<int>(blockIdx.z) - first);
    }
#pragma unroll 1
    for (int chunk = 0; chunk < kWarpTokens; chunk += kSlabTokens) {
      if (item.tile_m * kTileM + chunk >= p.m) break;
      __syncthreads();  // nobody reads the ring, or the slab's last content, any more
      if (!split || warp_k == 0) put_sums(acc, chunk);
      __syncthreads();
#pragma unroll 1
      for (int e = threadIdx.x; e < kSlabRows * kQuads; e += kThreads * kBatch) {
        finish_batch(e, chunk, item, split ? 1 : kWarpsK);
      }
    }
    __syncthreads();  // the next item may fill the ring, where the slab lies
  }

  /// Quads e, e + kThreads, … of a slab whose first token is each warp's number `chunk`, the sums
  /// of `shares` warps each.
  __device__ __forceinline__ void finish_batch(int e, int chunk, const device::WorkItem& item,
                                               int shares) const {
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int row = (e + b * kThreads) / kQuads, quad = (e + b * kThreads) % kQuads;
      const int token = row / kSlabTokens * kWarpTokens + chunk + row % kSlabTokens;
      const int n = item.tile_n * kTileN + 4 * quad, m = item.tile_m * kTileM + token;
      if (m >= p.m || n >= p.n) continue;
      const float* const slab = reinterpret_cast<const float*>(smem) + row * kSlabPitch + 4 * quad;
      float sum[4];
#pragma unroll
      for (int w = 0; w < kWarpsK; ++w) {
        if (w >= shares) break;
        const float4 v = *reinterpret_cast<const float4*>(slab + w * kSlabRows * kSlabPitch);
        sum[0] = w == 0 ? v.x : sum[0] + v.x;
        sum[1] = w == 0 ? v.y : sum[1] + v.y;
        sum[2] = w == 0 ? v.z : sum[2] + v.z;
        sum[3] = w == 0 ? v.w : sum[3] + v.w;
      }
      Quad::finish(p, sum, n, m);
    }
  }
};

template <class Variant>
__global__ void __launch_bounds__(num_threads(Variant::config), Variant::config.ctas_per_sm)
    gemm_multistage(const __grid_constant__ Params p) {
  using Kernel = MultistageKernel<Variant>;
  extern __shared__ __align__(1024) char smem[];
  const Kernel kernel(p, smem);
  device::WorkItem item;
  device::TileScheduler work(p, blockIdx.z, gridDim.z, make_int3(0, 0, 0));
  while (work.next(item)) {
    typename Kernel::Accumulators acc = {};
    kernel.multiply(item, acc);
    kernel.finish(acc, item, work);
  }
}

}  // namespace mixgemm
