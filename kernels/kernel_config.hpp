// SPDX-License-Identifier: Apache-2.0
// The contract between host and device, in one copy for both: which kernels exist (KernelConfig),
// how one is launched (LaunchConfig), what it is given (Params), how much shared memory it takes
// and what is legal. The generator's output is checked against is_legal() when it is compiled.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "layout/packed.hpp"
#include "mixgemm/types.hpp"

namespace mixgemm {

/// How the warps of a CTA share the work.
enum class Schedule : std::uint8_t {
  cooperative,  ///< SM90: all consumer warpgroups share one tile, 64 weight rows or more each
  pingpong,     ///< SM90: consumer warpgroups take turns, each with a whole tile
  warp_mma,     ///< SM90: as cooperative, but warps multiply with mma.sync: few tokens
  streaming,    ///< decode: strips balanced over all CTAs, K split over the warps
  multistage,   ///< SM80: cp.async ring, every warp loads and multiplies
};

/// What a kernel does with scales and zeros. Compile-time, because each step costs issue slots in
/// the main loop.
enum class Quant : std::uint8_t {
  column,      ///< c: one scale per output feature, implicit zero; applied to the fp32 sum
  group,       ///< g: group scales, implicit zero
  group_zero,  ///< gz: group scales and zeros, integer or scaled (also per-column with zeros)
};

/// One compiled variant: a row of the manifest.
struct KernelConfig {
  int arch = 90;
  DataType act = DataType::f16;
  WeightType weight = WeightType::int4;
  Quant quant = Quant::group;
  bool fine_groups = false;  ///< group sizes 16 and 32: scales change within a k-block
  Schedule schedule = Schedule::cooperative;
  int tile_n = 128;  ///< weight rows of a CTA tile (pingpong: of one warpgroup's tile)
  int tile_m = 128;  ///< tokens
  int tile_k = 64;   ///< k per ring stage
  int consumer_warpgroups = 2;
  int k_teams = 1;      ///< cooperative: teams of them that share the k-blocks of each stage
  int ctas_per_sm = 1;  ///< occupancy that the register cap aims at

  friend constexpr bool operator==(const KernelConfig&, const KernelConfig&) = default;
};

/// The run-time part of a configuration: costs nothing to vary, so no kernel is compiled for it.
struct LaunchConfig {
  int cluster_n = 1;      ///< CTAs that share activations by multicast
  int cluster_m = 1;      ///< CTAs that share weights by multicast
  int cluster_k = 1;      ///< CTAs that split K and sum over distributed shared memory
  int stages = 4;         ///< ring depth
  int split_k = 1;        ///< k ranges per tile, summed through the workspace in a fixed order
  bool stream_k = false;  ///< the tiles of the last, partial wave are spread over all CTAs
  bool one_pass = false;  ///< streaming: a CTA per pass of tile_n rows, not one per place on an SM
  int raster_m = 8;       ///< token tiles in a raster band: tiles close in time share weights in L2

