// SPDX-License-Identifier: Apache-2.0
// The README's example, run on a file that `mixgemm quantize` wrote (argv[1], layer argv[2]). The
// lines between the two markers are the README's, which a test compares.
#include <mixgemm/checkpoint.hpp>
#include <mixgemm/gemm.hpp>

#include <cstdio>
#include <cstdlib>

using std::uint16_t;

// readme-begin
// y[M, N] = x[M, K] · wᵀ in fp16, with a layer of a file that `mixgemm quantize` wrote.
void multiply(const char* file, const char* layer, int m, const uint16_t* x, uint16_t* y) {
  auto checkpoint = mixgemm::PackedCheckpoint::open(file).value();
  auto weight = checkpoint.find(layer).value();  // mapped, not copied
  const auto& w = weight.view();
  mixgemm::Problem problem;
  problem.m = m, problem.n = w.n, problem.k = w.k, problem.weight = w.spec;
  auto plan = mixgemm::plan(problem).value();  // which kernel, and why: plan.explain()
  mixgemm::RunArgs args;
  args.x = x, args.ldx = w.k, args.weight = w, args.y = y, args.ldy = w.n;
  args.workspace_bytes = (plan.workspace_bytes() + 255) / 256 * 256;
  args.workspace = std::aligned_alloc(256, args.workspace_bytes);
  plan.run(args).throw_if_error();
  std::free(args.workspace);
}
// readme-end

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const auto checkpoint = mixgemm::PackedCheckpoint::open(argv[1]).value();
  const auto* info = checkpoint.info(argv[2]);
  if (info == nullptr) return 2;
  const uint16_t one = 0x3c00;  // 1.0 in fp16
  const std::vector<uint16_t> x(static_cast<std::size_t>(2 * info->k), one);
  std::vector<uint16_t> y(static_cast<std::size_t>(2 * info->n), 0x7fff);
  multiply(argv[1], argv[2], 2, x.data(), y.data());
  // Equal rows of X give equal rows of Y, and every element was written.
  for (std::int64_t n = 0; n < info->n; ++n) {
    const auto i = static_cast<std::size_t>(n);
    if (y[i] == 0x7fff || y[i] != y[i + static_cast<std::size_t>(info->n)]) {
      std::fprintf(stderr, "row 0 and 1 differ at column %zu: %04x, %04x\n", i, y[i],
                   y[i + static_cast<std::size_t>(info->n)]);
      return 1;
    }
  }
  return 0;
}
