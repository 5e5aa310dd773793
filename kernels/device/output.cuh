// SPDX-License-Identifier: Apache-2.0
// From accumulators of Yᵀ to rows of Y: partial sums of tiles split along K, the epilogue, the
// store. One object per consumer warpgroup; accumulator 4·j + i of row block r belongs to
//   feature 64·r + 16·warp + lane/4 + 8·(i/2)   and   token 8·j + 2·(lane%4) + i%2
// of the warpgroup's rows (PTX ISA, "wgmma D fragment").
#pragma once

#include <cstdint>

#include "device/tile_scheduler.cuh"
#include "device/workspace.cuh"
#include "kernel_config.hpp"
#include "ptx/arith.cuh"
#include "ptx/matrix.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/sync.cuh"

namespace mixgemm::device {

/// Named barriers of the tiled kernel.
enum NamedBarrier : int {
  kSetupBarrier = 0,      ///< the CTA's threads: the ring's barriers are made
  kWarpgroupBarrier = 1,  ///< + warpgroup: the 128 threads of one consumer warpgroup
  kProducersBarrier = 5,  ///< the producer warpgroup: as kSetupBarrier
  kTeamsBarrier = 6,      ///< + warpgroup: those of all teams with the same rows
  kConsumersBarrier = 8,  ///< all consumer warpgroups
};

template <KernelConfig kConfig, class Epilogue>
class Output {
 public:
  static constexpr bool kPingpong = kConfig.schedule == Schedule::pingpong;
  static constexpr int kRows = rows_per_warpgroup(kConfig);
  static constexpr int kRowBlocks = kRows / kWarpgroupRows;
  static constexpr int kTileM = kConfig.tile_m;
  static constexpr int kPitch = staging_pitch_elems(kConfig);
  static constexpr int kBlockSums = kTileM / 2;          // of a thread in a row block
  static constexpr int kSums = kRowBlocks * kBlockSums;  // of a thread
  using Accumulators = float[kRowBlocks][kTileM / 2];

  __device__ __forceinline__ Output(const Params& p, char* staging, int warpgroup)
      : p_(p),
        staging_(reinterpret_cast<std::uint16_t*>(staging) +
                 warpgroup * staging_tokens(kConfig) * kPitch),
        warpgroup_(warpgroup) {}

  /// Tokens of a tile, from `begin` on.
  struct Tokens {
    int begin = 0, count = kTileM;
  };

  /// Epilogue and store of a tile's rows for some of its tokens, whose sums come first in `acc`;
  /// staging_tokens at a time pass through the staging slab.
  __device__ __forceinline__ void store(Accumulators& acc, const WorkItem& item,
                                        const Tokens& tokens) const {
    if constexpr (requires { Epilogue::is_plain(p_); }) {
      if (Epilogue::is_plain(p_)) return store<true>(acc, item, tokens);
    }
    store<false>(acc, item, tokens);
  }

  /// split_k and stream_k: leaves the sums in the workspace for the cluster that finishes the tile.
  __device__ __forceinline__ void leave_partial(const Accumulators& acc, int slot,
                                                int slots) const {
    float4* const out = partial_slot(slot, slots);
    for_each_quad([&](int r, int i, int at) {
      out[at] = make_float4(acc[r][i], acc[r][i + 1], acc[r][i + 2], acc[r][i + 3]);
    });
    sync();  // all writes of the warpgroup, then the flag that publishes them
    if (thread() == 0) ptx::st_release_gpu(flag(slot), p_.flag_tag);
  }

