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
  static constexpr bool kScaled = kConfig.quant != Quant::column;
  static constexpr bool kZeros = kConfig.quant == Quant::group_zero;

  using Epilogue = typename Variant::Epilogue;
  using Dequant = device::Dequantizer<kConfig.act, kConfig.weight, kConfig.quant>;
  using Quad = device::Quad<kConfig, Epilogue>;
  using Accumulators = float[kStrips][2 * kTokenPairs][4];

  /// What a warp holds of the ring: the words of a plane, the constants of a group, the tokens of
  /// two k16 steps, this one's and the next's.
  struct Fragments {
    std::uint32_t words[kStrips][4];
    device::GroupConstants group[kStrips];
    std::uint32_t x[2][kTokenPairs][4];
  };

  const Params& p;
  char* const smem;
  const std::uint32_t smem_base;  // the same as a shared-window address
  const int warp_n, warp_m, warp_k, lane;
  const std::uint32_t x_lane_offset;  // of what this lane's ldmatrix reads of a k16 step

  __device__ __forceinline__ MultistageKernel(const Params& params, char* shared)
      : p(params),
        smem(shared),
        smem_base(ptx::smem_address(shared)),
        warp_n(threadIdx.x / kWarpSize % kWarpsN),
        warp_m(threadIdx.x / kWarpSize / kWarpsN % kWarpsM),
        warp_k(threadIdx.x / kWarpSize / (kWarpsN * kWarpsM)),
        lane(threadIdx.x % kWarpSize),
        // Matrices 0, 1 are tokens 0–7 at k 0–7, 8–15; matrices 2, 3 the same of tokens 8–15. A
        // row's 16-byte chunks lie swizzled by its number, so the eight rows of a matrix hit each
        // bank once.
        x_lane_offset((warp_m * kWarpTokens + lane / 16 * 8 + lane % 8) * 128 +
                      ((lane / 8 % 2) ^ (lane % 8)) * 16) {}

  __device__ __forceinline__ int num_strips() const {
    return (p.n + layout::kStripRows - 1) / layout::kStripRows;
  }

  // ---- loads ----------------------------------------------------------------------------------

  // Each thread copies 16 bytes at a time. What it copies of a stage lies a fixed number of strips,
  // tokens or k-blocks apart, so a copy costs an addition and a comparison. NOTE: no L2 eviction
  // policy on cp.async: ptxas up to 13.0 makes an illegal instruction of it for GPUs after Ada,
  // where this code runs through PTX.

  /// Codes of a stage: a run of each of the tile's strips. Zeros beyond N and K.
  __device__ __forceinline__ void load_codes(std::uint32_t stage, int tile_n, int k_tile) const {
    constexpr int kCopies = w_stage_bytes(kConfig) / 16 / kThreads;
    constexpr int kStripsAtOnce = kThreads * 16 / kRunBytes;
    static_assert(kCopies * kThreads * 16 == w_stage_bytes(kConfig) && kStripsAtOnce > 0);
    const int offset = threadIdx.x * 16 % kRunBytes;
    const int strip = tile_n * kTileStrips + threadIdx.x * 16 / kRunBytes;
    const std::uint8_t* source =
        p.codes + strip * p.codes_pitch_bytes + std::int64_t(k_tile) * kRunBytes + offset;
    const bool inside = k_tile * kConfig.tile_k + offset / kCellBytes * layout::kBlockK < p.k;
    const int strips = inside ? num_strips() : 0;
    const std::uint32_t dst = stage + kWOffset + threadIdx.x * 16;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      ptx::cp_async_16(dst + i * kThreads * 16, source,
                       strip + i * kStripsAtOnce < strips ? 16 : 0);
      source += kStripsAtOnce * p.codes_pitch_bytes;
    }
  }

  /// Scales, or zeros, of a stage: [strip][group][16]. Zeros beyond N and K: what a padded k is
  /// multiplied by must be finite.
  __device__ __forceinline__ void load_groups(std::uint32_t dst, const std::uint16_t* values,
                                              int tile_n, int k_tile) const {
    const int groups_shift = 31 - __clz(p.scale_box_groups);
    const int first_group = (k_tile * kConfig.tile_k) >> p.group_shift;
    const int groups = (p.k + (1 << p.group_shift) - 1) >> p.group_shift;
#pragma unroll 1
    for (int e = threadIdx.x; e < (2 * kTileStrips) << groups_shift; e += kThreads) {
      const int strip = tile_n * kTileStrips + (e >> (groups_shift + 1));
      const int group = first_group + ((e >> 1) & (p.scale_box_groups - 1));
      ptx::cp_async_16(dst + e * 16,
                       values + (strip * p.groups_pitch + group) * layout::kStripRows + (e & 1) * 8,
                       strip < num_strips() && group < groups ? 16 : 0);
    }
  }

  /// Activations of a stage, [k-block][token][64 k], each row's 16-byte chunks swizzled by the
  /// token. Zeros beyond M and K.
  __device__ __forceinline__ void load_x(std::uint32_t stage, int tile_m, int k_tile) const {
    constexpr int kTokensAtOnce = kThreads / 8;
    static_assert(kTileM % kTokensAtOnce == 0 && kTokensAtOnce % 8 == 0);
    const int token = threadIdx.x / 8;
    const int chunk = threadIdx.x % 8;
    const int m = tile_m * kTileM + token;
    const int k = k_tile * kConfig.tile_k + chunk * 8;
    const auto* source = static_cast<const std::uint16_t*>(p.x) + m * p.ldx + k;
    const std::uint32_t dst = stage + token * 128 + ((chunk ^ (token % 8)) * 16);
    const bool whole = (k_tile + 1) * kConfig.tile_k <= p.k;
#pragma unroll
    for (int i = 0; i < kTileM; i += kTokensAtOnce) {
#pragma unroll
      for (int block = 0; block < kKBlocks; ++block) {
        const int offset = block * layout::kBlockK;
        const int bytes = whole ? 16 : min(max(2 * (p.k - k - offset), 0), 16);
        ptx::cp_async_16(dst + (block * kTileM + i) * 128, source + offset,
                         m + i < p.m ? bytes : 0);
      }
      source += kTokensAtOnce * p.ldx;
    }
  }

  /// The same for an address or a leading dimension that 16-byte copies refuse: 2-byte loads.
  __device__ __forceinline__ void copy_x(int slot, int tile_m, int k_tile) const {
    const auto* const x = static_cast<const std::uint16_t*>(p.x);
#pragma unroll 1
    for (int e = threadIdx.x; e < kTileM * kKBlocks * 32; e += kThreads) {
      const int row = e / 32;  // two neighbouring k of it
      const int m = tile_m * kTileM + row % kTileM;
      const int k = k_tile * kConfig.tile_k + row / kTileM * layout::kBlockK + e % 32 * 2;
      const std::uint16_t* const source = x + m * p.ldx + k;
      std::uint32_t value = 0;
      if (m < p.m && k < p.k) value = source[0];
      if (m < p.m && k + 1 < p.k) value |= std::uint32_t(source[1]) << 16;
      *reinterpret_cast<std::uint32_t*>(smem + slot * kStageBytes + row * 128 +
                                        ((e % 32 / 4) ^ (row % 8)) * 16 + e % 4 * 4) = value;
    }
  }

  __device__ __forceinline__ void load_stage(int slot, const device::WorkItem& item,
                                             int k_tile) const {
    const std::uint32_t stage = smem_base + slot * kStageBytes;
    load_codes(stage, item.tile_n, k_tile);
    if constexpr (kScaled) load_groups(stage + kScaleOffset, p.scales, item.tile_n, k_tile);
    if constexpr (kZeros) load_groups(stage + kZeroOffset, p.zeros, item.tile_n, k_tile);
    if (p.x_by_tma) {
      load_x(stage, item.tile_m, k_tile);
    } else {
      copy_x(slot, item.tile_m, k_tile);
    }
  }

  // ---- fragments ------------------------------------------------------------------------------

  /// Words of strip `s`: of the plane that begins with this warp's k16 step number `step` of a
  /// stage.
  __device__ __forceinline__ void fetch_words(int slot, int step, int s, Fragments& f) const {
    const char* const cells = smem + slot * kStageBytes + kWOffset + warp_n * kStrips * kRunBytes +
                              (warp_k * kWarpBlocks + step / 4) * kCellBytes +
                              step % 4 / kPlaneSteps * layout::kPlaneBytes + lane * 16;
    const uint4 v = *reinterpret_cast<const uint4*>(cells + s * kRunBytes);
    f.words[s][0] = v.x;
    f.words[s][1] = v.y;
    f.words[s][2] = v.z;
    f.words[s][3] = v.w;
  }

  /// Constants of strip `s` for the group that this warp's k16 step number `step` of a stage
  /// belongs to.
  __device__ __forceinline__ void fetch_group(int slot, int k_tile, int step, int s,
                                              Fragments& f) const {
    const int stage_k = k_tile * kConfig.tile_k;
    const int k = stage_k + warp_k * kWarpBlocks * layout::kBlockK + 16 * step;
    const int group = (k >> p.group_shift) - (stage_k >> p.group_shift);
    const char* const stage = smem + slot * kStageBytes;
    const int at =
        ((warp_n * kStrips + s) * p.scale_box_groups + group) * layout::kStripRows + lane / 4;
    const auto* const scales = reinterpret_cast<const std::uint16_t*>(stage + kScaleOffset) + at;
    const std::uint16_t scale[2] = {scales[0], scales[8]};
    std::uint16_t zero[2] = {0, 0};
    if constexpr (kZeros) {
      const auto* const zeros = reinterpret_cast<const std::uint16_t*>(stage + kZeroOffset) + at;
      zero[0] = zeros[0];
      zero[1] = zeros[8];
    }
    f.group[s] = Dequant::constants(scale, zero, p.zeros_scaled);
  }

  /// Tokens of this warp's k16 step number `step` of a stage.
  __device__ __forceinline__ void fetch_x(int slot, int step,
                                          std::uint32_t (&x)[kTokenPairs][4]) const {
    const int block = warp_k * kWarpBlocks + step / 4;
    const std::uint32_t rows =
        smem_base + slot * kStageBytes + block * (kTileM * 128) + (x_lane_offset ^ (step % 4 * 32));
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
    const int length = item.k_end - item.k_begin;
    for (int i = 0; i < p.stages; ++i) {
      if (i < length) load_stage(i, item, item.k_begin + i);
      ptx::cp_async_commit_group();
    }
    ptx::cp_async_wait_groups(p.stages - 1);
    __syncthreads();
    Fragments f;
    fetch_x(0, 0, f.x[0]);
#pragma unroll
    for (int s = 0; s < kStrips; ++s) {
      fetch_words(0, 0, s, f);
      if constexpr (kScaled) fetch_group(0, item.k_begin, 0, s, f);
    }

    int slot = 0;
#pragma unroll 1
    for (int i = 0; i < length; ++i) {
      const int k_tile = item.k_begin + i;
      const int next_slot = slot + 1 == p.stages ? 0 : slot + 1;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const bool last = step == kSteps - 1;
        if (last) {  // all that is left to read of this stage is in registers
          ptx::cp_async_wait_groups(p.stages - 2);
          __syncthreads();
          if (i + p.stages < length) load_stage(slot, item, k_tile + p.stages);
          ptx::cp_async_commit_group();
        }
        // After the range's last stage this reads what the slot happens to hold, and uses nothing.
        const int from = last ? next_slot : slot;
        const int next = last ? 0 : step + 1;
        fetch_x(from, next, f.x[(step + 1) % 2]);
        const auto& x = f.x[step % 2];
        // What the next step needs of a strip takes the place of what this one has used up, and
        // arrives under the products of this strip and the ones after it.
#pragma unroll
        for (int s = 0; s < kStrips; ++s) {
          std::uint32_t a[4];
          dequantize(step, s, f, a);
          if (next % kPlaneSteps == 0) fetch_words(from, next, s, f);
          if (kScaled && (kConfig.fine_groups || next % 4 == 0)) {
            fetch_group(from, last ? k_tile + 1 : k_tile, next, s, f);
          }
#pragma unroll
          for (int t = 0; t < kTokenPairs; ++t) {
            ptx::mma_m16n8k16<kConfig.act>(acc[s][2 * t], a, x[t][0], x[t][1]);
            ptx::mma_m16n8k16<kConfig.act>(acc[s][2 * t + 1], a, x[t][2], x[t][3]);
          }
        }
      }
      slot = next_slot;
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

  /// This warp's sums of its tokens [first, first + kSlabTokens) → slab.
  __device__ __forceinline__ void put_sums(const Accumulators& acc, int first) const {
    float* const rows = reinterpret_cast<float*>(smem) +
                        (warp_k * kSlabRows + warp_m * kSlabTokens + 2 * (lane % 4)) * kSlabPitch +
                        warp_n * multi_warp_rows(kConfig) + lane / 4;
#pragma unroll
    for (int j = 0; j < 2 * kTokenPairs; ++j) {
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

  /// A finished or partial tile, kSlabTokens tokens of each warp at a time: sums over the warps
  /// that split K, then to the workspace, or with what others left there through the epilogue to Y.
  __device__ __forceinline__ void finish(const Accumulators& acc, const device::WorkItem& item,
                                         const device::TileScheduler& work) const {
    const int mine = blockIdx.z, slots = gridDim.z;
    const int first = item.first_contributor;
    const int contributors = item.finishes && first >= 0 ? mine - first : 0;
    for (int c = threadIdx.x; c < contributors; c += kThreads) {
      if (!work.contributes(first + c)) continue;
      while (ptx::ld_acquire_gpu(device::workspace_flag(p, first + c)) != p.flag_tag) {
        __nanosleep(20);
      }
    }
#pragma unroll 1
    for (int chunk = 0; chunk < kWarpTokens; chunk += kSlabTokens) {
      if (item.tile_m * kTileM + chunk >= p.m) break;
      __syncthreads();  // nobody reads the ring, or the slab's last content, any more
      put_sums(acc, chunk);
      __syncthreads();
#pragma unroll 1
      for (int e = threadIdx.x; e < kSlabRows * kQuads; e += kThreads * kBatch) {
        finish_batch(e, chunk, item, work, first, contributors, slots);
      }
    }
    // All partial sums are written, and the next item may fill the ring, where the slab lies.
    __syncthreads();
    if (!item.finishes && threadIdx.x == 0) {
      ptx::st_release_gpu(device::workspace_flag(p, mine), p.flag_tag);
    }
    for (int c = threadIdx.x; c < contributors; c += kThreads) {
      if (work.contributes(first + c)) *device::workspace_flag(p, first + c) = 0;
    }
  }

  /// Quads e, e + kThreads, … of a slab whose first token is each warp's number `chunk`.
  __device__ __forceinline__ void finish_batch(int e, int chunk, const device::WorkItem& item,
                                               const device::TileScheduler& work, int first,
                                               int contributors, int slots) const {
    float sum[kBatch][4];
    int at[kBatch];  // float4 of the partial tile, [token][row]
    bool inside[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int row = (e + b * kThreads) / kQuads, quad = (e + b * kThreads) % kQuads;
      const int token = row / kSlabTokens * kWarpTokens + chunk + row % kSlabTokens;
      at[b] = token * kQuads + quad;
      inside[b] = item.tile_m * kTileM + token < p.m && item.tile_n * kTileN + 4 * quad < p.n;
      const float* const slab = reinterpret_cast<const float*>(smem) + row * kSlabPitch + 4 * quad;
#pragma unroll
      for (int w = 0; w < kWarpsK; ++w) {
        const float4 v = *reinterpret_cast<const float4*>(slab + w * kSlabRows * kSlabPitch);
        sum[b][0] = w == 0 ? v.x : sum[b][0] + v.x;
        sum[b][1] = w == 0 ? v.y : sum[b][1] + v.y;
        sum[b][2] = w == 0 ? v.z : sum[b][2] + v.z;
        sum[b][3] = w == 0 ? v.w : sum[b][3] + v.w;
      }
    }
    constexpr int kTile = kTileN * kTileM;
    if (!item.finishes) {
      auto* const out =
          reinterpret_cast<float4*>(device::workspace_tile<kTile>(p, blockIdx.z, slots));
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        if (inside[b]) out[at[b]] = make_float4(sum[b][0], sum[b][1], sum[b][2], sum[b][3]);
      }
      return;
    }
#pragma unroll 1
    for (int c = 0; c < contributors; ++c) {
      if (!work.contributes(first + c)) continue;
      const auto* const in =
          reinterpret_cast<const float4*>(device::workspace_tile<kTile>(p, first + c, slots));
      float4 v[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        v[b] = inside[b] ? __ldcg(in + at[b]) : make_float4(0.f, 0.f, 0.f, 0.f);
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        sum[b][0] += v[b].x;
        sum[b][1] += v[b].y;
        sum[b][2] += v[b].z;
        sum[b][3] += v[b].w;
      }
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (!inside[b]) continue;
      Quad::finish(p, sum[b], item.tile_n * kTileN + at[b] % kQuads * 4,
                   item.tile_m * kTileM + at[b] / kQuads);
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
