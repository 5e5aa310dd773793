// SPDX-License-Identifier: Apache-2.0
// Canonical ↔ packed, and slices.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <numeric>

#include "layout/packed.hpp"
#include "mixgemm/weight.hpp"
#include "util/parallel.hpp"
#include "weight/cell.hpp"
#include "weight/checks.hpp"
#include "weight/packed_buffer.hpp"

namespace mixgemm {
namespace {

using layout::kBlockK;
using layout::kStripRows;

constexpr std::size_t kAlignment = 256;

// Cells a thread takes at a time: 64 K codes, large against the cost of handing out a chunk, small
// enough to balance the layers of a model over many cores.
constexpr std::int64_t kCellGrain = 64;
// Strips a thread takes at a time when it moves scales.
constexpr std::int64_t kStripGrain = 8;

constexpr std::size_t align_up(std::size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// Bytes of one stored zero.
std::size_t zero_bytes(ZeroKind kind, Device device) {
  if (kind == ZeroKind::none) return 0;
  return kind == ZeroKind::integer && device == Device::cpu ? 1 : 2;
}

// The part of a cell that lies inside the weight.
struct CellExtent {
  std::int64_t row;  // of the cell's first row
  std::int64_t k;    // of its first column
  int rows;          // 1..16
  int columns;       // 1..64
  bool whole() const { return rows == kStripRows && columns == kBlockK; }
};

CellExtent cell_extent(std::int64_t n, std::int64_t k, std::int64_t strip, std::int64_t block) {
  CellExtent at{strip * kStripRows, block * kBlockK, 0, 0};
  at.rows = static_cast<int>(std::min<std::int64_t>(kStripRows, n - at.row));
  at.columns = static_cast<int>(std::min<std::int64_t>(kBlockK, k - at.k));
  return at;
}

// Runs body(strip, block) over every cell, in parallel.
template <class Body>
void for_each_cell(std::int64_t n, std::int64_t k, int num_threads, const Body& body) {
  const std::int64_t blocks = layout::num_k_blocks(k);
  parallel_for(layout::num_strips(n) * blocks, kCellGrain, num_threads,
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t cell = begin; cell < end; ++cell) {
                   body(cell / blocks, cell % blocks);
                 }
               });
}

// [N, G] → one strip's [G][16], rows beyond N as zeros.
template <class T>
void gather_strip(const T* values, std::int64_t n, std::int64_t groups, std::int64_t strip, T* to) {
  for (int r = 0; r < kStripRows; ++r) {
    const std::int64_t row = strip * kStripRows + r;
    for (std::int64_t g = 0; g < groups; ++g) {
      to[g * kStripRows + r] = row < n ? values[row * groups + g] : T{0};
    }
  }
}

// One strip's [G][16] → [N, G].
template <class T>
void scatter_strip(const T* from, std::int64_t n, std::int64_t groups, std::int64_t strip,
                   T* values) {
  const std::int64_t first = strip * kStripRows;
  const int rows = static_cast<int>(std::min<std::int64_t>(kStripRows, n - first));
  for (int r = 0; r < rows; ++r) {
    for (std::int64_t g = 0; g < groups; ++g) {
      values[(first + r) * groups + g] = from[g * kStripRows + r];
    }
  }
}

}  // namespace

Result<PackedBuffer> allocate_packed(std::int64_t n, std::int64_t k, const QuantSpec& spec) {
  const int bits = bits_of(spec.type);
  const std::int64_t strips = layout::num_strips(n);
  const std::int64_t groups = num_groups(k, spec.group_size);
  const std::size_t per_group = static_cast<std::size_t>(strips * groups) * kStripRows;
  const std::size_t code_bytes =
      align_up(static_cast<std::size_t>(strips * layout::strip_bytes(k, bits)));
  const std::size_t scale_bytes = align_up(per_group * sizeof(std::uint16_t));
  const std::size_t bytes =
      code_bytes + scale_bytes + align_up(per_group * zero_bytes(spec.zero, Device::cpu));

  auto* memory = static_cast<std::uint8_t*>(std::aligned_alloc(kAlignment, bytes));
  if (memory == nullptr) {
    return Status(StatusCode::out_of_memory,
                  fmt::format("no memory for the {} bytes of a packed {} x {} {} weight", bytes, n,
                              k, to_string(spec.type)));
  }
  PackedBuffer buffer;
  buffer.storage = std::shared_ptr<void>(memory, std::free);
  buffer.codes = memory;
  buffer.scales = reinterpret_cast<std::uint16_t*>(memory + code_bytes);
  std::uint8_t* zeros = memory + code_bytes + scale_bytes;
  if (spec.zero == ZeroKind::integer) buffer.integer_zeros = zeros;
  if (spec.zero == ZeroKind::scaled) buffer.scaled_zeros = reinterpret_cast<std::uint16_t*>(zeros);

  PackedView& view = buffer.view;
  view.n = n;
  view.k = k;
  view.spec = spec;
  view.codes = buffer.codes;
  view.scales = buffer.scales;
  view.zeros = spec.zero == ZeroKind::none ? nullptr : zeros;
  view.codes_pitch_bytes = layout::strip_bytes(k, bits);
  view.groups_pitch = groups;
  return buffer;
}

