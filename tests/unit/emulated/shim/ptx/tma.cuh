// SPDX-License-Identifier: Apache-2.0
// kernels/ptx/tma.cuh on the host. A TensorMap holds the TensorMapShape that it was made from.
#pragma once

#include <cstring>
#include <type_traits>
#include <vector>

#include "cuda_keywords.hpp"
#include "launch/geometry.hpp"
#include "ptx/cp_async.cuh"

namespace mixgemm::ptx {

inline TensorMap encode_tensor_map(const launch::TensorMapShape& shape) {
  TensorMap map = {};
  static_assert(sizeof(shape) <= sizeof(map) &&
                std::is_trivially_copyable_v<launch::TensorMapShape>);
  std::memcpy(&map, &shape, sizeof(shape));
  return map;
}

inline void prefetch_tensormap(const TensorMap&) {}

/// The bytes of a box as they lie from dst on: zeros outside the tensor, 16-byte chunks swizzled by
/// their address.
inline std::vector<char> box_of(const TensorMap& map, std::uint32_t dst, int column, int row) {
  launch::TensorMapShape s;
  std::memcpy(static_cast<void*>(&s), &map, sizeof(s));
  using Element = launch::TensorMapShape::Element;
  const std::int64_t element_bytes = s.element == Element::u32 ? 4 : 2;
  const std::int64_t row_bytes = s.box[0] * element_bytes;
  if (s.address == 0 || s.address % 16 != 0 || s.pitch_bytes % 16 != 0 || row_bytes % 16 != 0 ||
      s.box[0] == 0 || s.box[0] > 256 || s.box[1] == 0 || s.box[1] > 256 ||
      (s.swizzle_128b != 0 && row_bytes > 128)) {
    emulator::fail("a tensor map that the driver refuses");
  }
  if (dst % 128 != 0) emulator::fail("a box goes to an address that isn't a multiple of 128");
  std::vector<char> box(static_cast<std::size_t>(row_bytes * s.box[1]));
  const std::int64_t left = static_cast<std::int64_t>(s.dims[0]) - column;
  const std::int64_t inside = std::clamp<std::int64_t>(left, 0, s.box[0]) * element_bytes;
  if (column < 0 || row < 0) emulator::fail("a box that begins before its tensor");
  for (std::int64_t r = 0; r < s.box[1]; ++r) {
    if (inside == 0 || row + r >= static_cast<std::int64_t>(s.dims[1])) continue;
    const char* const from = reinterpret_cast<const char*>(s.address) +
                             (row + r) * static_cast<std::int64_t>(s.pitch_bytes) +
                             column * element_bytes;
    emulator::check_readable(from, static_cast<std::size_t>(inside));
    for (std::int64_t at = 0; at < inside; at += element_bytes) {
      std::int64_t to = r * row_bytes + at;
      if (s.swizzle_128b != 0) to ^= ((dst + to) >> 7 & 7) << 4;
      std::memcpy(box.data() + to, from + at, static_cast<std::size_t>(element_bytes));
    }
  }
  return box;
}

inline void cp_async_bulk_tensor_2d(std::uint32_t dst, const TensorMap& map, int column, int row,
                                    std::uint32_t barrier, std::uint64_t policy) {
  check_policy(policy);
  emulator::copy_bulk(dst, box_of(map, dst, column, row), barrier, 0);
}
inline void cp_async_bulk_tensor_2d_multicast(std::uint32_t dst, const TensorMap& map, int column,
                                              int row, std::uint32_t barrier,
                                              std::uint16_t cta_mask, std::uint64_t policy) {
  check_policy(policy);
  if (cta_mask == 0) emulator::fail("a multicast to nobody");
  emulator::copy_bulk(dst, box_of(map, dst, column, row), barrier, cta_mask);
}

}  // namespace mixgemm::ptx
