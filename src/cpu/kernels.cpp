// SPDX-License-Identifier: Apache-2.0
// The inner loops of the CPU backend, for every instruction set. Highway includes this file once
// per target (foreach_target.h) under the matching compiler target, so that no other function of
// the library, nor an inline function of a header, is ever compiled with instructions the machine
// may lack. Only Highway's headers are used: its run-time part is replaced by the short dispatcher
// at the end.

// NOTE: debug checks of Highway call into libhwy, which the library does not link.
#undef HWY_IS_DEBUG_BUILD
#define HWY_IS_DEBUG_BUILD 0
// Vectors must have a compile-time length here, which SVE's have not; SSSE3 machines without SSE4
// are served by the portable loops.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kernels.cpp"
#include "hwy/foreach_target.h"  // IWYU pragma: keep

#include "hwy/cache_control.h"
#include "hwy/highway.h"
// After highway.h:
#include "hwy/contrib/math/math-inl.h"

#include <array>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "cpu/kernels.hpp"
#include "layout/packed.hpp"
#include "util/half.hpp"

HWY_BEFORE_NAMESPACE();
namespace mixgemm::cpu::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// 16 floats, the words of one row group, are one AVX-512 vector, two of AVX2, four of SSE or NEON.
using DF = hn::CappedTag<float, 16>;
using DU = hn::RebindToUnsigned<DF>;
using DI = hn::RebindToSigned<DF>;
using VF = hn::Vec<DF>;
using VU = hn::Vec<DU>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(DF()));
constexpr int kParts = 16 / kLanes;

// A lookup in a 16-entry register turns shifted codes into weights with one instruction, and it
// reads only the low 4 bits of each index, which saves the mask too.
constexpr bool kHasTable16 = kLanes == 16;
// Hardware conversion between fp16 and fp32, subnormals, infinities and NaN included.
#define MIXGEMM_HAS_F16C (HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3)

// Rows of X per tile: two weight rows' sums for each of them stay in registers.
constexpr int kMaxTileRows = kLanes == 16 ? 8 : 4;

// K is walked in chunks of this many k-blocks: the tile's activations (8 rows × 256 × 4 B) stay in
// L1 while the 16 weight rows pass.
constexpr int kChunkBlocks = 4;
constexpr int kBlockFloats = layout::kBlockK;

// ---- conversions ----------------------------------------------------------------------------

VF load_f16(const std::uint16_t* bits) {
#if MIXGEMM_HAS_F16C
  const hn::Rebind<hwy::float16_t, DF> dh;
  return hn::PromoteTo(DF(), hn::LoadU(dh, reinterpret_cast<const hwy::float16_t*>(bits)));
#else
  // Scaling by 2^112 moves the exponent's bias from 15 to 127 and normalizes subnormals exactly.
  const hn::Rebind<std::uint16_t, DF> d16;
  const VU u = hn::PromoteTo(DU(), hn::LoadU(d16, bits));
  const VU magnitude = hn::ShiftLeft<13>(hn::And(u, hn::Set(DU(), 0x7fffu)));
  const VU sign = hn::ShiftLeft<16>(hn::And(u, hn::Set(DU(), 0x8000u)));
  const VF scaled = hn::Mul(hn::BitCast(DF(), magnitude), hn::Set(DF(), 0x1p112f));
  const VF special = hn::BitCast(DF(), hn::Or(magnitude, hn::Set(DU(), 0x7f800000u)));
  const auto is_special = hn::Ge(scaled, hn::Set(DF(), 0x1p16f));
  const VF value = hn::IfThenElse(is_special, special, scaled);
  return hn::Or(value, hn::BitCast(DF(), sign));
#endif
}

VF load_bf16(const std::uint16_t* bits) {
  const hn::Rebind<std::uint16_t, DF> d16;
  return hn::BitCast(DF(), hn::ShiftLeft<16>(hn::PromoteTo(DU(), hn::LoadU(d16, bits))));
}

VF load_16bit(DataType type, const std::uint16_t* bits) {
  return type == DataType::bf16 ? load_bf16(bits) : load_f16(bits);
}

