// SPDX-License-Identifier: Apache-2.0
// What a consumer warpgroup of the tiled Hopper kernel does with the stages of its ring: words and
// constants from shared memory, fragments of operand A by way of registers, products. Three loops
// over stages: one that lets its MMAs drain at the end of each (multiply_stage), one that doesn't
// (multiply_stages), and one of mma.sync (multiply_stage_by_warps). docs/sm90_kernel.md, "The main
// loop".
//
//   stage: X  tile_m × tile_k, swizzled │ W  codes, box after box │ S  scales │ Z  zeros
#pragma once

#include <cstdint>

#include "device/dequant.cuh"
#include "device/ring.cuh"
#include "device/units.cuh"
#include "kernel_config.hpp"
#include "ptx/matrix.cuh"
#include "ptx/mma_sync.cuh"
#include "ptx/sync.cuh"
#include "ptx/wgmma.cuh"

namespace mixgemm {

template <KernelConfig kConfig>
struct StageMath {
  static constexpr bool kWarpMma = kConfig.schedule == Schedule::warp_mma;
  static constexpr int kConsumers = kConfig.consumer_warpgroups;
  static constexpr int kRowBlocks = rows_per_warpgroup(kConfig) / kWarpgroupRows;
  static constexpr int kTileM = kConfig.tile_m;
  static constexpr int kKBlocks = kConfig.tile_k / layout::kBlockK;
  static constexpr int kTeamBlocks = kKBlocks / kConfig.k_teams;  // of a stage, for each team
  static constexpr int kStrips = kConfig.tile_n / layout::kStripRows;
  static constexpr int kBits = bits_of(kConfig.weight);
  static constexpr int kCellBytes = layout::cell_bytes(kBits);
  static constexpr int kStageBytes = stage_bytes(kConfig);
  static constexpr int kXBytes = x_stage_bytes(kConfig);
  static constexpr int kWBytes = w_stage_bytes(kConfig);
  static constexpr int kScaleOffset = kXBytes + kWBytes;
  static constexpr int kZeroOffset = kScaleOffset + scale_stage_bytes(kConfig);
  // A box of codes holds up to 256 words of a strip: two int4 k-blocks, or one of int8.
  static constexpr int kBoxKBlocks = kKBlocks * kCellBytes > 1024 ? 1024 / kCellBytes : kKBlocks;
  static constexpr int kBoxes = kKBlocks / kBoxKBlocks;
  static constexpr int kBoxRowBytes = kBoxKBlocks * kCellBytes;
  static constexpr int kWords = 4 * (kBits / 4);  // of a thread in a k-block of a strip

  static constexpr bool kFolded = folds_scales(kConfig);
  using Dequant = device::Dequantizer<kConfig.act, kConfig.weight, kConfig.quant, kFolded>;
  using Accumulators = float[kRowBlocks][kTileM / 2];
  using Units = typename device::UnitsOf<kFolded, kConfig.act, kConfig.weight>::Type;

  const Params& p;
  const device::Ring ring;
  const std::uint32_t stages_base;  // shared-window address of stage 0
  const int warpgroup;

  /// Where a consumer thread finds its part of stage 0, as shared-window addresses; stage s lies
  /// s · kStageBytes further. Made once: between a stage's barrier and its first MMA stands little
  /// but loads.
  struct Part {
    std::uint32_t words;  ///< of its first strip
    std::uint32_t
        scales;  ///< of its first strip's rows g; those of the others lie strip_scales apart
    std::uint32_t strip_scales;
    std::uint32_t x;  ///< its first k-block's X; warp_mma: where its ldmatrix reads
  };
  __device__ __forceinline__ Part part_of(int team, int first_strip, int lane) const {
    const int block = team * kTeamBlocks;
    Part part;
    part.words = stages_base + kXBytes + lane * 16 +
                 (block / kBoxKBlocks * kStrips + first_strip) * kBoxRowBytes +
                 block % kBoxKBlocks * kCellBytes;
    part.strip_scales = p.scale_box_groups * layout::kStripRows * 2;
    part.scales =
        group_at(stages_base + kScaleOffset + first_strip * part.strip_scales + lane / 4 * 2, part,
                 0, block * layout::kBlockK);
    if constexpr (!kWarpMma) {
      part.x = stages_base + block * (kTileM * 128);
      return part;
    }
    // Matrices 0, 1 are tokens 0–7 at k 0–7, 8–15; matrices 2, 3 the same of tokens 8–15. Row t's
    // 16-byte chunks lie swizzled by t % 8.
    part.x = stages_base + (lane / 16 * 8 + lane % 8) * 128 + ((lane / 8 % 2) ^ (lane % 8)) * 16;
    return part;
  }

