// SPDX-License-Identifier: Apache-2.0
// The streaming kernel: Y[M,N] = epilogue(X[M,K] · dequant(W)[N,K]ᵀ) for decode, M ≤ 16, where the
// product is as fast as the weight streams in. docs/sm90_kernel.md explains it with pictures.
//
//   strips of 16 weight rows  ──balanced──▶ clusters (a CTA each, or several that split K)
//   k-blocks                  ──contiguous─▶ the warps of the cluster, in chunks of tile_k
//   each warp                 a ring of its own: no producer, no barrier with other warps
//     codes  ──bulk copies────▶ stage ──LDS──▶ words ─and,shift▶ A fragment ┐
//     X      ──TMA────────────▶ stage ─ldmatrix─▶ B fragment ───────────────┤ mma.sync ▶ sums
//     scales ──TMA────────────▶ stage ──LDS──▶ fp32 ────────────────────────┘   of a group
//   after a pass of tile_n rows: sums of all warps ─▶ shared memory ─ in warp order ─▶ Y
//
// The weights are never rounded: the tensor cores multiply the codes themselves, as numbers that a
// mask makes of their bits, and the fp32 sum of a group is scaled:
//   Σ w·x = s·(Σ c·x − (b + z)·Σ x),  c = b + q the code as the tensor cores see it
//   f16 · int4   q as a subnormal, q·2⁻²⁴ (row g) or q·2⁻²⁰ (row g + 8, whose nibbles stand four
//   bits
//                higher): b = 0, one AND a register; the power of two is undone at the end
//   f16 · int8   q·2⁻²⁴ again, a byte permutation
//   bf16 · int4  128 + q: bf16 subnormals would leave fp32's range
//   bf16 · int8  q − 128 through fp32, exact: b = −128
// Σ x of the group comes from one more MMA with a constant A, shared by the strips of a pass.
//
// PDL contract: before griddepcontrol.wait nothing is touched but codes, scales and zeros. Every
// warp waits itself.
#pragma once

#include <cstdint>

#include "device/dequant.cuh"
#include "epilogues/standard.cuh"
#include "kernel_config.hpp"
#include "ptx/cp_async.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/mma_sync.cuh"
#include "ptx/sync.cuh"
#include "ptx/tma.cuh"

namespace mixgemm {

template <class Variant>
struct StreamingKernel {
  static constexpr KernelConfig kConfig = Variant::config;
  static_assert(is_legal(kConfig), "illegal KernelConfig: ask why_illegal() for the rule");
  static_assert(kConfig.schedule == Schedule::streaming);

  static constexpr int kWarps = streaming_warps(kConfig);
  static constexpr int kStrips = kConfig.tile_n / layout::kStripRows;  // of a pass
  static constexpr int kTokenTiles = kConfig.tile_m / 8;
  static constexpr int kKBlocks = kConfig.tile_k / layout::kBlockK;
  static constexpr int kBits = bits_of(kConfig.weight);
  static constexpr int kCellBytes = layout::cell_bytes(kBits);
  static constexpr int kStripBytes = kKBlocks * kCellBytes;  // of a stage
  static constexpr int kExchangePitch = streaming_exchange_pitch(kConfig);
  static constexpr bool kScaled = kConfig.quant != Quant::column;
  static constexpr bool kZeros = kConfig.quant == Quant::group_zero;
  // k16 steps whose products are summed before the scale applies.
  static constexpr int kFlushSteps = kConfig.fine_groups ? 1 : 4;
  static constexpr bool kF16 = kConfig.act == DataType::f16;
  static constexpr bool kInt4 = kConfig.weight == WeightType::int4;

  using Epilogue = typename Variant::Epilogue;
  using Exact = device::Dequantizer<kConfig.act, kConfig.weight, Quant::column>;
  using Fragment = float[kTokenTiles][4];

  const Params& p;
  char* const ring;               // this warp's stages
  const std::uint32_t ring_base;  // the same as a shared-window address
  const std::uint32_t barriers;   // this warp's, one a stage
  const int stage_bytes;
  const int lane;