void store_16bit(DataType type, VF value, std::uint16_t* out) {
  if (type == DataType::bf16) {
    const VU bits = hn::BitCast(DU(), value);
    const VU even = hn::And(hn::ShiftRight<16>(bits), hn::Set(DU(), 1u));
    const VU rounded = hn::Add(bits, hn::Add(even, hn::Set(DU(), 0x7fffu)));
    const VU quiet = hn::Or(bits, hn::Set(DU(), 0x00400000u));
    const auto is_nan = hn::RebindMask(DU(), hn::IsNaN(value));
    const VU top = hn::ShiftRight<16>(hn::IfThenElse(is_nan, quiet, rounded));
    HWY_ALIGN std::uint32_t lanes[kLanes];
    hn::Store(top, DU(), lanes);
    for (int i = 0; i < kLanes; ++i) out[i] = static_cast<std::uint16_t>(lanes[i]);
    return;
  }
#if MIXGEMM_HAS_F16C
  const hn::Rebind<hwy::float16_t, DF> dh;
  hn::StoreU(hn::DemoteTo(dh, value), dh, reinterpret_cast<hwy::float16_t*>(out));
#else
  HWY_ALIGN float lanes[kLanes];
  hn::Store(value, DF(), lanes);
  for (int i = 0; i < kLanes; ++i) out[i] = f16_from_f32(lanes[i]);
#endif
}

// ---- the permutation of k within a k-block ------------------------------------------------------

struct Permutation {
  std::array<std::uint8_t, 64> k;  // k within the block of permuted place [4][16]
};

/// Place q·16 + i of a permuted block holds the k of the code at position q of word i: for int4, q
/// counts nibble pairs (the pair is rows g and g+8 of one k); for int8, planes and even/odd bytes.
template <int kBits>
constexpr Permutation make_permutation() {
  Permutation p{};
  for (int q = 0; q < 4; ++q) {
    for (int i = 0; i < 16; ++i) {
      const layout::Place place =
          kBits == 4 ? layout::Place{i, 8 * q}
                     : layout::Place{layout::kWordsPerPlane * (q / 2) + i, 8 * (q % 2)};
      p.k[static_cast<std::size_t>(16 * q + i)] =
          static_cast<std::uint8_t>(layout::coord_of(place, kBits).k);
    }
  }
  return p;
}

template <int kBits>
constexpr Permutation kPermutation = make_permutation<kBits>();

template <int kBits>
void permute_blocks(DataType type, const std::uint16_t* row, std::int64_t k_begin,
                    std::int64_t k_end, float* out, std::int64_t block_stride) {
  HWY_ALIGN float values[kBlockFloats];
  std::uint16_t tail[kBlockFloats];
  for (std::int64_t k = k_begin; k < k_end; k += kBlockFloats, out += block_stride) {
    const std::uint16_t* source = row + k;
    if (k_end - k < kBlockFloats) {
      std::memset(tail, 0, sizeof(tail));
      std::memcpy(tail, source, static_cast<std::size_t>(k_end - k) * sizeof(tail[0]));
      source = tail;
    }
    for (int i = 0; i < kBlockFloats; i += kLanes) {
      hn::Store(load_16bit(type, source + i), DF(), values + i);
    }
    for (int i = 0; i < kBlockFloats; ++i) {
      out[i] = values[kPermutation<kBits>.k[static_cast<std::size_t>(i)]];
    }
  }
}

void permute_row(WeightType weight, DataType type, const std::uint16_t* row, std::int64_t k_begin,
                 std::int64_t k_end, float* out, std::int64_t block_stride) {
  if (weight == WeightType::int4) {
    permute_blocks<4>(type, row, k_begin, k_end, out, block_stride);
  } else {
    permute_blocks<8>(type, row, k_begin, k_end, out, block_stride);
  }
}

// ---- scales -------------------------------------------------------------------------------------

// A weight is q · scale + offset, one fused multiply-add. For zero points none and integer the
// offset −z·scale has at most 8 + 11 significant bits, so both it and the weight are exact.

/// Scales of one chunk in fp32. Groups of 64 and more: one row of 16 per k-block. Smaller groups:
/// per k-block, weight row and plane, the four values that the words of a row group meet in turn.
template <int kBits, bool kSmallGroups>
struct ChunkScales {
  static constexpr int kPlanes = layout::planes(kBits);
  static constexpr int kPerBlock = kSmallGroups ? 16 * kPlanes * 4 : 16;
  HWY_ALIGN float scale[kChunkBlocks * kPerBlock];
  HWY_ALIGN float offset[kChunkBlocks * kPerBlock];

