// SPDX-License-Identifier: Apache-2.0
// The CPU's inner loops, compiled once per instruction set (kernels.cpp) and reached through one
// table of functions. Internal to src/cpu.
//
// All of them keep k in the packed weight's own order instead of unpacking it: within a k-block,
// the 64 activations are permuted once per call so that a vector of codes, as it lies in memory,
// meets the right activations. The permuted block is [4][16] floats: for each position that a code
// can have in a 32-bit word, the 16 words of a row group (8 rows apart, see kernels/layout).
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "mixgemm/types.hpp"

namespace mixgemm::cpu {

/// One strip of a packed weight: 16 output features, all of K.
struct Strip {
  QuantSpec spec;
  std::int64_t k = 0;
  const std::uint8_t* codes = nullptr;    ///< [k-blocks][cell]
  const std::uint16_t* scales = nullptr;  ///< [G][16]
  const void* zeros = nullptr;            ///< [G][16], u8 or 16-bit floats
};

/// What turns fp32 sums into outputs. Pointers are already at the tile's first row and column.
struct Finish {
  DataType type = DataType::f16;
  Activation activation = Activation::none;
  float alpha = 1.0f;
  const std::uint16_t* bias = nullptr;      ///< [cols] or null
  const std::uint16_t* residual = nullptr;  ///< [rows, ldr] or null
  std::int64_t ldr = 0;
  std::uint16_t* y = nullptr;  ///< [rows, ldy]
  std::int64_t ldy = 0;
};

struct Kernels {
  std::string_view name;
  int max_tile_rows = 0;  ///< the most rows of X that multiply() takes at once

  /// Permutes one row of X, k_begin .. k (k_begin a multiple of 64, zeros beyond k) into fp32
  /// blocks: block i at out + i · block_stride, 64 floats.
  void (*permute_row)(WeightType weight, DataType type, const std::uint16_t* row,
                      std::int64_t k_begin, std::int64_t k_end, float* out,
                      std::int64_t block_stride);

  /// out[rows][16] = X tile · strip. x: [k-blocks][rows][64] permuted; 1 ≤ rows ≤ max_tile_rows.
  /// The order of every sum is the same for every number of rows.
  void (*multiply)(const Strip& strip, const float* x, int rows, float* out);

  /// out[16][ldo]: the strip's weights of k-blocks [block_begin, block_end), permuted as X is.
  void (*dequantize)(const Strip& strip, std::int64_t block_begin, std::int64_t block_end,
                     float* out, std::int64_t ldo);

  /// y[rows, cols] = activation(alpha · sums + bias) + residual, rounded once to 16 bits.
  void (*finish)(const Finish& finish, const float* sums, std::int64_t lds, std::int64_t rows,
                 std::int64_t cols);
};

/// The kernels of the best instruction set this machine has, or of the one that the environment
/// variable MIXGEMM_CPU_TARGET names if the machine has it. Read anew at each call, so that tests
/// can walk through all of them.
const Kernels& kernels();

/// Names of the instruction sets that this machine can run, best first.
std::span<const std::string_view> available_targets();

}  // namespace mixgemm::cpu