  // Row block r of a warpgroup is the strip 4·r after the warp's first.

  /// The thread's words of a k-block of row block r.
  __device__ __forceinline__ void load_words(std::uint32_t words_at, int r, int block,
                                             std::uint32_t (&words)[kWords]) const {
    const std::uint32_t cell = words_at + (block / kBoxKBlocks * kStrips + 4 * r) * kBoxRowBytes +
                               block % kBoxKBlocks * kCellBytes;
#pragma unroll
    for (int plane = 0; plane < layout::planes(kBits); ++plane) {
      ptx::ld_shared_v4(cell + plane * layout::kPlaneBytes, words[4 * plane], words[4 * plane + 1],
                        words[4 * plane + 2], words[4 * plane + 3]);
    }
  }

  /// Where the scales of row block r at k `k_in_stage` of the stage lie, row g's: see
  /// load_constants.
  __device__ __forceinline__ std::uint32_t group_at(std::uint32_t scales_at, const Part& part,
                                                    int r, int k_in_stage) const {
    return scales_at + 4 * r * part.strip_scales +
           (k_in_stage >> p.group_shift) * (layout::kStripRows * 2);
  }

  /// Scales and, gz, zeros of a group for the thread's rows g and g + 8.
  static __device__ __forceinline__ void load_group(std::uint32_t at, std::uint16_t (&scale)[2],
                                                    std::uint16_t (&zero)[2]) {
    scale[0] = ptx::ld_shared_u16(at);
    scale[1] = ptx::ld_shared_u16(at + 16);
    if constexpr (kConfig.quant == Quant::group_zero) {
      constexpr int kZeros = kZeroOffset - kScaleOffset;
      zero[0] = ptx::ld_shared_u16(at + kZeros);
      zero[1] = ptx::ld_shared_u16(at + kZeros + 16);
    } else {
      zero[0] = zero[1] = 0;
    }
  }

  /// The constants of row block r at k `k_in_stage` of the stage, whose groups begin with it: a
  /// stage is some groups, or lies within one.
  __device__ __forceinline__ device::GroupConstants load_constants(std::uint32_t scales_at,
                                                                   const Part& part, int r,
                                                                   int k_in_stage) const {
    std::uint16_t scale[2], zero[2];
    load_group(group_at(scales_at, part, r, k_in_stage), scale, zero);
    return Dequant::constants(scale, zero, p.zeros_scaled);
  }

  // The constants of a group serve kShare k16 steps, as many as the launch's group size lets: one
  // of two loops, in each of which the compiler knows where constants begin.
  static constexpr int kSteps = 4 * kTeamBlocks;  // of a stage
  static constexpr int kLeastShare = kConfig.fine_groups ? 1 : 4;
  static constexpr int kMostShare = [] {
    if (kConfig.quant == Quant::column) return kLeastShare;
    if (kConfig.fine_groups) return 2;
    // With many sums int8 runs out of registers. f16 in two row blocks is level either way (H200).
    const bool fewer = kBits == 8 || (kConfig.act == DataType::f16 && kRowBlocks > 1);
    return kTeamBlocks > 1 && !(kRowBlocks * kTileM >= 128 && fewer) ? 8 : kLeastShare;
  }();
  template <int kShare>
  using Constants = device::GroupConstants[kSteps / kShare][kRowBlocks];

  // Fragments of steps at a time, each of an MMA on its way: as many as registers allow.
  static constexpr int kFragments = consumer_registers(kConfig) >= 150 ? 4 : 2;
  // Whether stages follow each other without a pause: multiply_stages. Two warpgroups with
  // registers for four fragments gain 1-5 % (H200, M = 16 to 256); three and four hide each other's
  // pauses, and one or two of small CTAs lose up to 4 %: the ring's depth counts for more there,
  // and a stage is let go of later. MMAs of 256 tokens hide the pause (1-1.5 % slower without).
  // Two row blocks, or many constants beside many sums, spill.
  static constexpr bool kPipelined = [] {
    if (kWarpMma || kConsumers != 2 || kFragments != 4 || kConfig.fine_groups) return false;
    const bool many_constants = kConfig.quant == Quant::group_zero && kTeamBlocks > 1;
    return kRowBlocks == 1 && kTileM <= (many_constants ? 96 : 128);
  }();

