// SPDX-License-Identifier: Apache-2.0
#include "common/statistics.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace mixgemm::bench {

int num_copies(double bytes, bool overlapping) {
  const double wanted = std::floor(kWorkingSetBytes / bytes) + 1;
  const int least = overlapping ? kMinCopiesOverlapping : kMinCopies;
  return std::max(least, static_cast<int>(std::min<double>(wanted, kMaxLaunches)));
}

int model_copies(double bytes, double model_bytes) {
  const double wanted = std::ceil(std::min(model_bytes, kWorkingSetBytes) / bytes);
  return static_cast<int>(std::clamp<double>(wanted, 1, kMaxLaunches));
}

int num_launches(double launch_us, int copies, double graph_us) {
  const double wanted = std::ceil(graph_us / std::max(launch_us, 0.5));
  if (wanted < copies) return std::max(1, static_cast<int>(wanted));
  const int rounds = static_cast<int>(std::ceil(std::min<double>(wanted, kMaxLaunches) / copies));
  const int most = std::max(1, kMaxLaunches / copies);
  return copies * std::clamp(rounds, 1, most);
}

int num_graphs(int launches, int copies) { return copies / std::gcd(launches, copies); }

Spread spread_of(std::vector<double> sample) {
  std::sort(sample.begin(), sample.end());
  const std::size_t half = sample.size() / 2;
  const double median =
      sample.size() % 2 == 1 ? sample[half] : 0.5 * (sample[half - 1] + sample[half]);
  return {median, sample.front(), sample.back()};
}

double geometric_mean(const std::vector<double>& values) {
  if (values.empty()) return 0;
  double sum = 0;
  for (const double value : values) sum += std::log(value);
  return std::exp(sum / static_cast<double>(values.size()));
}

bool keeps_contract(const ErrorNorms& error, const ErrorNorms& dense) {
  return error.bad == 0 && error.relative <= 1.05 * dense.relative + 1e-5 &&
         error.worst <= 2 * dense.worst + 1e-3;
}

}  // namespace mixgemm::bench
