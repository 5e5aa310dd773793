// SPDX-License-Identifier: Apache-2.0
// The oracle against a triple loop over plain codes, and its refusals.
#include <cmath>

#include "cpu_case.hpp"

namespace mixgemm::cpu_test {
namespace {

TEST(Reference, MatchesTripleLoopOverPlainCodes) {
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Rng rng(seed);
    Problem p;
    p.m = pick(rng, 1, 4);
    p.n = pick(rng, 1, 40);
    p.k = pick(rng, 1, 300);
    p.act = random_type(rng);
    p.weight = random_spec(rng, random_type(rng));
    SCOPED_TRACE(describe(p));
    const Case c(rng, p);
    for (std::int64_t m = 0; m < p.m; ++m) {
      for (std::int64_t n = 0; n < p.n; ++n) {
        long double sum = 0.0L;
        for (std::int64_t k = 0; k < p.k; ++k) {
          sum += static_cast<long double>(f32_from_bits(c.x.at(m, k), p.act)) *
                 c.weight.dequantized(n, k);
        }
        ASSERT_NEAR(c.expected[static_cast<std::size_t>(m * p.n + n)], static_cast<double>(sum),
                    1e-12 * static_cast<double>(p.k));
      }
    }
  }
}

TEST(Reference, EpilogueAppliesAlphaBiasActivationResidualInThisOrder) {
  Rng rng(7);
  Problem p;
  p.m = 3;
  p.n = 18;
  p.k = 70;
  Case plain(rng, p);
  Case full = plain;
  full.alpha = -0.5f;
  full.problem.epilogue.bias = full.problem.epilogue.residual = true;
  for (Activation activation :
       {Activation::none, Activation::relu, Activation::gelu, Activation::silu}) {
    full.problem.epilogue.activation = activation;
    full.solve();
    for (std::int64_t m = 0; m < p.m; ++m) {
      for (std::int64_t n = 0; n < p.n; ++n) {
        const auto at = static_cast<std::size_t>(m * p.n + n);
        const double v = -0.5 * plain.expected[at] + f32_from_bits(full.bias.at(0, n), p.act);
        double activated = v;
        if (activation == Activation::relu) activated = std::max(v, 0.0);
        if (activation == Activation::silu) activated = v / (1.0 + std::exp(-v));
        if (activation == Activation::gelu) {
          activated =
              v / (1.0 + std::exp(-2.0 * std::sqrt(2.0 / M_PI) * (v + 0.044715 * v * v * v)));
        }
        ASSERT_NEAR(full.expected[at], activated + f32_from_bits(full.residual.at(m, n), p.act),
                    1e-12);
      }
    }
  }
}

TEST(Reference, RefusesAnIllegalProblemAndMissingPointers) {
  Rng rng(8);
  Problem p;
  p.m = p.n = p.k = 16;
  const Case c(rng, p);
  double y[256];
  RunArgs args = c.inputs();
  args.y = y;
  args.ldy = 16;
  EXPECT_TRUE(reference_gemm(p, args).ok());
  Problem bad = p;
  bad.m = 0;
  EXPECT_EQ(reference_gemm(bad, args).code(), StatusCode::invalid_argument);
  args.x = nullptr;
  EXPECT_EQ(reference_gemm(p, args).code(), StatusCode::invalid_argument);
}

}  // namespace
}  // namespace mixgemm::cpu_test
