// SPDX-License-Identifier: Apache-2.0
// kernels/ptx/wgmma.cuh on the host. An MMA is carried out when its group is waited for, with what
// the registers of A and shared memory hold then; each warp multiplies its 16 rows.
#pragma once

#include <cstring>

#include "cuda_keywords.hpp"
#include "util/half.hpp"

namespace mixgemm::ptx {

inline void wgmma_fence() { emulator::fence_mmas(); }
inline void wgmma_commit_group() { emulator::commit_mmas(); }
template <int kPending>
void wgmma_wait_group() {
  emulator::wait_mmas(kPending);
}

inline std::uint64_t wgmma_descriptor(std::uint32_t smem) {
  constexpr std::uint64_t kSwizzle128 = std::uint64_t{1} << 62;
  constexpr std::uint64_t kStrideBytes = std::uint64_t{1024 >> 4} << 32;
  constexpr std::uint64_t kLeadingIgnored = std::uint64_t{1} << 16;
  return kSwizzle128 | kStrideBytes | kLeadingIgnored | ((smem & 0x3ffff) >> 4);
}

template <DataType kAct, int kTokens>
void wgmma_of_a_warp(const emulator::Mma* const (&mmas)[32]) {
  const std::uint64_t descriptor = mmas[0]->descriptor;
  const auto start = static_cast<std::uint32_t>(descriptor & 0x3fff) << 4;
  const auto stride = static_cast<std::uint32_t>(descriptor >> 32 & 0x3fff) << 4;
  if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0) {
    emulator::fail("wgmma with a descriptor of another layout");
  }
  const auto value = [](std::uint16_t bits) {
    return static_cast<double>(f32_from_bits(bits, kAct));
  };
  double a[16][16];
  for (int lane = 0; lane < 32; ++lane) {
    if (mmas[lane]->descriptor != descriptor) emulator::fail("wgmma with several descriptors");
    for (int r = 0; r < 4; ++r) {
      for (int half = 0; half < 2; ++half) {
        a[lane / 4 + 8 * (r % 2)][lane % 4 * 2 + half + 8 * (r / 2)] =
            value(static_cast<std::uint16_t>(mmas[lane]->a[r] >> (16 * half)));
      }
    }
  }
  for (int token = 0; token < kTokens; ++token) {
    double b[16];
    for (int chunk = 0; chunk < 2; ++chunk) {
      std::uint32_t address = start + static_cast<std::uint32_t>(token / 8) * stride +
                              static_cast<std::uint32_t>(token % 8 * 128 + chunk * 16);
      address ^= (address >> 7 & 7u) << 4;
      std::uint16_t bits[8];
      std::memcpy(bits, emulator::shared_at(address, 16), 16);
      for (int i = 0; i < 8; ++i) b[8 * chunk + i] = value(bits[i]);
    }
    for (int row = 0; row < 16; ++row) {
      float& d = mmas[row % 8 * 4 + token % 8 / 2]->d[token / 8 * 4 + row / 8 * 2 + token % 2];
      double sum = d;
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k];
      d = static_cast<float>(sum);
    }
  }
}

template <DataType kAct, int kTokens>
struct WgmmaRs {
  static void mma(float (&d)[kTokens / 2], const std::uint32_t (&a)[4], std::uint64_t descriptor) {
    emulator::issue_mma({d, a, descriptor, wgmma_of_a_warp<kAct, kTokens>});
  }
};

}  // namespace mixgemm::ptx
