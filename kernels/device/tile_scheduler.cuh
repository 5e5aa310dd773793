// SPDX-License-Identifier: Apache-2.0
// Which work a CTA does, in which order. Every role of every CTA of a cluster walks the same list.
//
// Cluster tiles are numbered by a raster of bands: raster_m token tiles high, so that the CTAs that
// run at one time share weights (bands) and activations (columns) in L2. The last stream_tiles of
// them are stream-K'd: their k-tile iterations, laid end to end, are cut into equal ranges, one for
// each cluster; the others are handed out whole. One mechanism serves all three schedulers:
//   data_parallel  stream_tiles = 0
//   split_k S      stream_tiles = all, S clusters per tile
//   stream_k       stream_tiles = those of the last, partial wave; few of them leave some clusters
//                  without a range
//
// Order matters twice. A cluster first does whole tiles, in step with the others, so that what they
// share is read from L2 once; then the range that it leaves unfinished, and last the tiles that it
// finishes for others. And it only ever waits for lower-numbered clusters, which the hardware
// starts first: no deadlock, even when the grid isn't resident as a whole.
#pragma once

#include <cstdint>

#include "kernel_config.hpp"
#include "ptx/sync.cuh"

namespace mixgemm::device {

/// A tile, or a range of one along K.
struct WorkItem {
  static constexpr int kNobody = -1, kUnfinished = -2;
  int tile_n, tile_m;     // of this CTA
  int k_begin, k_end;     // in ring stages
  int first_contributor;  // clusters [first_contributor, mine) left partial sums; kNobody;
                          // kUnfinished: this one leaves a partial sum and doesn't store the tile

  __device__ __forceinline__ bool finishes() const { return first_contributor != kUnfinished; }
};

class TileScheduler {
 public:
  __device__ __forceinline__ TileScheduler(const Params& p, int cluster, int num_clusters,
                                           int3 ctaid)
      : p_(p),
        num_clusters_(num_clusters),
        n_rank_(ctaid.x),
        m_rank_(ctaid.y),
        next_(ptx::copied(cluster)) {
    if (p.stream_tiles > 0) {
      stream_begin_ = range_begin(cluster);
      stream_end_ = range_begin(cluster + 1);
      last_tile_ = divide(stream_end_, p.by_k_tiles);
    }
  }

  /// The next item, or false.
  __device__ __forceinline__ bool next(WorkItem& item) {
    int tile;
    item.k_begin = 0;
    item.k_end = p_.k_tiles;
    item.first_contributor = WorkItem::kNobody;
    if (next_ >= 0 && next_ < whole_tiles()) {
      tile = next_;
      next_ += num_clusters_;
    } else if (next_ >= 0 && leaves_partial()) {
      const int first = last_tile_ * p_.k_tiles;
      tile = whole_tiles() + last_tile_;
      item.k_begin = max(stream_begin_ - first, 0);
      item.k_end = stream_end_ - first;
      item.first_contributor = WorkItem::kUnfinished;
      next_ = ~stream_begin_;
    } else {
      if (p_.stream_tiles == 0) return false;
      const int iteration = next_ < 0 ? ~next_ : stream_begin_;
      const int owned = divide(iteration, p_.by_k_tiles);
      const int first = owned * p_.k_tiles;
      if (first + p_.k_tiles > stream_end_) return false;
      tile = whole_tiles() + owned;
      item.k_begin = iteration - first;
      if (item.k_begin > 0) item.first_contributor = owner_of(first);
      next_ = ~(first + p_.k_tiles);
    }
    place(tile, item);
    return true;
  }

  /// False for a cluster whose range is empty: it left no partial sum.
  __device__ __forceinline__ bool contributes(int cluster) const {
    return range_begin(cluster) < range_begin(cluster + 1);
  }

 private:
  /// Whether this cluster's range ends within a tile, which another one finishes.
  __device__ __forceinline__ bool leaves_partial() const {
    return last_tile_ * p_.k_tiles != stream_end_ && stream_end_ > stream_begin_;
  }

  __device__ __forceinline__ int whole_tiles() const {
    return p_.cluster_tiles_n * p_.cluster_tiles_m - p_.stream_tiles;
  }

  /// First iteration of a cluster's range: the ranges' lengths differ by at most one, and those
  /// beyond the last iteration are empty.
  __device__ __forceinline__ int range_begin(int cluster) const {
    const int begin =
        cluster * p_.stream_length + (cluster < p_.stream_longer ? cluster : p_.stream_longer);
    return min(begin, p_.stream_tiles * p_.k_tiles);
  }

  /// The cluster whose range holds an iteration.
  __device__ __forceinline__ int owner_of(int iteration) const {
    const int in_longer = p_.stream_longer * (p_.stream_length + 1);
    if (iteration < in_longer) return divide(iteration, p_.by_longer_length);
    return p_.stream_longer + divide(iteration - in_longer, p_.by_stream_length);
  }

  /// Raster: cluster tile → this CTA's tile.
  __device__ __forceinline__ void place(int tile, WorkItem& item) const {
    int tile_n = tile, tile_m = 0;
    if (p_.cluster_tiles_m > 1) {
      const int band = divide(tile, p_.by_band);
      const int in_band = tile - band * (p_.raster_m * p_.cluster_tiles_n);
      const int left = p_.cluster_tiles_m - band * p_.raster_m;
      const bool whole = left >= p_.raster_m;
      tile_n = divide(in_band, whole ? p_.by_band_height : p_.by_last_height);
      tile_m = band * p_.raster_m + in_band - tile_n * (whole ? p_.raster_m : left);
    }
    item.tile_n = tile_n * p_.cluster_n + n_rank_;
    item.tile_m = tile_m * p_.cluster_m + m_rank_;
  }

  const Params& p_;
  const int num_clusters_, n_rank_, m_rank_;
  // The next whole tile; beyond those, ~iteration of the range where the tiles begin that this
  // cluster finishes. One register: it lives through main loops that have none to spare.
  int next_;
  int stream_begin_ = 0, stream_end_ = 0;
  int last_tile_ = 0;  // of stream_end_
};

}  // namespace mixgemm::device
