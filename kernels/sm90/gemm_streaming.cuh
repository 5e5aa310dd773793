// SPDX-License-Identifier: Apache-2.0
// The streaming kernel: Y[M,N] = epilogue(X[M,K] · dequant(W)[N,K]ᵀ) for decode, M ≤ 16, where the
// product is as fast as the weight streams in. docs/sm90_kernel.md explains it with pictures.
//
//   strips of 16 weight rows  ──balanced──▶ clusters (a CTA each, or several that split K)
//   k-blocks                  ──contiguous─▶ the warps of the cluster, in chunks of tile_k
//   each warp                 a ring of its own: no producer, no barrier with other warps
//     codes  ──bulk copies────▶ stage ──LDS──▶ words ─and,shift▶ A fragment ┐
//     X      ──cp.async───────▶ stage ─ldmatrix─▶ B fragment ───────────────┤ mma.sync ▶ sums
//     scales ──TMA────────────▶ stage ──LDS──▶ fp32 ────────────────────────┘   of a group
//   after a pass of tile_n rows: sums of all warps ─▶ shared memory ─ in warp order ─▶ Y
//
// The weights are never rounded: the tensor cores multiply the codes themselves, as numbers that a
// mask makes of their bits, and the fp32 sum of a group is scaled:
//   Σ w·x = s·(Σ c·x − (b + z)·Σ x),  c = b + q the code as the tensor cores see it
//   f16 · int4   as subnormals: a byte, q + 16·q' of rows g and g + 8, in row g, and 16·q' in row
//                g + 8: b = 0, one instruction a register; the sums are taken apart, and the powers
//                of two undone, when the scale applies and at the end
//   f16 · int8   q·2⁻²⁴ again, a byte permutation
//   bf16 · int4  128 + q: bf16 subnormals would leave fp32's range
//   bf16 · int8  q − 128 through fp32, exact: b = −128
// Σ x of the group comes from one more MMA with a constant A, shared by the strips of a pass.
//
// What bounds a warp is latency, then instructions: hence k-blocks in pairs, with one scale where a
// group spans both, and the fewest instructions a code. The path from the wait to the first product
// is short: every lane copies its part of X itself, and every parameter has been read before.
//
// PDL contract: before griddepcontrol.wait nothing is touched but codes, scales and zeros. Every
// warp waits itself.
#pragma once

#include <cstdint>