  friend constexpr bool operator==(const LaunchConfig&, const LaunchConfig&) = default;
  constexpr int cluster_size() const { return cluster_n * cluster_m * cluster_k; }
};

inline constexpr int kWarpSize = 32;
inline constexpr int kWarpgroupThreads = 128;
inline constexpr int kWarpgroupRows = 64;  // rows of a wgmma
inline constexpr int kMaxStages = 16;
inline constexpr int kMaxSharedBytes = 227 * 1024;  // per CTA, SM90
inline constexpr int kSharedBytesPerSm = 228 * 1024;
inline constexpr int kReservedSharedBytes = 1024;  // the driver's, per CTA
// What every kernel for SM80 must be able to run in: SM86 and SM89 have 100 KB an SM, 99 KB a CTA
// (SM80: 164 and 163 KB).
inline constexpr int kSmallMaxSharedBytes = 99 * 1024;
inline constexpr int kSmallSharedBytesPerSm = 100 * 1024;
inline constexpr int kStageTokens = 64;  // tokens that pass through the output staging at a time

/// Rows of the weight that one consumer warpgroup multiplies.
constexpr int rows_per_warpgroup(const KernelConfig& c) {
  return c.schedule == Schedule::pingpong ? c.tile_n : c.tile_n * c.k_teams / c.consumer_warpgroups;
}
/// Consumer warpgroups that store their rows: the first team's.
constexpr int storing_warpgroups(const KernelConfig& c) {
  return c.consumer_warpgroups / c.k_teams;
}
/// The CTA's threads; there is no producer warpgroup where every warp copies.
constexpr int num_threads(const KernelConfig& c) {
  return (c.consumer_warpgroups + (c.schedule == Schedule::multistage ? 0 : 1)) * kWarpgroupThreads;
}

// One formula for shared memory: the kernel lays out what these functions count.
// A ring stage holds, in this order: X, W, scales, zeros, each 128-byte aligned (X 1024).
constexpr int align_up(int value, int alignment) {
  return (value + alignment - 1) / alignment * alignment;
}
constexpr int x_stage_bytes(const KernelConfig& c) { return c.tile_m * c.tile_k * 2; }
constexpr int w_stage_bytes(const KernelConfig& c) {
  return c.tile_n * c.tile_k * bits_of(c.weight) / 8;
}
/// Groups that a stage may touch: one per k-block, or one per k16 step for fine groups.
constexpr int groups_per_stage(const KernelConfig& c) {
  return c.tile_k / (c.fine_groups ? 16 : 64);
}
constexpr int scale_stage_bytes(const KernelConfig& c) {
  return c.quant == Quant::column ? 0 : align_up(groups_per_stage(c) * c.tile_n * 2, 128);
}
constexpr int zero_stage_bytes(const KernelConfig& c) {
  return c.quant == Quant::group_zero ? scale_stage_bytes(c) : 0;
}
constexpr int stage_bytes(const KernelConfig& c) {
  return align_up(x_stage_bytes(c) + w_stage_bytes(c) + scale_stage_bytes(c) + zero_stage_bytes(c),
                  1024);
}
/// What stands before the ring of a tiled kernel, whose first stage begins on a multiple of 1024
/// bytes: barriers (full, empty, scales; turns or exchange), a word for each stage
/// (device/ring.cuh) and one for each warp.
inline constexpr int kBarrierBytes = (3 * kMaxStages + 2) * 8 + kMaxStages * 4;
inline constexpr int kHeaderBytes = 1024;
/// Output staging: each consumer warpgroup's slab, kStageTokens tokens × its rows, 16 bytes of
/// padding a row so that stmatrix and the 16-byte reads hit each bank once.
constexpr int staging_pitch_elems(const KernelConfig& c) { return rows_per_warpgroup(c) + 8; }
constexpr int staging_tokens(const KernelConfig& c) {
  if (c.tile_m < kStageTokens) return c.tile_m;
  // Half as many where a third ring stage fits only then.
  const int left = kMaxSharedBytes - kHeaderBytes - 3 * stage_bytes(c);
  const int whole = storing_warpgroups(c) * kStageTokens * staging_pitch_elems(c) * 2;
  return whole > left && whole / 2 <= left ? kStageTokens / 2 : kStageTokens;
}
constexpr int staging_bytes(const KernelConfig& c) {
  return storing_warpgroups(c) * staging_tokens(c) * staging_pitch_elems(c) * 2;
}
/// k_teams: tokens whose fp32 sums pass from team to team at a time, by way of the slab.
constexpr int team_tokens(const KernelConfig& c) {
  const int fit = staging_tokens(c) * staging_pitch_elems(c) * 2 / (4 * rows_per_warpgroup(c));
  return fit / 8 * 8;
}
/// What a CTA holds where cluster_k CTAs add up a tile: fp32 sums of its own k range, and of each
/// other CTA's for its share of the tokens, in blocks of 16. It takes the place of ring stages that
/// are needed no more.
constexpr int token_blocks(const KernelConfig& c) { return (c.tile_m + 15) / 16; }
constexpr int exchange_bytes(const KernelConfig& c, int cluster_k) {
  const int share = (token_blocks(c) + cluster_k - 1) / cluster_k;
  const int blocks = token_blocks(c) + (cluster_k - 1) * share;
  return cluster_k > 1 ? blocks * 16 * c.tile_n * 4 : 0;
}
/// The ring's bytes, or the exchange's where those are more.
constexpr int tiled_ring_bytes(const KernelConfig& c, int stages, int cluster_k) {
  const int ring = stages * stage_bytes(c);
  const int exchange = align_up(exchange_bytes(c, cluster_k), 1024);
  return ring < exchange ? exchange : ring;
}

/// Dynamic shared memory of a tiled kernel: header, ring, staging.
constexpr int tiled_smem_bytes(const KernelConfig& c, const LaunchConfig& l) {
  return kHeaderBytes + tiled_ring_bytes(c, l.stages, l.cluster_k) + staging_bytes(c);
}

/// Shared memory that an architecture gives a CTA, and an SM: for arch 80 the least of its devices.
struct SharedLimits {
  int per_cta = kMaxSharedBytes;
  int per_sm = kSharedBytesPerSm;