  static void convert_group(const Strip& strip, std::int64_t group, float* s, float* o) {
    const std::uint16_t* scales = strip.scales + group * 16;
    for (int i = 0; i < 16; i += kLanes) {
      const VF scale = load_16bit(strip.spec.scale_type, scales + i);
      VF offset;
      if (strip.spec.zero == ZeroKind::scaled) {
        const auto* zeros = static_cast<const std::uint16_t*>(strip.zeros) + group * 16;
        offset = hn::Neg(load_16bit(strip.spec.scale_type, zeros + i));
      } else if (strip.spec.zero == ZeroKind::integer) {
        const auto* zeros = static_cast<const std::uint8_t*>(strip.zeros) + group * 16;
        const hn::Rebind<std::uint8_t, DF> d8;
        const VF zero = hn::ConvertTo(DF(), hn::PromoteTo(DI(), hn::LoadU(d8, zeros + i)));
        offset = hn::Neg(hn::Mul(zero, scale));
      } else {
        offset = hn::Mul(hn::Set(DF(), -static_cast<float>(1 << (kBits - 1))), scale);
      }
      hn::Store(scale, DF(), s + i);
      hn::Store(offset, DF(), o + i);
    }
  }

  void load(const Strip& strip, std::int64_t block_begin, int num_blocks) {
    if constexpr (!kSmallGroups) {
      // Shifts, because a 64-bit division per k-block would cost as much as its multiply-adds.
      const int shift = strip.spec.group_size == 128 ? 1 : 0;
      const bool per_column = strip.spec.group_size == 0;
      std::int64_t previous = -1;
      for (int b = 0; b < num_blocks; ++b) {
        const std::int64_t group = per_column ? 0 : (block_begin + b) >> shift;
        if (group == previous) {
          std::memcpy(scale + 16 * b, scale + 16 * (b - 1), 16 * sizeof(float));
          std::memcpy(offset + 16 * b, offset + 16 * (b - 1), 16 * sizeof(float));
        } else {
          convert_group(strip, group, scale + 16 * b, offset + 16 * b);
        }
        previous = group;
      }
    } else {
      for (int b = 0; b < num_blocks; ++b) {
        HWY_ALIGN float s[4][16];
        HWY_ALIGN float o[4][16];
        for (int step = 0; step < 4; ++step) convert_step(strip, block_begin + b, step, s, o);
        // int4: word i of a row group belongs to step i % 4. int8: words 0, 1, 2, 3 of plane p
        // belong to steps 2p, 2p, 2p + 1, 2p + 1.
        for (int plane = 0; plane < kPlanes; ++plane) {
          for (int i = 0; i < 16; i += kLanes) {
            const auto interleave = [&](const float(&from)[4][16], float* to) HWY_ATTR {
              const auto of_word = [&](int word) HWY_ATTR {
                return hn::Load(DF(), from[kBits == 4 ? word : 2 * plane + word / 2] + i);
              };
              hn::StoreInterleaved4(of_word(0), of_word(1), of_word(2), of_word(3), DF(),
                                    to + ((b * kPlanes + plane) * 16 + i) * 4);
            };
            interleave(s, scale);
            interleave(o, offset);
          }
        }
      }
    }
  }

  /// Scales of k16 step `step` of a block, for groups of 16 and 32.
  static void convert_step(const Strip& strip, std::int64_t block, int step, float (&s)[4][16],
                           float (&o)[4][16]) {
    const int shift = strip.spec.group_size == 32 ? 1 : 0;
    if (shift == 1 && step % 2 == 1) {
      std::memcpy(s[step], s[step - 1], sizeof(s[step]));
      std::memcpy(o[step], o[step - 1], sizeof(o[step]));
      return;
    }
    const std::int64_t k16_step = 4 * block + step;
    const std::int64_t group = k16_step >> shift;
    if (k16_step * 16 < strip.k) {
      convert_group(strip, group, s[step], o[step]);
    } else {
      // NOTE: beyond K there is no group to read. Zeros keep the padding's products zero.
      std::memset(s[step], 0, sizeof(s[step]));
      std::memset(o[step], 0, sizeof(o[step]));
    }
  }

