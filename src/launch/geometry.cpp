// SPDX-License-Identifier: Apache-2.0
#include "launch/geometry.hpp"

#include <algorithm>
#include <limits>

#include "layout/packed.hpp"

namespace mixgemm::launch {
namespace {

constexpr std::int64_t kMaxIndex = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t kMaxGridZ = 65535;
constexpr int kFlagsPerCta = 4;  // one per consumer warpgroup
// Pieces of a tile that stream-K cuts: five of 128 x 256, up to 32 of small ones.
constexpr std::int64_t kMaxPartialBytes = 640 << 10;
constexpr std::int64_t kMinPieces = 4;
constexpr std::int64_t kMaxPieces = 32;
constexpr std::int64_t kSmallXBytes = 8 << 20;
constexpr int kMaxBoxElems = 256;
constexpr int kPerColumnShift = 30;      // k >> 30 is group 0 ...
constexpr std::int64_t kMaxK = 1 << 30;  // ... for every k that a launch accepts

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_div(a, b) * b; }

int log2_of(int power_of_two) {
  int shift = 0;
  while ((1 << shift) < power_of_two) ++shift;
  return shift;
}

bool aligned16(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0; }

/// A launch of which two CTAs fit on an SM, and that has fewer than there are SMs, gets CTAs
/// without work for the others: with PDL, two CTAs of the next launch would be placed on an SM that
/// it left free, at half the speed. As many CTAs as SMs, and each launch takes over the places of
/// the one before the last. Not where it leaves half of the SMs free: there is room for the next
/// one there.
std::int64_t clusters_to_fill_up(const KernelConfig& c, const LaunchConfig& l,
                                 std::int64_t clusters, std::int64_t resident) {
  const std::int64_t one_each = resident / 2;
  return two_fit(c, l) && 2 * clusters > one_each ? one_each : 0;
}

/// Stages that a CTA of a cluster that splits K gives up to the sums of its tile. The oldest ones
/// when the last stages are being multiplied, where those lie together: the CTA can then offer
/// their room long before it has sums itself.
void place_exchange(const KernelConfig& c, const LaunchConfig& l, Params& p) {
  const std::int64_t needed = ceil_div(exchange_bytes(c, l.cluster_k), stage_bytes(c));
  p.exchange_stages = static_cast<int>(std::min<std::int64_t>(needed, l.stages));
  const int oldest = static_cast<int>(ceil_div(p.k_tiles, l.cluster_k) % l.stages);
  p.exchange_stage = oldest + p.exchange_stages <= l.stages ? oldest : 0;
}

}  // namespace

bool two_fit(const KernelConfig& c, const LaunchConfig& l) {
  return c.arch == 90 && c.schedule != Schedule::streaming && c.ctas_per_sm == 2 &&
         2 * (tiled_smem_bytes(c, l) + kReservedSharedBytes) <= kSharedBytesPerSm;
}

bool Geometry::fits() const {
  return tiles_n <= kMaxIndex && tiles_m <= kMaxIndex && cluster_tiles <= kMaxIndex &&
         grid_z <= kMaxGridZ && stream_tiles * k_tiles <= kMaxIndex && k <= kMaxK;
}

std::int64_t flag_bytes(std::int64_t grid_ctas) {
  return round_up(grid_ctas * kFlagsPerCta * static_cast<std::int64_t>(sizeof(std::uint64_t)), 256);
}

std::int64_t smem_bytes(const KernelConfig& c, const LaunchConfig& l, std::int64_t m) {
  if (c.schedule != Schedule::streaming) return ring_smem_bytes(c, l);
  return streaming_smem_bytes(c, l.stages, static_cast<int>(std::min<std::int64_t>(m, c.tile_m)));
}