std::size_t PackedWeight::size_bytes() const {
  if (view_.n < 1 || view_.k < 1) return 0;  // a default-constructed weight
  const auto strips = static_cast<std::size_t>(layout::num_strips(view_.n));
  const auto codes =
      static_cast<std::size_t>(layout::strip_bytes(view_.k, bits_of(view_.spec.type)));
  const auto per_group = static_cast<std::size_t>(view_.groups()) * kStripRows;
  return strips * (codes + per_group * (sizeof(std::uint16_t) +
                                        zero_bytes(view_.spec.zero, view_.device))) +
         permutation().size_bytes();
}

Result<PackedWeight> pack(const CanonicalWeight& weight, int num_threads) {
  if (Status status = check_arrays(weight); !status.ok()) return status;
  if (Status status = check_scales_and_zeros(weight); !status.ok()) return status;
  auto allocated = allocate_packed(weight.n, weight.k, weight.spec);
  if (!allocated.ok()) return allocated.status();
  PackedBuffer& buffer = *allocated;

  const WeightType type = weight.spec.type;
  const int cell_bytes = layout::cell_bytes(bits_of(type));
  std::atomic<bool> out_of_range{false};
  for_each_cell(weight.n, weight.k, num_threads, [&](std::int64_t strip, std::int64_t block) {
    const CellExtent at = cell_extent(weight.n, weight.k, strip, block);
    const std::uint8_t* rows = weight.codes.data() + at.row * weight.k + at.k;
    std::uint8_t* cell = buffer.codes + strip * buffer.view.codes_pitch_bytes + block * cell_bytes;
    std::uint8_t seen;
    if (at.whole()) {
      seen = pack_cell(type, rows, weight.k, cell);
    } else {
      std::uint8_t padded[kStripRows][kBlockK];
      std::memset(padded, padding_code(weight.spec), sizeof(padded));
      for (int r = 0; r < at.rows; ++r) std::memcpy(padded[r], rows + r * weight.k, at.columns);
      seen = pack_cell(type, padded[0], kBlockK, cell);
    }
    if (type == WeightType::int4 && seen >= 16) out_of_range.store(true, std::memory_order_relaxed);
  });
  // The packer only notices that some code is too large; validate() says which.
  if (out_of_range.load()) return validate(weight);

  const std::int64_t groups = weight.groups();
  parallel_for(layout::num_strips(weight.n), kStripGrain, num_threads,
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t strip = begin; strip < end; ++strip) {
                   const std::int64_t at = strip * groups * kStripRows;
                   gather_strip(weight.scales.data(), weight.n, groups, strip, buffer.scales + at);
                   if (buffer.integer_zeros != nullptr) {
                     gather_strip(weight.zeros.data(), weight.n, groups, strip,
                                  buffer.integer_zeros + at);
                   }
                   if (buffer.scaled_zeros != nullptr) {
                     gather_strip(weight.scaled_zeros.data(), weight.n, groups, strip,
                                  buffer.scaled_zeros + at);
                   }
                 }
               });
  if (weight.permutation.empty()) return PackedWeight(buffer.view, buffer.storage);
  struct Permuted {
    std::shared_ptr<void> arrays;
    std::vector<std::int32_t> permutation;
  };
  auto permuted = std::make_shared<Permuted>(Permuted{buffer.storage, weight.permutation});
  buffer.view.permutation = permuted->permutation.data();
  return PackedWeight(buffer.view, std::move(permuted));
}

