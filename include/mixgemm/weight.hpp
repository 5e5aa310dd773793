// SPDX-License-Identifier: Apache-2.0
// Weights: canonical (checkpoint-neutral codes) and packed (the kernels' layout), and the verbs
// between them. The packed layout is defined in kernels/layout/packed.hpp and explained in
// docs/packed_layout.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "mixgemm/export.hpp"
#include "mixgemm/status.hpp"
#include "mixgemm/types.hpp"

namespace mixgemm {

/// Version of the packed layout and of its file header. A reader refuses any other.
inline constexpr int kPackedFormatVersion = 1;

/// Called now and then during long work with a fraction in [0, 1] that never decreases, the last
/// time with 1 on success. From a worker thread, one call at a time; must not throw. Optional.
using Progress = std::function<void(double fraction)>;

/// A quantized weight, independent of any checkpoint or kernel: what import produces and pack eats.
struct CanonicalWeight {
  std::int64_t n = 0;  ///< output features
  std::int64_t k = 0;  ///< reduction
  QuantSpec spec;
  std::vector<std::uint8_t> codes;          ///< [N, K], one code per byte, < 2^bits
  std::vector<std::uint16_t> scales;        ///< [N, G], bits of spec.scale_type
  std::vector<std::uint8_t> zeros;          ///< [N, G] for ZeroKind::integer, else empty
  std::vector<std::uint16_t> scaled_zeros;  ///< [N, G] bits of scale_type for scaled, else empty
  /// Empty: column j belongs to input feature j. Else [K], a permutation of 0 … K − 1: column j
  /// belongs to input feature permutation[j]. Checkpoints quantized in activation order need it,
  /// because their groups aren't runs of consecutive input features.
  std::vector<std::int32_t> permutation;

  std::int64_t groups() const { return num_groups(k, spec.group_size); }
};

/// Checks sizes, ranges of codes and zeros, that every scale is finite, and the permutation.
MIXGEMM_API Status validate(const CanonicalWeight& weight);

/// Options of quantize().
struct QuantizeOptions {
  QuantSpec spec;           ///< zero: none = symmetric; integer, scaled = asymmetric
  bool search_clip = true;  ///< per group, pick the clipping ratio with the least squared error
  int num_threads = 0;      ///< 0 = all cores
  Progress progress;
};

/// Quantizes a dense weight by rounding to nearest; deterministic for any number of threads.
/// w: [N, K] row-major with leading dimension ldw ≥ K, in elements of `type` (f16, bf16 or f32).
/// none: codes −7 … 7 (−127 … 127) around the implicit zero, −8 (−128) where clipping leads there;
/// integer: an exact 0 stays exactly 0; scaled: the zero is whatever 16-bit float fits best. A
/// scale is rounded to the scale type before codes are computed; it is 0 only where all weights are
/// equal (none, integer: zero), and else at least the smallest fp16 or the smallest normal bf16.
/// Fails on non-finite weights (names row and column), on N or K < 1, on an unknown group size, and
/// where a scale or scaled zero doesn't fit the scale type (names row and group).
MIXGEMM_API Result<CanonicalWeight> quantize(const void* w, DataType type, std::int64_t n,
                                             std::int64_t k, std::int64_t ldw,
                                             const QuantizeOptions& options);

/// Dense fp32 value of a canonical weight, [N, K]: (q − z)·s or q·s − z, evaluated in double and
/// rounded once. Columns are in the order of the input features: a permutation is undone.
MIXGEMM_API Result<std::vector<float>> dequantize(const CanonicalWeight& weight);

/// A packed weight somewhere in memory: plain pointers, no ownership. A slice is another view of
/// the same bytes. Units: strips of 16 output features, k-blocks of 64 k
/// (kernels/layout/packed.hpp).
struct PackedView {
  std::int64_t n = 0;
  std::int64_t k = 0;
  QuantSpec spec;
  Device device = Device::cpu;
  const std::uint8_t* codes = nullptr;    ///< [strips][k-blocks][cell], 16-byte aligned
  const std::uint16_t* scales = nullptr;  ///< [strips][G][16], bits of spec.scale_type
  /// ZeroKind::integer on the CPU: u8 [strips][G][16]. On a CUDA device: 16-bit floats of the scale
  /// type holding the same integers. ZeroKind::scaled: 16-bit floats everywhere. none: nullptr.
  const void* zeros = nullptr;
  std::int64_t codes_pitch_bytes = 0;  ///< from one strip's codes to the next strip's
  std::int64_t groups_pitch = 0;       ///< groups from one strip's scales (and zeros) to the next's
  /// [K] where the weight is, in host memory or (16-byte aligned) on the device, or nullptr where
  /// columns are in order: packed column j multiplies column permutation[j] of X. A plan for
  /// ColumnOrder::permuted takes such a view as it is; others take for_gathered_x().
  const std::int32_t* permutation = nullptr;

