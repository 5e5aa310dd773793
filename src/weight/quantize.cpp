// SPDX-License-Identifier: Apache-2.0
// quantize() and quantize_packed(): the dense weight is cut into panels (a strip of 16 rows × 128
// k, or × all of K per column), which are quantized independently of each other, hence with the
// same result for any number of threads; what differs is where a panel's codes go.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>

#include "layout/packed.hpp"
#include "mixgemm/weight.hpp"
#include "util/half.hpp"
#include "util/parallel.hpp"
#include "weight/cell.hpp"
#include "weight/checks.hpp"
#include "weight/packed_buffer.hpp"
#include "weight/quantize_lanes.hpp"

namespace mixgemm {
namespace {

using layout::kBlockK;
using layout::kStripRows;
static_assert(kQuantizeLanes == kStripRows);

// A panel's k: the largest group size, so that panels hold whole groups and whole k-blocks.
constexpr std::int64_t kPanelK = 128;
// Weights a thread takes at a time, at least.
constexpr std::int64_t kGrainElems = 1 << 16;

/// A dense weight, [N, K].
struct Dense {
  const std::uint8_t* data;
  DataType type;
  std::int64_t n, k, ldw;

  const std::uint8_t* at(std::int64_t row, std::int64_t column) const {
    return data + (row * ldw + column) * bytes_of(type);
  }
};

/// 16 rows of the weight and a range of whole groups.
struct Panel {
  std::int64_t strip;
  std::int64_t k_begin, k_end;
  std::int64_t first_group;
  int rows;  ///< of the weight, 1..16

  std::int64_t length() const { return k_end - k_begin; }
};

/// How a weight is cut into panels.
class Panels {
 public:
  Panels(std::int64_t n, std::int64_t k, int group_size)
      : n_(n),
        k_(k),
        group_(group_size == 0 ? k : group_size),
        span_(group_size == 0 ? k : std::min(k, kPanelK)),
        per_strip_((k + span_ - 1) / span_) {}

  std::int64_t count() const { return layout::num_strips(n_) * per_strip_; }
  /// The longest panel's k.
  std::int64_t span() const { return span_; }
  std::int64_t group_length() const { return group_; }
  Panel at(std::int64_t index) const {
    Panel panel{};
    panel.strip = index / per_strip_;
    panel.k_begin = index % per_strip_ * span_;
    panel.k_end = std::min(k_, panel.k_begin + span_);
    panel.first_group = panel.k_begin / group_;
    panel.rows =
        static_cast<int>(std::min<std::int64_t>(kStripRows, n_ - panel.strip * kStripRows));
    return panel;
  }

 private:
  std::int64_t n_, k_, group_, span_, per_strip_;
};

/// One thread's working memory, for panels of up to `span` k.
struct Scratch {
  std::unique_ptr<float[]> row;           ///< [span]
  std::unique_ptr<float[]> x;             ///< [span][16]
  std::unique_ptr<std::uint8_t[]> codes;  ///< [span][16]
  std::unique_ptr<std::uint8_t[]> tile;   ///< [16][span rounded up to whole k-blocks]

  // Worker threads can't report a bad_alloc, so they ask.
  bool allocate(std::int64_t span) {
    const std::int64_t padded = layout::num_k_blocks(span) * kBlockK;
    row.reset(new (std::nothrow) float[span]);
    x.reset(new (std::nothrow) float[span * kStripRows]);
    codes.reset(new (std::nothrow) std::uint8_t[span * kStripRows]);
    tile.reset(new (std::nothrow) std::uint8_t[padded * kStripRows]);
    return row != nullptr && x != nullptr && codes != nullptr && tile != nullptr;
  }
};

/// The first group, in row-major order, whose scale or zero doesn't fit, whichever thread met it.
class FirstOverflow {
 public:
  void note(std::int64_t row, std::int64_t group, const char* what) {
    std::lock_guard lock(mutex_);
    if (what_ != nullptr && std::pair(row, group) >= std::pair(row_, group_)) return;
    row_ = row;
    group_ = group;
    what_ = what;
  }
  Status status(DataType type) const {
    if (what_ == nullptr) return {};
    return Status(StatusCode::invalid_argument,
                  fmt::format("{} of row {}, group {} is beyond the largest {}, {}", what_, row_,
                              group_, to_string(type),
                              f32_from_bits(type == DataType::bf16 ? 0x7f7f : 0x7bff, type)));
  }

 private:
  std::mutex mutex_;
  std::int64_t row_ = 0, group_ = 0;
  const char* what_ = nullptr;
};

/// Calls the user's callback from one worker at a time, with fractions that never decrease.
class ProgressMeter {
 public:
  ProgressMeter(const Progress& progress, std::int64_t total)
      : progress_(progress), total_(total) {}

  void add(std::int64_t done) {
    done_.fetch_add(done, std::memory_order_relaxed);
    if (!progress_) return;
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (lock) progress_(static_cast<double>(done_.load()) / static_cast<double>(total_));
  }
  /// The last word, which add() may have skipped.
  void finish() {
    if (progress_) progress_(1.0);
  }