  // Stage layout: X, codes [strip][tile_k], scales [strip][group][16], zeros likewise. X is a TMA
  // box per k-block, [token][64 k] swizzled, or, for one or two tokens, rows of tile_k.
  const bool x_boxed;
  const int codes_offset;
  const int x_pitch;
  const std::uint32_t x_offset[2];  // what ldmatrix reads: of this lane's row, in each half k-block
  const int x_block_bytes;          // from one k-block to the next

  static __device__ __forceinline__ std::uint32_t x_lane_offset(bool boxed, int m, int pitch,
                                                                int lane, int half) {
    const int chunk = 4 * half + lane / 8;
    if (boxed) return lane % 8 * 128 + ((chunk ^ (lane % 8)) * 16);
    // A token beyond M reads another's row: its sums are never stored.
    return min(lane % 8, m - 1) * pitch + chunk * 16;
  }
  __device__ __forceinline__ int scales_offset() const {
    return codes_offset + kStrips * kStripBytes;
  }
  __device__ __forceinline__ int zeros_offset() const {
    return scales_offset() + streaming_scale_bytes(kConfig);
  }

  /// b of the table above, the value that code 0 has for the tensor cores, in units of unit().
  static constexpr float kCodeBias = kF16 ? 0.f : kInt4 ? 128.f : -128.f;
  /// What the sums of row slot 0 (g) or 1 (g + 8) must be multiplied by.
  static __device__ constexpr float unit(int row) {
    return !kF16 ? 1.f : kInt4 && row == 1 ? 0x1p20f : 0x1p24f;
  }
  /// One in those units, twice: the constant A of Σ x.
  static __device__ constexpr std::uint32_t one(int row) {
    return !kF16 ? 0x3f803f80u : kInt4 && row == 1 ? 0x00100010u : 0x00010001u;
  }

  static __device__ __forceinline__ float to_float(std::uint16_t bits) {
    return kF16 ? ptx::cvt_f32_f16(bits) : __uint_as_float(std::uint32_t(bits) << 16);
  }

  // ---- loads ----------------------------------------------------------------------------------
  // One lane issues everything. A copy costs its warp about ten instructions, whatever its length
  // (its operands go to uniform registers), and lanes that issue side by side are taken one by one:
  // what counts is that copies are few and long.

  /// A chunk: k-blocks [first, first + count) of this warp's share of K.
  struct Chunk {
    int first, count;

    __device__ __forceinline__ int first_k() const { return first * layout::kBlockK; }
  };

  __device__ __forceinline__ int first_group(Chunk chunk) const {
    return chunk.first_k() >> p.group_shift;
  }
  /// Does the copy engine bring X? Rows are copied in units of 16 bytes, boxes end at any k.
  __device__ __forceinline__ bool x_copied() const {
    return p.x_by_tma && (x_boxed || p.k % 8 == 0);
  }
  __device__ __forceinline__ int row_bytes(Chunk chunk) const {
    return 2 * (min(chunk.first_k() + chunk.count * layout::kBlockK, p.k) - chunk.first_k());
  }

  /// Announces a stage's bytes, then copies codes, scales and zeros for `strips` strips from
  /// first_strip on. Scales come for a whole pass even if it is short: a box has one size.
  __device__ __forceinline__ void load_weights(int stage, int first_strip, int strips,
                                               Chunk chunk) const {
    if (lane != 0) return;
    const std::uint32_t base = ring_base + stage * stage_bytes;
    const std::uint32_t barrier = barriers + 8 * stage;
    const std::uint32_t code_bytes = chunk.count * kCellBytes;
    const int x_bytes = x_boxed ? chunk.count * (kConfig.tile_m * 128) : p.m * row_bytes(chunk);
    ptx::mbarrier_arrive_expect_tx(barrier, strips * code_bytes +
                                                (kScaled ? p.scale_box_bytes * (1 + kZeros) : 0) +
                                                (x_copied() ? x_bytes : 0));
    const std::uint8_t* source =
        p.codes + first_strip * p.codes_pitch_bytes + std::int64_t(chunk.first) * kCellBytes;
#pragma unroll
    for (int s = 0; s < kStrips; ++s, source += p.codes_pitch_bytes) {
      if (s < strips) {
        ptx::cp_async_bulk(base + codes_offset + s * kStripBytes, source, code_bytes, barrier,
                           p.codes_policy);
      }
    }
    if constexpr (kScaled) {
      const int column = first_group(chunk) * layout::kStripRows;
      ptx::cp_async_bulk_tensor_2d(base + scales_offset(), p.scales_map, column, first_strip,
                                   barrier, p.codes_policy);
      if constexpr (kZeros) {
        ptx::cp_async_bulk_tensor_2d(base + zeros_offset(), p.zeros_map, column, first_strip,
                                     barrier, p.codes_policy);
      }
    }
  }