#include "device/dequant.cuh"
#include "device/params.cuh"
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
  static constexpr bool kF16 = kConfig.act == DataType::f16;
  static constexpr bool kInt4 = kConfig.weight == WeightType::int4;
  // A pair of k-blocks whose chains of MMAs are too few to hide each other's latency has two each.
  static constexpr int kChains = kStrips * kTokenTiles <= 3 ? 2 : 1;

  // Two k-blocks of fine groups at a time: from four strips on, one has work enough to hide
  // latency, and registers run out.
  static constexpr bool kPairsOfFineBlocks = kKBlocks > 1 && kStrips* kTokenTiles <= 3;

  static constexpr bool kRowsCombined = kF16 && kInt4;  // row g's codes hold row g + 8's as well

  // The lanes side by side copy 16 bytes each: of several tokens at once, or of one token in turns.
  static constexpr int kXPieces = kConfig.tile_k / 8;
  static constexpr int kTokensAtOnce = kXPieces < kWarpSize ? kWarpSize / kXPieces : 1;
  static constexpr int kXCopies = kXPieces < kWarpSize ? 1 : kXPieces / kWarpSize;

  using Epilogue = typename Variant::Epilogue;
  using Exact = device::Dequantizer<kConfig.act, kConfig.weight, Quant::column>;
  using Fragment = float[kTokenTiles][4];

  const Params& p;
  char* const ring;               // this warp's stages
  const std::uint32_t ring_base;  // the same as a shared-window address
  const std::uint32_t barriers;   // this warp's, one a stage
  const int stage_bytes;
  const int lane;

  // Stage layout: X [token][tile_k], codes [strip][tile_k], scales [strip][group][16], zeros
  // likewise.
  const int x_pitch;  // bytes
  const int codes_offset;
  std::uint32_t x_row[kTokenTiles];  // of the row whose address this lane gives to ldmatrix
  const std::uint32_t x_target;      // where this lane's first copy goes in stage 0
  const bool x_copied;               // by cp.async, or, where X isn't aligned to 16 bytes, by loads

  __device__ __forceinline__ StreamingKernel(const Params& params, char* smem, int warp,
                                             int thread_lane, int pitch_of_x, int bytes_of_x,
                                             int bytes_of_stage)
      : p(params),
        ring(smem + warp * params.stages * bytes_of_stage),
        ring_base(ptx::smem_address(ring)),
        barriers(ptx::smem_address(smem + kWarps * params.stages * bytes_of_stage) +
                 warp * params.stages * 8),
        stage_bytes(bytes_of_stage),
        lane(thread_lane),
        x_pitch(pitch_of_x),
        codes_offset(bytes_of_x),
        x_target(ring_base + thread_lane / kXPieces * pitch_of_x + thread_lane % kXPieces * 16),
        x_copied(params.x_by_tma) {
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
      // A token beyond M reads another's row: its sums are never stored.
      x_row[t] = min(8 * t + lane % 8, p.m - 1) * x_pitch + lane / 8 * 16;
    }
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
  // One lane issues codes, scales and zeros. A bulk copy costs its warp about ten instructions,
  // whatever its length (its operands go to uniform registers), and lanes that issue side by side
  // are taken one by one: what counts is that these copies are few and long. X comes after the wait
  // for the launch before, when every clock counts: each lane copies 16 bytes at a time.

  /// A chunk: k-blocks [first, first + count) of this warp's share of K.
  struct Chunk {
    int first, count;

    __device__ __forceinline__ int first_k() const { return first * layout::kBlockK; }
  };

  __device__ __forceinline__ int first_group(Chunk chunk) const {
    return chunk.first_k() >> p.group_shift;
  }
  /// Announces a stage's bytes, then copies codes, scales and zeros for `strips` strips from
  /// first_strip on. Scales come for a whole pass even if it is short: a box has one size.
  __device__ __forceinline__ void load_weights(int stage, int first_strip, int strips,
                                               Chunk chunk) const {
    if (lane != 0) return;
    const std::uint32_t base = ring_base + stage * stage_bytes;
    const std::uint32_t barrier = barriers + 8 * stage;
    const std::uint32_t code_bytes = chunk.count * kCellBytes;
    ptx::mbarrier_arrive_expect_tx(
        barrier, strips * code_bytes + (kScaled ? p.scale_box_bytes * (1 + kZeros) : 0));
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

  /// What a lane copies of a chunk of X: of its first token, from here, unless the row ends before.
  struct XSource {
    const std::uint16_t* x;
    int left;  // elements to the end of the row

    __device__ __forceinline__ void advance() {
      x += kConfig.tile_k;
      left -= kConfig.tile_k;
    }
  };
  __device__ __forceinline__ XSource x_source(int first_k) const {
    const int k = first_k + lane % kXPieces * 8;
    return {static_cast<const std::uint16_t*>(p.x) + lane / kXPieces * p.ldx + k, p.k - k};
  }

  /// X of a chunk, zeros beyond K. The stage's barrier counts each lane's arrival.
  __device__ __forceinline__ void load_x(int stage, XSource source) const {
    if (!x_copied) return;
    std::uint32_t target = x_target + stage * stage_bytes;
    const int bytes = max(0, min(16, 2 * source.left));
#pragma unroll 1
    for (int token = lane / kXPieces; token < p.m; token += kTokensAtOnce) {
#pragma unroll
      for (int i = 0; i < kXCopies; ++i) {
        const int at = i * 8 * kWarpSize;
        ptx::cp_async_16(target + 2 * at, source.x + at,
                         i == 0 ? bytes : max(0, min(16, 2 * (source.left - at))), p.x_policy);
      }
      source.x += kTokensAtOnce * p.ldx;
      target += kTokensAtOnce * x_pitch;
    }
    ptx::cp_async_mbarrier_arrive(barriers + 8 * stage);
  }

  /// Where address or leading dimension forbid copies: X of a chunk that is about to be multiplied.
  __device__ __forceinline__ void read_x(int stage, Chunk chunk) const {
    char* const rows = ring + stage * stage_bytes;
    const auto* const x = static_cast<const std::uint16_t*>(p.x) + chunk.first_k();
    for (int token = 0; token < p.m; ++token) {
      for (int k = lane; k < chunk.count * layout::kBlockK; k += kWarpSize) {
        *reinterpret_cast<std::uint16_t*>(rows + token * x_pitch + k * 2) =
            chunk.first_k() + k < p.k ? x[token * p.ldx + k] : std::uint16_t(0);
      }
    }
    __syncwarp();
  }

  // ---- math -----------------------------------------------------------------------------------

  /// The codes of one k16 step, as numbers b + q in units of unit(); kRowsCombined: in row g
  /// plus what row g + 8 has.
  static __device__ __forceinline__ void codes_of(const std::uint32_t* words,
                                                  std::uint32_t (&a)[4]) {
    if constexpr (kInt4) {
      constexpr std::uint32_t kBits16 = kF16 ? 0u : 0x43004300u;
      if constexpr (kF16) {
        a[0] = words[0] & 0x00ff00ffu;
        a[1] = words[0] & 0x00f000f0u;
        a[2] = ptx::prmt(words[0], 0u, 0x4341u);  // the odd bytes
        a[3] = a[2] & 0x00f000f0u;
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

  /// The two rows' scales and zeros of a strip, in the stage's group number `group`.
  struct GroupValues {
    float scale[2], zero[2];
  };
  __device__ __forceinline__ GroupValues load_group(const char* stage, int strip, int group) const {
    GroupValues values = {{1.f, 1.f},
                          {implicit_zero(kConfig.weight), implicit_zero(kConfig.weight)}};
    if constexpr (kScaled) {
      const int at = (strip * p.scale_box_groups + group) * layout::kStripRows + lane / 4;
      const auto* const scales =
          reinterpret_cast<const std::uint16_t*>(stage + scales_offset()) + at;
      const auto* const zeros = reinterpret_cast<const std::uint16_t*>(stage + zeros_offset()) + at;
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        values.scale[row] = to_float(scales[8 * row]);
        if constexpr (kZeros) values.zero[row] = to_float(zeros[8 * row]);
      }
    }
    return values;
  }

  /// Adds kBlocks k-blocks of a pass to its sums; kStepsPerFlush k16 steps of them share a group,
  /// so that its scale applies to the sum of their products. A last, short pass multiplies what the
  /// stage happens to hold for the strips that it lacks: nobody stores those sums, and a branch per
  /// strip would keep the strips' chains of MMAs from overlapping.
  template <int kBlocks, int kStepsPerFlush = 4 * kBlocks>
  __device__ __forceinline__ void multiply(const char* stage, std::uint32_t stage_x, Chunk chunk,
                                           int block, Fragment (&sum)[kStrips]) const {
    const int first_k = (chunk.first + block) * layout::kBlockK;
    const int first_group = this->first_group(chunk);
    std::uint32_t x[kTokenTiles][2 * kBlocks][4];  // [.][half k-block][two steps × two registers]
#pragma unroll
    for (int half = 0; half < 2 * kBlocks; ++half) {
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
        ptx::ldmatrix_x4(x[t][half], stage_x + x_row[t] + block * 128 + half * 64);
      }
    }
    constexpr int kSteps = 4 * kBlocks;
    constexpr int kChainsPerFlush = kStepsPerFlush <= 4 ? 1 : kChains;
    constexpr int kFlushes = kSteps / kStepsPerFlush;
    Fragment group_x[kFlushes];  // Σ x
#pragma unroll
    for (int flush = 0; flush < kFlushes; ++flush) {
      Fragment part[kChainsPerFlush] = {};
      const std::uint32_t ones[4] = {one(0), one(1), one(0), one(1)};
#pragma unroll
      for (int i = 0; i < kStepsPerFlush; ++i) {
        multiply_step(ones, x, flush * kStepsPerFlush + i, part[i * kChainsPerFlush / kSteps]);
      }
      sum_chains(part, group_x[flush]);
    }
#pragma unroll
    for (int s = 0; s < kStrips; ++s) {
      constexpr int kWords = 4 * layout::planes(kBits);
      std::uint32_t words[kBlocks][kWords];
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
        for (int plane = 0; plane < layout::planes(kBits); ++plane) {
          const uint4 v = *reinterpret_cast<const uint4*>(stage + codes_offset + s * kStripBytes +
                                                          (block + b) * kCellBytes +
                                                          plane * layout::kPlaneBytes + lane * 16);
          words[b][4 * plane + 0] = v.x;
          words[b][4 * plane + 1] = v.y;
          words[b][4 * plane + 2] = v.z;
          words[b][4 * plane + 3] = v.w;
        }
      }
#pragma unroll
      for (int flush = 0; flush < kFlushes; ++flush) {
        Fragment part[kChainsPerFlush] = {};
#pragma unroll
        for (int i = 0; i < kStepsPerFlush; ++i) {
          const int step = flush * kStepsPerFlush + i;
          std::uint32_t a[4];
          codes_of(words[step / 4] + step % 4 * layout::planes(kBits), a);
          multiply_step(a, x, step, part[i * kChainsPerFlush / kSteps]);
        }
        Fragment total;
        sum_chains(part, total);
        const int group = ((first_k + 16 * kStepsPerFlush * flush) >> p.group_shift) - first_group;
        add_group(load_group(stage, s, group), total, group_x[flush], sum[s]);
      }
    }
  }

  template <int kHalves>
  static __device__ __forceinline__ void multiply_step(
      const std::uint32_t (&a)[4], const std::uint32_t (&x)[kTokenTiles][kHalves][4], int step,
      Fragment& d) {
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
      ptx::mma_m16n8k16<kConfig.act>(d[t], a, x[t][step / 2][step % 2 * 2],
                                     x[t][step / 2][step % 2 * 2 + 1]);
    }
  }

  template <int kCount>
  static __device__ __forceinline__ void sum_chains(const Fragment (&part)[kCount],
                                                    Fragment& total) {
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        total[t][i] = part[0][t][i];
        if constexpr (kCount == 2) total[t][i] += part[1][t][i];
      }
    }
  }

  /// sum += s·part − s·(b + z)·Σ x, or s·part − (s·b + z)·Σ x with scaled zeros.
  __device__ __forceinline__ void add_group(const GroupValues& group, Fragment& part,
                                            const Fragment& group_x, Fragment& sum) const {
    float shift[2];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      shift[row] = fmaf(kZeros && p.zeros_scaled ? 1.f : group.scale[row], group.zero[row],
                        group.scale[row] * kCodeBias);
    }
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
      if constexpr (kRowsCombined) {
        part[t][0] -= part[t][2];
        part[t][1] -= part[t][3];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (kZeros) {
          sum[t][i] = fmaf(group.scale[i / 2], part[t][i], sum[t][i]);
          sum[t][i] = fmaf(-shift[i / 2], group_x[t][i], sum[t][i]);
        } else {  // one zero for all rows
          constexpr float kZero = kCodeBias + implicit_zero(kConfig.weight);
          sum[t][i] = fmaf(group.scale[i / 2], fmaf(-kZero, group_x[t][i], part[t][i]), sum[t][i]);
        }
      }
    }
  }

  /// Adds a chunk. It starts at an even k-block, so that a pair lies in one group of 128 or more.
  __device__ __forceinline__ void multiply_chunk(const char* stage, std::uint32_t stage_x,
                                                 Chunk chunk, Fragment (&sum)[kStrips]) const {
    int block = 0;
    if constexpr (kConfig.fine_groups) {
      if (p.group_shift == 4) {
#pragma unroll 1
        for (; block < chunk.count; ++block) multiply<1, 1>(stage, stage_x, chunk, block, sum);
        return;
      }
      if constexpr (kPairsOfFineBlocks) {
#pragma unroll 1
        for (; block + 1 < chunk.count; block += 2) {
          multiply<2, 2>(stage, stage_x, chunk, block, sum);
        }
      }
    } else if constexpr (kKBlocks > 1) {
      const bool in_pairs = (1 << p.group_shift) >= 2 * layout::kBlockK;
#pragma unroll 1
      for (; in_pairs && block + 1 < chunk.count; block += 2) {
        multiply<2>(stage, stage_x, chunk, block, sum);
      }
    }
    constexpr int kSharing = kConfig.fine_groups ? 2 : 4;  // k16 steps
#pragma unroll 1
    for (; block < chunk.count; ++block) {
      multiply<1, kSharing>(stage, stage_x, chunk, block, sum);
    }
  }

  // ---- one pass -------------------------------------------------------------------------------

  /// Sums of a warp → its slab of the exchange area, [token][row].
  __device__ __forceinline__ void put_sums(float* slab, const Fragment (&sum)[kStrips]) const {
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = 8 * t + 2 * (lane % 4) + i % 2;
        if (token >= p.m) continue;
        float* const row = slab + token * kExchangePitch + lane / 4 + 8 * (i / 2);
#pragma unroll
        for (int s = 0; s < kStrips; ++s) {
          row[s * layout::kStripRows] = sum[s][t][i] * unit(i / 2);
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
#pragma unroll 1
    for (int e = rank * kWarps * kWarpSize + threadIdx.x; e < kConfig.tile_n * p.m;
         e += p.cluster_k * kWarps * kWarpSize) {
      const int m = e / kConfig.tile_n;
      const int row = e % kConfig.tile_n;
      const int n = first_strip * layout::kStripRows + row;
      if (row >= rows || n >= p.n) continue;
      const std::uint32_t at = exchange + (m * kExchangePitch + row) * 4;
      float total = 0.f;
      if (p.cluster_k == 1) {
#pragma unroll
        for (int w = 0; w < kWarps; ++w) total += ptx::ld_shared_f32(at + w * slab_bytes);
      } else {
        for (int r = 0; r < p.cluster_k; ++r) {
#pragma unroll
          for (int w = 0; w < kWarps; ++w) {
            total += ptx::ld_shared_cluster_f32(at + w * slab_bytes, r);
          }
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
  const int warp = ptx::uniform(threadIdx.x / kWarpSize);
  const int lane = threadIdx.x % kWarpSize;
  const int stage_bytes = streaming_stage_bytes(kConfig, p.m);

  // Shared memory: rings, barriers, exchange area.
  const Kernel kernel(p, smem, warp, lane, streaming_x_pitch_bytes(kConfig, p.m),
                      streaming_x_bytes(kConfig, p.m), stage_bytes);
  float* const exchange = reinterpret_cast<float*>(smem + kWarps * p.stages * (stage_bytes + 8));
  if (lane == 0) {  // arrivals: the announcement of the bytes, and every lane's copies of X
    const int arrivals = kernel.x_copied ? 1 + kWarpSize : 1;
    for (int i = 0; i < p.stages; ++i) ptx::mbarrier_init(kernel.barriers + 8 * i, arrivals);
    ptx::fence_mbarrier_init();
  }
  __syncwarp();
  using Chunk = typename Kernel::Chunk;

  // This cluster's strips, this warp's k-blocks.
  const int rank = p.cluster_k > 1 ? static_cast<int>(ptx::cluster_ctarank()) : 0;
  const int cluster = ptx::clusterid_z();
  const int strip_begin = cluster * p.strips_per_cluster + min(cluster, p.clusters_with_one_more);
  const int strip_end =
      strip_begin + p.strips_per_cluster + (cluster < p.clusters_with_one_more ? 1 : 0);
  const int split = rank * kWarps + warp;
  const int block_begin = 2 * (split * p.pairs_per_warp + min(split, p.warps_with_one_more));
  const int blocks = min(2 * (p.pairs_per_warp + (split < p.warps_with_one_more ? 1 : 0)),
                         (p.k + layout::kBlockK - 1) / layout::kBlockK - block_begin);

  // The ring runs over (pass, chunk), chunk fastest. `ahead` walks in front of the consumer.
  struct Place {
    int strip, block;
    typename Kernel::XSource x;
  };
  const auto first_x = kernel.x_source(block_begin * layout::kBlockK);
  const auto chunk_at = [&](int block) {
    return Chunk{block_begin + block, min(Kernel::kKBlocks, blocks - block)};
  };
  const auto load_weights = [&](int stage, const Place& at) {
    kernel.load_weights(stage, at.strip, min(Kernel::kStrips, strip_end - at.strip),
                        chunk_at(at.block));
  };
  const auto advance = [&](Place& at) {
    at.block += Kernel::kKBlocks;
    at.x.advance();
    if (at.block >= blocks) at = {at.strip + Kernel::kStrips, 0, first_x};
  };
  const auto valid = [&](const Place& at) { return at.strip < strip_end && blocks > 0; };

  Place ahead{strip_begin, 0, first_x};
  int filled = 0;
  for (; filled < p.stages && valid(ahead); ++filled, advance(ahead)) load_weights(filled, ahead);
  float* const slab = exchange + warp * p.m * Kernel::kExchangePitch;  // this warp's sums
  if (lane == 0) device::touch_params(p, reinterpret_cast<std::uint32_t*>(slab));
  if (p.pdl) {
    ptx::griddepcontrol_launch_dependents();
    ptx::griddepcontrol_wait();
  }
  Place first{strip_begin, 0, first_x};
#pragma unroll 1
  for (int i = 0; i < filled; ++i, advance(first)) kernel.load_x(i, first.x);
  int stage = 0;
  std::uint32_t phase = 0;
  for (int strip = strip_begin; strip < strip_end; strip += Kernel::kStrips) {
    const int strips = min(Kernel::kStrips, strip_end - strip);
    typename Kernel::Fragment sum[Kernel::kStrips] = {};
    for (int done = 0; done < blocks; done += Kernel::kKBlocks) {
      const Chunk chunk = chunk_at(done);
      ptx::mbarrier_wait(kernel.barriers + 8 * stage, phase);
      if (!kernel.x_copied) kernel.read_x(stage, chunk);
      const char* const data = kernel.ring + stage * stage_bytes;
      const std::uint32_t stage_x = kernel.ring_base + stage * stage_bytes;
      kernel.multiply_chunk(data, stage_x, chunk, sum);
      __syncwarp();  // every lane has read the stage
      if (valid(ahead)) {
        load_weights(stage, ahead);
        kernel.load_x(stage, ahead.x);
        advance(ahead);
      }
      if (++stage == p.stages) {
        stage = 0;
        phase ^= 1u;
      }
    }
    kernel.put_sums(slab, sum);
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