 private:
  const Progress& progress_;
  std::int64_t total_;
  std::atomic<std::int64_t> done_{0};
  std::mutex mutex_;
};

/// [length][16] → rows of codes.
void transpose_codes(const std::uint8_t* codes, std::int64_t length, int rows, std::uint8_t* to,
                     std::int64_t stride) {
  for (int r = 0; r < rows; ++r) {
    for (std::int64_t k = 0; k < length; ++k) to[r * stride + k] = codes[k * kStripRows + r];
  }
}

/// A panel of the dense weight → fp32 [length][16], rows beyond N as zeros.
void load_panel(const LaneKernels& kernels, const Dense& dense, const Panel& panel,
                Scratch& scratch) {
  const std::int64_t length = panel.length();
  for (int r = 0; r < kStripRows; ++r) {
    if (r < panel.rows) {
      kernels.to_float(dense.at(panel.strip * kStripRows + r, panel.k_begin), dense.type, length,
                       scratch.row.get());
    } else {
      std::fill_n(scratch.row.get(), length, 0.0f);
    }
    for (std::int64_t k = 0; k < length; ++k) scratch.x[k * kStripRows + r] = scratch.row[k];
  }
}

/// Names the first non-finite weight.
Status nonfinite_status(const LaneKernels& kernels, const Dense& dense) {
  std::vector<float> row(dense.k);
  for (std::int64_t n = 0; n < dense.n; ++n) {
    kernels.to_float(dense.at(n, 0), dense.type, dense.k, row.data());
    for (std::int64_t k = 0; k < dense.k; ++k) {
      if (std::isfinite(row[k])) continue;
      return Status(StatusCode::invalid_argument,
                    fmt::format("weights must be finite; row {}, column {} is {}", n, k, row[k]));
    }
  }
  return Status(StatusCode::internal, "a non-finite weight was met but not found again");
}

Status check_arguments(const void* w, DataType type, std::int64_t n, std::int64_t k,
                       std::int64_t ldw, const QuantSpec& spec) {
  if (Status status = check_spec(spec); !status.ok()) return status;
  if (Status status = check_size(n, k); !status.ok()) return status;
  if (type != DataType::f16 && type != DataType::bf16 && type != DataType::f32) {
    return Status(
        StatusCode::invalid_argument,
        fmt::format("weights must be f16, bf16 or f32; got enumerator {}", static_cast<int>(type)));
  }
  if (ldw < k) {
    return Status(StatusCode::invalid_argument,
                  fmt::format("ldw must be at least K = {}; got {}", k, ldw));
  }
  if (std::int64_t bytes = 0; __builtin_mul_overflow(ldw, n * bytes_of(type), &bytes)) {
    return Status(StatusCode::invalid_argument,
                  fmt::format("N = {} rows of ldw = {} do not fit the address space", n, ldw));
  }
  if (w == nullptr) return Status(StatusCode::invalid_argument, "the weight's pointer is null");
  return {};
}

/// Quantizes every panel and hands it on, from several threads: first
/// group(panel, group index, result) for each group, then codes(panel, scratch).
template <class GroupSink, class CodeSink>
Status quantize_panels(const Dense& dense, const QuantizeOptions& options, const GroupSink& group,
                       const CodeSink& codes) {
  const LaneKernels& kernels = lane_kernels();
  const Panels panels(dense.n, dense.k, options.spec.group_size);
  ProgressMeter progress(options.progress, panels.count());
  FirstOverflow overflow;
  std::atomic<bool> nonfinite{false};
  std::atomic<bool> out_of_memory{false};

  const auto quantize_panel = [&](const Panel& panel, Scratch& scratch) {
    load_panel(kernels, dense, panel, scratch);
    GroupJob job;
    job.zero = options.spec.zero;
    job.bits = bits_of(options.spec.type);
    job.scale_type = options.spec.scale_type;
    job.search_clip = options.search_clip;
    GroupResult result;
    for (std::int64_t k = 0; k < panel.length(); k += panels.group_length()) {
      const std::int64_t index = panel.first_group + k / panels.group_length();
      job.x = scratch.x.get() + k * kStripRows;
      job.length = std::min(panels.group_length(), panel.length() - k);
      kernels.quantize_group(job, result, scratch.codes.get() + k * kStripRows);
      if (result.nonfinite != 0) nonfinite.store(true, std::memory_order_relaxed);
      if (const auto bad = result.scale_overflow | result.zero_overflow; bad != 0) {
        const int r = std::countr_zero(bad);
        // The scale follows from the zero, so where both are too large the zero is the reason.
        overflow.note(panel.strip * kStripRows + r, index,
                      (result.zero_overflow >> r & 1u) != 0 ? "scaled zero" : "scale");
      }
      group(panel, index, result);
    }
    codes(panel, scratch);
  };
  const std::int64_t grain = std::max<std::int64_t>(1, kGrainElems / (panels.span() * kStripRows));
  parallel_for(panels.count(), grain, options.num_threads,
               [&](std::int64_t begin, std::int64_t end) {
                 Scratch scratch;
                 if (!scratch.allocate(panels.span())) {
                   out_of_memory.store(true);
                   return;
                 }
                 for (std::int64_t i = begin; i < end; ++i) quantize_panel(panels.at(i), scratch);
                 progress.add(end - begin);
               });
  if (out_of_memory.load()) {
    return Status(StatusCode::out_of_memory,
                  fmt::format("no memory to quantize 16 rows of {} weights", panels.span()));
  }
  if (nonfinite.load()) return nonfinite_status(kernels, dense);
  if (Status status = overflow.status(options.spec.scale_type); !status.ok()) return status;
  progress.finish();
  return {};
}

}  // namespace

Result<CanonicalWeight> quantize(const void* w, DataType type, std::int64_t n, std::int64_t k,
                                 std::int64_t ldw, const QuantizeOptions& options) {
  const QuantSpec& spec = options.spec;
  if (Status status = check_arguments(w, type, n, k, ldw, spec); !status.ok()) return status;
  CanonicalWeight weight;
  weight.n = n;
  weight.k = k;
  weight.spec = spec;
  const std::int64_t groups = weight.groups();
  weight.codes.resize(n * k);
  weight.scales.resize(n * groups);
  if (spec.zero == ZeroKind::integer) weight.zeros.resize(n * groups);
  if (spec.zero == ZeroKind::scaled) weight.scaled_zeros.resize(n * groups);

  const auto store_group = [&](const Panel& panel, std::int64_t group, const GroupResult& result) {
    for (int r = 0; r < panel.rows; ++r) {
      const std::int64_t at = (panel.strip * kStripRows + r) * groups + group;
      weight.scales[at] = bits_from_f32(result.scale[r], spec.scale_type);
      if (spec.zero == ZeroKind::integer) {
        weight.zeros[at] = static_cast<std::uint8_t>(result.zero[r]);
      }
      if (spec.zero == ZeroKind::scaled) {
        weight.scaled_zeros[at] = bits_from_f32(result.zero[r], spec.scale_type);
      }
    }
  };
  const auto store_codes = [&](const Panel& panel, const Scratch& scratch) {
    transpose_codes(scratch.codes.get(), panel.length(), panel.rows,
                    weight.codes.data() + panel.strip * kStripRows * k + panel.k_begin, k);
  };
  const Dense dense{static_cast<const std::uint8_t*>(w), type, n, k, ldw};
  if (Status status = quantize_panels(dense, options, store_group, store_codes); !status.ok()) {
    return status;
  }
  return weight;
}

Result<PackedWeight> quantize_packed(const void* w, DataType type, std::int64_t n, std::int64_t k,
                                     std::int64_t ldw, const QuantizeOptions& options) {
  const QuantSpec& spec = options.spec;
  if (Status status = check_arguments(w, type, n, k, ldw, spec); !status.ok()) return status;
  auto allocated = allocate_packed(n, k, spec);
  if (!allocated.ok()) return allocated.status();
  PackedBuffer& buffer = *allocated;
  const std::int64_t groups = buffer.view.groups();

  const auto store_group = [&](const Panel& panel, std::int64_t group, const GroupResult& result) {
    // Rows beyond N were quantized as zeros: no extent, hence scale 0 and zero 0, as padding asks.
    const std::int64_t at = (panel.strip * groups + group) * kStripRows;
    for (int r = 0; r < kStripRows; ++r) {
      buffer.scales[at + r] = bits_from_f32(result.scale[r], spec.scale_type);
      if (buffer.integer_zeros != nullptr) {
        buffer.integer_zeros[at + r] = static_cast<std::uint8_t>(result.zero[r]);
      }
      if (buffer.scaled_zeros != nullptr) {
        buffer.scaled_zeros[at + r] = bits_from_f32(result.zero[r], spec.scale_type);
      }
    }
  };
  const auto store_codes = [&](const Panel& panel, Scratch& scratch) {
    const std::int64_t blocks = layout::num_k_blocks(panel.length());
    const std::int64_t padded = blocks * kBlockK;
    if (padded != panel.length()) {
      std::memset(scratch.tile.get(), padding_code(spec), padded * kStripRows);
    }
    transpose_codes(scratch.codes.get(), panel.length(), kStripRows, scratch.tile.get(), padded);
    const int cell_bytes = layout::cell_bytes(bits_of(spec.type));
    std::uint8_t* cells = buffer.codes + panel.strip * buffer.view.codes_pitch_bytes +
                          panel.k_begin / kBlockK * cell_bytes;
    for (std::int64_t block = 0; block < blocks; ++block) {
      pack_cell(spec.type, scratch.tile.get() + block * kBlockK, padded,
                cells + block * cell_bytes);
    }
  };
  const Dense dense{static_cast<const std::uint8_t*>(w), type, n, k, ldw};
  if (Status status = quantize_panels(dense, options, store_group, store_codes); !status.ok()) {
    return status;
  }
  return PackedWeight(buffer.view, buffer.storage);
}

}  // namespace mixgemm
