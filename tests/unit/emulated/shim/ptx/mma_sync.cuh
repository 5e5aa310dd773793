// SPDX-License-Identifier: Apache-2.0
// kernels/ptx/mma_sync.cuh on the host, after the fragment layouts of the PTX ISA.
#pragma once

#include <cstring>

#include "cuda_keywords.hpp"
#include "util/half.hpp"

namespace mixgemm::ptx {

struct MmaOperands {
  float* d;
  const std::uint32_t* a;
  std::uint32_t b[2];
};

template <DataType kAct>
void mma_of_a_warp(void* const (&arguments)[32]) {
  const auto value = [](std::uint32_t pair, int half) {
    return static_cast<double>(
        f32_from_bits(static_cast<std::uint16_t>(pair >> (16 * half)), kAct));
  };
  double a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& o = *static_cast<const MmaOperands*>(arguments[lane]);
    const int group = lane / 4, pair = lane % 4 * 2;
    for (int half = 0; half < 2; ++half) {
      for (int r = 0; r < 4; ++r) {
        a[group + 8 * (r % 2)][pair + half + 8 * (r / 2)] = value(o.a[r], half);
      }
      for (int r = 0; r < 2; ++r) b[pair + half + 8 * r][group] = value(o.b[r], half);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const auto& o = *static_cast<const MmaOperands*>(arguments[lane]);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
      double sum = o.d[i];
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
      o.d[i] = static_cast<float>(sum);
    }
  }
}

template <DataType kAct>
void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  emulator::use_activations();
  MmaOperands operands{d, a, {b0, b1}};
  emulator::meet_warp(&operands, mma_of_a_warp<kAct>);
}

struct LdmatrixOperands {
  std::uint32_t* v;
  std::uint32_t row;
};

inline void ldmatrix_of_a_warp(void* const (&arguments)[32]) {
  const auto operands = [&](int lane) -> const LdmatrixOperands& {
    return *static_cast<const LdmatrixOperands*>(arguments[lane]);
  };
  for (int matrix = 0; matrix < 4; ++matrix) {
    for (int row = 0; row < 8; ++row) {
      const std::uint32_t address = operands(8 * matrix + row).row;
      const char* const from = emulator::shared_at(address, 16);
      for (int pair = 0; pair < 4; ++pair) {
        std::memcpy(&operands(4 * row + pair).v[matrix], from + 4 * pair, 4);
      }
    }
  }
}

inline void ldmatrix_x4(std::uint32_t (&v)[4], std::uint32_t row) {
  LdmatrixOperands operands{v, row};
  emulator::meet_warp(&operands, ldmatrix_of_a_warp);
}

}  // namespace mixgemm::ptx