  /// The vector of scales or offsets of a weight row for words part·kLanes and following.
  static VF words_of(const float* values, int block, int row, int plane, int part) {
    if constexpr (!kSmallGroups) {
      return hn::Set(DF(), values[16 * block + row]);
    } else {
      const float* four = values + ((block * kPlanes + plane) * 16 + row) * 4;
      if constexpr (kLanes >= 4) {
        return hn::LoadDup128(DF(), four);
      } else {
        return hn::Set(DF(), four[(part * kLanes) % 4]);
      }
    }
  }
};

/// Turns codes of one weight row into weights.
template <int kBits, bool kSmallGroups>
struct RowDequantizer {
  using Scales = ChunkScales<kBits, kSmallGroups>;
  static constexpr bool kTable = kHasTable16 && kBits == 4 && !kSmallGroups;

  VF scale, offset;  // of the row; kTable: `scale` is the table of the 16 weights

  RowDequantizer(const Scales& scales, int block, int row, int plane, int part)
      : scale(Scales::words_of(scales.scale, block, row, plane, part)),
        offset(Scales::words_of(scales.offset, block, row, plane, part)) {
    if constexpr (kTable) scale = hn::MulAdd(hn::Iota(DF(), 0.0f), scale, offset);
  }

  /// Codes at bits kShift and up of every word.
  template <int kShift>
  VF weights(VU words) const {
    const VU shifted = kShift == 0 ? words : hn::ShiftRight<kShift>(words);
#if HWY_TARGET == HWY_AVX3
    if constexpr (kTable) {
      return hn::TableLookupLanes(scale, hn::IndicesFromVec(DF(), shifted));
    }
    if constexpr (kBits == 4) {
      const VF codes =
          hn::TableLookupLanes(hn::Iota(DF(), 0.0f), hn::IndicesFromVec(DF(), shifted));
      return hn::MulAdd(codes, scale, offset);
    }
#endif
    const VU codes =
        kShift + kBits == 32 ? shifted : hn::And(shifted, hn::Set(DU(), (1u << kBits) - 1));
    return hn::MulAdd(hn::ConvertTo(DF(), hn::BitCast(DI(), codes)), scale, offset);
  }
};

/// Calls visit(q, w_g, w_g8) for the vectors of weights in the words of one row group, plane and
/// part: permuted place q, rows g and g + 8.
template <int kBits, class Row, class Visit>
HWY_INLINE void for_each_weight(VU words, const Row& row_g, const Row& row_g8, int plane,
                                const Visit& visit) {
  if constexpr (kBits == 4) {
    visit(0, row_g.template weights<0>(words), row_g8.template weights<4>(words));
    visit(1, row_g.template weights<8>(words), row_g8.template weights<12>(words));
    visit(2, row_g.template weights<16>(words), row_g8.template weights<20>(words));
    visit(3, row_g.template weights<24>(words), row_g8.template weights<28>(words));
  } else {
    visit(2 * plane, row_g.template weights<0>(words), row_g8.template weights<16>(words));
    visit(2 * plane + 1, row_g.template weights<8>(words), row_g8.template weights<24>(words));
  }
}

// ---- multiply -----------------------------------------------------------------------------------

// Codes are asked for this far ahead. A chunk's cells are read in eight passes, one row group each,
// which hardware prefetchers don't recognize as a stream.
constexpr std::int64_t kPrefetchBytes = 4096;

/// Asks for an eighth of the chunk at `cells`: row group g's share of the work. Prefetching past
/// the end of the weight is harmless.
template <int kCellBytes>
HWY_INLINE void prefetch_chunk(const std::uint8_t* cells, int g) {
  constexpr int kShare = kChunkBlocks * kCellBytes / 8;
  for (int i = 0; i < kShare; i += 64) hwy::Prefetch(cells + g * kShare + i);
}

