// SPDX-License-Identifier: Apache-2.0
// The streaming kernel for Ampere and Ada: decode, M ≤ 16, where the product is as fast as the
// weight streams in. docs/sm80_kernel.md explains it.
//
//   strips of 16 weight rows  ──balanced──▶ CTAs
//   k-blocks                  ──contiguous─▶ the warps of a CTA, in chunks of tile_k
//   each warp                 a ring of its own: no barrier with other warps in the main loop
//     codes  ──cp.async──▶ stage ──LDS────▶ words ─and,shift▶ A fragment ┐
//     X      ──cp.async──▶ stage ─ldmatrix─▶ B fragment ──────────────────┤ mma.sync ▶ sums of a
//     group scales ──cp.async──▶ stage ──LDS────▶ fp32 ─────────────────────────┘
//   after a pass of tile_n rows: sums of all warps ─▶ shared memory ─ in warp order ─▶ Y
//
// The codes themselves are multiplied, and the sums of groups scaled (device/code_products.cuh).
#pragma once

#include <cstdint>

#include "device/code_products.cuh"
#include "device/quad.cuh"
#include "epilogues/standard.cuh"
#include "kernel_config.hpp"
#include "ptx/cp_async.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/mma_sync.cuh"
#include "ptx/sync.cuh"

namespace mixgemm {

template <class Variant>
struct WarpStreamingKernel {
  static constexpr KernelConfig kConfig = Variant::config;
  static_assert(is_legal(kConfig), "illegal KernelConfig: ask why_illegal() for the rule");
  static_assert(kConfig.schedule == Schedule::streaming && kConfig.arch == 80);

  static constexpr int kWarps = streaming_warps(kConfig);
  static constexpr int kThreads = streaming_threads(kConfig);
  static constexpr int kStrips = kConfig.tile_n / layout::kStripRows;  // of a pass
  static constexpr int kTokenTiles = kConfig.tile_m / 8;
  static constexpr int kKBlocks = kConfig.tile_k / layout::kBlockK;
  static constexpr int kPlanes = layout::planes(bits_of(kConfig.weight));
  static constexpr int kCellBytes = kPlanes * layout::kPlaneBytes;
  static constexpr int kStripBytes = kKBlocks * kCellBytes;  // of a stage
  static constexpr int kExchangePitch = streaming_exchange_pitch(kConfig);
  static constexpr int kScaleBytes = streaming_scale_bytes(kConfig);
  static constexpr bool kScaled = kConfig.quant != Quant::column;
  static constexpr bool kZeros = kConfig.quant == Quant::group_zero;

  using Epilogue = typename Variant::Epilogue;
  using Quad = device::Quad<kConfig, Epilogue>;
  using Products = device::CodeProducts<kConfig>;
  using Fragment = float[kTokenTiles][4];

  /// A chunk: k-blocks [first, first + count) of this warp's share of K.
  struct Chunk {
    int first, count;

    __device__ __forceinline__ int first_k() const { return first * layout::kBlockK; }
  };
  /// What one k-block of a pass needs of a stage, in registers.
  struct Block {
    std::uint32_t x[kTokenTiles][2][4];  // [.][half of the k-block][two steps × two registers]
    std::uint32_t words[kStrips][4 * kPlanes];
  };

  const Params& p;
  char* const ring;               // this warp's stages
  const std::uint32_t ring_base;  // the same as a shared-window address
  const int stage_bytes;
  const int lane;
  const int
      codes_offset;  // a stage: X [k-block][token][64 k], codes [strip][tile_k], scales, zeros
  const int x_block_bytes;
  const int one_mth;                       // 2¹⁶ / M, rounded up
  std::uint32_t x_offset[kTokenTiles][2];  // what ldmatrix reads, in each half k-block

  // Copies: device code has no address for a static member, which a call at run time needs.
  static __device__ __forceinline__ int stage_bytes_for(int m) {
    constexpr KernelConfig c = kConfig;
    return streaming_stage_bytes(c, m);
  }
  static __device__ __forceinline__ int x_bytes_for(int m) {
    constexpr KernelConfig c = kConfig;
    return streaming_x_bytes(c, m);
  }

