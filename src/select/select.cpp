// SPDX-License-Identifier: Apache-2.0
#include "select/select.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "launch/geometry.hpp"

namespace mixgemm::select {
namespace {

// Rates of the physics (docs/architecture.md, "What the hardware allows"), moved within what is
// plausible to where the model's picks are fastest. Tiled kernels: timings of every configuration
// of 55 problems with M = 4 .. 128 on an H200 and of eight with M = 200 .. 3000 on an H100, f16 x
// int4 g128; the others': 7,900 timings of 440 problems on H100s and an H200. Clocks are the SM's.
constexpr double kMulticastBytesPerClk = 110;  // delivered to an SM where a cluster shares a read
constexpr double kMulticastFactor = 1.03;      // a pair of CTAs that multicast runs in lockstep
// The same where power decides, from so much work on: it draws less than two that read X each (1 to
// 3 % faster on H100s and H200s; docs/performance.md).
constexpr double kPowerBoundUs = 160, kPowerBoundMulticastFactor = 0.985;
constexpr double kOutOfStepFactor = 1.91;      // stream_k: CTAs at different k share no reads
constexpr double kStreamSumClks = 681;         // stream_k: ranges end at different times
constexpr double kStepLatencyClks = 50.2;      // least of a k16 step, with two fragments at a time
constexpr double kExchangeBytesPerClk = 95.5;  // fp32 sums through distributed shared memory
constexpr double kClusterSumClks = 1491;       // sums leave, arrive, are added
constexpr double kFilledFixedUs = 0.81;  // as shared_fixed_us, and each SM has one CTA of either

/// What token tiles cost on Hopper and below. Bytes and clocks of an SM.
struct Rates {
  double l2_bytes_per_clk;       ///< where CTAs in step share reads
  double stage_latency_clks;     ///< from issuing a copy to its bytes, under load
  double stage_clks;             ///< barrier and pointer work per ring stage
  double store_bytes_per_clk;    ///< output tiles
  double partial_bytes_per_clk;  ///< fp32 partial tiles through L2
  double epilogue_clks;          ///< barriers and latency of an epilogue
  double workspace_sum_clks;     ///< flag written, seen, and the partial read back
  double hbm_inefficiency;       ///< next to a kernel that only reads
  double fixed_us;               ///< launch, prologue, tensor-map fetch, first bytes
  double shared_fixed_us;        ///< where the next launch's CTAs fit beside this one's
};
constexpr Rates kHopper = {.l2_bytes_per_clk = 101,
                           .stage_latency_clks = 1425,
                           .stage_clks = 75,
                           .store_bytes_per_clk = 150,
                           .partial_bytes_per_clk = 46.8,
                           .epilogue_clks = 695,
                           .workspace_sum_clks = 1649,
                           .hbm_inefficiency = 1.03,
                           .fixed_us = 0.885,
                           .shared_fixed_us = 1.02};
constexpr Rates kAmpere = {.l2_bytes_per_clk = 70,
                           .stage_latency_clks = 1122,
                           .stage_clks = 80.7,
                           .store_bytes_per_clk = 100,
                           .partial_bytes_per_clk = 48.3,
                           .epilogue_clks = 786,
                           .workspace_sum_clks = 1783,
                           .hbm_inefficiency = 1.03,
                           .fixed_us = 1.1,
                           .shared_fixed_us = 1.5};

// The streaming kernel. A warp waits for its data and for its own chain of MMAs far more than for
// issue slots, so what counts is how long a warp takes for its share, in clocks.
constexpr double kStreamingFixedUs = 1.89;  // wait for the launch before, first X, last store
constexpr double kStreamingAloneUs =
    0.181;  // more, where two launches don't fit on an SM: the fill
constexpr double kStreamingInefficiency = 0.998;  // of the stream, next to a kernel that only reads
constexpr double kStreamingChunkClks = 639;       // a chunk: wait, refill
constexpr double kStreamingLatencyClks = 1088;    // from refilling a stage to its bytes, under load
constexpr double kStreamingBlockClks = 97.9;      // a k-block of a pass: its longest chain of MMAs
constexpr double kStreamingStripClks = 45.3;      // what each strip of the pass adds to that
constexpr double kStreamingTokenFactor =
    2.11;                                 // what a second tile of tokens adds to the two above
constexpr double kStreamingXClks = 30.6;  // what copying X of 8 tokens adds to a k-block
constexpr double kStreamingL2BytesPerClk = 39.8;  // codes and activations, per SM
constexpr double kStreamingPassClks = 802;        // exchange of a pass's sums between warps
constexpr double kStreamingClusterClks = 3237;    // the same between CTAs
constexpr double kStreamingSharedFactor = 0.183;  // clocks of a CTA's share that a second CTA adds
constexpr double kStreamingOverlap = 0.209;       // of the lesser of stream and math, not hidden

// The tensor core and the dequantizer of one SM. One step = 64 weight rows × 16 k of one warpgroup;
// its MMA takes tile_m/2 clocks.
constexpr double kMmaEfficiency = 0.99;
/// Clocks from a step's codes to its fragments for one warpgroup: hidden only by other warpgroups.
constexpr double kDequantLatencyClks = 74;
/// Clocks of issue slots that a step takes.
constexpr double kDequantIssueClks = 49.1;
/// The share of dequantization that the MMAs don't hide.
constexpr double kDequantExposed = 0.271;

/// Relative cost of dequantization: measured for f16 and bf16 int4, counted in instructions for the
/// others.
double dequant_weight(const KernelConfig& c) {
  const bool folded = is_tiled(c) && folds_scales(c);  // one FMA a register, of either type
  const bool slow = c.act == DataType::bf16 && !folded;
  double weight = slow ? 1.25 : 1.0;
  if (c.weight == WeightType::int8) weight *= slow ? 1.3 : 1.1;
  if (c.quant == Quant::column) weight *= 0.9;
  if (c.quant == Quant::group_zero) weight *= 1.1;
  if (c.fine_groups) weight *= 1.15;
  if (is_tiled(c) && !folded && (slow || c.quant != Quant::group || c.fine_groups)) weight *= 1.15;
  return weight;
}

/// Clocks of an m16n8k16 in one of an SM's four tensor cores, fp32 sums. Hopper's mma.sync reaches
/// about 62 % of its wgmma; SM86 and SM89 sum in fp32 at half the rate of SM80.
double mma_sync_clks(int device_arch) {
  return device_arch >= 90 ? 6.5 : device_arch == 80 ? 8 : 16;
}

/// Instructions in which the multistage kernel makes a k16 step of a strip's words its fragment.
double fragment_instructions(const KernelConfig& c) {
  const bool f16 = c.act == DataType::f16;
  const double codes = c.weight == WeightType::int4 ? (f16 ? 9 : 11) : (f16 ? 8 : 20);
  const double scales = c.quant == Quant::column || folds_scales(c) ? 0 : 4;
  double constants = 0;  // of a group
  if (c.quant == Quant::group) constants = 6;
  if (c.quant == Quant::group_zero) constants = 24;
  return codes + scales + constants / (c.fine_groups ? 1 : 4);
}

// The multistage kernel, fitted to its times on an H100.
constexpr double kMultiTensorFactor = 1.08;  // of the tensor cores' clocks
constexpr double kMultiBound = 0.954;  // what counts of the larger of the two, and of the other
constexpr double kMultiOther = 0.217;
constexpr double kMultiStageClks = 60;  // a stage's barrier, where one CTA has the SM
constexpr double kMultiStepClks =
    68.5;  // latency of a k16 step that warps don't hide from each other
constexpr double kMultiCrowdFactor = 1.25;   // what two CTAs make of it
constexpr double kMultiReduceFactor = 2.17;  // of the clocks that sums over k ranges take on Hopper
constexpr double kMultiCrowdReduceFactor = 1.43;  // what two CTAs make of it

/// Clocks in which every warp of `ctas` CTAs on an SM advances by one ring stage of the multistage
/// kernel: of the tensor cores and of issue slots, counted in the machine code.
double multistage_clks_per_stage(const KernelConfig& c, int ctas, int device_arch) {
  const double strips = multi_warp_rows(c) / 16.0, pairs = multi_warp_tokens(c) / 16.0;
  const double steps = c.tile_k / 16.0 / multi_warps_k(c);
  const double warps = 4.0 * c.consumer_warpgroups * ctas / 4;  // of a scheduler
  const double mma = 2 * strips * pairs;
  const double issue = steps * (mma + pairs + strips * fragment_instructions(c)) * warps;
  const double tensor = steps * mma * mma_sync_clks(device_arch) * warps * kMultiTensorFactor;
  return kMultiBound * std::max(tensor, issue) + kMultiOther * std::min(tensor, issue) +
         kMultiStageClks / ctas + kMultiStepClks * steps * (ctas == 2 ? kMultiCrowdFactor : 1);
}

/// What waiting adds to the clocks of warp_mma_clks_per_stage.
constexpr double kWarpMmaFactor = 1.24;

/// The same of Hopper's kernels that multiply by warps. Two CTAs, or two stages' worth of k in one,
/// hide what a warp waits for.
double warp_mma_clks_per_stage(const KernelConfig& c, int ctas, int device_arch) {
  const double strips = rows_per_warpgroup(c) / 64.0, pairs = c.tile_m / 16.0;
  const double steps = c.tile_k / 16.0,
               warps = 1.0 * c.consumer_warpgroups * ctas;  // of a scheduler
  const double mma = 2 * strips * pairs;
  const double issue = steps * (mma + pairs + 15 * strips * dequant_weight(c)) + 40;
  return std::max(steps * mma * mma_sync_clks(device_arch), issue) * warps * kWarpMmaFactor;
}

/// Clocks in which every warpgroup of `ctas` CTAs on an SM advances by one ring stage.
double math_clks_per_stage(const KernelConfig& c, int ctas, int device_arch) {
  if (c.schedule == Schedule::multistage) return multistage_clks_per_stage(c, ctas, device_arch);
  if (c.schedule == Schedule::warp_mma) return warp_mma_clks_per_stage(c, ctas, device_arch);
  const int warpgroups = c.consumer_warpgroups * ctas;
  const double mma = c.tile_m / 2.0 / kMmaEfficiency * warpgroups;
  const double dequant = std::max(kDequantLatencyClks, kDequantIssueClks * warpgroups);
  const double steps = rows_per_warpgroup(c) / 64.0 * (c.tile_k / 16.0) / c.k_teams;
  const double shared = mma + kDequantExposed * dequant * dequant_weight(c);
  // A warpgroup by itself: few registers leave it two fragments, so that each product waits for the
  // one before the last. A team of one has nobody to hide that.
  const bool waits = consumer_registers(c) < 150 || c.k_teams > 1;
  const double alone = waits ? kStepLatencyClks : 0;
  return std::max(shared, alone) * steps;
}

/// What of a kernel's cost doesn't depend on launch or problem.
struct KernelCost {
  double math_clks[2] = {0, 0};  ///< per stage, with one CTA on the SM and with two
  double x_bytes = 0;            ///< of a stage
  double w_bytes = 0;            ///< of a stage, scales and zeros included
  double tile_bytes = 0;         ///< of Y
  int tiles_at_once = 1;         ///< tiles that a CTA works on
};

KernelCost kernel_cost(const KernelConfig& c, const Problem& problem, int device_arch) {
  KernelCost cost;
  if (!is_tiled(c)) return cost;
  cost.math_clks[0] = math_clks_per_stage(c, 1, device_arch);
  cost.math_clks[1] =
      c.ctas_per_sm == 2 ? math_clks_per_stage(c, 2, device_arch) : cost.math_clks[0];
  cost.x_bytes = x_stage_bytes(c);
  const int group = problem.weight.group_size;
  const double values = problem.weight.zero == ZeroKind::none ? 1 : 2;
  const double groups = group == 0 ? 0 : static_cast<double>(c.tile_k) / group;
  cost.w_bytes = w_stage_bytes(c) + groups * c.tile_n * 2 * values;
  cost.tile_bytes = 2.0 * c.tile_n * c.tile_m;
  cost.tiles_at_once = c.schedule == Schedule::pingpong ? c.consumer_warpgroups : 1;
  return cost;
}

/// Bytes that cross HBM: the weight once per raster band unless L2 keeps it, X and Y once.
double hbm_bytes(const KernelConfig& c, const LaunchConfig& l, const Problem& p,
                 std::int64_t tiles_m) {
  const int group = p.weight.group_size;
  const double values = p.weight.zero == ZeroKind::none ? 2 : 4;
  const double n = static_cast<double>(p.n), k = static_cast<double>(p.k);
  const double w = n * (k * bits_of(c.weight) / 8 + (group == 0 ? 1 : k / group) * values);
  const double xy = 2.0 * static_cast<double>(p.m) * (n + k);
  const double bands = std::ceil(static_cast<double>(tiles_m) / l.raster_m);
  return w * bands + xy;
}

/// The streaming kernel: its bytes through HBM and L2, and how long its warps take for their share.
Estimate evaluate_streaming(const KernelConfig& c, const LaunchConfig& l, const Problem& p,
                            const DeviceFacts& device) {
  const double clk_us = 1.0 / device.clock_mhz;
  const int resident = std::max(1, device.resident(c.ctas_per_sm, l.cluster_k));
  const launch::Geometry g = launch::geometry(c, l, p.m, p.n, p.k, resident);
  const double m = static_cast<double>(p.m), k = static_cast<double>(p.k);

  // CTAs that fit on an SM, of this launch and the next, and CTAs that an SM works off.
  const int fit =
      std::max(1, std::min(streaming_resident_ctas(c),
                           device.shared.per_sm / (g.smem_bytes + kReservedSharedBytes)));
  const double per_sm =
      std::max(1.0, static_cast<double>(g.grid_ctas) / static_cast<double>(device.num_sms));

  // The cluster with the most strips, and its passes.
  const double strips =
      std::ceil(static_cast<double>(g.cluster_tiles) / static_cast<double>(g.clusters));
  const double passes = std::ceil(strips / (c.tile_n / 16.0));
  const int group = p.weight.group_size;
  const double values = p.weight.zero == ZeroKind::none ? 2 : 4;
  const double strip_bytes =
      16 * (k * bits_of(c.weight) / 8 + (group == 0 ? 1 : k / group) * values);
  const double cta_bytes = (strips * strip_bytes + passes * m * k * 2) / l.cluster_k;

  // Clocks that one CTA takes, had it the SM for itself. A warp also multiplies the strips that a
  // short pass lacks.
  const double blocks = 2 * std::ceil(std::ceil(k / 128) / (streaming_warps(c) * l.cluster_k));
  const double chunks = std::ceil(blocks * 64 / c.tile_k);
  const double second_tile = 1 + kStreamingTokenFactor * (c.tile_m / 8 - 1);
  const double crowd = streaming_warps(c) > 8 ? 1 + kStreamingSharedFactor : 1;
  const double block_clks = (kStreamingBlockClks + kStreamingStripClks * (c.tile_n / 16.0)) *
                            dequant_weight(c) * second_tile * crowd;
  // A stage comes back from memory while the others are multiplied.
  const double work_clks = chunks * kStreamingChunkClks + blocks * block_clks;
  const double wait_clks = chunks * kStreamingLatencyClks / (l.stages - 1);
  const double x_clks = blocks * kStreamingXClks * m / 8;
  const double cta_clks =
      passes * (std::max(work_clks, wait_clks) + x_clks + kStreamingPassClks + 4 * m);
  // CTAs beyond the places of a device make another wave.
  const double waves =
      l.one_pass || fit == 1 ? std::ceil(per_sm / fit) : std::max(1.0, per_sm / fit);
  const double clks = waves * (per_sm > 1 && fit > 1 ? 1 + kStreamingSharedFactor : 1) * cta_clks;

  Estimate e;
  // Without PDL, or where a launch takes all places, the next one's first bytes don't overlap it.
  const double taken = static_cast<double>(g.grid_ctas) / static_cast<double>(device.num_sms);
  const double early = taken <= fit ? std::min((fit - taken) / taken, 1.0) : l.one_pass ? 0.5 : 0;
  const double alone = c.arch == 80 ? 1 : 1 - early;
  e.fixed_us = kStreamingFixedUs + alone * kStreamingAloneUs;
  // An SM that works on more CTAs than the others takes more of the bandwidth, up to what L2 gives.
  const double total_bytes = static_cast<double>(g.cluster_tiles) * strip_bytes;
  e.stream_us = total_bytes / device.dram_bytes_per_us * kStreamingInefficiency;
  // What the ring holds came before; the rest of the busiest SM's comes at the pace of one SM.
  const double ring_bytes = static_cast<double>(g.smem_bytes);
  const double most = l.one_pass && per_sm <= fit ? std::ceil(per_sm) : per_sm;
  const double l2 = (cta_bytes * per_sm + (most - per_sm) * std::max(0.0, cta_bytes - ring_bytes)) /
                    kStreamingL2BytesPerClk;
  e.loop_us = std::max(l2, clks) * clk_us;
  e.bound = e.stream_us > e.loop_us ? "HBM" : clks > l2 ? "math" : "L2";
  e.output_us = 0;
  e.reduce_us = l.cluster_k > 1 ? passes * kStreamingClusterClks * clk_us : 0;
  e.total_us = e.fixed_us + std::max(e.loop_us, e.stream_us) +
               kStreamingOverlap * std::min(e.loop_us, e.stream_us) + e.reduce_us;
  return e;
}

Estimate evaluate(const KernelConfig& c, const KernelCost& cost, const LaunchConfig& l,
                  const Problem& p, const DeviceFacts& device) {
  if (c.schedule == Schedule::streaming) return evaluate_streaming(c, l, p, device);
  const double clk_us = 1.0 / device.clock_mhz;
  const Rates& rates = c.arch == 80 ? kAmpere : kHopper;
  const int size = l.cluster_size();
  const bool alone = c.ctas_per_sm == 1 ||
                     2 * (ring_smem_bytes(c, l) + kReservedSharedBytes) > device.shared.per_sm;
  const int resident = std::max(1, device.resident(alone ? 1 : c.ctas_per_sm, size));
  const launch::Geometry g = launch::geometry(c, l, p.m, p.n, p.k, resident);

  // How full the device is: CTAs that share the busiest SM.
  const double ctas = static_cast<double>(
      std::min<std::int64_t>(g.grid_ctas, static_cast<std::int64_t>(resident) * size));
  // Clusters of three and more don't fill all SMs: further ones share those that have a CTA.
  const double one_each = static_cast<double>(
      std::min<std::int64_t>(device.num_sms, std::int64_t{device.resident(1, size)} * size));
  const int per_sm = ctas > one_each ? c.ctas_per_sm : 1;

  // One stage: the tensor core and dequantizer, L2, and the latency that the ring must cover.
  const double math = cost.math_clks[per_sm - 1];
  const double read = cost.x_bytes / l.cluster_n + cost.w_bytes / l.cluster_m;
  const double delivered = cost.x_bytes + cost.w_bytes;
  const double tiles_at_once = cost.tiles_at_once;
  // CTAs in step ask for the same stages at the same time, which then leave L2 once; those of cut
  // tiles, at different k, don't.
  const double cut = l.split_k == 1 && g.tiles_m > 1 ? static_cast<double>(g.stream_tiles) /
                                                           static_cast<double>(g.cluster_tiles)
                                                     : 0;
  const double l2 = std::max(read / rates.l2_bytes_per_clk * (1 + (kOutOfStepFactor - 1) * cut),
                             delivered / kMulticastBytesPerClk) *
                    per_sm * tiles_at_once;
  const double latency = rates.stage_latency_clks / l.stages * tiles_at_once;
  const double worst = std::max({math, l2, latency});
  double stage_clks = worst + 0.15 * (math + l2 + latency - worst) + rates.stage_clks;
  constexpr double kFlopsPerUs = 8e8;
  const double work_us = 2.0 * static_cast<double>(p.m) * static_cast<double>(p.n) *
                         static_cast<double>(p.k) / kFlopsPerUs;
  const bool shares_x = c.tile_m >= 256 && l.cluster_n == 2 && l.cluster_m == 1;
  const double lockstep =
      work_us > kPowerBoundUs && shares_x ? kPowerBoundMulticastFactor : kMulticastFactor;
  stage_clks *= 1 + (lockstep - 1) * std::log2(l.cluster_n * l.cluster_m);

  // Stages that the busiest CTA goes through, in units of `tiles_at_once` tiles.
  const double tiles = static_cast<double>(g.cluster_tiles);
  const double k_tiles = static_cast<double>(g.k_tiles);
  double stages = 0;     // main loop
  double epilogues = 0;  // per CTA
  double sum_clks = 0;
  const double partial_clks = cost.tile_bytes * 2 / rates.partial_bytes_per_clk *
                              (c.arch == 80 && per_sm == 2 ? kMultiCrowdReduceFactor : 1);
  const double exchange_clks = cost.tile_bytes * 2 / kExchangeBytesPerClk;
  if (l.cluster_k > 1) {
    const double waves = std::ceil(tiles / resident);
    stages = waves * std::ceil(k_tiles / l.cluster_k);
    epilogues = waves;
    sum_clks = waves * (kClusterSumClks + exchange_clks);
  } else if (l.split_k > 1) {
    const double waves = std::ceil(static_cast<double>(g.clusters) / resident);
    stages = waves * std::ceil(k_tiles / l.split_k);
    epilogues = waves;
    sum_clks = waves * (rates.workspace_sum_clks + partial_clks * l.split_k);
  } else if (g.stream_tiles > 0) {
    const double clusters = static_cast<double>(g.clusters);
    const double sharers = static_cast<double>(g.stream_clusters);
    stages = (tiles - static_cast<double>(g.stream_tiles)) / clusters * k_tiles +
             std::ceil(static_cast<double>(g.stream_tiles) * k_tiles / sharers);
    epilogues = std::ceil(tiles / clusters);
    const double pieces = 1 + std::ceil(sharers / static_cast<double>(g.stream_tiles));
    sum_clks =
        rates.workspace_sum_clks + (c.arch == 80 ? 0 : kStreamSumClks) + partial_clks * pieces;
  } else {
    const double waves = std::ceil(tiles / static_cast<double>(g.clusters));
    // A pingpong CTA with one tile leaves half its warpgroups idle; from two tiles on they overlap.
    stages = std::ceil(waves / tiles_at_once) * k_tiles;
    epilogues = std::ceil(waves / tiles_at_once);
  }
  stages += 1;  // fill

  Estimate e;
  const bool filled =
      launch::two_fit(c, l) && g.grid_ctas <= device.num_sms && g.grid_ctas + size > device.num_sms;
  e.fixed_us = alone ? rates.fixed_us : filled ? kFilledFixedUs : rates.shared_fixed_us;
  e.stream_us = hbm_bytes(c, l, p, g.tiles_m) / device.dram_bytes_per_us * rates.hbm_inefficiency;
  e.loop_us = stages * stage_clks * clk_us;
  e.output_us = epilogues *
                (rates.epilogue_clks + cost.tile_bytes / rates.store_bytes_per_clk * per_sm) *
                clk_us;
  e.reduce_us = sum_clks * clk_us * (c.arch == 80 ? kMultiReduceFactor : 1);
  e.bound = worst == math ? "math" : worst == l2 ? "L2" : "latency";
  if (e.stream_us > e.loop_us) e.bound = "HBM";
  const double body = std::max(e.loop_us, e.stream_us) + 0.1 * std::min(e.loop_us, e.stream_us);
  e.total_us = e.fixed_us + body + e.output_us + e.reduce_us;
  return e;
}

/// Token tiles in a raster band: the clusters at work at one time should cover weight and
/// activation bytes in equal parts, which makes their sum least.
int raster_band(const KernelConfig& c, const LaunchConfig& l, std::int64_t tiles_m,
                const DeviceFacts& device) {
  const int fallback = LaunchConfig{}.raster_m;
  if (tiles_m <= fallback) return fallback;  // one band anyway, or nearly
  const double at_work = static_cast<double>(device.resident(c.ctas_per_sm, l.cluster_size())) *
                         l.cluster_n * l.cluster_m;
  const double w_row = c.tile_n * bits_of(c.weight) / 8.0;
  const double x_row = c.tile_m * 2.0;
  const double best = std::sqrt(at_work * w_row / x_row);
  // Whole clusters, and few different values, so that plans of neighbouring M agree.
  for (const int band : {4, 8, 16}) {
    if (best <= band * 1.4 && band % l.cluster_m == 0) return band;
  }
  return 32;
}

/// Kernels whose token tile wastes most of its MMA while a narrower one exists aren't evaluated.
bool worth_considering(const KernelConfig& c, const Problem& p, int narrowest_fit) {
  if (why_unfit(c, p) != nullptr) return false;
  if (!is_tiled(c)) return true;
  if (c.tile_m > narrowest_fit && c.tile_m > 2 * std::max<std::int64_t>(p.m, 8)) return false;
  // Nor those that would read and dequantize each weight four times or more; SM80's wide tiles are
  // large, and few of them cost more to split than to dequantize for.
  const std::int64_t tokens = 4 * c.tile_m + (c.schedule == Schedule::multistage ? 1 : 0);
  return c.tile_m >= narrowest_fit || tokens > std::min<std::int64_t>(p.m, 256);
}

constexpr std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// Four stages, more where they are small. Deeper rings were 2 to 8 % slower on an H100: a ring
/// that takes all of shared memory leaves the next launch none, and the L1 cache little.
int ring_depth(const KernelConfig& c, int deepest) {
  constexpr int kRingBytes = 64 * 1024;
  const int stages = std::max(4, (kRingBytes + stage_bytes(c) - 1) / stage_bytes(c));
  return std::min({stages, deepest, kMaxStages});
}

LaunchConfig deeper(LaunchConfig l) {
  ++l.stages;
  return l;
}

template <class Visit>
void for_each_launch(const KernelConfig& c, const Problem& p, const DeviceFacts& device,
                     const Visit& visit) {
  const int deepest = deepest_ring(c, p.m, c.arch == 80 ? device.shared : shared_limits(c.arch));
  const std::int64_t tiles_n = (p.n + c.tile_n - 1) / c.tile_n;
  const std::int64_t tiles_m = (p.m + c.tile_m - 1) / c.tile_m;
  const std::int64_t k_tiles = (p.k + c.tile_k - 1) / c.tile_k;
  const bool likely_tma = p.k % 8 == 0;  // rows of X are rarely padded
  if (c.schedule == Schedule::streaming) {
    // Hopper: a deeper ring waits less, but leaves the next launch's weights no room. SM80, without
    // PDL: enough codes in flight for the latency of HBM, in two depths.
    int depths[3] = {2, 3, 4};
    if (c.arch == 80) {
      constexpr int kBytesInFlight = 40 * 1024;
      const int stage = streaming_warps(c) * w_stage_bytes(c);
      depths[1] = std::min(deepest, std::max(2, (kBytesInFlight + stage - 1) / stage));
      depths[0] = depths[2] = std::min(deepest, depths[1] + 2);  // first, for among equals it wins
    }
    int before = 0;
    for (const int stages : depths) {
      if (stages == before) continue;
      before = stages;
      for (const auto& [ways, one_pass] :
           {std::pair{1, false}, {1, true}, {2, false}, {2, true}, {4, false}}) {
        LaunchConfig l;
        l.cluster_k = ways;
        l.one_pass = one_pass;
        l.stages = stages;
        if (why_unfit(c, l, p, device, likely_tma) == nullptr) visit(l);
      }
    }
    return;
  }
  const auto offer = [&](LaunchConfig l) {
    l.stages = ring_depth(c, deepest);
    l.raster_m = raster_band(c, l, tiles_m, device);
    if (c.arch == 90 && c.ctas_per_sm == 2) {
      const std::int64_t ctas =
          round_up(tiles_n, l.cluster_n) * round_up(tiles_m, l.cluster_m) * l.cluster_k * l.split_k;
      if (ctas <= device.num_sms) {
        // A CTA for each SM, beside one of the launch before (4096x4096, M = 32: 6.1 us, 6.6
        // alone), or with a ring that takes all of its shared memory (4096x4096, M = 64: 7.7 us,
        // 8.2 with half of it); H200.
        LaunchConfig shared = l;
        while (shared.stages > 2 && !launch::two_fit(c, shared)) --shared.stages;
        while (shared.stages < deepest && launch::two_fit(c, deeper(shared))) ++shared.stages;
        if (launch::two_fit(c, shared) && 2 * ctas > device.num_sms && !l.stream_k &&
            why_unfit(c, shared, p, device, likely_tma) == nullptr) {
          visit(shared);
        }
        while (launch::two_fit(c, l)) ++l.stages;
      } else if (l.cluster_k > 1 && !launch::two_fit(c, l)) {
        return;  // the sums of a cluster may not leave room for the second CTA
      }
    }
    if (why_unfit(c, l, p, device, likely_tma) == nullptr) visit(l);
  };
  for (const int cluster_n : {1, 2, 4}) {
    for (const int cluster_m : {1, 2}) {
      if (cluster_n > tiles_n || cluster_m > tiles_m || cluster_n * cluster_m > 4) continue;
      LaunchConfig l;
      l.cluster_n = cluster_n;
      l.cluster_m = cluster_m;
      offer(l);
      if (p.batch_invariant) continue;
      const std::int64_t clusters =
          (tiles_n + cluster_n - 1) / cluster_n * ((tiles_m + cluster_m - 1) / cluster_m);
      const std::int64_t room = device.resident(c.ctas_per_sm, l.cluster_size());
      // Splitting K pays where tiles leave SMs idle.
      if (clusters % std::max<std::int64_t>(room, 1) != 0 && clusters < 8 * room) {
        LaunchConfig s = l;
        s.stream_k = true;
        if (k_tiles > 1) offer(s);
      }
      if (2 * clusters > room + room / 2) continue;
      for (const int ways : {2, 3, 4, 6, 8}) {
        if (ways > k_tiles) break;
        if (clusters * (ways - 1) > room) break;
        if (l.cluster_size() > 1 && ways % 2 != 0) continue;
        if (l.cluster_size() == 1 && ways <= 4) {
          LaunchConfig s = l;
          s.split_k = ways;
          offer(s);
        }
        if (c.schedule != Schedule::pingpong && l.cluster_size() * ways <= kMaxClusterSize) {
          LaunchConfig s = l;
          s.cluster_k = ways;
          offer(s);
        }
      }
    }
  }
}

std::size_t family_slot(const Family& f) {
  return ((static_cast<std::size_t>(f.act == DataType::bf16) * 2 +
           static_cast<std::size_t>(f.weight == WeightType::int8)) *
              3 +
          static_cast<std::size_t>(f.quant)) *
             2 +
         static_cast<std::size_t>(f.fine_groups);
}

const char* why_illegal_streaming(const KernelConfig& c, const LaunchConfig& l, const Problem& p) {
  if (l.cluster_n != 1 || l.cluster_m != 1) return "streaming: cluster_n and cluster_m must be 1";
  if (l.cluster_k < 1 || l.cluster_k > kMaxClusterSize) return "cluster_k must be 1 to 8";
  if (c.arch == 80 && l.cluster_k > 1) return "clusters need arch 90";
  if (l.split_k != 1 || l.stream_k) return "streaming: K is split by cluster_k only";
  if (l.stages < 2 || l.stages > kMaxStages) return "stages must be 2 to 16";
  if (launch::smem_bytes(c, l, p.m) > kMaxSharedBytes) return "shared memory exceeds 227 KB";
  return nullptr;
}

}  // namespace

int deepest_ring(const KernelConfig& c, std::int64_t m) {
  return deepest_ring(c, m, shared_limits(c.arch));
}

int deepest_ring(const KernelConfig& c, std::int64_t m, const SharedLimits& limits) {
  if (is_tiled(c)) return max_stages(c, limits);
  const int tokens = static_cast<int>(std::min<std::int64_t>(m, c.tile_m));
  const int stage = streaming_warps(c) * (streaming_stage_bytes(c, tokens) + 8);
  // Launches share an SM by PDL, which SM80 hasn't.
  for (const int grids : {c.arch == 80 ? 1 : streaming_resident_ctas(c) / c.ctas_per_sm, 1}) {
    const int rings = limits.share(grids * c.ctas_per_sm) - streaming_exchange_bytes(c, tokens);
    const int stages = rings / stage;
    if (stages >= 2) return std::min(stages, kMaxStages);
  }
  return 0;
}

bool is_tiled(const KernelConfig& c) { return c.schedule != Schedule::streaming; }

bool runs_on(int kernel_arch, int device_arch) {
  return kernel_arch == 80 ? device_arch >= 80 : device_arch == kernel_arch;
}

DeviceFacts h100_facts() {
  DeviceFacts facts;
  // GPCs differ, so clusters above two leave some SMs idle. An H100 held 30 clusters of four; four
  // GPCs of 18 SMs, two of 16 and two of 14 would, and the other sizes are counted from those.
  const int clusters[kMaxClusterSize + 1] = {0, 132, 66, 42, 30, 22, 20, 16, 14};
  for (std::size_t size = 1; size <= kMaxClusterSize; ++size) {
    facts.resident_clusters[0][size] = clusters[size];
    facts.resident_clusters[1][size] = 2 * clusters[size];
  }
  return facts;
}

Family family_of(const Problem& p) {
  Family f;
  f.act = p.act;
  f.weight = p.weight.type;
  f.quant = p.weight.zero != ZeroKind::none ? Quant::group_zero
            : p.weight.group_size == 0      ? Quant::column
                                            : Quant::group;
  f.fine_groups = p.weight.group_size == 16 || p.weight.group_size == 32;
  return f;
}

std::string describe(const Family& f) {
  const char* const quants[] = {"per-column scales", "group scales", "scales and zeros"};
  return fmt::format("{} x {}, {}{}", to_string(f.act), to_string(f.weight),
                     quants[static_cast<int>(f.quant)],
                     f.fine_groups ? ", groups of 16 or 32" : "");
}

KernelIndex::KernelIndex(std::span<const KernelEntry> registry) : registry_(registry) {
  for (const KernelEntry& entry : registry) {
    if (std::string_view(entry.epilogue) != "standard") continue;
    const KernelConfig& c = entry.config;
    Families& families = c.arch == 80 ? ampere_ : hopper_;
    families[family_slot({c.act, c.weight, c.quant, c.fine_groups})].push_back(&entry);
  }
}

std::span<const KernelEntry* const> KernelIndex::kernels(const Problem& problem,
                                                         int device_arch) const {
  const std::size_t family = family_slot(family_of(problem));
  if (device_arch == 90 && !hopper_[family].empty()) return hopper_[family];
  return ampere_[family];
}

const KernelEntry* KernelIndex::find(std::string_view kernel_id) const {
  const auto it = std::find_if(registry_.begin(), registry_.end(),
                               [&](const KernelEntry& e) { return kernel_id == e.id; });
  return it == registry_.end() ? nullptr : &*it;
}

const char* why_unfit(const KernelConfig& c, const Problem& p) {
  const Family f = family_of(p);
  if (c.schedule == Schedule::multistage && p.batch_invariant && multi_warps_k(c) > 1) {
    return "batch_invariant needs K in one piece: the warps of this tile split it";
  }
  // The multistage kernel settles its units for one group at a time.
  if (p.batch_invariant && folds_scales(c) && c.schedule != Schedule::multistage &&
      c.tile_k > p.weight.group_size) {
    return "batch_invariant needs ring stages within a group: those that share one unit of sums "
           "may round differently in another tile";
  }
  if (c.schedule == Schedule::warp_mma && p.batch_invariant) {
    return "batch_invariant needs one order of sums for all M: mma.sync adds in another than wgmma";
  }
  if (c.k_teams > 1 && p.batch_invariant) {
    return "batch_invariant needs one order of sums for all M: teams that share K add in another";
  }
  if (c.schedule == Schedule::streaming) {
    if (p.m > c.tile_m) return "streaming: M must not exceed tile_m";
    if (p.batch_invariant) {
      return "batch_invariant needs the tiled kernel: the streaming one, which serves small M "
             "only, "
             "rounds in other places";
    }
    if (deepest_ring(c, p.m) == 0) return "streaming: shared memory must hold two ring stages";
  }
  if (c.act != f.act) return "its activation type isn't the problem's";
  if (c.weight != f.weight) return "its weight type isn't the problem's";
  if (c.quant != f.quant) return "its quantization (c, g or gz) isn't the problem's";
  if (c.fine_groups != f.fine_groups) {
    return f.fine_groups ? "groups of 16 and 32 need a kernel for fine groups (fg, fgz)"
                         : "a kernel for fine groups serves groups of 16 and 32 only";
  }
  return nullptr;
}

const char* why_unfit(const KernelConfig& c, const LaunchConfig& l, const Problem& p,
                      const DeviceFacts& device, bool tma) {
  if (c.schedule == Schedule::streaming) {
    if (const char* rule = why_illegal_streaming(c, l, p)) return rule;
  } else if (const char* rule = why_illegal(c, l, tma)) {
    return rule;
  }
  if (launch::smem_bytes(c, l, p.m) > device.shared.per_cta) {
    return "shared memory exceeds what the device gives a CTA";
  }
  const std::int64_t k_tiles = (p.k + c.tile_k - 1) / c.tile_k;
  if (l.cluster_k > k_tiles) return "cluster_k must not exceed the k tiles, K / tile_k rounded up";
  if (l.split_k > k_tiles) return "split_k must not exceed the k tiles, K / tile_k rounded up";
  if (p.batch_invariant && (l.cluster_k > 1 || l.split_k > 1 || l.stream_k)) {
    return "batch_invariant needs K in one piece: cluster_k 1, split_k 1, no stream_k";
  }
  if (device.resident(c.ctas_per_sm, l.cluster_size()) == 0) {
    return "the device can't hold a cluster of that size";
  }
  return nullptr;
}

std::vector<LaunchConfig> launches(const KernelConfig& config, const Problem& problem,
                                   const DeviceFacts& device) {
  std::vector<LaunchConfig> result;
  for_each_launch(config, problem, device, [&](const LaunchConfig& l) { result.push_back(l); });
  return result;
}

Estimate estimate(const KernelConfig& config, const LaunchConfig& launch, const Problem& problem,
                  const DeviceFacts& device) {
  return evaluate(config, kernel_cost(config, problem, device.arch), launch, problem, device);
}

std::vector<Candidate> rank(const Problem& problem, std::span<const KernelEntry* const> kernels,
                            const DeviceFacts& device, std::size_t keep) {
  std::vector<Candidate> best;
  if (keep == 0) return best;
  best.reserve(keep + 1);
  int narrowest_fit =
      1 << 30;  // the narrowest token tile that holds all of M, or the widest of all
  int widest = 0;
  for (const KernelEntry* entry : kernels) {
    if (!is_tiled(entry->config) || why_unfit(entry->config, problem) != nullptr) continue;
    const int tile_m = entry->config.tile_m;
    widest = std::max(widest, tile_m);
    if (tile_m >= problem.m) narrowest_fit = std::min(narrowest_fit, tile_m);
  }
  narrowest_fit = std::min(narrowest_fit, widest);
  for (const KernelEntry* entry : kernels) {
    const KernelConfig& c = entry->config;
    if (!worth_considering(c, problem, narrowest_fit)) continue;
    const KernelCost cost = kernel_cost(c, problem, device.arch);
    for_each_launch(c, problem, device, [&](const LaunchConfig& l) {
      const Estimate e = evaluate(c, cost, l, problem, device);
      if (best.size() == keep && e.total_us >= best.back().estimate.total_us) return;
      const auto at = std::upper_bound(
          best.begin(), best.end(), e.total_us,
          [](double total, const Candidate& other) { return total < other.estimate.total_us; });
      best.insert(at, {entry, l, e});
      if (best.size() > keep) best.pop_back();
    });
  }
  return best;
}

bool holds_here(const KernelConfig& config, const LaunchConfig& launch, const Problem& problem,
                const DeviceFacts& device, const Candidate& first) {
  constexpr double kModelError = 0.10;
  const double here = estimate(config, launch, problem, device).total_us;
  return here <= (1 + kModelError) * first.estimate.total_us;
}

}  // namespace mixgemm::select