template <int kBits, bool kSmallGroups, int kRows>
HWY_NOINLINE void multiply_tile(const Strip& strip, const float* HWY_RESTRICT x,
                                float* HWY_RESTRICT out) {
  constexpr int kPlanes = layout::planes(kBits);
  constexpr int kCellBytes = layout::cell_bytes(kBits);
  HWY_ALIGN float sums[16 * kRows * kLanes] = {};  // [row][tile row][lane]
  ChunkScales<kBits, kSmallGroups> scales;
  const std::int64_t num_blocks = layout::num_k_blocks(strip.k);

  for (std::int64_t chunk = 0; chunk < num_blocks; chunk += kChunkBlocks) {
    const int blocks = static_cast<int>(
        num_blocks - chunk < kChunkBlocks ? num_blocks - chunk : std::int64_t{kChunkBlocks});
    scales.load(strip, chunk, blocks);
    const std::uint8_t* cells = strip.codes + chunk * kCellBytes;
    const float* x_chunk = x + chunk * (kRows * kBlockFloats);
    for (int g = 0; g < 8; ++g) {
      prefetch_chunk<kCellBytes>(cells + kPrefetchBytes, g);
      float* sums_g = sums + g * kRows * kLanes;
      float* sums_g8 = sums + (g + 8) * kRows * kLanes;
      VF acc_g[kRows], acc_g8[kRows];
      HWY_UNROLL(16)
      for (int m = 0; m < kRows; ++m) {
        acc_g[m] = hn::Load(DF(), sums_g + m * kLanes);
        acc_g8[m] = hn::Load(DF(), sums_g8 + m * kLanes);
      }
      for (int b = 0; b < blocks; ++b) {
        const float* x_block = x_chunk + b * (kRows * kBlockFloats);
        for (int plane = 0; plane < kPlanes; ++plane) {
          for (int part = 0; part < kParts; ++part) {
            const RowDequantizer<kBits, kSmallGroups> row_g(scales, b, g, plane, part);
            const RowDequantizer<kBits, kSmallGroups> row_g8(scales, b, g + 8, plane, part);
            const auto* words = reinterpret_cast<const std::uint32_t*>(
                cells + b * kCellBytes + plane * layout::kPlaneBytes + g * 64);
            for_each_weight<kBits>(hn::LoadU(DU(), words + part * kLanes), row_g, row_g8, plane,
                                   [&](int q, VF w_g, VF w_g8) HWY_ATTR {
                                     const float* x_words = x_block + q * 16 + part * kLanes;
                                     HWY_UNROLL(16)
                                     for (int m = 0; m < kRows; ++m) {
                                       const VF xv = hn::Load(DF(), x_words + m * kBlockFloats);
                                       acc_g[m] = hn::MulAdd(w_g, xv, acc_g[m]);
                                       acc_g8[m] = hn::MulAdd(w_g8, xv, acc_g8[m]);
                                     }
                                   });
          }
        }
      }
      HWY_UNROLL(16)
      for (int m = 0; m < kRows; ++m) {
        hn::Store(acc_g[m], DF(), sums_g + m * kLanes);
        hn::Store(acc_g8[m], DF(), sums_g8 + m * kLanes);
      }
    }
  }
  for (int m = 0; m < kRows; ++m) {
    for (int row = 0; row < 16; ++row) {
      const VF lanes = hn::Load(DF(), sums + (row * kRows + m) * kLanes);
      out[m * 16 + row] = hn::GetLane(hn::SumOfLanes(DF(), lanes));
    }
  }
}

using TileFunction = void (*)(const Strip&, const float*, float*);

template <int kBits, bool kSmallGroups, int... kRowsMinusOne>
constexpr std::array<TileFunction, sizeof...(kRowsMinusOne)> tile_functions(
    std::integer_sequence<int, kRowsMinusOne...>) {
  return {&multiply_tile<kBits, kSmallGroups, kRowsMinusOne + 1>...};
}

template <int kBits, bool kSmallGroups>
constexpr auto kTileFunctions =
    tile_functions<kBits, kSmallGroups>(std::make_integer_sequence<int, kMaxTileRows>());

bool has_small_groups(const QuantSpec& spec) {
  return spec.group_size != 0 && spec.group_size < layout::kBlockK;
}

