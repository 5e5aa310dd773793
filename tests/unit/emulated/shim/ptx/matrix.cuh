// SPDX-License-Identifier: Apache-2.0
// kernels/ptx/matrix.cuh on the host, after the fragment layouts of the PTX ISA.
#pragma once

#include <cstring>

#include "cuda_keywords.hpp"

namespace mixgemm::ptx {

inline void ld_shared_v4(std::uint32_t address, std::uint32_t& a, std::uint32_t& b,
                         std::uint32_t& c, std::uint32_t& d) {
  std::uint32_t words[4];
  std::memcpy(words, emulator::shared_at(address, sizeof(words)), sizeof(words));
  a = words[0];
  b = words[1];
  c = words[2];
  d = words[3];
}
inline std::uint32_t ld_shared_u32(std::uint32_t address) {
  std::uint32_t value;
  std::memcpy(&value, emulator::shared_at(address, 4), 4);
  return value;
}
inline void exchange_shared_u32(std::uint32_t address, std::uint32_t value) {
  std::memcpy(emulator::shared_at(address, 4), &value, 4);
}
inline std::uint16_t ld_shared_u16(std::uint32_t address) {
  std::uint16_t value;
  std::memcpy(&value, emulator::shared_at(address, sizeof(value)), sizeof(value));
  return value;
}

struct TransposedMatrices {
  std::uint32_t row;
  std::uint32_t* v;
};

/// Calls visit(element in shared memory, lane's register, its half) for kCount matrices: lane l
/// holds elements 2·(l%4) and the next of row l/4, which transposed are column l/4 of those rows.
template <int kCount, class Visit>
void for_transposed(void* const (&arguments)[32], const Visit& visit) {
  const auto of = [&](int lane) -> const TransposedMatrices& {
    return *static_cast<const TransposedMatrices*>(arguments[lane]);
  };
  for (int matrix = 0; matrix < kCount; ++matrix) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int half = 0; half < 2; ++half) {
        const int row = 2 * (lane % 4) + half;
        char* const start = emulator::shared_at(of(8 * matrix + row).row, 16);
        visit(start + 2 * (lane / 4), of(lane).v[matrix], half);
      }
    }
  }
}
template <int kCount>
void stmatrix_of_a_warp(void* const (&arguments)[32]) {
  for_transposed<kCount>(arguments, [](char* to, std::uint32_t pair, int half) {
    const auto element = static_cast<std::uint16_t>(pair >> (16 * half));
    std::memcpy(to, &element, sizeof(element));
  });
}
template <int kCount>
void ldmatrix_trans_of_a_warp(void* const (&arguments)[32]) {
  for_transposed<kCount>(arguments, [](const char* from, std::uint32_t& pair, int half) {
    std::uint16_t element;
    std::memcpy(&element, from, sizeof(element));
    pair = (pair & (0xffff0000u >> (16 * half))) | std::uint32_t{element} << (16 * half);
  });
}

inline void stmatrix_x4_trans(std::uint32_t row, const std::uint32_t (&v)[4]) {
  std::uint32_t values[4] = {v[0], v[1], v[2], v[3]};
  TransposedMatrices operands{row, values};
  emulator::meet_warp(&operands, stmatrix_of_a_warp<4>);
}
inline void stmatrix_x2_trans(std::uint32_t row, std::uint32_t v0, std::uint32_t v1) {
  std::uint32_t values[2] = {v0, v1};
  TransposedMatrices operands{row, values};
  emulator::meet_warp(&operands, stmatrix_of_a_warp<2>);
}
inline void ldmatrix_x4_trans(std::uint32_t (&v)[4], std::uint32_t row) {
  TransposedMatrices operands{row, v};
  emulator::meet_warp(&operands, ldmatrix_trans_of_a_warp<4>);
}
inline void ldmatrix_x2_trans(std::uint32_t& v0, std::uint32_t& v1, std::uint32_t row) {
  std::uint32_t values[2] = {0, 0};
  TransposedMatrices operands{row, values};
  emulator::meet_warp(&operands, ldmatrix_trans_of_a_warp<2>);
  v0 = values[0];
  v1 = values[1];
}

}  // namespace mixgemm::ptx