  /// Adds what leave_partial left in the slots of `count` clusters, slot_step apart, in order, once
  /// it is there, and clears their flags for the next launch. All flags are awaited at once, and
  /// what registers hold is read at once: a round trip each would add up.
  __device__ __forceinline__ void take_partials(Accumulators& acc, int first_slot, int slot_step,
                                                int count, int slots) const {
    for (int i = thread(); i < count; i += kWarpgroupThreads) {
      while (ptx::ld_acquire_gpu(flag(first_slot + i * slot_step)) != p_.flag_tag) __nanosleep(20);
    }
    sync();
    if constexpr (kSums > 64) {  // little room: in the order that the compiler finds
      for (int i = 0; i < count; ++i) {
        const float4* const in = partial_slot(first_slot + i * slot_step, slots);
        for_each_quad([&](int r, int j, int at) { add(acc[r] + j, __ldcg(in + at)); });
      }
    } else {
      add_partials_at_once(acc, first_slot, slot_step, count, slots);
    }
    for (int i = thread(); i < count; i += kWarpgroupThreads) {
      *flag(first_slot + i * slot_step) = 0;
    }
  }

  /// cluster_k: this CTA's share of the tile's tokens, in blocks of 16, by rank in k.
  __device__ __forceinline__ Tokens share_of(int k_rank) const {
    const int begin = divide(kBlocks * k_rank, p_.by_cluster_k) * 16;
    const int end = min(divide(kBlocks * (k_rank + 1), p_.by_cluster_k) * 16, kTileM);
    return {begin, max(end - begin, 0)};
  }

  /// k_teams: adds the second team's sums to the first one's, warpgroup by warpgroup. In a cluster
  /// that splits K by way of the CTA's area at `exchange`, otherwise of the slab (exchange = 0),
  /// some tokens at a time.
  __device__ __forceinline__ void join_teams(int team, Accumulators& acc,
                                             std::uint32_t exchange) const {
    const auto meet = [&] {
      ptx::bar_sync(kTeamsBarrier + warpgroup_, kConfig.k_teams * kWarpgroupThreads);
    };
    if (exchange != 0) {
      const std::uint32_t own = own_at(exchange) + lane() * 16;
      if (team > 0) put_shares(acc, exchange);
      meet();
      if (team > 0) return;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        for_each_vector(block, [&](int r, int i, int vector, int) {
          add(acc[r] + i, ptx::ld_shared_f32x4(own + vector * kVectorBytes));
        });
      }
      return;
    }
    constexpr int kRound = team_tokens(kConfig) / 2 * kRowBlocks;  // sums of a thread
    const std::uint32_t slab = ptx::smem_address(staging_) + thread() * 16;
#pragma unroll
    for (int first = 0; first < kSums; first += kRound) {
      meet();  // the slab is free
#pragma unroll
      for (int s = first; s < first + kRound && s < kSums; s += 4) {
        float* const sums = acc[s / kBlockSums] + s % kBlockSums;
        if (team > 0) {
          ptx::st_shared_f32x4(slab + (s - first) * (kWarpgroupThreads * 4),
                               make_float4(sums[0], sums[1], sums[2], sums[3]));
        }
      }
      meet();
#pragma unroll
      for (int s = first; s < first + kRound && s < kSums; s += 4) {
        float* const sums = acc[s / kBlockSums] + s % kBlockSums;
        if (team == 0) {
          add(sums, ptx::ld_shared_f32x4(slab + (s - first) * (kWarpgroupThreads * 4)));
        }
      }
    }
  }

  // cluster_k: every warp has the sums of its rows added up for itself, with those of the same warp
  // of the cluster's other CTAs. `exchange` is where a CTA's area for that begins.

  /// cluster_k: the bytes that a warp receives from those of the other CTAs.
  __device__ __forceinline__ int bytes_received(const Tokens& share) const {
    return (p_.cluster_k - 1) * bytes_of(share);
  }

