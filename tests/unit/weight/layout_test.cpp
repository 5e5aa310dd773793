// SPDX-License-Identifier: Apache-2.0
// The layout's bijection against the PTX ISA, and the packer's fast path against the bijection.
#include "layout/packed.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <set>
#include <utility>

#include "random_weight.hpp"
#include "weight/cell.hpp"

namespace mixgemm {
namespace {

using layout::Coord;
using layout::Place;

// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type", multiplicand A: thread
// `lane` of the warp holds a0..a7, two per 32-bit register, and
//   groupID = lane >> 2, threadID_in_group = lane % 4
//   row = groupID      for ai where 0 <= i < 2 || 4 <= i < 6
//         groupID + 8  otherwise
//   col = (threadID_in_group * 2) + (i & 0x1)      for ai where i <  4
//         (threadID_in_group * 2) + (i & 0x1) + 8  for ai where i >= 4
Coord ptx_a_fragment(int lane, int i) {
  const int group_id = lane >> 2;
  const int thread_id_in_group = lane % 4;
  const int row = (0 <= i && i < 2) || (4 <= i && i < 6) ? group_id : group_id + 8;
  const int col = thread_id_in_group * 2 + (i & 0x1) + (i >= 4 ? 8 : 0);
  return {row, col};
}

TEST(PackedLayout, Int4WordsShiftIntoTheRegistersOfTheMmaFragment) {
  for (int step = 0; step < 4; ++step) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 8; ++i) {
        const Coord in_step = ptx_a_fragment(lane, i);
        const Place place = layout::place_of({in_step.row, 16 * step + in_step.k}, 4);
        // (word >> 4r) & 0x000f000f must be register r = i/2: a[2r] in its low half.
        EXPECT_EQ(place.word, 4 * lane + step) << "lane " << lane << " a" << i;
        EXPECT_EQ(place.bit, 4 * (i / 2) + 16 * (i % 2)) << "lane " << lane << " a" << i;
      }
    }
  }
}

TEST(PackedLayout, Int8PlanesHoldTheRegistersOfTheMmaFragment) {
  for (int step = 0; step < 4; ++step) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 8; ++i) {
        const Coord in_step = ptx_a_fragment(lane, i);
        const Place place = layout::place_of({in_step.row, 16 * step + in_step.k}, 8);
        // Plane step/2, the lane's 16 bytes; a0..a3 of a step in one word, a4..a7 in the next.
        EXPECT_EQ(place.word, 128 * (step / 2) + 4 * lane + 2 * (step % 2) + i / 4);
        EXPECT_EQ(place.bit, 8 * (i % 4)) << "lane " << lane << " a" << i;
      }
    }
  }
}

// PTX ISA, "Register Fragments for wgmma.mma_async.m64nNk16", matrix A: warp w of the warpgroup
// holds rows 16w + ..., in the order of the mma fragment. Four strips make its 64 rows.
TEST(PackedLayout, StripsAreTheWarpsOfAWgmmaOperand) {
  for (int thread = 0; thread < 128; ++thread) {
    for (int i = 0; i < 8; ++i) {
      const int row = (thread / 32) * 16 + (thread % 32) / 4 + 8 * ((i / 2) % 2);
      const int col = (i / 4) * 8 + (thread % 4) * 2 + i % 2;
      const Place place = layout::place_of({row % 16, col}, 4);
      EXPECT_EQ(row / 16, thread / 32);
      EXPECT_EQ(place.word / 4, thread % 32);
      EXPECT_EQ(place.bit, 4 * (i / 2) + 16 * (i % 2));
    }
  }
}

TEST(PackedLayout, PlacesFillTheCellOnceAndInvert) {
  for (const int bits : {4, 8}) {
    std::set<std::pair<int, int>> taken;
    for (int row = 0; row < layout::kStripRows; ++row) {
      for (int k = 0; k < layout::kBlockK; ++k) {
        const Place place = layout::place_of({row, k}, bits);
        EXPECT_TRUE(taken.emplace(place.word, place.bit).second);
        EXPECT_EQ(place.bit % bits, 0);
        EXPECT_LE(place.bit, 32 - bits);
        EXPECT_GE(place.word, 0);
        EXPECT_LT(place.word, layout::cell_bytes(bits) / 4);
        const Coord back = layout::coord_of(place, bits);
        EXPECT_EQ(back.row, row);
        EXPECT_EQ(back.k, k);
      }
    }
    EXPECT_EQ(static_cast<int>(taken.size()), layout::cell_bytes(bits) * 8 / bits);
  }
}

// A cell is a bitwise or of its codes, so one bit of one code at a time covers every cell there is.
TEST(PackedLayout, CellMatchesTheBijection) {
  constexpr int kStride = 80;  // not the width of a cell
  for (const WeightType type : testing::kWeightTypes) {
    const int bits = bits_of(type);
    for (int row = 0; row < layout::kStripRows; ++row) {
      for (int k = 0; k < layout::kBlockK; ++k) {
        for (int b = 0; b < bits; ++b) {
          std::uint8_t rows[layout::kStripRows * kStride] = {};
          rows[row * kStride + k] = static_cast<std::uint8_t>(1 << b);
          std::uint32_t cell[256];
          const std::uint8_t seen =
              pack_cell(type, rows, kStride, reinterpret_cast<std::uint8_t*>(cell));
          if (type == WeightType::int4) {
            ASSERT_EQ(seen, 1 << b);
          }
          const Place place = layout::place_of({row, k}, bits);
          for (int word = 0; word < layout::cell_bytes(bits) / 4; ++word) {
            ASSERT_EQ(cell[word], word == place.word ? 1u << (place.bit + b) : 0u)
                << "row " << row << " k " << k << " word " << word;
          }
          std::uint8_t back[layout::kStripRows * kStride] = {};
          unpack_cell(type, reinterpret_cast<const std::uint8_t*>(cell), back, kStride);
          ASSERT_EQ(std::memcmp(back, rows, sizeof(rows)), 0) << "row " << row << " k " << k;
        }
      }
    }
  }
}

}  // namespace
}  // namespace mixgemm