  /// What a CTA may take where `ctas` of them are to share an SM.
  constexpr int share(int ctas) const {
    const int part = per_sm / ctas - kReservedSharedBytes;
    return part < per_cta ? part : per_cta;
  }
};
constexpr SharedLimits shared_limits(int arch) {
  return arch == 80 ? SharedLimits{kSmallMaxSharedBytes, kSmallSharedBytesPerSm} : SharedLimits{};
}

// The multistage kernel: all warps copy and multiply. They share a tile by weight rows first, then
// by tokens, and what warps are left over split each stage's k-blocks.
constexpr int multi_warp_rows(const KernelConfig& c) {
  return c.tile_n >= 256 || c.consumer_warpgroups == 1 ? 64 : 32;
}
constexpr int multi_warp_tokens(const KernelConfig& c) { return c.tile_m < 64 ? c.tile_m : 64; }
constexpr int multi_warps_n(const KernelConfig& c) { return c.tile_n / multi_warp_rows(c); }
constexpr int multi_warps_m(const KernelConfig& c) { return c.tile_m / multi_warp_tokens(c); }
constexpr int multi_warps_k(const KernelConfig& c) {
  return 4 * c.consumer_warpgroups / (multi_warps_n(c) * multi_warps_m(c));
}
/// fp32 sums on their way to rows of Y, [k share][token][row], `tokens` of each warp at a time.
/// Four more from token to token: what a warp writes together lies in different banks.
constexpr int multi_sums_pitch(const KernelConfig& c) { return c.tile_n + 4; }
constexpr int multi_sums_bytes(const KernelConfig& c, int tokens) {
  return multi_warps_k(c) * multi_warps_m(c) * tokens * multi_sums_pitch(c) * 4;
}
/// Tokens of each warp that pass through shared memory at a time: as many as two ring stages hold.
constexpr int multi_sums_tokens(const KernelConfig& c) {
  for (const int tokens : {64, 32, 16}) {
    if (tokens <= multi_warp_tokens(c) && multi_sums_bytes(c, tokens) <= 2 * stage_bytes(c)) {
      return tokens;
    }
  }
  return 0;
}

/// Dynamic shared memory of a kernel with token tiles.
constexpr int ring_smem_bytes(const KernelConfig& c, const LaunchConfig& l) {
  return c.schedule == Schedule::multistage ? l.stages * stage_bytes(c) : tiled_smem_bytes(c, l);
}
/// The deepest ring that fits, given how many CTAs should share an SM.
constexpr int max_stages(const KernelConfig& c, const SharedLimits& limits) {
  const int fixed = c.schedule == Schedule::multistage ? 0 : kHeaderBytes + staging_bytes(c);
  const int stages = (limits.share(c.ctas_per_sm) - fixed) / stage_bytes(c);
  return stages > kMaxStages ? kMaxStages : stages;
}
constexpr int max_stages(const KernelConfig& c) { return max_stages(c, shared_limits(c.arch)); }

// The streaming kernel: consumer_warpgroups · 4 warps, each with its own ring; a stage holds tile_n
// rows of tile_k codes, their scales and zeros, and tile_k activations of each of the M tokens.
constexpr int streaming_warps(const KernelConfig& c) { return 4 * c.consumer_warpgroups; }
/// CTAs per SM that the register cap leaves room for: the launch's own and as many of the next
/// one's, unless their sums, the warps or the scales of fine groups need the registers.
constexpr int streaming_resident_ctas(const KernelConfig& c) {
  const int sums = c.quant == Quant::column ? 768 : 1024;
  const bool narrow = c.tile_n * c.tile_m < sums && !(c.fine_groups && c.tile_m > 8);
  return c.consumer_warpgroups <= 2 && narrow ? 2 * c.ctas_per_sm : c.ctas_per_sm;
}
constexpr int streaming_threads(const KernelConfig& c) { return streaming_warps(c) * kWarpSize; }
/// Bytes from one token's activations to the next: where there are several, 16 more than the row,
/// so that the eight rows that ldmatrix reads at a time lie in different banks.
constexpr int streaming_x_pitch_bytes(const KernelConfig& c, int m) {
  return c.tile_k * 2 + (m > 1 ? 16 : 0);
}
/// Groups that a chunk may touch; chunks start at k-blocks, which no group of 16, 32 or 64
/// straddles.
constexpr int streaming_groups_per_stage(const KernelConfig& c) {
  return c.fine_groups ? c.tile_k / 16 : c.tile_k / 64;
}
/// Scales of a stage, or its zeros.
constexpr int streaming_scale_bytes(const KernelConfig& c) {
  if (c.quant == Quant::column) return 0;
  return align_up(streaming_groups_per_stage(c) * c.tile_n * 2, 128);
}
constexpr int streaming_x_bytes(const KernelConfig& c, int m) {
  if (c.arch == 80) return m * c.tile_k * 2;  // [k-block][token][64], swizzled, without padding
  return align_up(m * streaming_x_pitch_bytes(c, m), 128);
}
constexpr int streaming_stage_bytes(const KernelConfig& c, int m) {
  return align_up(streaming_x_bytes(c, m) + w_stage_bytes(c) +
                      streaming_scale_bytes(c) * (c.quant == Quant::group_zero ? 2 : 1),
                  128);
}
/// Groups in the TMA box of a chunk's scales. A chunk may start in the middle of a group.
constexpr int streaming_box_groups(const KernelConfig& c, int group_size) {
  if (c.quant == Quant::column) return 0;
  if (group_size == 0) return 1;
  const int whole = (c.tile_k + group_size - 1) / group_size;
  return group_size <= 64 ? whole : whole + 1 < c.tile_k / 64 ? whole + 1 : c.tile_k / 64;
}
/// fp32 sums of a pass, [warp][token][row]: four more from token to token, so that the sums that a
/// warp writes together lie in different banks.
constexpr int streaming_exchange_pitch(const KernelConfig& c) { return c.tile_n + 4; }
constexpr int streaming_exchange_bytes(const KernelConfig& c, int m) {
  return streaming_warps(c) * m * streaming_exchange_pitch(c) * 4;
}
/// Rings, exchange area, barriers. Every byte counts: two launches must fit into an SM.
constexpr int streaming_smem_bytes(const KernelConfig& c, int stages, int m) {
  return streaming_warps(c) * stages * (streaming_stage_bytes(c, m) + 8) +
         streaming_exchange_bytes(c, m);
}

// Registers. The compiler caps every thread at launch_registers (from __launch_bounds__); producers
// then give theirs up to kProducerRegisters and consumers share what that frees: setmaxnreg.inc
// waits for registers that exist, so a consumer budget above this formula would hang the kernel.
inline constexpr int kProducerRegisters = 32;
constexpr int launch_registers(const KernelConfig& c) {
  return 65536 / c.ctas_per_sm / num_threads(c) / 8 * 8;
}
constexpr int consumer_registers(const KernelConfig& c) {
  return launch_registers(c) +
         (launch_registers(c) - kProducerRegisters) / c.consumer_warpgroups / 8 * 8;
}

/// The token counts that ptx/wgmma.cuh has an instruction for.
constexpr bool is_wgmma_tokens(int tokens) {
  for (const int known : {8, 16, 24, 32, 48, 64, 96, 128, 192, 256}) {
    if (tokens == known) return true;
  }
  return false;
}

/// Whether the multistage kernel folds scales (folds_scales): 64 sums a thread leave registers.
constexpr bool multi_folds_scales(const KernelConfig& c) {
  return c.act == DataType::f16 && c.quant == Quant::group && !c.fine_groups &&
         multi_warp_rows(c) * multi_warp_tokens(c) / kWarpSize <= 64;
}

/// Whether a tiled kernel's dequantization takes one FMA a register (device/units.cuh). With many
/// sums a thread the time goes into MMAs, and registers run out; 128 of them are those of the tiles
/// for prefill, where power counts (docs/performance.md), while 96 are 2-11 % slower folded (H200).
constexpr bool folds_scales(const KernelConfig& c) {
  if (c.schedule == Schedule::multistage) return multi_folds_scales(c);
  if (c.schedule == Schedule::streaming || c.quant != Quant::group) return false;
  const int sums = rows_per_warpgroup(c) / kWarpgroupRows * c.tile_m / 2;
  if (c.fine_groups) return c.act == DataType::bf16 && sums <= 32 && c.ctas_per_sm == 1;
  if (c.act == DataType::bf16) return c.weight == WeightType::int4 || c.consumer_warpgroups != 3;
  if (c.weight == WeightType::int8) return sums <= 48;
  return sums <= 64 || sums == 128;
}

constexpr const char* why_illegal_multistage(const KernelConfig& c) {
  if (c.arch != 80) return "the multistage schedule needs arch 80";
  if (c.consumer_warpgroups < 1 || c.consumer_warpgroups > 2) {
    return "multistage: consumer_warpgroups must be 1 or 2";
  }
  if (c.tile_m != 16 && c.tile_m != 32 && c.tile_m != 64 && c.tile_m != 128) {
    return "multistage: tile_m must be 16, 32, 64 or 128";
  }
  if (c.tile_m < 16 * c.consumer_warpgroups) {
    return "multistage: tile_m must give each eight threads a token, 16 for each warpgroup";
  }
  if (c.tile_n < 64 || c.tile_n > 256 || c.tile_n % multi_warp_rows(c) != 0) {
    return "multistage: tile_n must give each warp 32 rows, or 64 where it has them, up to 256";
  }
  if (multi_warps_k(c) < 1 ||
      multi_warps_n(c) * multi_warps_m(c) * multi_warps_k(c) != 4 * c.consumer_warpgroups) {
    return "multistage: the warps must divide into rows x tokens x k";
  }
  if ((c.tile_k != 64 && c.tile_k != 128 && c.tile_k != 256) ||
      c.tile_k % (layout::kBlockK * multi_warps_k(c)) != 0) {
    return "multistage: tile_k must be 64, 128 or 256, a k-block for each warp that splits K";
  }
  if (c.quant != Quant::column && c.tile_n / 8 * groups_per_stage(c) > num_threads(c)) {
    return "multistage: a stage's scales must take no more than a 16-byte copy of each thread";
  }
  if (c.ctas_per_sm < 1 || c.ctas_per_sm > 2) return "ctas_per_sm must be 1 or 2";
  if (multi_sums_tokens(c) == 0) {
    return "multistage: two ring stages must hold the sums of 16 tokens of each warp";
  }
  if (max_stages(c) < 2) return "shared memory of SM86 must hold two ring stages";
  return nullptr;
}

/// Rules a compiled variant must keep. Returns nullptr, or the rule that is broken.
constexpr const char* why_illegal(const KernelConfig& c) {
  if (c.arch != 90 && c.arch != 80) return "arch must be 90 or 80";
  if (c.act == DataType::f32) return "activations must be f16 or bf16";
  if (c.fine_groups && c.quant == Quant::column) return "fine groups need group scales";
  if (c.schedule == Schedule::multistage) return why_illegal_multistage(c);
  if (c.schedule == Schedule::streaming) {
    if (c.tile_n % layout::kStripRows != 0 || c.tile_n < 16 || c.tile_n > 128) {
      return "streaming: tile_n must be a multiple of 16 up to 128";
    }
    if (c.tile_m % 8 != 0 || c.tile_m < 8 || c.tile_m > 32) {
      return "streaming: tile_m must be 8, 16, 24 or 32";
    }
    if (c.tile_k != 64 && (c.tile_k % 128 != 0 || c.tile_k < 128 || c.tile_k > 512)) {
      return "streaming: tile_k must be 64 or a multiple of 128 up to 512";
    }
    if (c.arch == 80 && streaming_groups_per_stage(c) > 16) {
      return "streaming: two lanes copy a group's scales, so a stage has at most 16 groups";
    }
    if (c.arch == 80 && streaming_smem_bytes(c, 2, c.tile_m) > kSmallMaxSharedBytes) {
      return "streaming: shared memory of SM86 must hold two ring stages";
    }
    return nullptr;
  }
  if (c.arch != 90) return "cooperative, pingpong and warp_mma schedules need arch 90";
  if (c.schedule == Schedule::warp_mma) {
    if (c.tile_m != 16 && c.tile_m != 32 && c.tile_m != 48 && c.tile_m != 64) {
      return "warp_mma: tile_m must be 16, 32, 48 or 64";
    }
  } else if (!is_wgmma_tokens(c.tile_m)) {
    return "tile_m must be 8, 16, 24, 32, 48, 64, 96, 128, 192 or 256 (sizes in ptx/wgmma.cuh)";
  }
  if (c.tile_k != 64 && c.tile_k != 128 && c.tile_k != 256) {
    return "tile_k must be 64, 128 or 256";
  }
  if (c.consumer_warpgroups < 1 || c.consumer_warpgroups > 4) {
    return "consumer_warpgroups must be 1 to 4";
  }
  if (launch_registers(c) <= kProducerRegisters || consumer_registers(c) > 240) {
    return "registers: consumer_warpgroups x ctas_per_sm must leave 48 to 240 a thread";
  }
  if (c.k_teams != 1) {
    if (c.schedule != Schedule::cooperative) return "k_teams needs the cooperative schedule";
    if (c.k_teams != 2 || c.consumer_warpgroups % 2 != 0) {
      return "k_teams must be 1, or 2 with two or four consumer warpgroups";
    }
    if (c.tile_k / layout::kBlockK % c.k_teams != 0) {
      return "k_teams: tile_k must give each team as many k-blocks";
    }
    if (c.tile_m % 16 != 0 || team_tokens(c) < 8) return "k_teams: tile_m must be 16 or more";
  }
  if (c.schedule == Schedule::pingpong && c.consumer_warpgroups != 2) {
    return "pingpong needs two consumer warpgroups";
  }
  if (c.tile_n % kWarpgroupRows != 0 || rows_per_warpgroup(c) % kWarpgroupRows != 0) {
    return "tile_n must give each consumer warpgroup a multiple of 64 rows";
  }
  if (rows_per_warpgroup(c) / kWarpgroupRows * c.tile_m > 256) {
    return "accumulators: rows per warpgroup / 64 x tile_m must not exceed 256";
  }
  if (c.ctas_per_sm < 1 || c.ctas_per_sm > 2) return "ctas_per_sm must be 1 or 2";
  if (max_stages(c) < 2) return "shared memory must hold two ring stages";
  return nullptr;
}
constexpr bool is_legal(const KernelConfig& c) { return why_illegal(c) == nullptr; }

/// Rules a launch must keep on top. `x_by_tma` is false where X's address or leading dimension
/// isn't a multiple of 16 bytes.
constexpr const char* why_illegal(const KernelConfig& c, const LaunchConfig& l, bool x_by_tma) {
  if (l.cluster_n < 1 || l.cluster_m < 1 || l.cluster_k < 1)
    return "cluster sizes must be positive";
  if (c.arch == 80 && l.cluster_size() > 1) return "clusters need arch 90";
  if (l.cluster_size() > 8) return "a cluster has at most 8 CTAs";
  if (c.tile_m % (8 * l.cluster_n) != 0) return "tile_m must be a multiple of 8 x cluster_n";
  if (c.tile_n / layout::kStripRows % l.cluster_m != 0) {
    return "the strips of a tile must divide by cluster_m";
  }
  if (l.cluster_n > 1 && !x_by_tma) return "cluster_n > 1 needs X loaded by TMA";
  if (l.cluster_k > 1 && c.schedule == Schedule::pingpong) {
    return "pingpong: cluster_k must be 1";
  }
  if (l.cluster_k > 1 && (l.split_k > 1 || l.stream_k)) {
    return "K is split either inside clusters or through the workspace, not both";
  }
  if (l.split_k < 1) return "split_k must be positive";
  if (l.split_k > 1 && l.stream_k) return "split_k and stream_k exclude each other";
  if (l.one_pass) return "one_pass needs the streaming schedule";
  if (l.stages < 2 || l.stages > kMaxStages) return "stages must be 2 to 16";
  if (ring_smem_bytes(c, l) > kMaxSharedBytes) return "shared memory exceeds 227 KB";
  if (l.raster_m < 1) return "raster_m must be positive";
  return nullptr;
}

/// Division by a number that the host knows: a division of the GPU takes 30 instructions, and
/// several of them would stand before the first copy.
struct Divisor {
  std::uint32_t multiplier, shift;
};
/// `by` from 1 to 2^31 - 1. With L = ceil(log2 by) and m = ceil(2^(31+L) / by), n / by is
/// n m / 2^(31+L) rounded down for every n below 2^31: m by - 2^(31+L) < by <= 2^L (T. Granlund and
/// P. Montgomery, "Division by invariant integers using multiplication", 1994).
constexpr Divisor divisor(std::int64_t by) {
  std::uint32_t log = 0;
  while ((std::int64_t{1} << log) < by) ++log;
  const std::uint64_t power = std::uint64_t{1} << (31 + log);
  const auto b = static_cast<std::uint64_t>(by);
  return {static_cast<std::uint32_t>((power + b - 1) / b), log};
}
constexpr int divide(int n, Divisor d) {
  const std::uint64_t product = std::uint64_t{2 * static_cast<std::uint32_t>(n)} * d.multiplier;
  return static_cast<int>(static_cast<std::uint32_t>(product >> 32) >> d.shift);
}

/// A CUtensorMap, without the driver's header.
struct alignas(64) TensorMap {
  std::uint64_t opaque[16];
};

/// L2 eviction policies, as createpolicy.fractional encodes them for all of an access.
inline constexpr std::uint64_t kEvictNormal = 0x1000000000000000ull;
inline constexpr std::uint64_t kEvictFirst =
    0x12f0000000000000ull;  ///< read once: weights, one token tile
inline constexpr std::uint64_t kEvictLast =
    0x14f0000000000000ull;  ///< read by every CTA: a small X

// The grid: (cluster_n, cluster_m, clusters · cluster_k), launched in clusters of (cluster_n,
// cluster_m, cluster_k), so that every kernel reads its place from special registers.

/// Everything a kernel is given. One POD for every kernel; a field that a kernel doesn't use is 0.
struct Params {
  // Two lines of the constant cache (device/params.cuh). The first has all that stands before the
  // first copies of most launches, and follows what the driver has put there.
  int stages;
  int k_tiles;  ///< ring stages along K
  int cluster_n, cluster_m, cluster_k;
  int cluster_tiles_n, cluster_tiles_m;  ///< tiles of cluster_n × cluster_m CTA tiles, rounded up
  int stream_tiles;     ///< how many of the cluster tiles are split along K (the last ones)
  int scale_box_bytes;  ///< bytes of scales that one stage receives
  int group_shift;      ///< log2(group size); 30 = per column
  Divisor by_cluster_k;
  std::uint64_t codes_policy;  ///< L2 policy of codes, scales and zeros (kEvict…)
  std::uint64_t x_policy;      ///< L2 policy of activations