  // Folded and pipelined: whether units must change is found out by the producer's fourth warp, for
  // all warpgroups (UnitsCheck). wgmma_wait_group is for whole warpgroups, so each would have to
  // meet at every stage: 1-5 % (H200, M = 64). Where no MMA is on its way threads see for
  // themselves; a stage that waits for somebody else's look comes later (up to 3 %).
  static constexpr bool kChecked = kFolded && kPipelined;

  /// kChecked: what a warp keeps of the units of all warpgroups' rows, to see from a stage's scales
  /// which warpgroups must change theirs.
  class UnitsCheck {
   public:
    /// The verdict on a stage whose scales lie at `scales_at`: a bit for each warpgroup. `turn`:
    /// of the item.
    __device__ __forceinline__ std::uint32_t look_at(const Params& p, std::uint32_t scales_at,
                                                     int turn) {
      const int lane = threadIdx.x % kWarpSize;
      scales_at += (lane / 8 * p.scale_box_groups * layout::kStripRows + lane % 8 * 2) * 2;
      // All at once: the stage waits for this. Large groups more than once.
      std::uint32_t both[kWarpgroups][kTeamBlocks];
#pragma unroll
      for (int w = 0; w < kWarpgroups; ++w) {
        // Pingpong: both have the same rows, all k of a stage, and items of their own.
        const int k = kPingpong ? 0 : w / kTeam * kTeamBlocks * layout::kBlockK;
        const int strip = kPingpong ? 0 : w % kTeam * (kWarpgroupRows / layout::kStripRows);
#pragma unroll
        for (int block = 0; block < kTeamBlocks; ++block) {
          const int group = (k + block * layout::kBlockK) >> p.group_shift;
          both[w][block] = ptx::ld_shared_u32(scales_at + (strip * p.scale_box_groups + group) *
                                                              (layout::kStripRows * 2));
        }
      }
      std::uint32_t verdict = 0;
#pragma unroll
      for (int w = 0; w < kWarpgroups; ++w) {
        // Not a branch: windows_ would become an array in local memory.
        const bool has_turn = !kPingpong || turn % 2 == w;
        std::uint32_t outside = 0;
#pragma unroll
        for (const std::uint32_t scales : both[w]) outside |= windows_[w].outside(scales);
        if (!ptx::any_of_warp(has_turn && (outside & Windows::kOutside) != 0)) continue;
        verdict |= 1u << w;
        int largest[2] = {0, 0};
#pragma unroll
        for (const std::uint32_t scales : both[w]) {
          largest[0] = max(largest[0], static_cast<int>(scales & 0x7fffu));
          largest[1] = max(largest[1], static_cast<int>(scales >> 16 & 0x7fffu));
        }
        windows_[w].move(largest);
      }
      return verdict;
    }

   private:
    using Windows = typename Units::Windows;
    static constexpr bool kPingpong = kConfig.schedule == Schedule::pingpong;
    static constexpr int kWarpgroups = kConsumers;
    static constexpr int kTeam = storing_warpgroups(kConfig);

    Windows windows_[kWarpgroups];  // of rows 2·lane and 2·lane + 1 of the warpgroup's 64
  };

  /// What the constants of a stage are made of, as it lies in shared memory.
  template <int kShare>
  struct GroupValues {
    std::uint16_t scale[kSteps / kShare][kRowBlocks][2];
    std::uint16_t zero[kSteps / kShare][kRowBlocks][2];
  };
  template <int kShare>
  __device__ __forceinline__ void load_values(std::uint32_t scales_at, const Part& part,
                                              GroupValues<kShare>& values) const {
#pragma unroll
    for (int r = 0; r < kRowBlocks; ++r) {
#pragma unroll
      for (int g = 0; g < kSteps / kShare; ++g) {
        load_group(group_at(scales_at, part, r, g * kShare * 16), values.scale[g][r],
                   values.zero[g][r]);
      }
    }
  }

  /// kChecked: whether this warpgroup's units must change for a stage.
  __device__ __forceinline__ bool units_change(int stage) const {
    return kChecked && (ptx::ld_shared_u32(ring.verdict(stage)) >> warpgroup & 1u) != 0;
  }

