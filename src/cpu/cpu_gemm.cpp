// SPDX-License-Identifier: Apache-2.0
#include "cpu/cpu_gemm.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>

#include "cpu/blas.hpp"
#include "cpu/kernels.hpp"
#include "layout/packed.hpp"
#include "util/parallel.hpp"

namespace mixgemm::cpu {
namespace {

// Fewer multiplications than this per thread are not worth waking one: about 20 µs.
constexpr std::int64_t kMinWorkPerThread = 1 << 19;

/// Threads worth using for `work` elementary steps.
int threads_for(std::int64_t work, int num_threads) {
  const int most = num_threads > 0 ? num_threads : default_num_threads();
  return static_cast<int>(std::clamp<std::int64_t>(work / kMinWorkPerThread, 1, most));
}

std::int64_t round_up(std::int64_t value, std::int64_t unit) {
  return (value + unit - 1) / unit * unit;
}

Strip strip_of(const PackedView& w, std::int64_t strip) {
  Strip s;
  s.spec = w.spec;
  s.k = w.k;
  s.codes = w.codes + strip * w.codes_pitch_bytes;
  const std::int64_t group = strip * w.groups_pitch * layout::kStripRows;
  s.scales = w.scales + group;
  if (w.spec.zero == ZeroKind::integer) {
    s.zeros = static_cast<const std::uint8_t*>(w.zeros) + group;
  } else if (w.spec.zero == ZeroKind::scaled) {
    s.zeros = static_cast<const std::uint16_t*>(w.zeros) + group;
  }
  return s;
}

/// The epilogue for the tile of Y at (row, col).
Finish finish_at(const Problem& problem, const RunArgs& args, std::int64_t row, std::int64_t col) {
  Finish f;
  f.type = problem.act;
  f.activation = problem.epilogue.activation;
  f.alpha = args.alpha;
  if (problem.epilogue.bias) f.bias = static_cast<const std::uint16_t*>(args.bias) + col;
  if (problem.epilogue.residual) {
    f.residual = static_cast<const std::uint16_t*>(args.residual) + row * args.ldr + col;
  }
  f.ldr = args.ldr;
  f.y = static_cast<std::uint16_t*>(args.y) + row * args.ldy + col;
  f.ldy = args.ldy;
  return f;
}

// ---- simd ---------------------------------------------------------------------------------------

// Permuted activations are held for this many bytes' worth of rows at a time.
constexpr std::int64_t kSimdWorkspaceBytes = 16 << 20;
// Strips that meet a tile of activations while it is in L2.
constexpr std::int64_t kStripsPerTask = 8;

/// Rows of X per pass over the weight: at least one full tile, at most what the workspace is for.
/// Depends on the largest tile of any instruction set, so that a plan's workspace fits them all.
std::int64_t simd_rows_per_pass(const Problem& problem) {
  constexpr std::int64_t kLargestTile = 8;
  const std::int64_t row_bytes =
      layout::num_k_blocks(problem.k) * layout::kBlockK * std::int64_t{sizeof(float)};
  return std::min(problem.m, std::max(kLargestTile, kSimdWorkspaceBytes / row_bytes));
}

void gemm_simd(const Problem& problem, const RunArgs& args, int num_threads) {
  const Kernels& kernel = kernels();
  const std::int64_t blocks = layout::num_k_blocks(problem.k);
  const std::int64_t row_floats = blocks * layout::kBlockK;
  const std::int64_t strips = layout::num_strips(problem.n);
  const std::int64_t rows_per_pass = simd_rows_per_pass(problem);
  const auto* x = static_cast<const std::uint16_t*>(args.x);
  auto* permuted = static_cast<float*>(args.workspace);

  for (std::int64_t m0 = 0; m0 < problem.m; m0 += rows_per_pass) {
    const std::int64_t rows = std::min(rows_per_pass, problem.m - m0);
    // Tiles of equal height: 13 rows are better split 7 + 6 than 12 + 1.
    const std::int64_t tiles = (rows + kernel.max_tile_rows - 1) / kernel.max_tile_rows;
    const auto tile_begin = [&](std::int64_t tile) { return tile * rows / tiles; };

    const auto permute_tiles = [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t tile = begin; tile < end; ++tile) {
        const std::int64_t first = tile_begin(tile);
        const std::int64_t height = tile_begin(tile + 1) - first;
        for (std::int64_t m = 0; m < height; ++m) {
          kernel.permute_row(problem.weight.type, problem.act, x + (m0 + first + m) * args.ldx, 0,
                             problem.k, permuted + first * row_floats + m * layout::kBlockK,
                             height * layout::kBlockK);
        }
      }
    };
    parallel_for(tiles, 1, threads_for(rows * problem.k, num_threads), permute_tiles);

    const auto multiply_strips = [&](std::int64_t begin, std::int64_t end) {
      float sums[32 * layout::kStripRows];  // one tile
      for (std::int64_t tile = 0; tile < tiles; ++tile) {
        const std::int64_t first = tile_begin(tile);
        const auto height = static_cast<int>(tile_begin(tile + 1) - first);
        for (std::int64_t strip = begin; strip < end; ++strip) {
          kernel.multiply(strip_of(args.weight, strip), permuted + first * row_floats, height,
                          sums);
          const std::int64_t col = strip * layout::kStripRows;
          kernel.finish(finish_at(problem, args, m0 + first, col), sums, layout::kStripRows, height,
                        std::min<std::int64_t>(layout::kStripRows, problem.n - col));
        }
      }
    };
    const int threads = threads_for(rows * problem.n * problem.k, num_threads);
    // Small enough that the threads end together, large enough to reuse the activations.
    const std::int64_t grain = std::clamp<std::int64_t>(strips / (4 * threads), 1, kStripsPerTask);
    parallel_for(strips, grain, threads, multiply_strips);
  }
}

// ---- blas ---------------------------------------------------------------------------------------

/// Block sizes of the BLAS method and what they need: X block [m][ld], weight panel [n][ld], sums
/// [m][n], in floats.
struct BlasBlocks {
  std::int64_t m, n, k, ld;
  std::int64_t x_floats() const { return m * ld; }
  std::int64_t w_floats() const { return n * ld; }
  std::int64_t sum_floats() const { return m * n; }