Geometry geometry(const KernelConfig& c, const LaunchConfig& l, std::int64_t m, std::int64_t n,
                  std::int64_t k, int resident_clusters) {
  Geometry g;
  g.smem_bytes = static_cast<int>(smem_bytes(c, l, m));
  if (c.schedule == Schedule::streaming) {
    g.tiles_n = g.cluster_tiles = layout::num_strips(n);
    g.tiles_m = 1;
    g.k = k;
    g.k_tiles = ceil_div(k, c.tile_k);
    g.clusters = l.one_pass
                     ? ceil_div(n, c.tile_n)
                     : std::min<std::int64_t>(std::max(1, resident_clusters), g.cluster_tiles);
    g.grid_ctas = g.clusters * l.cluster_size();
    g.grid_z = g.clusters * l.cluster_k;
    g.threads = streaming_threads(c);
    return g;
  }
  g.tiles_n = round_up(ceil_div(n, c.tile_n), l.cluster_n);
  g.tiles_m = round_up(ceil_div(m, c.tile_m), l.cluster_m);
  g.k = k;
  g.k_tiles = ceil_div(k, c.tile_k);
  g.cluster_tiles = g.tiles_n / l.cluster_n * (g.tiles_m / l.cluster_m);
  const std::int64_t resident = std::max(1, resident_clusters);
  if (l.cluster_k > 1) {
    g.clusters = g.cluster_tiles;
  } else if (l.split_k > 1) {
    g.stream_tiles = g.cluster_tiles;
    g.clusters = g.stream_clusters = g.cluster_tiles * l.split_k;
  } else if (l.stream_k) {
    // Only the last, partial wave: clusters at work on whole tiles run in step and share what they
    // read, those at different k don't.
    g.stream_tiles = g.cluster_tiles % resident;
    g.clusters = std::min(resident, g.cluster_tiles * g.k_tiles);
    // The cluster that finishes a tile reads the sums of all others: no more than are worth it.
    const std::int64_t pieces = std::clamp<std::int64_t>(
        kMaxPartialBytes / (4 * c.tile_n * c.tile_m), kMinPieces, kMaxPieces);
    g.stream_clusters = std::min(g.clusters, g.stream_tiles * std::min(pieces, g.k_tiles));
  } else {
    g.clusters = std::min(resident, g.cluster_tiles);
  }
  g.clusters = std::max(g.clusters, clusters_to_fill_up(c, l, g.clusters, resident));
  g.grid_ctas = g.clusters * l.cluster_size();
  g.grid_z = g.clusters * l.cluster_k;
  g.threads = num_threads(c);
  if (g.stream_tiles > 0) {
    g.workspace_bytes = flag_bytes(g.grid_ctas) + g.grid_ctas * c.tile_n * c.tile_m *
                                                      static_cast<std::int64_t>(sizeof(float));
  }
  return g;
}

bool x_by_tma(std::int64_t m, const void* x, std::int64_t ldx) {
  return aligned16(x) && (ldx % 8 == 0 || m == 1);
}

bool rows_take_vectors(std::int64_t m, std::int64_t n, const void* base, std::int64_t ld) {
  return aligned16(base) && n % 8 == 0 && (ld % 8 == 0 || m == 1);
}

TensorMapShape x_map(const KernelConfig& c, const LaunchConfig& l, const Problem& problem,
                     const void* x, std::int64_t ldx) {
  TensorMapShape map;
  map.address = reinterpret_cast<std::uintptr_t>(x);
  map.dims[0] = static_cast<std::uint64_t>(problem.k);
  map.dims[1] = static_cast<std::uint64_t>(problem.m);
  // One row may have any leading dimension: its pitch is never used, but must be a legal one.
  map.pitch_bytes = static_cast<std::uint64_t>(round_up(problem.m == 1 ? problem.k : ldx, 8)) * 2;
  map.box[0] = 64;
  map.box[1] = static_cast<std::uint32_t>(c.tile_m / l.cluster_n);
  map.element =
      c.act == DataType::bf16 ? TensorMapShape::Element::bf16 : TensorMapShape::Element::f16;
  map.swizzle_128b = 1;
  return map;
}

TensorMapShape codes_map(const KernelConfig& c, const LaunchConfig& l, const PackedView& weight) {
  const int cell_words = layout::cell_bytes(bits_of(c.weight)) / 4;
  TensorMapShape map;
  map.address = reinterpret_cast<std::uintptr_t>(weight.codes);
  map.dims[0] = static_cast<std::uint64_t>(layout::num_k_blocks(weight.k) * cell_words);
  map.dims[1] = static_cast<std::uint64_t>(layout::num_strips(weight.n));
  map.pitch_bytes = static_cast<std::uint64_t>(weight.codes_pitch_bytes);
  map.box[0] =
      static_cast<std::uint32_t>(std::min(kMaxBoxElems, c.tile_k / layout::kBlockK * cell_words));
  map.box[1] = static_cast<std::uint32_t>(c.tile_n / layout::kStripRows / l.cluster_m);
  map.element = TensorMapShape::Element::u32;
  return map;
}

int scale_box_groups(const KernelConfig& c, int group_size) {
  if (c.quant == Quant::column) return 0;
  if (c.schedule == Schedule::streaming) return streaming_box_groups(c, group_size);
  return group_size == 0 ? 1 : std::max(1, c.tile_k / group_size);
}