  bool x_by_tma;
  bool pdl;
  int clusters;                        ///< in the grid
  int x_box_tokens, codes_box_strips;  ///< what a CTA loads of a stage's X and codes
  int scale_box_groups;                ///< groups of a stage
  int ring_bytes;  ///< tiled: of all stages, or of a cluster's exchange where that is more
  int exchange_stage, exchange_stages;  ///< cluster_k: the stages whose place the exchange takes
  int stream_length, stream_longer;     ///< stream_tiles · k_tiles ÷ clusters: quotient, rest
  Divisor by_k_tiles;
  int raster_m;

  TensorMap x_map;       ///< X [M, K], 16-bit, 128-byte swizzle, box 64 k × (tile_m / cluster_n)
  TensorMap codes_map;   ///< codes as u32 [strips][words], box w_box_words × (strips / cluster_m)
  TensorMap scales_map;  ///< scales [strips][G·16], box (groups per stage · 16) × strips
  TensorMap zeros_map;   ///< zeros, like scales

  Divisor by_band, by_band_height, by_last_height;  ///< tiles of a band; its height; of the last

  const void* x;
  const std::uint8_t* codes;
  const std::uint16_t* scales;
  const std::uint16_t* zeros;
  void* y;
  const void* bias;
  const void* residual;
  void* workspace;
  std::uint64_t flag_tag;  ///< differs from launch to launch; marks a partial sum as written

  std::int64_t ldx, ldy, ldr;      // elements
  std::int64_t codes_pitch_bytes;  // from strip to strip
  std::int64_t groups_pitch;       // groups from strip to strip

  Divisor by_stream_length, by_longer_length;      ///< stream_length, stream_length + 1
  int strips_per_cluster, clusters_with_one_more;  ///< streaming: strips ÷ clusters, and the rest
  int pairs_per_warp, warps_with_one_more;  ///< pairs of k-blocks ÷ (warps · cluster_k), the rest
  int m, n, k;

  float alpha;
  float relu_floor;   ///< 0 for relu, else −infinity: y = max(y, relu_floor)
  float gate_linear;  ///< y · sigmoid(y · (gate_linear + gate_cubic · y²)): silu 1, 0;
  float gate_cubic;   ///<   gelu (tanh form) 2√(2/π), 2√(2/π) · 0.044715
  bool gated;         ///< silu or gelu
  bool y_vectors;     ///< Y rows take aligned 16-byte stores
  bool r_vectors;     ///< residual rows take aligned 16-byte loads
  bool zeros_scaled;  ///< gz: the zeros are already multiplied by the scale
};

}  // namespace mixgemm