  /// cluster_k: the warp's sums of the whole tile into its CTA's area, as vectors [block of
  /// tokens][vector][lane], so that a share lies in one piece.
  __device__ __forceinline__ void put_shares(const Accumulators& acc,
                                             std::uint32_t exchange) const {
    const std::uint32_t own = own_at(exchange) + lane() * 16;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      for_each_vector(block, [&](int r, int i, int vector, int) {
        ptx::st_shared_f32x4(own + vector * kVectorBytes,
                             make_float4(acc[r][i], acc[r][i + 1], acc[r][i + 2], acc[r][i + 3]));
      });
    }
  }

  /// cluster_k, one thread: what the warp has put there for the CTA with k rank `to` and cluster
  /// rank `rank`. `received`: the barrier that counts the bytes, as each CTA has one.
  __device__ __forceinline__ void send_share(std::uint32_t exchange, std::uint32_t received,
                                             int k_rank, int to, int rank) const {
    const Tokens share = share_of(to);
    if (share.count == 0) return;
    ptx::cp_async_bulk_to_cluster(ptx::mapa(received_at(exchange, k_rank, to), rank),
                                  own_at(exchange) + share.begin / 16 * kBlockBytes,
                                  static_cast<std::uint32_t>(bytes_of(share)),
                                  ptx::mapa(received, rank));
  }

  /// cluster_k: the sums of all CTAs, in rank order, for the tokens of this one's share; they come
  /// first in `acc`.
  __device__ __forceinline__ void take_share(Accumulators& acc, std::uint32_t exchange,
                                             const Tokens& share, int k_rank) const {
    constexpr int kVectors = 2 * kRowBlocks;
    // CTAs whose sums are on their way.
    constexpr int kAtOnce = kSums <= 32 && kConfig.ctas_per_sm == 1 ? 2 : 1;
    const std::uint32_t own = own_at(exchange) + share.begin / 16 * kBlockBytes + lane() * 16;
    const std::uint32_t others = first_received_at(exchange) + lane() * 16;
    const std::uint32_t apart = largest_share() * kWarps * kBlockBytes;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      if (16 * block >= share.count) break;
      for_each_vector(block, [&](int r, int i, int, int) {
        acc[r][i] = acc[r][i + 1] = acc[r][i + 2] = acc[r][i + 3] = 0.f;
      });
#pragma unroll 1
      for (int x = 0; x < p_.cluster_k; x += kAtOnce) {
        float4 v[kAtOnce][kVectors];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          if (x + i >= p_.cluster_k) continue;
          const std::uint32_t from =
              x + i == k_rank ? own : others + (x + i - (x + i > k_rank)) * apart;
          for_each_vector(block, [&](int, int, int, int of_block) {
            v[i][of_block] =
                ptx::ld_shared_f32x4(from + block * kBlockBytes + of_block * kVectorBytes);
          });
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          if (x + i >= p_.cluster_k) continue;
          for_each_vector(block, [&](int r, int first, int, int of_block) {
            add(acc[r] + first, v[i][of_block]);
          });
        }
      }
    }
  }

 private:
  template <bool kPlain>
  __device__ __forceinline__ void store(Accumulators& acc, const WorkItem& item,
                                        const Tokens& tokens) const {
    constexpr int kChunk = staging_tokens(kConfig);
    const int first_n = item.tile_n * kConfig.tile_n + in_tile() * kRows;
    float bias[kRowBlocks][2], scale[kRowBlocks][2];
#pragma unroll
    for (int r = 0; r < kRowBlocks; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int n = first_n + row_of(r, half);
        bias[r][half] = bias_of(n);
        scale[r][half] = column_scale_of(n);
      }
    }
