// SPDX-License-Identifier: Apache-2.0
// The arithmetic of the measurement protocol (docs/measurement.md), apart from any device.
#pragma once

#include <cstdint>
#include <vector>

namespace mixgemm::bench {

/// Cold weights: the copies together must exceed any L2 several times over.
inline constexpr double kWorkingSetBytes = 400e6;
/// Launches of one graph last this long at least, so that its own launch doesn't count.
inline constexpr double kGraphUs = 3000;
/// More nodes than this make instantiation, not measurement, the bulk of a run.
inline constexpr int kMaxLaunches = 512;
/// Where launches overlap, two grids read at once; four copies keep either's next read cold.
inline constexpr int kMinCopiesOverlapping = 4;
inline constexpr int kMinCopies = 2;

/// Weight copies to rotate through, for a weight of `bytes` > 0 each. At most kMaxLaunches: a
/// weight under 0.8 MB can't fill the working set (rows report copies and bytes).
int num_copies(double bytes, bool overlapping);

/// The same for a layer of a model whose layers take `model_bytes` together: what is cold there is
/// cold here, and a model that fits a cache stays in it.
int model_copies(double bytes, double model_bytes);

/// Launches in a graph, which lasts graph_us: whole rounds of the copies, so that every copy counts
/// alike, kMaxLaunches at most; where a round takes longer than that, part of one. The next graph
/// then goes on with the next copies. More launches would be more load than others had that need
/// fewer copies, and at a lower clock.
int num_launches(double launch_us, int copies, double graph_us = kGraphUs);

/// Graphs of `launches` each, one after the other, until one begins with copy 0 again.
int num_graphs(int launches, int copies);

/// Median, smallest and largest of a non-empty sample; the mean of the middle two for even sizes.
struct Spread {
  double median = 0;
  double min = 0;
  double max = 0;
};
Spread spread_of(std::vector<double> sample);

/// exp(mean(log(x))) of positive values; 0 for none.
double geometric_mean(const std::vector<double>& values);

/// The error contract of design §7, from sums over all elements of Y. `worst` is the largest
/// absolute error, `scale` the root mean square of the reference.
struct ErrorNorms {
  double relative = 0;   ///< ‖y − ref‖ / ‖ref‖ (Frobenius)
  double worst = 0;      ///< max |y − ref| / rms(ref)
  std::int64_t bad = 0;  ///< elements that aren't finite, a poisoned one that stayed included
};
/// Whether `error` keeps the contract, given the error of the dense product in the same 16-bit type
/// on the rounded weight: relative ≤ 1.05 × + 1e-5, worst ≤ 2 × + 1e-3, nothing non-finite.
bool keeps_contract(const ErrorNorms& error, const ErrorNorms& dense);

}  // namespace mixgemm::bench