  explicit BlasBlocks(const Problem& problem)
      : m(std::min<std::int64_t>(problem.m, 1024)),
        n(std::min<std::int64_t>(round_up(problem.n, layout::kStripRows), 1024)),
        k(std::min<std::int64_t>(round_up(problem.k, layout::kBlockK), 4096)),
        // Not a power of two: rows 16 KB apart would share their cache sets.
        ld(k + 16) {}
};

void gemm_blas(const Problem& problem, const RunArgs& args, const Blas& blas, int num_threads) {
  const Kernels& kernel = kernels();
  const BlasBlocks block(problem);
  auto* x_block = static_cast<float*>(args.workspace);
  float* panel = x_block + block.x_floats();
  float* sums = panel + block.w_floats();
  const auto* x = static_cast<const std::uint16_t*>(args.x);

  for (std::int64_t m0 = 0; m0 < problem.m; m0 += block.m) {
    const std::int64_t rows = std::min(block.m, problem.m - m0);
    std::int64_t permuted_k0 = -1;  // what x_block holds
    for (std::int64_t n0 = 0; n0 < problem.n; n0 += block.n) {
      const std::int64_t cols = std::min(block.n, problem.n - n0);
      const std::int64_t strip0 = n0 / layout::kStripRows;
      for (std::int64_t k0 = 0; k0 < problem.k; k0 += block.k) {
        const std::int64_t k1 = std::min(problem.k, k0 + block.k);
        if (permuted_k0 != k0) {
          permuted_k0 = k0;
          parallel_for(rows, 8, threads_for(rows * (k1 - k0), num_threads),
                       [&](std::int64_t begin, std::int64_t end) {
                         for (std::int64_t m = begin; m < end; ++m) {
                           kernel.permute_row(problem.weight.type, problem.act,
                                              x + (m0 + m) * args.ldx, k0, k1,
                                              x_block + m * block.ld, layout::kBlockK);
                         }
                       });
        }
        parallel_for(layout::num_strips(cols), 1, threads_for(cols * (k1 - k0), num_threads),
                     [&](std::int64_t begin, std::int64_t end) {
                       for (std::int64_t s = begin; s < end; ++s) {
                         kernel.dequantize(strip_of(args.weight, strip0 + s), k0 / layout::kBlockK,
                                           layout::num_k_blocks(k1),
                                           panel + s * layout::kStripRows * block.ld, block.ld);
                       }
                     });
        // Row-major sums[rows, cols] are column-major [cols, rows] = panel · x_blockᵀ.
        const std::int64_t depth = round_up(k1 - k0, layout::kBlockK);
        const float one = 1.0f, beta = k0 == 0 ? 0.0f : 1.0f;
        blas.sgemm("T", "N", &cols, &rows, &depth, &one, panel, &block.ld, x_block, &block.ld,
                   &beta, sums, &block.n, 1, 1);
      }
      parallel_for(rows, 8, threads_for(rows * cols, num_threads),
                   [&](std::int64_t begin, std::int64_t end) {
                     kernel.finish(finish_at(problem, args, m0 + begin, n0), sums + begin * block.n,
                                   block.n, end - begin, cols);
                   });
    }
  }
}

// From this many rows on, sgemm on dequantized panels is faster than the fused kernel
// (bench/cpu_bench.cpp).
constexpr std::int64_t kMinRowsForBlas = 128;

}  // namespace