TensorMapShape groups_map(const KernelConfig& c, const PackedView& weight, const void* values) {
  TensorMapShape map;
  map.address = reinterpret_cast<std::uintptr_t>(values);
  map.dims[0] = static_cast<std::uint64_t>(weight.groups() * layout::kStripRows);
  map.dims[1] = static_cast<std::uint64_t>(layout::num_strips(weight.n));
  map.pitch_bytes = static_cast<std::uint64_t>(weight.groups_pitch * layout::kStripRows * 2);
  map.box[0] =
      static_cast<std::uint32_t>(scale_box_groups(c, weight.spec.group_size) * layout::kStripRows);
  map.box[1] = static_cast<std::uint32_t>(c.tile_n / layout::kStripRows);
  map.element = TensorMapShape::Element::u16;
  return map;
}

Params params_template(const KernelConfig& c, const LaunchConfig& l, const Problem& problem,
                       const Geometry& g) {
  Params p{};
  p.m = static_cast<int>(problem.m);
  p.n = static_cast<int>(problem.n);
  p.k = static_cast<int>(problem.k);
  p.cluster_tiles_n = static_cast<int>(g.tiles_n / l.cluster_n);
  p.cluster_tiles_m = static_cast<int>(g.tiles_m / l.cluster_m);
  p.k_tiles = static_cast<int>(g.k_tiles);
  p.stream_tiles = static_cast<int>(g.stream_tiles);
  const std::int64_t iterations = g.stream_tiles * g.k_tiles;
  if (g.stream_clusters > 0) {
    p.stream_length = static_cast<int>(iterations / g.stream_clusters);
    p.stream_longer = static_cast<int>(iterations % g.stream_clusters);
  }
  if (c.schedule == Schedule::streaming) {
    const std::int64_t strips = layout::num_strips(problem.n);
    p.strips_per_cluster = static_cast<int>(strips / g.clusters);
    p.clusters_with_one_more = static_cast<int>(strips % g.clusters);
    const std::int64_t pairs = ceil_div(layout::num_k_blocks(problem.k), 2);
    const int splits = streaming_warps(c) * l.cluster_k;
    p.pairs_per_warp = static_cast<int>(pairs / splits);
    p.warps_with_one_more = static_cast<int>(pairs % splits);
  }
  p.raster_m = l.raster_m;
  p.ring_bytes = c.schedule == Schedule::streaming || c.schedule == Schedule::multistage
                     ? 0
                     : tiled_ring_bytes(c, l.stages, l.cluster_k);
  if (l.cluster_k > 1) place_exchange(c, l, p);
  p.by_k_tiles = divisor(p.k_tiles);
  p.by_cluster_k = divisor(l.cluster_k);
  p.by_stream_length = divisor(std::max(1, p.stream_length));
  p.by_longer_length = divisor(p.stream_length + 1);
  p.by_band =
      divisor(std::min<std::int64_t>(std::int64_t{l.raster_m} * p.cluster_tiles_n, kMaxIndex));
  p.by_band_height = divisor(l.raster_m);
  p.by_last_height = divisor(std::max(1, p.cluster_tiles_m % l.raster_m));
  p.cluster_n = l.cluster_n;
  p.cluster_m = l.cluster_m;
  p.cluster_k = l.cluster_k;
  p.clusters = static_cast<int>(g.clusters);
  p.x_box_tokens = c.tile_m / l.cluster_n;
  p.codes_box_strips = c.tile_n / layout::kStripRows / l.cluster_m;
  p.stages = l.stages;
  const int group_size = problem.weight.group_size;
  p.group_shift = group_size == 0 ? kPerColumnShift : log2_of(group_size);
  p.scale_box_groups = scale_box_groups(c, group_size);
  p.scale_box_bytes = p.scale_box_groups * c.tile_n * 2;
  // One token tile reads each weight once: it should leave L2 first. X that fits a corner of L2 is
  // read by every column of tiles and should stay.
  p.codes_policy = g.tiles_m == 1 ? kEvictFirst : kEvictNormal;
  p.x_policy = 2 * problem.m * problem.k <= kSmallXBytes ? kEvictLast : kEvictNormal;
  p.alpha = 1.0f;
  const Activation activation = problem.epilogue.activation;
  p.relu_floor = activation == Activation::relu ? 0.0f : -std::numeric_limits<float>::infinity();
  p.gated = activation == Activation::silu || activation == Activation::gelu;
  if (activation == Activation::silu) p.gate_linear = 1.0f;
  if (activation == Activation::gelu) {
    constexpr double kTwoSqrtTwoOverPi = 1.5957691216057308;  // 2·√(2/π)
    p.gate_linear = static_cast<float>(kTwoSqrtTwoOverPi);
    p.gate_cubic = static_cast<float>(kTwoSqrtTwoOverPi * 0.044715);
  }
  p.zeros_scaled = problem.weight.zero == ZeroKind::scaled;
  return p;
}

}  // namespace mixgemm::launch
