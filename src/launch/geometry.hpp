// SPDX-License-Identifier: Apache-2.0
// Arithmetic between a configuration and a launch: tiles, grid, workspace, tensor-map shapes and
// the fields of Params. No CUDA call in here, so it is tested on machines without a GPU.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernel_config.hpp"
#include "mixgemm/gemm.hpp"

namespace mixgemm::launch {

/// How one problem is laid over a device by one configuration.
struct Geometry {
  std::int64_t tiles_n = 0;  ///< CTA tiles, whole clusters
  std::int64_t tiles_m = 0;
  std::int64_t k = 0;
  std::int64_t k_tiles = 0;          ///< ring stages along K
  std::int64_t cluster_tiles = 0;    ///< tiles_n/cluster_n · tiles_m/cluster_m
  std::int64_t stream_tiles = 0;     ///< how many of them are split along K through the workspace
  std::int64_t clusters = 0;         ///< of the grid
  std::int64_t stream_clusters = 0;  ///< of them, those that share the split tiles
  std::int64_t grid_ctas = 0;        ///< cluster_n × cluster_m × grid_z
  std::int64_t grid_z = 0;
  int threads = 0;  ///< per CTA
  int smem_bytes = 0;
  std::int64_t workspace_bytes = 0;

  /// Do all counts fit the kernel's 32-bit indices and a grid's 65535 along z?
  bool fits() const;
};

/// resident_clusters: how many clusters of this configuration should be at work at once, ≥ 1. The
/// streaming kernel has strips for tiles; its M must not exceed tile_m.
Geometry geometry(const KernelConfig& config, const LaunchConfig& launch, std::int64_t m,
                  std::int64_t n, std::int64_t k, int resident_clusters);

/// Whether two CTAs of a tiled Hopper kernel fit on an SM, so that one launch's share it with the
/// next one's.
bool two_fit(const KernelConfig& config, const LaunchConfig& launch);

/// Dynamic shared memory of a launch, for M tokens.
std::int64_t smem_bytes(const KernelConfig& config, const LaunchConfig& launch, std::int64_t m);

/// Bytes of the flags in front of the partial tiles, for a grid that splits K.
std::int64_t flag_bytes(std::int64_t grid_ctas);

/// A 2-D tensor map before it is encoded: everything that determines its bits.
struct TensorMapShape {
  enum class Element : std::uint32_t { u16, u32, f16, bf16 };

  std::uint64_t address = 0;
  std::uint64_t dims[2] = {0, 0};  ///< elements; [0] is contiguous
  std::uint64_t pitch_bytes = 0;   ///< from one row to the next, a multiple of 16
  std::uint32_t box[2] = {0, 0};
  Element element = Element::u16;
  std::uint32_t swizzle_128b = 0;

  friend bool operator==(const TensorMapShape&, const TensorMapShape&) = default;
};

/// X [M, K], box 64 k × (tile_m / cluster_n). The caller has made sure that x_by_tma() holds.
TensorMapShape x_map(const KernelConfig& config, const LaunchConfig& launch, const Problem& problem,
                     const void* x, std::int64_t ldx);
/// Codes as u32 [strips][words].
TensorMapShape codes_map(const KernelConfig& config, const LaunchConfig& launch,
                         const PackedView& weight);
/// Scales (or zeros) as u16 [strips][G·16].
TensorMapShape groups_map(const KernelConfig& config, const PackedView& weight, const void* values);

/// Groups of scales in the box of one ring stage; 0 where a kernel takes no scales through the
/// ring.
int scale_box_groups(const KernelConfig& config, int group_size);

/// Can TMA read X: a 16-byte aligned base and row pitch. One row has no pitch.
bool x_by_tma(std::int64_t m, const void* x, std::int64_t ldx);
/// Do rows of [M, N] take aligned 16-byte vectors?
bool rows_take_vectors(std::int64_t m, std::int64_t n, const void* base, std::int64_t ld);

/// The fields of Params that depend on the problem and the configuration alone; addresses, leading
/// dimensions, tensor maps and alpha are filled in per call.
Params params_template(const KernelConfig& config, const LaunchConfig& launch,
                       const Problem& problem, const Geometry& geometry);

}  // namespace mixgemm::launch