  __device__ __forceinline__ WarpStreamingKernel(const Params& params, char* stages, int lane_id)
      : p(params),
        ring(stages),
        ring_base(ptx::smem_address(stages)),
        stage_bytes(stage_bytes_for(params.m)),
        lane(lane_id),
        codes_offset(x_bytes_for(params.m)),
        x_block_bytes(params.m * 128),
        one_mth(65535 / params.m + 1) {
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
      // A token beyond M reads another's row: its sums are never stored.
      const int token = min(8 * t + lane % 8, p.m - 1);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        x_offset[t][half] = token * 128 + (((4 * half + lane / 8) ^ (token % 8)) * 16);
      }
    }
  }

  // ---- loads ----------------------------------------------------------------------------------

  /// Codes, scales and zeros of a chunk for `strips` strips from first_strip on. What a short pass
  /// lacks is left as it is: nobody stores its sums.
  __device__ __forceinline__ void load_weights(int stage, int first_strip, int strips,
                                               Chunk chunk) const {
    const std::uint32_t dst = ring_base + stage * stage_bytes + codes_offset + lane * 16;
    const std::uint8_t* source = p.codes + first_strip * p.codes_pitch_bytes +
                                 std::int64_t(chunk.first) * kCellBytes + lane * 16;
#pragma unroll
    for (int s = 0; s < kStrips; ++s, source += p.codes_pitch_bytes) {
#pragma unroll
      for (int i = 0; i < kKBlocks * kPlanes; ++i) {
        if (s < strips && i < chunk.count * kPlanes) {
          ptx::cp_async_16(dst + s * kStripBytes + i * layout::kPlaneBytes,
                           source + i * layout::kPlaneBytes, 16);
        }
      }
    }
    if constexpr (kScaled) {
      load_groups(dst + kStrips * kStripBytes, p.scales, first_strip, strips, chunk);
      if constexpr (kZeros) {
        load_groups(dst + kStrips * kStripBytes + kScaleBytes, p.zeros, first_strip, strips, chunk);
      }
    }
  }

  /// [strip][group][16]. Zeros beyond K: what a padded k is multiplied by must be finite. dst: this
  /// lane's.
  __device__ __forceinline__ void load_groups(std::uint32_t dst, const std::uint16_t* values,
                                              int first_strip, int strips, Chunk chunk) const {
    const int group = (chunk.first_k() >> p.group_shift) + lane / 2;
    const int groups = (p.k + (1 << p.group_shift) - 1) >> p.group_shift;
    const std::uint16_t* source =
        values + (first_strip * p.groups_pitch + group) * layout::kStripRows + lane % 2 * 8;
#pragma unroll
    for (int s = 0; s < kStrips; ++s) {
      if (s < strips && lane < 2 * p.scale_box_groups) {
        ptx::cp_async_16(dst + s * p.scale_box_groups * (layout::kStripRows * 2), source,
                         group < groups ? 16 : 0);
      }
      source += p.groups_pitch * layout::kStripRows;
    }
  }

  /// Activations of a chunk; zeros beyond K. Eight lanes copy a token's 64 k, their 16-byte chunks
  /// swizzled by the token.
  __device__ __forceinline__ void load_x(int stage, Chunk chunk) const {
    const auto* const x = static_cast<const std::uint16_t*>(p.x);
    const std::uint32_t dst = ring_base + stage * stage_bytes;
    const int rows = chunk.count * p.m;  // [k-block][token]
    for (int row = lane / 8; row < rows; row += 4) {
      const int block = row * one_mth >> 16;
      const int token = row - block * p.m;
      const int k = chunk.first_k() + block * layout::kBlockK + lane % 8 * 8;
      const std::uint32_t at = dst + row * 128 + ((lane % 8 ^ token % 8) * 16);
      const std::uint16_t* const source = x + token * p.ldx + k;
      if (p.x_by_tma) {
        ptx::cp_async_16(at, source, min(max(2 * (p.k - k), 0), 16));
      } else {  // an address or a leading dimension that 16-byte copies refuse
        char* const to = ring + (at - ring_base);
#pragma unroll 1
        for (int i = 0; i < 8; ++i) {
          reinterpret_cast<std::uint16_t*>(to)[i] = k + i < p.k ? source[i] : std::uint16_t(0);
        }
      }
    }
  }

  // ---- math -----------------------------------------------------------------------------------

  __device__ __forceinline__ void load_block(int stage, int block, Block& data) const {
    const std::uint32_t x = ring_base + stage * stage_bytes + block * x_block_bytes;
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) ptx::ldmatrix_x4(data.x[t][half], x + x_offset[t][half]);
    }
    const char* const cells =
        ring + stage * stage_bytes + codes_offset + block * kCellBytes + lane * 16;