  /// The constants of a stage; folded: in units that fit. kChecked: `change` says whether those are
  /// others; sums of MMAs on their way may be in `acc`, all of them in the units so far.
  template <int kShare>
  __device__ __forceinline__ void make_constants(const GroupValues<kShare>& values, bool change,
                                                 Units (&units)[kRowBlocks], Accumulators& acc,
                                                 Constants<kShare>& group) const {
    constexpr int kGroups = kSteps / kShare;
    if constexpr (kFolded) {
      std::uint32_t outside = 0;
#pragma unroll
      for (int r = 0; r < kRowBlocks; ++r) {
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
          if (!kChecked) outside |= units[r].outside(values.scale[g][r][0], values.scale[g][r][1]);
          group[g][r] = units[r].constants(values.scale[g][r]);
        }
      }
      if (!kChecked) change = (outside & Units::kOutside) != 0;
      if (!change) return;
      if constexpr (kPipelined) ptx::wgmma_wait_group<0>();
#pragma unroll
      for (int r = 0; r < kRowBlocks; ++r) {
        std::uint16_t scales[kGroups][2];
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
          scales[g][0] = values.scale[g][r][0];
          scales[g][1] = values.scale[g][r][1];
        }
        units[r].adapt(scales, acc[r]);
#pragma unroll
        for (int g = 0; g < kGroups; ++g) group[g][r] = units[r].constants_of_any(scales[g]);
      }
    } else {
#pragma unroll
      for (int r = 0; r < kRowBlocks; ++r) {
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
          group[g][r] = Dequant::constants(values.scale[g][r], values.zero[g][r], p.zeros_scaled);
        }
      }
    }
  }

  /// A k16 step of a k-block: words → fragment.
  static __device__ __forceinline__ void dequantize(const std::uint32_t (&words)[kWords], int step,
                                                    const device::GroupConstants& group,
                                                    std::uint32_t (&a)[4]) {
    std::uint32_t step_words[Dequant::kWordsPerStep];
#pragma unroll
    for (int w = 0; w < Dequant::kWordsPerStep; ++w) {
      step_words[w] = words[step * Dequant::kWordsPerStep + w];
    }
    Dequant::step(step_words, group, a);
  }

  // K-blocks whose words are in registers, or on their way there: all of a stage, or two.
  static constexpr int kWordBlocks =
      consumer_registers(kConfig) < 150 && kTeamBlocks > 2 ? 2 : kTeamBlocks;
  // Whether constants are loaded with the words of their first k-block, or before their first step.
  static constexpr bool kBlockGroups =
      kConfig.quant != Quant::column && !kConfig.fine_groups && !kFolded;
  static constexpr bool kStepGroups = kConfig.fine_groups && !kFolded;

  /// One stage: dequantize a k16 step while the tensor cores multiply the one before.
  template <int kShare>
  __device__ __forceinline__ void multiply_stage(int stage, const Part& part,
                                                 Units (&units)[kRowBlocks],
                                                 Accumulators& acc) const {
    using Mma = ptx::WgmmaRs<kConfig.act, kTileM>;
    const std::uint32_t offset = stage * kStageBytes;
    std::uint32_t words[kWordBlocks][kRowBlocks][kWords];
    Constants<kShare> group;
    const auto load_block = [&](int block) {
#pragma unroll
      for (int r = 0; r < kRowBlocks; ++r) {
        load_words(part.words + offset, r, block, words[block % kWordBlocks][r]);
        if (kBlockGroups && 4 * block % kShare == 0) {
          group[4 * block / kShare][r] =
              load_constants(part.scales + offset, part, r, block * layout::kBlockK);
        }
      }
    };
#pragma unroll
    for (int block = 0; block < kWordBlocks; ++block) load_block(block);
    if constexpr (kFolded) {
      GroupValues<kShare> values;
      load_values<kShare>(part.scales + offset, part, values);
      make_constants<kShare>(values, false, units, acc, group);
    }
    // Uniform, or each MMA would move its descriptor from ordinary registers.
    const std::uint64_t x = ptx::wgmma_descriptor(ptx::uniform(static_cast<int>(part.x + offset)));
    std::uint32_t a[kFragments][kRowBlocks][4];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int block = step / 4;
#pragma unroll
      for (int r = 0; r < kRowBlocks; ++r) {
        if (kStepGroups && step % kShare == 0) {
          group[step / kShare][r] = load_constants(part.scales + offset, part, r, 16 * step);
        }
        dequantize(words[block % kWordBlocks][r], step % 4, group[step / kShare][r],
                   a[step % kFragments][r]);
      }
      if (step % 4 == 3 && block + kWordBlocks < kTeamBlocks) load_block(block + kWordBlocks);
      ptx::wgmma_fence();
#pragma unroll
      for (int r = 0; r < kRowBlocks; ++r) {
        Mma::mma(acc[r], a[step % kFragments][r], x + block * (kTileM * 128 / 16) + 2 * (step % 4));
      }
      ptx::wgmma_commit_group();
      // An MMA that is done lets its fragment be overwritten.
      ptx::wgmma_wait_group<kFragments - 1>();
    }
    ptx::wgmma_wait_group<0>();
  }

  /// All stages of an item, each step dequantized while the tensor cores multiply the one before
  /// the one before; what the first step of a stage needs is asked for kEarly steps earlier, and
  /// MMAs go on across the border. So a stage is released when the next one's are under way.
  template <int kShare, class Release>
  __device__ __forceinline__ void multiply_stages(device::RingCursor& cursor, int stages_left,
                                                  const Part& part, Units (&units)[kRowBlocks],
                                                  Accumulators& acc, const Release& release) const {
    using Mma = ptx::WgmmaRs<kConfig.act, kTileM>;
    constexpr int kPending = kFragments - 2;  // MMAs on their way while a fragment is written
    constexpr int kEarly = 2;
    static_assert(kSteps - kEarly >= kPending);
    if (stages_left <= 0) return;
    std::uint32_t words[2][kRowBlocks][kWords];
    std::uint32_t a[kFragments][kRowBlocks][4];
    GroupValues<kShare> values;
    bool change = false;
    Constants<kShare> group;
    std::uint32_t offset = 0;
    const auto load_block = [&](int block, std::uint32_t(&to)[kRowBlocks][kWords]) {
#pragma unroll
      for (int r = 0; r < kRowBlocks; ++r) load_words(part.words + offset, r, block, to[r]);
    };
    const auto load_first = [&](int stage, std::uint32_t(&to)[kRowBlocks][kWords]) {
      offset = stage * kStageBytes;
      load_block(0, to);
      if constexpr (kConfig.quant != Quant::column) {
        load_values<kShare>(part.scales + offset, part, values);
        change = units_change(stage);
      }
    };
    const auto make_group = [&] {
      if constexpr (kConfig.quant != Quant::column) {
        make_constants<kShare>(values, change, units, acc, group);
      }
    };
    const auto make_fragment = [&](int step) {
#pragma unroll
      for (int r = 0; r < kRowBlocks; ++r) {
        dequantize(words[step / 4 % 2][r], step % 4, group[step / kShare][r],
                   a[step % kFragments][r]);
      }
    };
    ring.wait_full(cursor);
    load_first(cursor.stage, words[0]);
    make_group();
    make_fragment(0);
    for (int previous = -1;;) {
      const int stage = cursor.stage;
      const bool more = --stages_left > 0;
      // Uniform, or each MMA would move its descriptor from ordinary registers.
      const std::uint64_t x =
          ptx::wgmma_descriptor(ptx::uniform(static_cast<int>(part.x + offset)));
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const int block = step / 4;
        if (step % 4 == 0 && block + 1 < kTeamBlocks) load_block(block + 1, words[(block + 1) % 2]);
        ptx::wgmma_wait_group<kPending>();
        if (step == kPending && previous >= 0) release(previous);  // none of its MMAs is left
        // NOTE: after the release, or a ring of two stages would wait for itself.
        if (step == kSteps - kEarly) {
          cursor.advance();
          if (more) ring.wait_full(cursor);
          // After the last stage its own again, for nothing.
          load_first(more ? cursor.stage : stage, words[kTeamBlocks % 2]);
        }
        if (step + 1 < kSteps) make_fragment(step + 1);
        ptx::wgmma_fence();
#pragma unroll
        for (int r = 0; r < kRowBlocks; ++r) {
          Mma::mma(acc[r], a[step % kFragments][r],
                   x + block * (kTileM * 128 / 16) + 2 * (step % 4));
        }
        ptx::wgmma_commit_group();
      }
      previous = stage;
      if (!more) {
        ptx::wgmma_wait_group<0>();
        release(previous);
        return;
      }
      if constexpr (kTeamBlocks % 2 != 0) {
#pragma unroll
        for (int r = 0; r < kRowBlocks; ++r) {
#pragma unroll
          for (int w = 0; w < kWords; ++w) words[0][r][w] = words[1][r][w];
        }
      }
      make_group();
      ptx::wgmma_wait_group<kPending>();
      make_fragment(0);
    }
  }

  /// The same with mma.sync: a warp's strips times all tokens. What the next steps need is asked
  /// for before this one's products.
  template <int kShare>
  __device__ __forceinline__ void multiply_stage_by_warps(int stage, const Part& part,
                                                          Units (&units)[kRowBlocks],
                                                          Accumulators& acc) const {
    constexpr int kTokenPairs = kTileM / 16;  // pairs of the instruction's 8 tokens
    const std::uint32_t offset = stage * kStageBytes;
    const std::uint32_t x = part.x + offset;
    std::uint32_t words[2][kRowBlocks][kWords];
    std::uint32_t tokens[2][kTokenPairs][4];
    Constants<kShare> group;
    if constexpr (kFolded) {
      GroupValues<kShare> values;
      load_values<kShare>(part.scales + offset, part, values);
      make_constants<kShare>(values, false, units, acc, group);
    }
    const auto load_block = [&](int block) {
#pragma unroll
      for (int r = 0; r < kRowBlocks; ++r) {
        load_words(part.words + offset, r, block, words[block % 2][r]);
        if (kBlockGroups && 4 * block % kShare == 0) {
          group[4 * block / kShare][r] =
              load_constants(part.scales + offset, part, r, block * layout::kBlockK);
        }
      }
    };
    const auto load_tokens = [&](int step) {
#pragma unroll
      for (int pair = 0; pair < kTokenPairs; ++pair) {
        ptx::ldmatrix_x4(tokens[step % 2][pair],
                         (x ^ (step % 4 * 32)) + step / 4 * (kTileM * 128) + pair * 16 * 128);
      }
    };
    load_block(0);
    load_tokens(0);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int block = step / 4;
      if (step % 4 == 1 && block + 1 < kTeamBlocks) load_block(block + 1);
      if (step + 1 < kSteps) load_tokens(step + 1);
#pragma unroll
      for (int r = 0; r < kRowBlocks; ++r) {
        if (kStepGroups && step % kShare == 0) {
          group[step / kShare][r] = load_constants(part.scales + offset, part, r, 16 * step);
        }
        std::uint32_t a[4];
        dequantize(words[block % 2][r], step % 4, group[step / kShare][r], a);
#pragma unroll
        for (int j = 0; j < kTileM / 8; ++j) {
          ptx::mma_m16n8k16<kConfig.act>(*reinterpret_cast<float(*)[4]>(&acc[r][4 * j]), a,
                                         tokens[step % 2][j / 2][j % 2 * 2],
                                         tokens[step % 2][j / 2][j % 2 * 2 + 1]);
        }
      }
    }
  }

  /// A consumer warpgroup's products of the next `num_stages` stages, added to `acc`.
  template <class Release>
  __device__ __forceinline__ void multiply(device::RingCursor& cursor, int num_stages,
                                           const Part& part, Units (&units)[kRowBlocks],
                                           Accumulators& acc, const Release& release) const {
    if (kMostShare > kLeastShare && (1 << p.group_shift) >= 16 * kMostShare) {
      multiply<kMostShare>(cursor, num_stages, part, units, acc, release);
    } else {
      multiply<kLeastShare>(cursor, num_stages, part, units, acc, release);
    }
  }
  template <int kShare, class Release>
  __device__ __forceinline__ void multiply(device::RingCursor& cursor, int num_stages,
                                           const Part& part, Units (&units)[kRowBlocks],
                                           Accumulators& acc, const Release& release) const {
    if constexpr (kPipelined) {
      multiply_stages<kShare>(cursor, num_stages, part, units, acc, release);
    } else {
      for (; num_stages > 0; --num_stages, cursor.advance()) {
        ring.wait_full(cursor);
        if constexpr (kWarpMma) {
          multiply_stage_by_warps<kShare>(cursor.stage, part, units, acc);
          __syncwarp();
        } else {
          multiply_stage<kShare>(cursor.stage, part, units, acc);
        }
        release(cursor.stage);
      }
    }
  }
};

}  // namespace mixgemm