  std::int64_t groups() const { return num_groups(k, spec.group_size); }
  /// The same weight for an X that gather_columns() has put in its order: no permutation.
  PackedView for_gathered_x() const {
    PackedView view = *this;
    view.permutation = nullptr;
    return view;
  }
};

/// A packed weight that keeps its memory alive: allocated by pack(), mapped from a file, or on a
/// CUDA device. Copies share the memory, which never changes.
class MIXGEMM_API PackedWeight {
 public:
  PackedWeight() = default;
  PackedWeight(PackedView view, std::shared_ptr<const void> storage)
      : view_(view), storage_(std::move(storage)) {}

  const PackedView& view() const { return view_; }
  /// The permutation of the columns, K indices where the weight is (of a weight on a CUDA device
  /// not to be read here); empty where they are in order.
  std::span<const std::int32_t> permutation() const {
    if (view_.permutation == nullptr) return {};
    return {view_.permutation, static_cast<std::size_t>(view_.k)};
  }
  /// The same weight for an X that gather_columns() has put in its order; shares the memory.
  PackedWeight for_gathered_x() const { return {view_.for_gathered_x(), storage_}; }
  /// Bytes of codes, scales, zeros and permutation, padding included.
  std::size_t size_bytes() const;

 private:
  PackedView view_;
  std::shared_ptr<const void> storage_;
};

/// Canonical → packed. Parallel; peak extra memory is the result. num_threads 0 = all cores.
MIXGEMM_API Result<PackedWeight> pack(const CanonicalWeight& weight, int num_threads = 0);

/// Packed → canonical, the exact inverse of pack() on every weight, slices included. CPU views
/// only.
MIXGEMM_API Result<CanonicalWeight> unpack(const PackedView& weight, int num_threads = 0);

/// Quantizes and packs in one streaming pass: peak extra memory is a few strips, whatever N and K.
MIXGEMM_API Result<PackedWeight> quantize_packed(const void* w, DataType type, std::int64_t n,
                                                 std::int64_t k, std::int64_t ldw,
                                                 const QuantizeOptions& options);

/// Puts X's columns in the order of the weight's packed columns: gathered[m, j] =
/// x[m, permutation[j]], a plain copy where the weight has no permutation. Multiply with
/// for_gathered_x() then. x: [M, K], gathered: [M, K], 16-bit elements, leading dimensions ldx,
/// ldg ≥ K, and the weight in host memory, not overlapping. M may be 0. Fails with
/// invalid_argument. Plans for ColumnOrder::permuted do it themselves; this serves where several
/// weights share an order, so that X is gathered once.
MIXGEMM_API Status gather_columns(const PackedView& weight, const void* x, std::int64_t m,
                                  std::int64_t ldx, void* gathered, std::int64_t ldg,
                                  int num_threads = 0);

/// Output features [n_begin, n_end): a view of the same bytes. n_begin must be a multiple of 16,
/// and n_end too unless it is N.
MIXGEMM_API Result<PackedView> slice_n(const PackedView& weight, std::int64_t n_begin,
                                       std::int64_t n_end);

/// Reduction range [k_begin, k_end): a view of the same bytes. Both must be multiples of
/// lcm(64, group size), except that k_end may be K. Fails on a weight with a permutation, whose
/// columns belong to input features all over X.
MIXGEMM_API Result<PackedView> slice_k(const PackedView& weight, std::int64_t k_begin,
                                       std::int64_t k_end);

/// Copies a packed weight to the current CUDA device; integer zeros become 16-bit floats there.
/// A permutation goes along. Fails with unsupported in a CPU-only build or without a usable device.
/// Synchronous.
MIXGEMM_API Result<PackedWeight> to_cuda(const PackedWeight& weight);

}  // namespace mixgemm