#pragma unroll
    for (int s = 0; s < kStrips; ++s) {
#pragma unroll
      for (int plane = 0; plane < kPlanes; ++plane) {
        const uint4 v =
            *reinterpret_cast<const uint4*>(cells + s * kStripBytes + plane * layout::kPlaneBytes);
        data.words[s][4 * plane + 0] = v.x;
        data.words[s][4 * plane + 1] = v.y;
        data.words[s][4 * plane + 2] = v.z;
        data.words[s][4 * plane + 3] = v.w;
      }
    }
  }

  /// Adds one k-block of a pass to its sums; first_k is its first k. kFlushSteps k16 steps share a
  /// group: their products are summed before its scale applies. x_sum: Σ x over all of K (column
  /// only).
  template <int kFlushSteps>
  __device__ __forceinline__ void multiply_block(const Block& data, int stage, Chunk chunk,
                                                 int first_k, Fragment (&sum)[kStrips],
                                                 Fragment& x_sum) const {
    Fragment group_x[4 / kFlushSteps];
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const std::uint32_t ones[4] = {Products::one(0), Products::one(1), Products::one(0),
                                     Products::one(1)};
      add_products<kFlushSteps>(ones, data.x, step, kScaled ? group_x[step / kFlushSteps] : x_sum);
    }
#pragma unroll
    for (int s = 0; s < kStrips; ++s) {
      Fragment part;
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        std::uint32_t a[4];
        Products::codes_of(data.words[s] + step * kPlanes, a);
        add_products<kFlushSteps>(a, data.x, step, kScaled ? part : sum[s]);
        if (kScaled && step % kFlushSteps == kFlushSteps - 1) {
          const int group = ((first_k + step / kFlushSteps * kFlushSteps * 16) >> p.group_shift) -
                            (chunk.first_k() >> p.group_shift);
          flush(stage, s, group, part, group_x[step / kFlushSteps], sum[s]);
        }
      }
    }
  }

  /// d += a · X of a k16 step; where groups are flushed, their first step starts from zero.
  template <int kFlushSteps>
  static __device__ __forceinline__ void add_products(const std::uint32_t (&a)[4],
                                                      const std::uint32_t (&x)[kTokenTiles][2][4],
                                                      int step, Fragment& d) {
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
      if (kScaled && step % kFlushSteps == 0) {
#pragma unroll
        for (int i = 0; i < 4; ++i) d[t][i] = 0.f;
      }
      ptx::mma_m16n8k16<kConfig.act>(d[t], a, x[t][step / 2][step % 2 * 2],
                                     x[t][step / 2][step % 2 * 2 + 1]);
    }
  }

  /// sum += s · part − shift · Σ x of the stage's group number `group`.
  __device__ __forceinline__ void flush(int stage, int strip, int group, const Fragment& part,
                                        const Fragment& group_x, Fragment& sum) const {
    const auto* const scales =
        reinterpret_cast<const std::uint16_t*>(ring + stage * stage_bytes + codes_offset +
                                               kStrips * kStripBytes) +
        (strip * p.scale_box_groups + group) * layout::kStripRows + lane / 4;
    float scale[2], shift[2];
    Products::factors(scales, scales + kScaleBytes / 2, p.zeros_scaled, scale, shift);
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sum[t][i] = fmaf(scale[i / 2], part[t][i], sum[t][i]);
        sum[t][i] = fmaf(-shift[i / 2], group_x[t][i], sum[t][i]);
      }
    }
  }

  template <int kFlushSteps>
  __device__ __forceinline__ void multiply_blocks(int stage, Chunk chunk, Fragment (&sum)[kStrips],
                                                  Fragment& x_sum) const {
#pragma unroll 1
    for (int block = 0; block < chunk.count; ++block) {
      Block data;
      load_block(stage, block, data);
      multiply_block<kFlushSteps>(data, stage, chunk, (chunk.first + block) * layout::kBlockK, sum,
                                  x_sum);
    }
  }

  __device__ __forceinline__ void multiply_chunk(int stage, Chunk chunk, Fragment (&sum)[kStrips],
                                                 Fragment& x_sum) const {
    if constexpr (!kConfig.fine_groups) {
      multiply_blocks<4>(stage, chunk, sum, x_sum);
    } else if (p.group_shift == 4) {
      multiply_blocks<1>(stage, chunk, sum, x_sum);
    } else {
      multiply_blocks<2>(stage, chunk, sum, x_sum);
    }
  }

  // ---- output ---------------------------------------------------------------------------------

  /// Sums of a warp → its slab of the exchange area, [token][row].
  __device__ __forceinline__ void put_sums(float* slab, const Fragment (&sum)[kStrips],
                                           const Fragment& x_sum) const {
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = 8 * t + 2 * (lane % 4) + i % 2;
        if (token >= p.m) continue;
        float* const row = slab + token * kExchangePitch + lane / 4 + 8 * (i / 2);
#pragma unroll
        for (int s = 0; s < kStrips; ++s) {
          float v = sum[s][t][i];
          if constexpr (!kScaled) {
            v -= (Products::kCodeBias + implicit_zero(kConfig.weight)) * x_sum[t][i];
          }
          row[s * layout::kStripRows] = v * Products::unit(i / 2);
        }
      }
    }
  }

  /// The outputs of a pass: sums over warps in order, epilogue, store.
  __device__ __forceinline__ void finish_pass(const float* exchange, int first_strip,
                                              int strips) const {
    const int quads = strips * (layout::kStripRows / 4);
    for (int e = threadIdx.x; e < quads * p.m; e += kThreads) {
      const int m = e / quads;
      const int row = (e - m * quads) * 4;
      const int n = first_strip * layout::kStripRows + row;
      if (n >= p.n) continue;
      const float* const at = exchange + m * kExchangePitch + row;
      float sum[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const float4 v = *reinterpret_cast<const float4*>(at + w * p.m * kExchangePitch);
        sum[0] += v.x;
        sum[1] += v.y;
        sum[2] += v.z;
        sum[3] += v.w;
      }
      Quad::finish(p, sum, n, m);
    }
  }
};

