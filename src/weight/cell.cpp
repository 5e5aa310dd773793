// SPDX-License-Identifier: Apache-2.0
#include "weight/cell.hpp"

#include <bit>
#include <cstring>

#include "layout/packed.hpp"

namespace mixgemm {
namespace {

static_assert(std::endian::native == std::endian::little,
              "the packed layout numbers bytes inside 32-bit words from the lowest");

// 128-bit vectors of the compiler (g++ and clang): the shuffles below are single instructions of
// every SIMD instruction set since SSE2 and NEON, so no run-time dispatch is needed.
using U8 = std::uint8_t __attribute__((vector_size(16)));
using U16 = std::uint16_t __attribute__((vector_size(16)));
using U32 = std::uint32_t __attribute__((vector_size(16)));
using U64 = std::uint64_t __attribute__((vector_size(16)));

inline U8 load(const std::uint8_t* from) {
  U8 value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

inline void store(std::uint8_t* to, U8 value) { std::memcpy(to, &value, sizeof(value)); }

// Every shuffle is spelled as one of two vectors that SSE2 has: g++ turns others into byte moves.

inline U8 low_halves(U8 a, U8 b) {
  return reinterpret_cast<U8>(
      __builtin_shufflevector(reinterpret_cast<U64>(a), reinterpret_cast<U64>(b), 0, 2));
}

inline U8 high_halves(U8 a, U8 b) {
  return reinterpret_cast<U8>(
      __builtin_shufflevector(reinterpret_cast<U64>(a), reinterpret_cast<U64>(b), 1, 3));
}

// 4×4 transposition of words. A row pair's vectors hold one word slot of four lanes each; the cell
// wants the four slots of one lane side by side. It is its own inverse.
inline void transpose(U8 (&v)[4]) {
  const auto low = [](U8 a, U8 b) {
    return reinterpret_cast<U8>(
        __builtin_shufflevector(reinterpret_cast<U32>(a), reinterpret_cast<U32>(b), 0, 4, 1, 5));
  };
  const auto high = [](U8 a, U8 b) {
    return reinterpret_cast<U8>(
        __builtin_shufflevector(reinterpret_cast<U32>(a), reinterpret_cast<U32>(b), 2, 6, 3, 7));
  };
  const U8 low01 = low(v[0], v[1]);
  const U8 low23 = low(v[2], v[3]);
  const U8 high01 = high(v[0], v[1]);
  const U8 high23 = high(v[2], v[3]);
  v[0] = low_halves(low01, low23);
  v[1] = high_halves(low01, low23);
  v[2] = low_halves(high01, high23);
  v[3] = high_halves(high01, high23);
}

// Rows g and g + 8 belong to the same four lanes 4g + c; their 16 bytes of a k16 step become
//   int4  one vector, word c = slot `step`:  nibbles (g, 2c), (g+8, 2c), (g, 2c+8), (g+8, 2c+8),
//         then the same of 2c+1. So: merge the rows into bytes (low nibble g, high nibble g+8),
//         then interleave the bytes of columns 0..7 with those of columns 8..15.
//   int8  two vectors h = 0, 1, word c = slot 2·(step mod 2) + h: bytes (g, 8h+2c), (g, 8h+2c+1),
//         (g+8, 8h+2c), (g+8, 8h+2c+1). So: interleave the rows by pairs of bytes.

inline U8 merge_int4(U8 row, U8 row8) {
  // In 16-bit lanes, because bytes have no shift; row8's codes are < 16, so nothing crosses bytes.
  const U8 both = row | reinterpret_cast<U8>(reinterpret_cast<U16>(row8) << 4);
  return __builtin_shufflevector(both, high_halves(both, both), 0, 16, 1, 17, 2, 18, 3, 19, 4, 20,
                                 5, 21, 6, 22, 7, 23);
}

// Two steps at a time: bytes at even places are columns 0..7 of both, at odd places 8..15.
inline void split_int4(const U8 (&merged)[2], U8 (&row)[2], U8 (&row8)[2]) {
  const U8 even = __builtin_shufflevector(merged[0], merged[1], 0, 2, 4, 6, 8, 10, 12, 14, 16, 18,
                                          20, 22, 24, 26, 28, 30);
  const U8 odd = __builtin_shufflevector(merged[0], merged[1], 1, 3, 5, 7, 9, 11, 13, 15, 17, 19,
                                         21, 23, 25, 27, 29, 31);
  const U8 both[2] = {low_halves(even, odd), high_halves(even, odd)};
  for (int i = 0; i < 2; ++i) {
    row[i] = both[i] & 0x0f;
    row8[i] = reinterpret_cast<U8>(reinterpret_cast<U16>(both[i]) >> 4) & 0x0f;
  }
}

inline U8 merge_int8_low(U8 row, U8 row8) {
  return reinterpret_cast<U8>(__builtin_shufflevector(
      reinterpret_cast<U16>(row), reinterpret_cast<U16>(row8), 0, 8, 1, 9, 2, 10, 3, 11));
}

inline U8 merge_int8_high(U8 row, U8 row8) {
  return reinterpret_cast<U8>(__builtin_shufflevector(
      reinterpret_cast<U16>(row), reinterpret_cast<U16>(row8), 4, 12, 5, 13, 6, 14, 7, 15));
}

inline U8 split_int8_even(U8 low, U8 high) {
  return reinterpret_cast<U8>(__builtin_shufflevector(
      reinterpret_cast<U16>(low), reinterpret_cast<U16>(high), 0, 2, 4, 6, 8, 10, 12, 14));
}

inline U8 split_int8_odd(U8 low, U8 high) {
  return reinterpret_cast<U8>(__builtin_shufflevector(
      reinterpret_cast<U16>(low), reinterpret_cast<U16>(high), 1, 3, 5, 7, 9, 11, 13, 15));
}

constexpr int kRowPairs = layout::kStripRows / 2;
constexpr int kRowPairBytes = layout::kPlaneBytes / kRowPairs;  // four lanes of one plane

std::uint8_t pack_int4(const std::uint8_t* rows, std::ptrdiff_t stride, std::uint8_t* cell) {
  U8 seen = {};
  for (int g = 0; g < kRowPairs; ++g) {
    const std::uint8_t* row = rows + g * stride;
    const std::uint8_t* row8 = row + kRowPairs * stride;
    U8 slots[4];
    for (int step = 0; step < 4; ++step) {
      const U8 a = load(row + 16 * step);
      const U8 b = load(row8 + 16 * step);
      seen |= a | b;
      slots[step] = merge_int4(a, b);
    }
    transpose(slots);
    for (int c = 0; c < 4; ++c) store(cell + kRowPairBytes * g + 16 * c, slots[c]);
  }
  std::uint8_t any = 0;
  for (int i = 0; i < 16; ++i) any |= seen[i];
  return any;
}

void unpack_int4(const std::uint8_t* cell, std::uint8_t* rows, std::ptrdiff_t stride) {
  for (int g = 0; g < kRowPairs; ++g) {
    std::uint8_t* row = rows + g * stride;
    std::uint8_t* row8 = row + kRowPairs * stride;
    U8 slots[4];
    for (int c = 0; c < 4; ++c) slots[c] = load(cell + kRowPairBytes * g + 16 * c);
    transpose(slots);
    for (int step = 0; step < 4; step += 2) {
      U8 a[2], b[2];
      split_int4({slots[step], slots[step + 1]}, a, b);
      for (int i = 0; i < 2; ++i) {
        store(row + 16 * (step + i), a[i]);
        store(row8 + 16 * (step + i), b[i]);
      }
    }
  }
}

void pack_int8(const std::uint8_t* rows, std::ptrdiff_t stride, std::uint8_t* cell) {
  for (int g = 0; g < kRowPairs; ++g) {
    const std::uint8_t* row = rows + g * stride;
    const std::uint8_t* row8 = row + kRowPairs * stride;
    for (int plane = 0; plane < 2; ++plane) {
      U8 slots[4];
      for (int odd = 0; odd < 2; ++odd) {  // step = 2·plane + odd
        const U8 a = load(row + 32 * plane + 16 * odd);
        const U8 b = load(row8 + 32 * plane + 16 * odd);
        slots[2 * odd] = merge_int8_low(a, b);
        slots[2 * odd + 1] = merge_int8_high(a, b);
      }
      transpose(slots);
      std::uint8_t* lanes = cell + layout::kPlaneBytes * plane + kRowPairBytes * g;
      for (int c = 0; c < 4; ++c) store(lanes + 16 * c, slots[c]);
    }
  }
}

void unpack_int8(const std::uint8_t* cell, std::uint8_t* rows, std::ptrdiff_t stride) {
  for (int g = 0; g < kRowPairs; ++g) {
    std::uint8_t* row = rows + g * stride;
    std::uint8_t* row8 = row + kRowPairs * stride;
    for (int plane = 0; plane < 2; ++plane) {
      const std::uint8_t* lanes = cell + layout::kPlaneBytes * plane + kRowPairBytes * g;
      U8 slots[4];
      for (int c = 0; c < 4; ++c) slots[c] = load(lanes + 16 * c);
      transpose(slots);
      for (int odd = 0; odd < 2; ++odd) {
        const U8 low = slots[2 * odd];
        const U8 high = slots[2 * odd + 1];
        store(row + 32 * plane + 16 * odd, split_int8_even(low, high));
        store(row8 + 32 * plane + 16 * odd, split_int8_odd(low, high));
      }
    }
  }
}

}  // namespace

std::uint8_t pack_cell(WeightType type, const std::uint8_t* rows, std::ptrdiff_t stride,
                       std::uint8_t* cell) {
  if (type == WeightType::int4) return pack_int4(rows, stride, cell);
  pack_int8(rows, stride, cell);
  return 0;  // every byte is a code of int8
}

void unpack_cell(WeightType type, const std::uint8_t* cell, std::uint8_t* rows,
                 std::ptrdiff_t stride) {
  if (type == WeightType::int4) return unpack_int4(cell, rows, stride);
  unpack_int8(cell, rows, stride);
}

}  // namespace mixgemm
