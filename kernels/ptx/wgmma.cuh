// SPDX-License-Identifier: Apache-2.0
// wgmma with A from registers: D[64 × N] += A[64 × 16] · B[16 × N], fp32 accumulators, 16-bit
// operands, B from shared memory (PTX ISA, "wgmma.mma_async"). Here A is a slice of the weight and
// B the activations, so N counts tokens: D is a tile of Yᵀ.
//
// NOTE: the hardware reads A's registers after the instruction was issued. A fragment must not be
// written again before wgmma_wait says that its MMA is done.
#pragma once

#include <cstdint>

#include "mixgemm/types.hpp"

namespace mixgemm::ptx {

/// Orders earlier register writes (accumulators, A fragments) before the MMAs that follow.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit_group() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// Returns when at most kPending groups are in flight.
template <int kPending>
__device__ __forceinline__ void wgmma_wait_group() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

/// Descriptor of a K-major operand in shared memory with the 128-byte swizzle: rows of 128 bytes
/// (64 k), 8-row groups 1024 bytes apart. Add 2 per k16 step (32 bytes, in units of 16).
__device__ __forceinline__ std::uint64_t wgmma_descriptor(std::uint32_t smem) {
  constexpr std::uint64_t kSwizzle128 = std::uint64_t(1) << 62;
  constexpr std::uint64_t kStrideBytes = std::uint64_t(1024 >> 4) << 32;
  constexpr std::uint64_t kLeadingIgnored = std::uint64_t(1) << 16;
  return kSwizzle128 | kStrideBytes | kLeadingIgnored | ((smem & 0x3ffff) >> 4);
}

/// wgmma.mma_async.m64nNk16 for N = kTokens, added to D; kAct says fp16 or bf16.
template <DataType kAct, int kTokens>
struct WgmmaRs;

// clang-format off
#define MIXGEMM_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define MIXGEMM_D8(i) MIXGEMM_D4(i), MIXGEMM_D4(i + 4)
#define MIXGEMM_D16(i) MIXGEMM_D8(i), MIXGEMM_D8(i + 8)
#define MIXGEMM_D32(i) MIXGEMM_D16(i), MIXGEMM_D16(i + 16)

#define MIXGEMM_WGMMA_RS(act, ptx_type, tokens, registers, a0, a1, a2, a3, desc, ...)                  \
  template <>                                                                                          \
  struct WgmmaRs<act, tokens> {                                                                        \
    static __device__ __forceinline__ void mma(float (&d)[tokens / 2], const std::uint32_t (&a)[4],    \
                                               std::uint64_t descriptor) {                             \
      asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, 1, 0;\n"                                        \
                   " wgmma.mma_async.sync.aligned.m64n" #tokens "k16.f32." ptx_type "." ptx_type " {"  \
                   registers "}, {%" a0 ", %" a1 ", %" a2 ", %" a3 "}, %" desc ", p, 1, 1, 0;\n}"      \
                   : __VA_ARGS__                                                                       \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor));                     \
    }                                                                                                  \
  };
#define MIXGEMM_WGMMA_RS_BOTH(...)                            \
  MIXGEMM_WGMMA_RS(DataType::f16, "f16", __VA_ARGS__)         \
  MIXGEMM_WGMMA_RS(DataType::bf16, "bf16", __VA_ARGS__)

#define MIXGEMM_R0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define MIXGEMM_R16 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define MIXGEMM_R32 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define MIXGEMM_R48 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define MIXGEMM_R64 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define MIXGEMM_R80 "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define MIXGEMM_R96 "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define MIXGEMM_R112 "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
MIXGEMM_WGMMA_RS_BOTH(8, "%0, %1, %2, %3", "4", "5", "6", "7", "8",
  MIXGEMM_D4(0))
MIXGEMM_WGMMA_RS_BOTH(16, "%0, %1, %2, %3, %4, %5, %6, %7", "8", "9", "10", "11", "12",
  MIXGEMM_D8(0))
MIXGEMM_WGMMA_RS_BOTH(24, "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11", "12", "13", "14", "15", "16",
  MIXGEMM_D8(0), MIXGEMM_D4(8))
MIXGEMM_WGMMA_RS_BOTH(32, MIXGEMM_R0, "16", "17", "18", "19", "20",
  MIXGEMM_D16(0))
MIXGEMM_WGMMA_RS_BOTH(48, MIXGEMM_R0 ", " "%16, %17, %18, %19, %20, %21, %22, %23", "24", "25", "26", "27", "28",
  MIXGEMM_D16(0), MIXGEMM_D8(16))
MIXGEMM_WGMMA_RS_BOTH(64, MIXGEMM_R0 ", " MIXGEMM_R16, "32", "33", "34", "35", "36",
  MIXGEMM_D32(0))
MIXGEMM_WGMMA_RS_BOTH(96, MIXGEMM_R0 ", " MIXGEMM_R16 ", " MIXGEMM_R32, "48", "49", "50", "51", "52",
  MIXGEMM_D32(0), MIXGEMM_D16(32))
MIXGEMM_WGMMA_RS_BOTH(128, MIXGEMM_R0 ", " MIXGEMM_R16 ", " MIXGEMM_R32 ", " MIXGEMM_R48, "64", "65", "66", "67", "68",
  MIXGEMM_D32(0), MIXGEMM_D32(32))
MIXGEMM_WGMMA_RS_BOTH(192, MIXGEMM_R0 ", " MIXGEMM_R16 ", " MIXGEMM_R32 ", " MIXGEMM_R48 ", " MIXGEMM_R64 ", " MIXGEMM_R80, "96", "97", "98", "99", "100",
  MIXGEMM_D32(0), MIXGEMM_D32(32), MIXGEMM_D32(64))
MIXGEMM_WGMMA_RS_BOTH(256, MIXGEMM_R0 ", " MIXGEMM_R16 ", " MIXGEMM_R32 ", " MIXGEMM_R48 ", " MIXGEMM_R64 ", " MIXGEMM_R80 ", " MIXGEMM_R96 ", " MIXGEMM_R112, "128", "129", "130", "131", "132",
  MIXGEMM_D32(0), MIXGEMM_D32(32), MIXGEMM_D32(64), MIXGEMM_D32(96))

#undef MIXGEMM_WGMMA_RS_BOTH
#undef MIXGEMM_WGMMA_RS
#undef MIXGEMM_R0
#undef MIXGEMM_R16
#undef MIXGEMM_R32
#undef MIXGEMM_R48
#undef MIXGEMM_R64
#undef MIXGEMM_R80
#undef MIXGEMM_R96
#undef MIXGEMM_R112
#undef MIXGEMM_D4
#undef MIXGEMM_D8
#undef MIXGEMM_D16
#undef MIXGEMM_D32
// clang-format on

}  // namespace mixgemm::ptx