#pragma unroll
    for (int chunk = 0; chunk < kTileM; chunk += kChunk) {
      const int first_m = item.tile_m * kTileM + tokens.begin + chunk;
      if (chunk >= tokens.count || first_m >= p_.m) return;
      sync();  // the slab is free: everyone has stored the chunk before
      if (!kPlain && p_.residual != nullptr) {
        load_residual(first_n, first_m);
        sync();
      }
#pragma unroll
      for (int r = 0; r < kRowBlocks; ++r) {
#pragma unroll
        for (int j = 0; j < kChunk && chunk + j < kTileM; j += 16) {
          if (chunk + j >= tokens.count) break;
          finish_block<kPlain>(acc[r], chunk / 8 + j / 8, r, j, first_n, first_m, bias[r],
                               scale[r]);
        }
      }
      sync();
      store_chunk(first_n, first_m, min(kChunk, tokens.count - chunk));
    }
  }

  // cluster_k: what a CTA keeps for it: the sums of its own k range, [warp][block of tokens], and
  // behind them its share of each other CTA's, likewise. exchange_bytes() counts both.
  static constexpr int kWarps = 4 * storing_warpgroups(kConfig);
  static constexpr int kVectorBytes = kWarpSize * 16;
  static constexpr int kBlockBytes = 2 * kRowBlocks * kVectorBytes;  // of a warp
  static constexpr int kBlocks = token_blocks(kConfig);
  static __device__ __forceinline__ int bytes_of(const Tokens& share) {  // of a warp
    return share.count * (kConfig.tile_n * 4 / kWarps);
  }
  static __device__ __forceinline__ int adding_warp() { return threadIdx.x / kWarpSize % kWarps; }
  /// Where the warp's own sums are, and what it receives.
  static __device__ __forceinline__ std::uint32_t own_at(std::uint32_t exchange) {
    return exchange + adding_warp() * (kBlocks * kBlockBytes);
  }
  __device__ __forceinline__ std::uint32_t first_received_at(std::uint32_t exchange) const {
    return exchange + (kWarps * kBlocks + adding_warp() * largest_share()) * kBlockBytes;
  }
  /// In the CTA with k rank `to`, what comes from k rank `from`.
  __device__ __forceinline__ std::uint32_t received_at(std::uint32_t exchange, int from,
                                                       int to) const {
    return first_received_at(exchange) +
           (from - (from > to)) * largest_share() * kWarps * kBlockBytes;
  }
  __device__ __forceinline__ int largest_share() const {  // in blocks
    return divide(kBlocks + p_.cluster_k - 1, p_.by_cluster_k);
  }
  /// body(row block, first sum, vector, vector of the block) for a thread's sums of 16 tokens, four
  /// at a time, in the order of the exchange.
  template <class Body>
  static __device__ __forceinline__ void for_each_vector(int block, const Body& body) {
    const int halves = min(2, kTileM / 8 - 2 * block);
#pragma unroll
    for (int r = 0; r < kRowBlocks; ++r) {
#pragma unroll
      for (int half = 0; half < halves; ++half) {
        const int of_block = r * halves + half;
        body(r, 4 * (2 * block + half), block * 2 * kRowBlocks + of_block, of_block);
      }
    }
  }

  __device__ __forceinline__ static int thread() { return threadIdx.x % kWarpgroupThreads; }
  __device__ __forceinline__ static int lane() { return threadIdx.x % kWarpSize; }
  __device__ __forceinline__ static int warp() { return threadIdx.x / kWarpSize % 4; }
  __device__ __forceinline__ int in_tile() const { return kPingpong ? 0 : warpgroup_; }
  __device__ __forceinline__ static int row_of(int r, int half) {
    return r * kWarpgroupRows + warp() * layout::kStripRows + lane() / 4 + 8 * half;
  }
  __device__ __forceinline__ void sync() const {
    ptx::bar_sync(kWarpgroupBarrier + warpgroup_, kWarpgroupThreads);
  }

  static __device__ __forceinline__ float to_float(std::uint16_t bits) {
    return kConfig.act == DataType::f16 ? ptx::cvt_f32_f16(bits)
                                        : __uint_as_float(std::uint32_t(bits) << 16);
  }
  static __device__ __forceinline__ std::uint32_t pack(float low, float high) {
    return kConfig.act == DataType::f16 ? ptx::cvt_f16x2_f32(low, high)
                                        : ptx::cvt_bf16x2_f32(low, high);
  }

  __device__ __forceinline__ float bias_of(int n) const {
    if (p_.bias == nullptr || n >= p_.n) return 0.f;
    return to_float(static_cast<const std::uint16_t*>(p_.bias)[n]);
  }
  __device__ __forceinline__ float column_scale_of(int n) const {
    if (kConfig.quant != Quant::column || n >= p_.n) return 1.f;
    return to_float(p_.scales[layout::scale_index(n, 0, p_.groups_pitch)]);
  }

  static __device__ __forceinline__ void add(float* sum, const float4& v) {
    sum[0] += v.x;
    sum[1] += v.y;
    sum[2] += v.z;
    sum[3] += v.w;
  }

  /// take_partials for few sums: several clusters' at a time.
  __device__ __forceinline__ void add_partials_at_once(Accumulators& acc, int first_slot,
                                                       int slot_step, int count, int slots) const {
    constexpr int kAtOnce = read_batch(kSums / 4).clusters;
    constexpr int kQuads = read_batch(kSums / 4).vectors;
#pragma unroll
    for (int first_quad = 0; first_quad < kSums / 4; first_quad += kQuads) {
      for (int first = 0; first < count; first += kAtOnce) {
        float4 v[kAtOnce][kQuads];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          if (first + i >= count) continue;
          const float4* const in = partial_slot(first_slot + (first + i) * slot_step, slots);
#pragma unroll
          for (int q = 0; q < kQuads; ++q) {
            v[i][q] = __ldcg(in + (first_quad + q) * kWarpgroupThreads + thread());
          }
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          if (first + i >= count) continue;
#pragma unroll
          for (int q = 0; q < kQuads; ++q) {
            const int s = 4 * (first_quad + q);
            add(acc[s / kBlockSums] + s % kBlockSums, v[i][q]);
          }
        }
      }
    }
  }

  /// How many clusters' partial tiles, and how many of a thread's `vectors` of each, are read at a
  /// time: what registers hold in the fewest round trips for three clusters. 16-byte vectors.
  struct ReadBatch {
    int clusters, vectors;
  };
  static constexpr ReadBatch read_batch(int vectors) {
    constexpr int kOthers = 72;  // registers for anything but sums and what is read
    const int room = (consumer_registers(kConfig) - kSums - kOthers) / 4;
    ReadBatch best{1, 1};
    int fewest = 3 * vectors;
    for (int clusters = 1; clusters <= 3; ++clusters) {
      for (int part = 1; part <= vectors && part <= 16; ++part) {
        if (vectors % part != 0 || clusters * part > (room < 2 ? 2 : room)) continue;
        const int trips = (3 + clusters - 1) / clusters * (vectors / part);
        if (trips < fewest) {
          fewest = trips;
          best = {clusters, part};
        }
      }
    }
    return best;
  }

  // The workspace's vectors lie as [vector][thread], so that a warp's accesses are contiguous.
  template <class Body>
  static __device__ __forceinline__ void for_each_quad(Body body) {
#pragma unroll
    for (int r = 0; r < kRowBlocks; ++r) {
#pragma unroll
      for (int i = 0; i < kTileM / 2; i += 4) {
        body(r, i, (r * (kTileM / 8) + i / 4) * kWarpgroupThreads + thread());
      }
    }
  }
  __device__ __forceinline__ std::uint64_t* flag(int slot) const {
    return workspace_flag(p_, slot) + in_tile();
  }
  __device__ __forceinline__ float4* partial_slot(int slot, int slots) const {
    constexpr int kTile = kConfig.tile_n * kTileM;
    return reinterpret_cast<float4*>(workspace_tile<kTile>(p_, slot, slots) +
                                     in_tile() * kRows * kTileM);
  }

  /// 16 tokens × 64 features of a row block: epilogue, rounding, transposed store into the slab.
  /// j8: the first accumulator's token / 8; slab_token: where the tokens go in the slab.
  template <bool kPlain>
  __device__ __forceinline__ void finish_block(const float (&acc)[kTileM / 2], int j8, int r,
                                               int slab_token, int first_n, int first_m,
                                               const float (&bias)[2],
                                               const float (&scale)[2]) const {
    const bool full = 8 * j8 + 16 <= kTileM;  // compile-time after unrolling
    const int l = lane();
    const std::uint32_t slab =
        ptx::smem_address(staging_ + (slab_token + 8 * (l / 16) * full + l % 8) * kPitch +
                          r * kWarpgroupRows + warp() * layout::kStripRows + 8 * (l / 8 % 2));
    float y[8], b[8], residual[8];
    int n[8], m[8];
#pragma unroll
    for (int v = 0; v < 8; ++v) {
      const int half = v / 2 % 2;
      y[v] = full || v < 4 ? acc[4 * j8 + v] * scale[half] : 0.f;
      b[v] = bias[half];
      residual[v] = 0.f;
      n[v] = first_n + row_of(r, half);
      m[v] = first_m + slab_token + 8 * (v / 4) + 2 * (l % 4) + v % 2;
    }
    if (!kPlain && p_.residual != nullptr) {
      std::uint32_t bits[4] = {0, 0, 0, 0};
      if (full) {
        ptx::ldmatrix_x4_trans(bits, slab);
      } else {
        ptx::ldmatrix_x2_trans(bits[0], bits[1], slab);
      }
#pragma unroll
      for (int v = 0; v < 8; ++v) {
        residual[v] = to_float(static_cast<std::uint16_t>(bits[v / 2] >> (16 * (v % 2))));
      }
    }
    if constexpr (kPlain) {
      Epilogue::apply_plain(p_, y, b);
    } else {
      Epilogue::apply(p_, y, b, residual, n, m);
    }
    const std::uint32_t out[4] = {pack(y[0], y[1]), pack(y[2], y[3]), pack(y[4], y[5]),
                                  pack(y[6], y[7])};
    if (full) {
      ptx::stmatrix_x4_trans(slab, out);
    } else {
      ptx::stmatrix_x2_trans(slab, out[0], out[1]);
    }
  }

  /// Residual rows → slab, where finish_block finds each element in the place of its output.
  __device__ __forceinline__ void load_residual(int first_n, int first_m) const {
    const auto* const residual = static_cast<const std::uint16_t*>(p_.residual);
    constexpr int kVectors = kRows / 8;
#pragma unroll 1
    for (int e = thread(); e < staging_tokens(kConfig) * kVectors; e += kWarpgroupThreads) {
      const int token = e / kVectors;
      const int n = first_n + e % kVectors * 8;
      const int m = first_m + token;
      std::uint16_t* const slab = staging_ + token * kPitch + e % kVectors * 8;
      if (m >= p_.m) break;
      const std::uint16_t* const row = residual + m * p_.ldr + n;
      if (p_.r_vectors && n + 8 <= p_.n) {
        *reinterpret_cast<uint4*>(slab) = *reinterpret_cast<const uint4*>(row);
      } else {
        for (int i = 0; i < 8; ++i) slab[i] = n + i < p_.n ? row[i] : std::uint16_t(0);
      }
    }
  }

  /// Slab → rows of Y, 16 bytes a thread where alignment allows.
  __device__ __forceinline__ void store_chunk(int first_n, int first_m, int chunk) const {
    constexpr int kVectors = kRows / 8;                  // of a row
    constexpr int kStep = kWarpgroupThreads / kVectors;  // rows that the warpgroup stores at once
    constexpr int kRounds = (staging_tokens(kConfig) + kStep - 1) / kStep;
    static_assert(kWarpgroupThreads % kVectors == 0);
    const int token = thread() / kVectors;
    const int column = thread() % kVectors * 8;
    const int n = first_n + column;
    const int tokens = min(chunk, p_.m - first_m);
    const std::uint16_t* const slab = staging_ + token * kPitch + column;
    std::uint16_t* row = static_cast<std::uint16_t*>(p_.y) + (first_m + token) * p_.ldy + n;
    if (p_.y_vectors && n + 8 <= p_.n) {
#pragma unroll
      for (int i = 0; i < kRounds; ++i) {
        if (token + i * kStep < tokens) {
          *reinterpret_cast<uint4*>(row + i * kStep * p_.ldy) =
              *reinterpret_cast<const uint4*>(slab + i * kStep * kPitch);
        }
      }
    } else {
#pragma unroll 1
      for (int i = 0; token + i * kStep < tokens; ++i, row += kStep * p_.ldy) {
#pragma unroll 1
        for (int j = 0; j < 8 && n + j < p_.n; ++j) row[j] = slab[i * kStep * kPitch + j];
      }
    }
  }

  const Params& p_;
  std::uint16_t* const staging_;
  const int warpgroup_;
};

}  // namespace mixgemm::device