Result<CanonicalWeight> unpack(const PackedView& view, int num_threads) {
  if (Status status = check_cpu_view(view, "unpack"); !status.ok()) return status;
  const std::int64_t groups = view.groups();
  CanonicalWeight weight;
  weight.n = view.n;
  weight.k = view.k;
  weight.spec = view.spec;
  weight.codes.resize(view.n * view.k);
  weight.scales.resize(view.n * groups);
  if (view.spec.zero == ZeroKind::integer) weight.zeros.resize(view.n * groups);
  if (view.spec.zero == ZeroKind::scaled) weight.scaled_zeros.resize(view.n * groups);
  if (view.permutation != nullptr) {
    weight.permutation.assign(view.permutation, view.permutation + view.k);
  }

  const WeightType type = view.spec.type;
  const int cell_bytes = layout::cell_bytes(bits_of(type));
  for_each_cell(view.n, view.k, num_threads, [&](std::int64_t strip, std::int64_t block) {
    const CellExtent at = cell_extent(view.n, view.k, strip, block);
    const std::uint8_t* cell = view.codes + strip * view.codes_pitch_bytes + block * cell_bytes;
    std::uint8_t* rows = weight.codes.data() + at.row * view.k + at.k;
    if (at.whole()) {
      unpack_cell(type, cell, rows, view.k);
    } else {
      std::uint8_t padded[kStripRows][kBlockK];
      unpack_cell(type, cell, padded[0], kBlockK);
      for (int r = 0; r < at.rows; ++r) std::memcpy(rows + r * view.k, padded[r], at.columns);
    }
  });

  parallel_for(layout::num_strips(view.n), kStripGrain, num_threads,
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t strip = begin; strip < end; ++strip) {
                   const std::int64_t at = strip * view.groups_pitch * kStripRows;
                   scatter_strip(view.scales + at, view.n, groups, strip, weight.scales.data());
                   if (view.spec.zero == ZeroKind::integer) {
                     scatter_strip(static_cast<const std::uint8_t*>(view.zeros) + at, view.n,
                                   groups, strip, weight.zeros.data());
                   }
                   if (view.spec.zero == ZeroKind::scaled) {
                     scatter_strip(static_cast<const std::uint16_t*>(view.zeros) + at, view.n,
                                   groups, strip, weight.scaled_zeros.data());
                   }
                 }
               });
  return weight;
}

namespace {

// Where [begin, end) of a weight's `size` rows or columns may be cut.
Status check_range(char axis, std::int64_t begin, std::int64_t end, std::int64_t size,
                   std::int64_t unit, std::string_view unit_name) {
  if (begin < 0 || begin >= end || end > size) {
    return Status(StatusCode::invalid_argument,
                  fmt::format("slice_{} needs 0 <= begin < end <= {} = {}; got [{}, {})", axis,
                              axis == 'n' ? 'N' : 'K', size, begin, end));
  }
  if (begin % unit != 0) {
    return Status(StatusCode::invalid_argument,
                  fmt::format("slice_{} must begin at a multiple of {} ({}); got {}", axis, unit,
                              unit_name, begin));
  }
  if (end % unit != 0 && end != size) {
    return Status(StatusCode::invalid_argument,
                  fmt::format("slice_{} must end at a multiple of {} ({}) or at {} = {}; got {}",
                              axis, unit, unit_name, axis == 'n' ? 'N' : 'K', size, end));
  }
  return {};
}

// Moves the view's scale and zero pointers by a number of groups.
void advance_groups(PackedView& view, std::int64_t groups) {
  const std::int64_t elems = groups * kStripRows;
  view.scales += elems;
  if (view.zeros != nullptr) {
    view.zeros = static_cast<const std::uint8_t*>(view.zeros) +
                 elems * static_cast<std::int64_t>(zero_bytes(view.spec.zero, view.device));
  }
}

}  // namespace

Result<PackedView> slice_n(const PackedView& weight, std::int64_t n_begin, std::int64_t n_end) {
  if (Status status = check_view(weight); !status.ok()) return status;
  if (Status status = check_range('n', n_begin, n_end, weight.n, kStripRows, "a strip");
      !status.ok()) {
    return status;
  }
  const std::int64_t strips = n_begin / kStripRows;
  PackedView view = weight;
  view.n = n_end - n_begin;
  view.codes += strips * weight.codes_pitch_bytes;
  advance_groups(view, strips * weight.groups_pitch);
  return view;
}

Result<PackedView> slice_k(const PackedView& weight, std::int64_t k_begin, std::int64_t k_end) {
  if (Status status = check_view(weight); !status.ok()) return status;
  if (weight.permutation != nullptr) {
    return Status(
        StatusCode::unsupported,
        fmt::format("slice_k needs columns in the order of X's; this weight of K = {} has "
                    "a permutation",
                    weight.k));
  }
  const int group_size = weight.spec.group_size;
  const bool per_column = group_size == 0;
  const std::int64_t unit = per_column ? kBlockK : std::lcm(kBlockK, group_size);
  if (Status status = check_range('k', k_begin, k_end, weight.k, unit,
                                  per_column ? "a k-block" : "lcm of k-block and group size");
      !status.ok()) {
    return status;
  }
  PackedView view = weight;
  view.k = k_end - k_begin;
  view.codes += k_begin / kBlockK * layout::cell_bytes(bits_of(weight.spec.type));
  if (!per_column) advance_groups(view, k_begin / group_size);
  return view;
}

}  // namespace mixgemm