  __device__ __forceinline__ void load_x(int stage, Chunk chunk) const {
    if (lane != 0 || !x_copied()) return;
    const std::uint32_t base = ring_base + stage * stage_bytes;
    const std::uint32_t barrier = barriers + 8 * stage;
    if (x_boxed) {
      for (int block = 0; block < chunk.count; ++block) {
        ptx::cp_async_bulk_tensor_2d(base + block * x_block_bytes, p.x_map,
                                     (chunk.first + block) * layout::kBlockK, 0, barrier,
                                     p.x_policy);
      }
    } else {
      const auto* const x = static_cast<const std::uint16_t*>(p.x) + chunk.first_k();
      for (int token = 0; token < p.m; ++token) {
        ptx::cp_async_bulk(base + token * x_pitch, x + token * p.ldx, row_bytes(chunk), barrier,
                           p.x_policy);
      }
    }
  }

  /// What the copy engine leaves to do when the stage has arrived: the zeros of a row beyond K and,
  /// where address, leading dimension or K forbid copies, X itself.
  __device__ __forceinline__ void complete_x(int stage, Chunk chunk) const {
    const int columns = chunk.count * layout::kBlockK;
    const int from = !x_copied() ? 0 : x_boxed ? columns : row_bytes(chunk) / 2;
    if (from == columns) return;
    char* const rows = ring + stage * stage_bytes;
    const auto* const x = static_cast<const std::uint16_t*>(p.x) + chunk.first_k();
    const int tokens = x_boxed ? kConfig.tile_m : p.m;
    for (int token = 0; token < tokens; ++token) {
      for (int k = from + lane; k < columns; k += kWarpSize) {
        const bool inside = !x_copied() && token < p.m && chunk.first_k() + k < p.k;
        const int at = x_boxed ? k / 64 * x_block_bytes + token * 128 +
                                     ((k % 64 / 8) ^ (token % 8)) * 16 + k % 8 * 2
                               : token * x_pitch + k * 2;
        *reinterpret_cast<std::uint16_t*>(rows + at) =
            inside ? x[token * p.ldx + k] : std::uint16_t(0);
      }
    }
    __syncwarp();
  }

  // ---- math -----------------------------------------------------------------------------------

  /// The codes of one k16 step, as numbers b + q in units of unit().
  static __device__ __forceinline__ void codes_of(const std::uint32_t* words,
                                                  std::uint32_t (&a)[4]) {
    if constexpr (kInt4) {
      constexpr std::uint32_t kBits16 = kF16 ? 0u : 0x43004300u;
      if constexpr (kF16) {
        const std::uint32_t high = words[0] >> 8;
        a[0] = words[0] & 0x000f000fu;
        a[1] = words[0] & 0x00f000f0u;
        a[2] = high & 0x000f000fu;
        a[3] = high & 0x00f000f0u;
      } else {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          a[r] = ptx::lop3_and_or(words[0] >> (4 * r), 0x000f000fu, kBits16);
        }
      }
    } else if constexpr (kF16) {
#pragma unroll
      for (int r = 0; r < 4; ++r) a[r] = ptx::prmt(words[r / 2], 0u, r % 2 ? 0x4342u : 0x4140u);
    } else {
      const std::uint32_t pair[2] = {words[0], words[1]};
      const std::uint32_t offset[2] = {Exact::offset_of(0, 128.f), Exact::offset_of(1, 128.f)};
      Exact::subtract(pair, offset, a);
    }
  }

