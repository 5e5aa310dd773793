// SPDX-License-Identifier: Apache-2.0
#include "launch/geometry.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "fake_registry.hpp"
#include "layout/packed.hpp"
#include "select/select.hpp"

namespace mixgemm::launch {
namespace {

KernelConfig tile(int tile_n, int tile_m, int tile_k) {
  KernelConfig c;
  c.tile_n = tile_n;
  c.tile_m = tile_m;
  c.tile_k = tile_k;
  return c;
}

LaunchConfig cluster(int n, int m, int k = 1) {
  LaunchConfig l;
  l.cluster_n = n;
  l.cluster_m = m;
  l.cluster_k = k;
  return l;
}

TEST(Geometry, PersistentGridIsNeverLargerThanItsTilesOrTheDevice) {
  const auto few = geometry(tile(128, 64, 64), {}, 65, 1000, 200, 132);
  EXPECT_EQ(few.tiles_n, 8);
  EXPECT_EQ(few.tiles_m, 2);
  EXPECT_EQ(few.k_tiles, 4);
  EXPECT_EQ(few.clusters, 16);
  EXPECT_EQ(few.grid_ctas, 16);
  EXPECT_EQ(few.workspace_bytes, 0);
  const auto many = geometry(tile(128, 64, 64), {}, 4096, 4096, 4096, 132);
  EXPECT_EQ(many.cluster_tiles, 32 * 64);
  EXPECT_EQ(many.clusters, 132);
}

TEST(Geometry, TilesAreWholeClusters) {
  const auto g = geometry(tile(128, 64, 64), cluster(2, 2), 65, 129 + 128, 64, 60);
  EXPECT_EQ(g.tiles_n, 4);  // 257 rows are three tiles
  EXPECT_EQ(g.tiles_m, 2);
  EXPECT_EQ(g.cluster_tiles, 2);
  EXPECT_EQ(g.grid_ctas, 8);
  EXPECT_EQ(g.grid_z, 2);  // clusters along z, their CTAs along x and y
}

TEST(Geometry, ClusterKHasOneClusterPerTileAndNoWorkspace) {
  const auto g = geometry(tile(128, 64, 128), cluster(1, 1, 4), 64, 4096, 4096, 32);
  EXPECT_EQ(g.clusters, 32);
  EXPECT_EQ(g.grid_ctas, 128);
  EXPECT_EQ(g.grid_z, 128);
  EXPECT_EQ(g.stream_tiles, 0);
  EXPECT_EQ(g.workspace_bytes, 0);
}

TEST(Geometry, SplitKHasAClusterAndASlotPerRange) {
  LaunchConfig l;
  l.split_k = 3;
  const KernelConfig c = tile(128, 32, 64);
  const auto g = geometry(c, l, 32, 256, 640, 132);
  EXPECT_EQ(g.clusters, 6);
  EXPECT_EQ(g.stream_tiles, g.cluster_tiles);
  EXPECT_EQ(g.workspace_bytes, 256 + 6 * 128 * 32 * 4);
}

TEST(Geometry, StreamKSpreadsTheLastPartialWaveAlone) {
  LaunchConfig l;
  l.stream_k = true;
  const KernelConfig c = tile(128, 128, 64);
  const auto even = geometry(c, l, 128, 128 * 264, 4096, 132);
  EXPECT_EQ(even.stream_tiles, 0);
  EXPECT_EQ(even.workspace_bytes, 0);
  const auto ragged = geometry(c, l, 128, 128 * 270, 4096, 132);
  EXPECT_EQ(ragged.stream_tiles, 6);
  EXPECT_EQ(ragged.clusters, 132);
  EXPECT_EQ(ragged.stream_clusters, 60);  // ten pieces of 64 KB a tile
  const auto few = geometry(c, l, 128, 128 * 10, 128, 132);
  EXPECT_EQ(few.stream_tiles, 10);
  EXPECT_EQ(few.clusters, 20);  // no more clusters than k tiles to give them
}

TEST(Geometry, LaunchesThatShareSmsHaveACtaForEach) {
  KernelConfig c = tile(64, 32, 256);
  c.consumer_warpgroups = 1;
  c.ctas_per_sm = 2;
  LaunchConfig l;
  l.stages = 4;
  l.cluster_k = 2;
  ASSERT_TRUE(two_fit(c, l));
  EXPECT_EQ(geometry(c, l, 32, 64 * 64, 4096, 132).clusters, 66);  // 64 have a tile
  EXPECT_EQ(geometry(c, l, 32, 64 * 64, 4096, 132).grid_ctas, 132);
  EXPECT_EQ(geometry(c, l, 32, 64 * 30, 4096, 132).clusters, 30);  // half of the SMs are free
  EXPECT_EQ(geometry(c, l, 32, 64 * 96, 4096, 132).clusters, 96);
  l.cluster_k = 1;
  l.split_k = 2;
  const Geometry split = geometry(c, l, 32, 64 * 64, 4096, 264);
  EXPECT_EQ(split.clusters, 132);
  EXPECT_EQ(split.stream_clusters, 128);
  Problem p;
  p.m = 32, p.n = 64 * 64, p.k = 4096;
  EXPECT_EQ(params_template(c, l, p, split).stream_length, 8);  // of 128 clusters
  l.stages = 5;  // the second CTA finds no shared memory
  ASSERT_FALSE(two_fit(c, l));
  EXPECT_EQ(geometry(c, l, 32, 64 * 64, 4096, 132).clusters, 128);
}

TEST(Geometry, FlagsFillWholeLines) {
  EXPECT_EQ(flag_bytes(1), 256);
  EXPECT_EQ(flag_bytes(8), 256);
  EXPECT_EQ(flag_bytes(9), 512);
  EXPECT_EQ(flag_bytes(132), 4352);
}

TEST(Geometry, HugeProblemsAreSeenNotWrapped) {
  const std::int64_t most = std::numeric_limits<std::int32_t>::max();
  const auto g = geometry(tile(64, 16, 64), {}, most, most, 64, 132);
  EXPECT_FALSE(g.fits());
  EXPECT_GT(g.cluster_tiles, most);
}

TEST(Geometry, GridsTooLongForTheDeviceAreSeen) {
  LaunchConfig l;
  l.split_k = 4;
  const auto g = geometry(tile(128, 16, 64), l, 16 * 200, 128 * 100, 4096, 132);
  EXPECT_EQ(g.grid_z, 80000);
  EXPECT_FALSE(g.fits());
}

TEST(Geometry, StreamingSpreadsStripsAndPairsOfKBlocksWithoutALeftover) {
  KernelConfig c;
  c.schedule = Schedule::streaming;
  c.tile_n = 32;
  c.tile_m = 8;
  c.tile_k = 128;
  Problem p;
  p.m = 4;
  for (const int n : {1, 17, 2880, 6144}) {
    for (const int k : {1, 100, 576, 4096, 14336}) {
      p.n = n;
      p.k = k;
      for (const int cluster_k : {1, 2, 4}) {
        const LaunchConfig l = cluster(1, 1, cluster_k);
        const Geometry g = geometry(c, l, p.m, p.n, p.k, 132 / cluster_k);
        const Params params = params_template(c, l, p, g);
        EXPECT_EQ(g.clusters * params.strips_per_cluster + params.clusters_with_one_more,
                  layout::num_strips(n));
        EXPECT_EQ(
            streaming_warps(c) * cluster_k * params.pairs_per_warp + params.warps_with_one_more,
            (layout::num_k_blocks(k) + 1) / 2);
        EXPECT_EQ(g.grid_z, g.clusters * cluster_k);
        EXPECT_EQ(g.workspace_bytes, 0);
      }
    }
  }
}

TEST(TensorMaps, XBoxIsTheClustersShareOfTheTokens) {
  Problem p;
  p.m = 100;
  p.k = 200;
  const auto map = x_map(tile(128, 64, 64), cluster(2, 1), p, reinterpret_cast<void*>(0x1000), 208);
  EXPECT_EQ(map.dims[0], 200u);  // beyond K reads as zero
  EXPECT_EQ(map.dims[1], 100u);
  EXPECT_EQ(map.pitch_bytes, 416u);
  EXPECT_EQ(map.box[0], 64u);
  EXPECT_EQ(map.box[1], 32u);
  EXPECT_EQ(map.swizzle_128b, 1u);
}

TEST(TensorMaps, OneRowOfXMayHaveAnyLeadingDimension) {
  Problem p;
  p.m = 1;
  p.k = 7;
  void* const x = reinterpret_cast<void*>(0x1000);
  EXPECT_TRUE(x_by_tma(1, x, 7));
  EXPECT_EQ(x_map(tile(128, 16, 64), {}, p, x, 7).pitch_bytes, 16u);
  EXPECT_FALSE(x_by_tma(2, x, 7));
  EXPECT_TRUE(x_by_tma(2, x, 8));
  EXPECT_FALSE(x_by_tma(1, reinterpret_cast<void*>(0x1002), 8));
}

TEST(TensorMaps, CodesOfAStageFitTheBox) {
  PackedView w;
  w.n = 40;
  w.k = 200;
  w.codes_pitch_bytes = 4 * 512;
  KernelConfig c = tile(128, 16, 64);
  auto map = codes_map(c, cluster(1, 2), w);
  EXPECT_EQ(map.dims[0], 4u * 128);
  EXPECT_EQ(map.dims[1], 3u);
  EXPECT_EQ(map.box[0], 128u);
  EXPECT_EQ(map.box[1], 4u);
  c.tile_k = 128;
  EXPECT_EQ(codes_map(c, {}, w).box[0], 256u);
  c.weight = WeightType::int8;
  w.codes_pitch_bytes = 4 * 1024;
  EXPECT_EQ(codes_map(c, {}, w).box[0], 256u);  // two boxes a stage
  EXPECT_EQ(codes_map(c, {}, w).dims[0], 4u * 256);
}

TEST(TensorMaps, ScalesOfAStageFitItsBoxForEveryGroupSize) {
  const FakeRegistry registry;
  for (const KernelEntry& entry : registry.entries()) {
    const KernelConfig& c = entry.config;
    for (const int group : {0, 16, 32, 64, 128}) {
      Problem p;
      p.m = p.n = p.k = 64;
      p.act = c.act;
      p.weight.type = c.weight;
      p.weight.group_size = group;
      p.weight.zero = c.quant == Quant::group_zero ? ZeroKind::integer : ZeroKind::none;
      if (select::why_unfit(c, p) != nullptr) continue;
      PackedView w;
      w.n = 1000;
      w.k = 1000;
      w.spec = p.weight;
      w.groups_pitch = w.groups();
      const Params params = params_template(c, {}, p, geometry(c, {}, 64, 64, 64, 132));
      const bool streams = c.schedule == Schedule::streaming;
      EXPECT_LE(params.scale_box_bytes, streams ? streaming_scale_bytes(c) : scale_stage_bytes(c))
          << entry.id << " group " << group;
      if (c.quant == Quant::column) continue;
      const auto map = groups_map(c, w, reinterpret_cast<void*>(0x1000));
      EXPECT_EQ(map.box[0] * map.box[1] * 2, static_cast<std::uint32_t>(params.scale_box_bytes))
          << entry.id;
      EXPECT_LE(map.box[0], 256u);
      EXPECT_LE(map.box[1], 256u);
      EXPECT_EQ(map.dims[0], static_cast<std::uint64_t>(w.groups() * 16));
      EXPECT_EQ(map.pitch_bytes % 16, 0u);
      // A tiled stage's groups start on a box boundary, so that no box straddles two stages.
      if (!streams && group != 0 && group <= c.tile_k) {
        EXPECT_EQ(params.scale_box_groups * group, c.tile_k) << entry.id;
      }
    }
  }
}

TEST(Vectors, NeedAlignedBaseRowsAndWidth) {
  void* const base = reinterpret_cast<void*>(0x1000);
  EXPECT_TRUE(rows_take_vectors(2, 16, base, 24));
  EXPECT_TRUE(rows_take_vectors(1, 16, base, 17));
  EXPECT_FALSE(rows_take_vectors(2, 16, base, 17));
  EXPECT_FALSE(rows_take_vectors(2, 17, base, 24));
  EXPECT_FALSE(rows_take_vectors(2, 16, reinterpret_cast<void*>(0x1002), 24));
}

TEST(ParamsTemplate, ActivationsBecomeNumbers) {
  Problem p;
  p.m = p.n = p.k = 64;
  const KernelConfig c = tile(128, 16, 64);
  const Geometry g = geometry(c, {}, 64, 64, 64, 132);
  const auto of = [&](Activation activation) {
    p.epilogue.activation = activation;
    return params_template(c, {}, p, g);
  };
  EXPECT_EQ(of(Activation::none).relu_floor, -std::numeric_limits<float>::infinity());
  EXPECT_FALSE(of(Activation::none).gated);
  EXPECT_EQ(of(Activation::relu).relu_floor, 0.0f);
  EXPECT_TRUE(of(Activation::silu).gated);
  // y·sigmoid(y·(linear + cubic·y²)) is the tanh form of gelu.
  const Params gelu = of(Activation::gelu);
  for (const double y : {-3.0, -0.5, 0.1, 2.0}) {
    const double gate = y * (gelu.gate_linear + gelu.gate_cubic * y * y);
    const double want = 0.5 * y * (1 + std::tanh(std::sqrt(2 / M_PI) * (y + 0.044715 * y * y * y)));
    EXPECT_NEAR(y / (1 + std::exp(-gate)), want, 1e-6);
  }
}

TEST(ParamsTemplate, StreamRangesCoverEveryIterationOnce) {
  const KernelConfig c = tile(128, 64, 64);
  Problem p;
  for (const int ways : {1, 2, 3, 5}) {  // 1: stream_k
    LaunchConfig l;
    l.split_k = ways;
    l.stream_k = ways == 1;
    for (const std::int64_t k : {64, 200, 576, 4096}) {
      for (const std::int64_t n : {17, 576, 20000}) {
        p.m = 65;
        p.n = n;
        p.k = k;
        const Geometry g = geometry(c, l, p.m, p.n, p.k, 132);
        const Params params = params_template(c, l, p, g);
        EXPECT_EQ(g.stream_clusters * params.stream_length + params.stream_longer,
                  g.stream_tiles * g.k_tiles);
        EXPECT_LE(g.stream_clusters, g.clusters);
        EXPECT_LE(params.stream_longer, g.stream_clusters);
        if (g.stream_tiles > 0 && ways <= g.k_tiles) {
          EXPECT_GE(params.stream_length, 1) << "a cluster without a range would wait for itself";
        }
      }
    }
  }
}

TEST(ParamsTemplate, ExchangesTakeThePlaceOfTheOldestStages) {
  KernelConfig c;
  c.tile_n = 64;
  c.tile_m = 64;
  c.tile_k = 256;
  c.consumer_warpgroups = 1;
  c.ctas_per_sm = 2;
  LaunchConfig l;
  l.cluster_k = 2;
  l.stages = 3;
  const auto params = [&](std::int64_t k) {
    Problem p;
    p.m = 64;
    p.n = 4096;
    p.k = k;
    p.weight.group_size = 128;
    return params_template(c, l, p, geometry(c, l, p.m, p.n, p.k, 66));
  };
  // A CTA's own sums of 64 x 64 and those of its half from the other: 24 KB of a 41 KB stage.
  EXPECT_EQ(exchange_bytes(c, l.cluster_k), 24 << 10);
  for (const int stages_of_cta : {1, 2, 3, 4, 5, 6, 7}) {
    const Params p = params(2 * 256 * stages_of_cta);
    EXPECT_EQ(p.exchange_stages, 1);
    EXPECT_EQ(p.exchange_stage, stages_of_cta % 3) << stages_of_cta;
  }
  // Three of four stages: two places in the ring where they lie together.
  c = {};
  c.tile_k = 128;
  l.stages = 4;
  ASSERT_GT(exchange_bytes(c, l.cluster_k), 2 * stage_bytes(c));
  EXPECT_EQ(params(2 * 128 * 4).exchange_stage, 0);
  EXPECT_EQ(params(2 * 128 * 5).exchange_stage, 1);
  EXPECT_EQ(params(2 * 128 * 6).exchange_stage, 0);
  EXPECT_EQ(params(2 * 128 * 6).exchange_stages, 3);
  // As much as there is.
  l.stages = 2;
  EXPECT_EQ(params(2 * 128 * 5).exchange_stages, 2);
  EXPECT_EQ(params(2 * 128 * 5).exchange_stage, 0);
}

TEST(ParamsTemplate, ClusterTilesCountWholeClusters) {
  const KernelConfig c = tile(128, 64, 64);
  Problem p;
  p.m = 129;
  p.n = 640;
  p.k = 64;
  const LaunchConfig l = cluster(2, 2);
  const Params params = params_template(c, l, p, geometry(c, l, p.m, p.n, p.k, 60));
  EXPECT_EQ(params.cluster_tiles_n, 3);
  EXPECT_EQ(params.cluster_tiles_m, 2);
}

TEST(ParamsTemplate, WeightsLeaveL2FirstOnlyWhereReadOnce) {
  const KernelConfig c = tile(128, 64, 64);
  Problem p;
  p.n = p.k = 4096;
  p.m = 64;
  EXPECT_EQ(params_template(c, {}, p, geometry(c, {}, p.m, p.n, p.k, 132)).codes_policy,
            kEvictFirst);
  p.m = 65;
  EXPECT_EQ(params_template(c, {}, p, geometry(c, {}, p.m, p.n, p.k, 132)).codes_policy,
            kEvictNormal);
}

TEST(ParamsTemplate, GroupShiftIsALogarithmAndPerColumnIsGroupZero) {
  Problem p;
  p.m = p.n = 64;
  p.k = 1 << 30;
  const KernelConfig c = tile(128, 16, 64);
  EXPECT_TRUE(geometry(c, {}, 64, 64, p.k, 132).fits());
  EXPECT_FALSE(geometry(c, {}, 64, 64, p.k + 1, 132).fits());
  for (const int group : {0, 16, 32, 64, 128}) {
    p.weight.group_size = group;
    const Params params = params_template(c, {}, p, geometry(c, {}, 64, 64, 64, 132));
    if (group == 0) {
      EXPECT_EQ((p.k - 1) >> params.group_shift, 0);
    } else {
      EXPECT_EQ(1 << params.group_shift, group);
    }
  }
}

}  // namespace
}  // namespace mixgemm::launch
