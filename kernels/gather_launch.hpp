// SPDX-License-Identifier: Apache-2.0
// How gather_columns.cu deals out its work: plain arithmetic, tested without a GPU.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace mixgemm::gather {

inline constexpr int kThreads = 256;
/// Columns a thread writes at once: 16 bytes.
inline constexpr int kVector = 8;
/// Shared memory for rows of X. Two CTAs of this size share an SM.
inline constexpr std::int64_t kMaxStagedBytes = 96 << 10;
/// Rows that share one read of the permutation, which is twice as large as a row.
inline constexpr std::int64_t kMaxRows = 8;

/// How the work is dealt out. A CTA has `rows` rows and, of each, every slices-th run of vectors.
struct Launch {
  int rows = 1;
  std::int64_t ctas = 1;  ///< along M
  int slices = 1;         ///< along K
  /// Whole rows go through shared memory: 2-byte reads at random cost there a tenth of what they
  /// cost in L1. Where a CTA has a slice of a row, it would read all of it for that: not staged.
  bool staged = false;
  std::size_t smem_bytes = 0;
};

/// K rounded up to whole vectors: the leading dimension of what is gathered.
constexpr std::int64_t padded(std::int64_t k) { return (k + kVector - 1) / kVector * kVector; }

/// Two CTAs for each SM where there is work for them: few rows are cut into slices, many rows are
/// taken several at a time.
constexpr Launch launch_for(std::int64_t m, std::int64_t k, int num_sms) {
  const std::int64_t target = 2 * static_cast<std::int64_t>(std::max(num_sms, 1));
  const std::int64_t row_bytes = 2 * padded(k);
  const std::int64_t fitting = kMaxStagedBytes / row_bytes;
  const std::int64_t most_slices = (padded(k) / kVector + kThreads - 1) / kThreads;
  Launch l;
  l.rows = static_cast<int>(
      std::clamp(m / target, std::int64_t{1}, std::clamp(fitting, std::int64_t{1}, kMaxRows)));
  l.ctas = (m + l.rows - 1) / l.rows;
  l.slices = static_cast<int>(std::clamp(target / l.ctas, std::int64_t{1}, most_slices));
  l.staged = l.slices == 1 && fitting >= 1;
  l.smem_bytes = l.staged ? static_cast<std::size_t>(l.rows * row_bytes) : 0;
  return l;
}

}  // namespace mixgemm::gather
