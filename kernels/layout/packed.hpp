// SPDX-License-Identifier: Apache-2.0
// The packed weight layout, format v1, as code: one constexpr bijection between a weight's place
// (n, k) and the bits that hold its code. Packer, unpacker, CPU backend, kernels and tests all use
// this file; docs/packed_layout.md draws it.
//
//   strip    16 consecutive output features: one m16 operand of mma.m16n8k16, one warp's share of
//            wgmma.m64k16
//   k-block  64 consecutive k: four k16 steps
//   cell     one strip × one k-block: 512 bytes of int4 codes, or two such planes of int8
//
// A cell is 32 lanes × 16 bytes per plane, in the order of the A fragment of mma.m16n8k16 (PTX ISA,
// "Matrix Fragments for mma.m16n8k16 with floating point type"): lane = 4·g + c holds rows g and
// g + 8 and, of a k16 step, columns 2c, 2c+1, 2c+8, 2c+9. One 16-byte load per lane and plane feeds
// four (int4) or two (int8) k16 steps without a bank conflict.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define MIXGEMM_HOST_DEVICE __host__ __device__
#else
#define MIXGEMM_HOST_DEVICE
#endif

namespace mixgemm::layout {

inline constexpr int kStripRows = 16;
inline constexpr int kBlockK = 64;
inline constexpr int kPlaneBytes = 512;
inline constexpr int kWordsPerPlane = kPlaneBytes / 4;

/// 512-byte planes in a cell: 1 for int4, 2 for int8.
MIXGEMM_HOST_DEVICE constexpr int planes(int bits) { return bits / 4; }
/// Bytes of one cell: 512 for int4, 1024 for int8.
MIXGEMM_HOST_DEVICE constexpr int cell_bytes(int bits) { return kPlaneBytes * planes(bits); }

MIXGEMM_HOST_DEVICE constexpr std::int64_t num_strips(std::int64_t n) {
  return (n + kStripRows - 1) / kStripRows;
}
MIXGEMM_HOST_DEVICE constexpr std::int64_t num_k_blocks(std::int64_t k) {
  return (k + kBlockK - 1) / kBlockK;
}
/// Bytes of one strip's codes in an unsliced weight.
MIXGEMM_HOST_DEVICE constexpr std::int64_t strip_bytes(std::int64_t k, int bits) {
  return num_k_blocks(k) * cell_bytes(bits);
}

/// Where a code lives inside its cell: 32-bit word (0 .. 127 for int4, 0 .. 255 for int8) and the
/// position of its lowest bit there.
struct Place {
  int word;
  int bit;
};

/// Where it lives inside its strip and k-block: row 0..15, k 0..63.
struct Coord {
  int row;
  int k;
};

/// (row, k) → (word, bit) within a cell; bits is 4 or 8.
MIXGEMM_HOST_DEVICE constexpr Place place_of(Coord at, int bits) {
  const int step = at.k / 16;                          // which k16 step
  const int pair = (at.k % 8) / 2;                     // c of the fragment
  const int odd = at.k % 2;                            // low or high half of the 16-bit pair
  const int reg = at.row / 8 + 2 * ((at.k % 16) / 8);  // A register a0..a3 of the fragment
  const int lane = 4 * (at.row % 8) + pair;
  if (bits == 4) return {4 * lane + step, 4 * reg + 16 * odd};
  // int8: a word holds registers 2h and 2h+1 of one step, bytes (2h even, 2h odd, 2h+1 even, ...).
  const int plane = step / 2;
  return {kWordsPerPlane * plane + 4 * lane + 2 * (step % 2) + reg / 2, 16 * (reg % 2) + 8 * odd};
}

/// (word, bit) → (row, k): the inverse of place_of.
MIXGEMM_HOST_DEVICE constexpr Coord coord_of(Place at, int bits) {
  const int plane = at.word / kWordsPerPlane;
  const int lane = (at.word % kWordsPerPlane) / 4;
  const int slot = at.word % 4;
  const int step = bits == 4 ? slot : 2 * plane + slot / 2;
  const int reg = bits == 4 ? (at.bit % 16) / 4 : 2 * (slot % 2) + at.bit / 16;
  const int odd = bits == 4 ? at.bit / 16 : (at.bit % 16) / 8;
  return {lane / 4 + 8 * (reg % 2), 16 * step + 8 * (reg / 2) + 2 * (lane % 4) + odd};
}

/// Index of a scale or zero in [strips][groups][16], for groups_pitch groups from strip to strip.
MIXGEMM_HOST_DEVICE constexpr std::int64_t scale_index(std::int64_t n, std::int64_t group,
                                                       std::int64_t groups_pitch) {
  return ((n / kStripRows) * groups_pitch + group) * kStripRows + n % kStripRows;
}

}  // namespace mixgemm::layout