  /// Adds one k-block of a pass to its sums. x_sum: Σ x over all of K (column only). A last, short
  /// pass multiplies what the stage happens to hold for the strips that it lacks: nobody stores
  /// those sums, and a branch per strip would keep the strips' chains of MMAs from overlapping.
  __device__ __forceinline__ void multiply_block(const char* stage, std::uint32_t stage_x,
                                                 int block, int first_k, int first_group,
                                                 Fragment (&sum)[kStrips], Fragment& x_sum) const {
    std::uint32_t x[kTokenTiles][2][4];  // [.][half of the k-block][two steps × two registers]
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        ptx::ldmatrix_x4(x[t][half], stage_x + t * 1024 + x_offset[half] + block * x_block_bytes);
      }
    }
    constexpr int kFlushes = 4 / kFlushSteps;
    Fragment group_x[kFlushes];
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const std::uint32_t ones[4] = {one(0), one(1), one(0), one(1)};
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
        float(&d)[4] = kScaled ? group_x[step / kFlushSteps][t] : x_sum[t];
        if (kScaled && step % kFlushSteps == 0) {
#pragma unroll
          for (int i = 0; i < 4; ++i) d[i] = 0.f;
        }
        ptx::mma_m16n8k16<kConfig.act>(d, ones, x[t][step / 2][step % 2 * 2],
                                       x[t][step / 2][step % 2 * 2 + 1]);
      }
    }
#pragma unroll
    for (int s = 0; s < kStrips; ++s) {
      std::uint32_t words[4 * layout::planes(kBits)];
#pragma unroll
      for (int plane = 0; plane < layout::planes(kBits); ++plane) {
        const uint4 v = *reinterpret_cast<const uint4*>(stage + codes_offset + s * kStripBytes +
                                                        block * kCellBytes +
                                                        plane * layout::kPlaneBytes + lane * 16);
        words[4 * plane + 0] = v.x;
        words[4 * plane + 1] = v.y;
        words[4 * plane + 2] = v.z;
        words[4 * plane + 3] = v.w;
      }
      Fragment part;
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        std::uint32_t a[4];
        codes_of(words + step * layout::planes(kBits), a);
#pragma unroll
        for (int t = 0; t < kTokenTiles; ++t) {
          float(&d)[4] = kScaled ? part[t] : sum[s][t];
          if (kScaled && step % kFlushSteps == 0) {
#pragma unroll
            for (int i = 0; i < 4; ++i) d[i] = 0.f;
          }
          ptx::mma_m16n8k16<kConfig.act>(d, a, x[t][step / 2][step % 2 * 2],
                                         x[t][step / 2][step % 2 * 2 + 1]);
        }
        if constexpr (kScaled) {
          if (step % kFlushSteps == kFlushSteps - 1) {
            const int group = ((first_k + 16 * step) >> p.group_shift) - first_group;
            flush(stage, s, group, part, group_x[step / kFlushSteps], sum[s]);
          }
        }
      }
    }
  }

  /// sum += s · part − (s·(b + z)) · Σ x, or s · part − (s·b + z) · Σ x with scaled zeros.
  __device__ __forceinline__ void flush(const char* stage, int strip, int group,
                                        const Fragment& part, const Fragment& group_x,
                                        Fragment& sum) const {
    const int at = (strip * p.scale_box_groups + group) * layout::kStripRows + lane / 4;
    const auto* const scales = reinterpret_cast<const std::uint16_t*>(stage + scales_offset()) + at;
    float scale[2], shift[2];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      scale[row] = to_float(scales[8 * row]);
      if constexpr (kZeros) {
        const auto* const zeros =
            reinterpret_cast<const std::uint16_t*>(stage + zeros_offset()) + at;
        const float zero = to_float(zeros[8 * row]);
        shift[row] = fmaf(p.zeros_scaled ? 1.f : scale[row], zero, scale[row] * kCodeBias);
      } else {
        shift[row] = scale[row] * (kCodeBias + implicit_zero(kConfig.weight));
      }
    }
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sum[t][i] = fmaf(scale[i / 2], part[t][i], sum[t][i]);
        sum[t][i] = fmaf(-shift[i / 2], group_x[t][i], sum[t][i]);
      }
    }
  }

  // ---- one pass -------------------------------------------------------------------------------

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
          if constexpr (!kScaled) v -= (kCodeBias + implicit_zero(kConfig.weight)) * x_sum[t][i];
          row[s * layout::kStripRows] = v * unit(i / 2);
        }
      }
    }
  }

  /// The outputs of a pass, spread over the threads of the cluster: sums over CTAs and warps in
  /// order, epilogue, store. `exchange` is the shared-window address of the area.
  __device__ __forceinline__ void finish_pass(std::uint32_t exchange, int first_strip, int strips,
                                              int rank) const {
    const int rows = strips * layout::kStripRows;
    const std::uint32_t slab_bytes = p.m * kExchangePitch * 4;
    for (int e = rank * kWarps * kWarpSize + threadIdx.x; e < rows * p.m;
         e += p.cluster_k * kWarps * kWarpSize) {
      const int m = e / rows;
      const int row = e - m * rows;
      const int n = first_strip * layout::kStripRows + row;
      if (n >= p.n) continue;
      const std::uint32_t at = exchange + (m * kExchangePitch + row) * 4;
      float total = 0.f;
      for (int r = 0; r < p.cluster_k; ++r) {
#pragma unroll
        for (int w = 0; w < kWarps; ++w) {
          total += p.cluster_k == 1 ? ptx::ld_shared_f32(at + w * slab_bytes)
                                    : ptx::ld_shared_cluster_f32(at + w * slab_bytes, r);
        }
      }
      store(total, n, m);
    }
  }

  __device__ __forceinline__ void store(float total, int n, int m) const {
    const auto* const residual = static_cast<const std::uint16_t*>(p.residual);
    const auto* const bias = static_cast<const std::uint16_t*>(p.bias);
    if constexpr (!kScaled) total *= to_float(p.scales[layout::scale_index(n, 0, p.groups_pitch)]);
    float y[1] = {total};
    const float b[1] = {bias != nullptr ? to_float(bias[n]) : 0.f};
    const float r[1] = {residual != nullptr ? to_float(residual[m * p.ldr + n]) : 0.f};
    const int ns[1] = {n}, ms[1] = {m};
    Epilogue::apply(p, y, b, r, ns, ms);
    static_cast<std::uint16_t*>(p.y)[m * p.ldy + n] = static_cast<std::uint16_t>(
        kF16 ? ptx::cvt_f16x2_f32(y[0], 0.f) : ptx::cvt_bf16x2_f32(y[0], 0.f));
  }
};