std::string_view to_string(Method method) {
  switch (method) {
    case Method::simd: return "simd";
    case Method::blas: return "blas";
  }
  return "?";
}

std::string simd_target() { return std::string(kernels().name); }

bool blas_available() { return blas().sgemm != nullptr; }

std::string blas_description() { return blas().description; }

Method choose(const Problem& problem) {
  if (problem.batch_invariant || problem.m < kMinRowsForBlas || !blas().fast) return Method::simd;
  return Method::blas;
}

std::string explain_choice(const Problem& problem) {
  if (problem.batch_invariant) {
    return "simd: batch_invariant asks for one order of summation for every M, which a BLAS does "
           "not promise";
  }
  if (problem.m < kMinRowsForBlas) {
    return fmt::format(
        "simd: with fewer than {} rows, reading the packed codes once beats "
        "dequantizing them for a BLAS",
        kMinRowsForBlas);
  }
  if (!blas().fast) return fmt::format("simd: no fast BLAS: {}", blas().description);
  return fmt::format(
      "blas: from {} rows on, dequantized panels into {} are faster than the fused "
      "kernel",
      kMinRowsForBlas, blas().description);
}

std::size_t workspace_bytes(const Problem& problem, Method method) {
  std::int64_t floats = 0;
  if (method == Method::simd) {
    floats = simd_rows_per_pass(problem) * layout::num_k_blocks(problem.k) * layout::kBlockK;
  } else {
    const BlasBlocks block(problem);
    floats = block.x_floats() + block.w_floats() + block.sum_floats();
  }
  return static_cast<std::size_t>(floats) * sizeof(float);
}

Status gemm(const Problem& problem, const RunArgs& args, Method method, int num_threads) {
  if (method == Method::simd) {
    gemm_simd(problem, args, num_threads);
    return {};
  }
  const Blas& found = blas();
  if (!found.sgemm) {
    return {StatusCode::unsupported,
            fmt::format("the blas method needs a BLAS at run time; found {}", found.description)};
  }
  gemm_blas(problem, args, found, num_threads);
  return {};
}

}  // namespace mixgemm::cpu