template <class Variant>
__global__ void __launch_bounds__(streaming_threads(Variant::config),
                                  streaming_resident_ctas(Variant::config))
    gemm_warp_streaming(const __grid_constant__ Params p) {
  using Kernel = WarpStreamingKernel<Variant>;
  extern __shared__ __align__(1024) char smem[];
  const int warp = threadIdx.x / kWarpSize;
  const int ring_bytes = p.stages * Kernel::stage_bytes_for(p.m);
  float* const exchange = reinterpret_cast<float*>(smem + Kernel::kWarps * ring_bytes);
  const Kernel kernel(p, smem + warp * ring_bytes, threadIdx.x % kWarpSize);
  using Chunk = typename Kernel::Chunk;

  // This CTA's strips, this warp's k-blocks.
  const int cta = blockIdx.z;
  const int strip_begin = cta * p.strips_per_cluster + min(cta, p.clusters_with_one_more);
  const int strip_end =
      strip_begin + p.strips_per_cluster + (cta < p.clusters_with_one_more ? 1 : 0);
  const int block_begin = 2 * (warp * p.pairs_per_warp + min(warp, p.warps_with_one_more));
  const int blocks = min(2 * (p.pairs_per_warp + (warp < p.warps_with_one_more ? 1 : 0)),
                         (p.k + layout::kBlockK - 1) / layout::kBlockK - block_begin);

  // The ring runs over (pass, chunk), chunk fastest. `ahead` walks in front of the consumer.
  struct Place {
    int strip, block;
  } ahead{strip_begin, 0};
  const auto chunk_at = [&](int block) {
    return Chunk{block_begin + block, min(Kernel::kKBlocks, blocks - block)};
  };
  const auto load_ahead = [&](int stage) {
    if (ahead.strip < strip_end && blocks > 0) {
      const Chunk chunk = chunk_at(ahead.block);
      kernel.load_weights(stage, ahead.strip, strip_end - ahead.strip, chunk);
      kernel.load_x(stage, chunk);
      ahead.block += Kernel::kKBlocks;
      if (ahead.block >= blocks) ahead = {ahead.strip + Kernel::kStrips, 0};
    }
    ptx::cp_async_commit_group();  // an empty group keeps the count
  };
  for (int i = 0; i < p.stages; ++i) load_ahead(i);

  int stage = 0;
  for (int strip = strip_begin; strip < strip_end; strip += Kernel::kStrips) {
    typename Kernel::Fragment sum[Kernel::kStrips] = {};
    typename Kernel::Fragment x_sum = {};
    for (int done = 0; done < blocks; done += Kernel::kKBlocks) {
      ptx::cp_async_wait_groups(p.stages - 1);
      __syncwarp();  // every lane's copies of the stage have landed
      kernel.multiply_chunk(stage, chunk_at(done), sum, x_sum);
      __syncwarp();  // every lane has read the stage
      load_ahead(stage);
      if (++stage == p.stages) stage = 0;
    }
    kernel.put_sums(exchange + warp * p.m * Kernel::kExchangePitch, sum, x_sum);
    __syncthreads();
    kernel.finish_pass(exchange, strip, min(Kernel::kStrips, strip_end - strip));
    if (strip + Kernel::kStrips < strip_end) __syncthreads();
  }
}

}  // namespace mixgemm