void multiply(const Strip& strip, const float* x, int rows, float* out) {
  const auto at = static_cast<std::size_t>(rows - 1);
  const bool small_groups = has_small_groups(strip.spec);
  if (strip.spec.type == WeightType::int4) {
    (small_groups ? kTileFunctions<4, true>[at] : kTileFunctions<4, false>[at])(strip, x, out);
  } else {
    (small_groups ? kTileFunctions<8, true>[at] : kTileFunctions<8, false>[at])(strip, x, out);
  }
}

// ---- dequantize ---------------------------------------------------------------------------------

template <int kBits, bool kSmallGroups>
void dequantize_blocks(const Strip& strip, std::int64_t block_begin, std::int64_t block_end,
                       float* out, std::int64_t ldo) {
  constexpr int kPlanes = layout::planes(kBits);
  constexpr int kCellBytes = layout::cell_bytes(kBits);
  ChunkScales<kBits, kSmallGroups> scales;
  for (std::int64_t chunk = block_begin; chunk < block_end; chunk += kChunkBlocks) {
    const int blocks = static_cast<int>(
        block_end - chunk < kChunkBlocks ? block_end - chunk : std::int64_t{kChunkBlocks});
    scales.load(strip, chunk, blocks);
    for (int g = 0; g < 8; ++g) {
      for (int b = 0; b < blocks; ++b) {
        float* out_g = out + g * ldo + (chunk - block_begin + b) * kBlockFloats;
        float* out_g8 = out_g + 8 * ldo;
        for (int plane = 0; plane < kPlanes; ++plane) {
          for (int part = 0; part < kParts; ++part) {
            const RowDequantizer<kBits, kSmallGroups> row_g(scales, b, g, plane, part);
            const RowDequantizer<kBits, kSmallGroups> row_g8(scales, b, g + 8, plane, part);
            const auto* words = reinterpret_cast<const std::uint32_t*>(
                strip.codes + (chunk + b) * kCellBytes + plane * layout::kPlaneBytes + g * 64);
            for_each_weight<kBits>(hn::LoadU(DU(), words + part * kLanes), row_g, row_g8, plane,
                                   [&](int q, VF w_g, VF w_g8) HWY_ATTR {
                                     hn::StoreU(w_g, DF(), out_g + q * 16 + part * kLanes);
                                     hn::StoreU(w_g8, DF(), out_g8 + q * 16 + part * kLanes);
                                   });
          }
        }
      }
    }
  }
}

void dequantize(const Strip& strip, std::int64_t block_begin, std::int64_t block_end, float* out,
                std::int64_t ldo) {
  const bool small_groups = has_small_groups(strip.spec);
  if (strip.spec.type == WeightType::int4) {
    (small_groups ? &dequantize_blocks<4, true>
                  : &dequantize_blocks<4, false>)(strip, block_begin, block_end, out, ldo);
  } else {
    (small_groups ? &dequantize_blocks<8, true>
                  : &dequantize_blocks<8, false>)(strip, block_begin, block_end, out, ldo);
  }
}

// ---- epilogue -----------------------------------------------------------------------------------

/// v / (1 + exp(−t)). The exponent is capped where v / (1 + exp) is already zero in 16 bits,
/// because Highway's Exp is undefined beyond 104.
VF times_sigmoid(VF v, VF t) {
  const VF exponent = hn::Min(hn::Neg(t), hn::Set(DF(), 88.0f));
  const VF one = hn::Set(DF(), 1.0f);
  return hn::Div(v, hn::Add(one, hn::Exp(DF(), exponent)));
}

VF activate(Activation activation, VF v) {
  switch (activation) {
    case Activation::none: return v;
    // Not Max: a NaN must stay one.
    case Activation::relu: return hn::IfThenZeroElse(hn::Lt(v, hn::Zero(DF())), v);
    case Activation::silu: return times_sigmoid(v, v);
    case Activation::gelu: {
      // v · (1 + tanh(u)) / 2 = v · sigmoid(2u), u = √(2/π) · (v + 0.044715 v³)
      const VF cubic = hn::MulAdd(hn::Mul(hn::Set(DF(), 0.044715f), hn::Mul(v, v)), v, v);
      return times_sigmoid(v, hn::Mul(hn::Set(DF(), 1.5957691216f), cubic));
    }
  }
  return v;
}