template <class Variant>
__global__ void __launch_bounds__(streaming_threads(Variant::config),
                                  streaming_resident_ctas(Variant::config))
    gemm_streaming(const __grid_constant__ Params p) {
  using Kernel = StreamingKernel<Variant>;
  constexpr KernelConfig kConfig = Variant::config;
  constexpr int kWarps = Kernel::kWarps;
  extern __shared__ __align__(1024) char smem[];
  const int warp = threadIdx.x / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  const int stage_bytes = streaming_stage_bytes(kConfig, p.m);

  // Shared memory: rings, barriers, exchange area.
  char* const ring = smem + warp * p.stages * stage_bytes;
  char* const barriers = smem + kWarps * p.stages * stage_bytes;
  float* const exchange = reinterpret_cast<float*>(barriers + kWarps * p.stages * 8);
  const std::uint32_t my_barriers = ptx::smem_address(barriers) + warp * p.stages * 8;
  if (lane == 0) {  // one arrival: the announcement of the bytes
    for (int i = 0; i < p.stages; ++i) ptx::mbarrier_init(my_barriers + 8 * i, 1);
    ptx::fence_mbarrier_init();
  }
  __syncwarp();

  const bool x_boxed = streaming_x_boxed(p.m);
  const int x_pitch = streaming_x_pitch_bytes(kConfig, p.m);
  const Kernel kernel{p,
                      ring,
                      ptx::smem_address(ring),
                      my_barriers,
                      stage_bytes,
                      lane,
                      x_boxed,
                      streaming_x_bytes(kConfig, p.m),
                      x_pitch,
                      {Kernel::x_lane_offset(x_boxed, p.m, x_pitch, lane, 0),
                       Kernel::x_lane_offset(x_boxed, p.m, x_pitch, lane, 1)},
                      x_boxed ? kConfig.tile_m * 128 : 128};
  using Chunk = typename Kernel::Chunk;

  // This cluster's strips, this warp's k-blocks.
  const int rank = p.cluster_k > 1 ? static_cast<int>(ptx::cluster_ctarank()) : 0;
  const int cluster = ptx::clusterid_z();
  const int strip_begin = cluster * p.strips_per_cluster + min(cluster, p.clusters_with_one_more);
  const int strip_end =
      strip_begin + p.strips_per_cluster + (cluster < p.clusters_with_one_more ? 1 : 0);
  const int split = rank * kWarps + warp;
  const int block_begin = split * p.blocks_per_warp + min(split, p.warps_with_one_more);
  const int blocks = p.blocks_per_warp + (split < p.warps_with_one_more ? 1 : 0);

  // The ring runs over (pass, chunk), chunk fastest. `ahead` walks in front of the consumer.
  struct Place {
    int strip, block;
  };
  const auto chunk_at = [&](const Place& at) {
    return Chunk{block_begin + at.block, min(Kernel::kKBlocks, blocks - at.block)};
  };
  const auto strips_at = [&](const Place& at) {
    return min(Kernel::kStrips, strip_end - at.strip);
  };
  const auto advance = [&](Place& at) {
    at.block += Kernel::kKBlocks;
    if (at.block >= blocks) at = {at.strip + Kernel::kStrips, 0};
  };
  const auto valid = [&](const Place& at) { return at.strip < strip_end && blocks > 0; };

  Place ahead{strip_begin, 0};
  for (int i = 0; i < p.stages && valid(ahead); ++i, advance(ahead)) {
    kernel.load_weights(i, ahead.strip, strips_at(ahead), chunk_at(ahead));
  }
  if (p.pdl) {
    ptx::griddepcontrol_launch_dependents();
    ptx::griddepcontrol_wait();
  }
  Place first{strip_begin, 0};
  for (int i = 0; i < p.stages && valid(first); ++i, advance(first)) {
    kernel.load_x(i, chunk_at(first));
  }
  int stage = 0;
  std::uint32_t phase = 0;
  for (int strip = strip_begin; strip < strip_end; strip += Kernel::kStrips) {
    const int strips = min(Kernel::kStrips, strip_end - strip);
    typename Kernel::Fragment sum[Kernel::kStrips] = {};
    typename Kernel::Fragment x_sum = {};
    for (int done = 0; done < blocks; done += Kernel::kKBlocks) {
      const Chunk chunk = chunk_at({strip, done});
      ptx::mbarrier_wait(my_barriers + 8 * stage, phase);
      kernel.complete_x(stage, chunk);
      const int first_group = kernel.first_group(chunk);
      const char* const data = ring + stage * stage_bytes;
      const std::uint32_t stage_x = kernel.ring_base + stage * stage_bytes;
#pragma unroll 1
      for (int block = 0; block < chunk.count; ++block) {
        kernel.multiply_block(data, stage_x, block, (chunk.first + block) * layout::kBlockK,
                              first_group, sum, x_sum);
      }
      __syncwarp();  // every lane has read the stage
      if (valid(ahead)) {
        kernel.load_weights(stage, ahead.strip, strips_at(ahead), chunk_at(ahead));
        kernel.load_x(stage, chunk_at(ahead));
        advance(ahead);
      }
      if (++stage == p.stages) {
        stage = 0;
        phase ^= 1u;
      }
    }
    kernel.put_sums(exchange + warp * p.m * Kernel::kExchangePitch, sum, x_sum);
    if (p.cluster_k > 1) {
      ptx::barrier_cluster_arrive();
      ptx::barrier_cluster_wait();
    } else {
      __syncthreads();
    }
    kernel.finish_pass(ptx::smem_address(exchange), strip, strips, rank);
    if (p.cluster_k > 1) {  // nobody may overwrite, or leave with, sums that peers still read
      ptx::barrier_cluster_arrive();
      ptx::barrier_cluster_wait();
    } else if (strip + Kernel::kStrips < strip_end) {
      __syncthreads();
    }
  }
}

}  // namespace mixgemm
