// SPDX-License-Identifier: Apache-2.0
// One cell of the packed weight (16 rows × 64 k), to and from rows of one code per byte.
//
// kernels/layout/packed.hpp defines where a code goes; these functions reach the same places 16
// codes at a time, and the test CellMatchesTheBijection compares them place by place.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mixgemm/types.hpp"

namespace mixgemm {

/// Packs a cell. rows: [16][64] codes, row r at rows + r·stride; cell: 512 (int4) or 1024 (int8)
/// bytes. For int4, returns the bitwise or of all codes, so that a caller sees a code
/// ≥ 16 without another pass (the cell then means nothing). For int8, where every byte is a code,
/// 0.
std::uint8_t pack_cell(WeightType type, const std::uint8_t* rows, std::ptrdiff_t stride,
                       std::uint8_t* cell);

/// The inverse of pack_cell.
void unpack_cell(WeightType type, const std::uint8_t* cell, std::uint8_t* rows,
                 std::ptrdiff_t stride);

}  // namespace mixgemm