/// The epilogue of kLanes neighbouring outputs; bias and residual may be null.
void finish_vector(const Finish& f, const float* sums, const std::uint16_t* bias,
                   const std::uint16_t* residual, std::uint16_t* y) {
  const VF sum = hn::LoadU(DF(), sums);
  const VF alpha = hn::Set(DF(), f.alpha);
  const VF linear = bias ? hn::MulAdd(sum, alpha, load_16bit(f.type, bias)) : hn::Mul(sum, alpha);
  VF value = activate(f.activation, linear);
  if (residual) value = hn::Add(value, load_16bit(f.type, residual));
  store_16bit(f.type, value, y);
}

void finish(const Finish& f, const float* sums, std::int64_t lds, std::int64_t rows,
            std::int64_t cols) {
  for (std::int64_t m = 0; m < rows; ++m) {
    const float* sums_m = sums + m * lds;
    const std::uint16_t* residual = f.residual ? f.residual + m * f.ldr : nullptr;
    std::uint16_t* y = f.y + m * f.ldy;
    std::int64_t n = 0;
    for (; n + kLanes <= cols; n += kLanes) {
      finish_vector(f, sums_m + n, f.bias ? f.bias + n : nullptr, residual ? residual + n : nullptr,
                    y + n);
    }
    if (n == cols) continue;
    // The same arithmetic on a padded copy, so that a column's bits don't depend on N.
    const auto rest = static_cast<std::size_t>(cols - n);
    float sums_tail[kLanes] = {};
    std::uint16_t bias_tail[kLanes] = {}, residual_tail[kLanes] = {}, y_tail[kLanes];
    std::memcpy(sums_tail, sums_m + n, rest * sizeof(float));
    if (f.bias) std::memcpy(bias_tail, f.bias + n, rest * sizeof(std::uint16_t));
    if (residual) std::memcpy(residual_tail, residual + n, rest * sizeof(std::uint16_t));
    finish_vector(f, sums_tail, f.bias ? bias_tail : nullptr, residual ? residual_tail : nullptr,
                  y_tail);
    std::memcpy(y + n, y_tail, rest * sizeof(std::uint16_t));
  }
}

constexpr std::string_view target_name() {
  switch (HWY_TARGET) {
    case HWY_AVX3: return "avx512";
    case HWY_AVX2: return "avx2";
    case HWY_SSE4: return "sse4";
    case HWY_NEON: return "neon";
    default: return "portable";
  }
}

constexpr Kernels kTable = {target_name(), kMaxTileRows, &permute_row,
                            &multiply,     &dequantize,  &finish};

}  // namespace

const Kernels& kernel_table() { return kTable; }

}  // namespace mixgemm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mixgemm::cpu {
namespace {

/// The tables that this machine can run, best first.
std::vector<const Kernels*> detect() {
  std::vector<const Kernels*> found;
#if HWY_TARGETS & HWY_AVX3
  // AVX-512 as Highway's target uses it: F, CD, BW, DQ, VL, and all of AVX2's companions.
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512cd") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2")) {
    found.push_back(&N_AVX3::kernel_table());
  }
#endif
#if HWY_TARGETS & HWY_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2")) {
    found.push_back(&N_AVX2::kernel_table());
  }
#endif
#if HWY_TARGETS & HWY_SSE4
  if (__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul") &&
      __builtin_cpu_supports("aes")) {
    found.push_back(&N_SSE4::kernel_table());
  }
#endif
  // The static target: what the library's other code is compiled for, so it always runs.
  if (const Kernels* base = &HWY_STATIC_DISPATCH(kernel_table)();
      found.empty() || found.back() != base) {
    found.push_back(base);
  }
  return found;
}

const std::vector<const Kernels*>& detected() {
  static const std::vector<const Kernels*> found = detect();
  return found;
}

}  // namespace

std::span<const std::string_view> available_targets() {
  static const std::vector<std::string_view> names = [] {
    std::vector<std::string_view> list;
    for (const Kernels* table : detected()) list.push_back(table->name);
    return list;
  }();
  return names;
}

const Kernels& kernels() {
  if (const char* wanted = std::getenv("MIXGEMM_CPU_TARGET")) {
    for (const Kernels* table : detected()) {
      if (table->name == wanted) return *table;
    }
  }
  return *detected().front();
}

}  // namespace mixgemm::cpu
#endif  // HWY_ONCE
