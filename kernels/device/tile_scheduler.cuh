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

namespace mixgemm::device {

/// A tile, or a range of one along K.
struct WorkItem {
  int tile_n, tile_m;     // of this CTA
  int k_begin, k_end;     // in ring stages
  bool finishes;          // this CTA stores the tile; otherwise it leaves a partial sum
  int first_contributor;  // clusters [first_contributor, mine) left partial sums; −1: none
};

class TileScheduler {
 public:
  __device__ __forceinline__ TileScheduler(const Params& p, int cluster, int num_clusters,
                                           int3 ctaid)
      : p_(p), num_clusters_(num_clusters), n_rank_(ctaid.x), m_rank_(ctaid.y) {
    next_whole_ = cluster;
    if (p.stream_tiles > 0) {
      stream_begin_ = range_begin(cluster);
      stream_end_ = range_begin(cluster + 1);
      next_owned_ = stream_begin_;
      last_tile_ = divide(stream_end_, p.by_k_tiles);
      unfinished_ = last_tile_ * p.k_tiles != stream_end_ && stream_end_ > stream_begin_;
    }
  }

  /// The next item, or false.
  __device__ __forceinline__ bool next(WorkItem& item) {
    int tile;
    item.k_begin = 0;
    item.k_end = p_.k_tiles;
    item.finishes = true;
    item.first_contributor = -1;
    if (next_whole_ < whole_tiles()) {
      tile = next_whole_;
      next_whole_ += num_clusters_;
    } else if (unfinished_) {
      unfinished_ = false;
      const int first = last_tile_ * p_.k_tiles;
      tile = whole_tiles() + last_tile_;
      item.k_begin = max(stream_begin_ - first, 0);
      item.k_end = stream_end_ - first;
      item.finishes = false;
    } else {
      if (p_.stream_tiles == 0) return false;
      const int owned = divide(next_owned_, p_.by_k_tiles);
      const int first = owned * p_.k_tiles;
      if (first + p_.k_tiles > stream_end_) return false;
      tile = whole_tiles() + owned;
      item.k_begin = next_owned_ - first;
      if (item.k_begin > 0) item.first_contributor = owner_of(first);
      next_owned_ = first + p_.k_tiles;
    }
    place(tile, item);
    return true;
  }

  /// False for a cluster whose range is empty: it left no partial sum.
  __device__ __forceinline__ bool contributes(int cluster) const {
    return range_begin(cluster) < range_begin(cluster + 1);
  }

 private:
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
  int next_whole_;
  int stream_begin_ = 0, stream_end_ = 0, next_owned_ = 0;
  int last_tile_ = 0;  // of stream_end_
  bool unfinished_ = false;
};

}  // namespace mixgemm::device
