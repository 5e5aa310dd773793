// SPDX-License-Identifier: Apache-2.0
// The CPU product against the oracle: every instruction set that this machine has, with and without
// a BLAS, any shape.
#include "cpu/cpu_gemm.hpp"

#include <cstdlib>

#include "cpu/blas.hpp"
#include "cpu/kernels.hpp"
#include "cpu_case.hpp"

namespace mixgemm::cpu_test {
namespace {

using cpu::Method;

/// Sets an environment variable for as long as it lives.
class ScopedEnv {
 public:
  ScopedEnv(const char* name, const std::string& value) : name_(name) {
    if (const char* old = std::getenv(name)) old_ = old, had_ = true;
    setenv(name, value.c_str(), 1);
  }
  ~ScopedEnv() {
    if (had_) {
      setenv(name_, old_.c_str(), 1);
    } else {
      unsetenv(name_);
    }
  }
  ScopedEnv(const ScopedEnv&) = delete;
  ScopedEnv& operator=(const ScopedEnv&) = delete;

 private:
  const char* name_;
  std::string old_;
  bool had_ = false;
};

std::vector<Method> methods() {
  if (cpu::blas_available()) return {Method::simd, Method::blas};
  return {Method::simd};
}

/// The error contract, for every instruction set and method.
void expect_contract(const Case& c) {
  const double plain = c.plain_error();
  for (std::string_view target : cpu::available_targets()) {
    const ScopedEnv env("MIXGEMM_CPU_TARGET", std::string(target));
    ASSERT_EQ(cpu::simd_target(), target);
    for (Method method : methods()) {
      SCOPED_TRACE(std::string(target) + " " + std::string(to_string(method)));
      const Matrix y = c.run(method, 2);
      EXPECT_LE(c.relative_error(y), 1.05 * plain + 1e-5);
      c.expect_elements_close(y);
    }
  }
}

bool same_row(const Matrix& a, std::int64_t row_a, const Matrix& b, std::int64_t row_b,
              std::int64_t cols) {
  return std::memcmp(a.data() + row_a * a.ld(), b.data() + row_b * b.ld(),
                     static_cast<std::size_t>(cols) * sizeof(std::uint16_t)) == 0;
}

TEST(CpuGemm, RandomProblemsMeetTheErrorContract) {
  for (std::uint64_t seed = 1; seed <= 150; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Rng rng(seed);
    Problem p;
    p.m = pick(rng, 1, pick(rng, 0, 1) ? 30 : 4);
    p.n = pick(rng, 1, pick(rng, 0, 1) ? 90 : 17);
    p.k = pick(rng, 1, pick(rng, 0, 1) ? 700 : 70);
    p.act = random_type(rng);
    p.weight = random_spec(rng, random_type(rng));
    p.epilogue = random_epilogue(rng);
    SCOPED_TRACE(describe(p));
    expect_contract(Case(rng, p, pick(rng, 0, 3) ? 0.0f : 1.0f));
    if (HasFailure()) return;
  }
}

TEST(CpuGemm, EveryFormatGroupAndZeroKindAtRaggedK) {
  std::uint64_t seed = 1000;
  for (WeightType type : {WeightType::int4, WeightType::int8}) {
    for (ZeroKind zero : {ZeroKind::none, ZeroKind::integer, ZeroKind::scaled}) {
      for (int group : {0, 16, 32, 64, 128}) {
        for (std::int64_t k : {1, 7, 100, 257}) {
          Rng rng(++seed);
          Problem p;
          p.m = 3;
          p.n = 17;
          p.k = k;
          p.act = seed % 2 ? DataType::f16 : DataType::bf16;
          p.weight = {type, zero, group, seed % 3 ? p.act : DataType::f16};
          SCOPED_TRACE("seed " + std::to_string(seed) + " " + describe(p));
          expect_contract(Case(rng, p));
          if (HasFailure()) return;
        }
      }
    }
  }
}

TEST(CpuGemm, EveryTileHeight) {
  for (std::int64_t m = 1; m <= 26; ++m) {
    Rng rng(2000 + static_cast<std::uint64_t>(m));
    Problem p;
    p.m = m;
    p.n = 33;
    p.k = 130;
    p.weight.group_size = 32 << (m % 3);
    p.weight.type = m % 2 ? WeightType::int4 : WeightType::int8;
    SCOPED_TRACE(describe(p));
    expect_contract(Case(rng, p));
  }
}

// Sizes beyond one panel of the BLAS method along N, K and M, and beyond one pass of the simd
// method.
TEST(CpuGemm, MoreThanOneBlockInEachDirection) {
  struct Shape {
    std::int64_t m, n, k;
  };
  for (const Shape& s : {Shape{2, 1050, 4200}, Shape{1030, 20, 70}, Shape{215, 16, 20000}}) {
    Rng rng(3000 + static_cast<std::uint64_t>(s.m));
    Problem p;
    p.m = s.m;
    p.n = s.n;
    p.k = s.k;
    p.weight.zero = ZeroKind::integer;
    SCOPED_TRACE(describe(p));
    const Case c(rng, p);
    for (Method method : methods()) {
      const Matrix y = c.run(method, 0);
      EXPECT_LE(c.relative_error(y), 3e-4);  // rounding to fp16 alone: 2e-4
    }
  }
}

TEST(CpuGemm, WorkspaceStaysBounded) {
  Problem p;
  p.m = 100000;
  p.n = 28672;
  p.k = 28672;
  for (Method method : {Method::simd, Method::blas}) {
    EXPECT_LE(cpu::workspace_bytes(p, method), std::size_t{64} << 20);
  }
}

TEST(CpuGemm, SlicedViewsReadTheirOwnCodesAndScales) {
  for (std::uint64_t seed = 4000; seed < 4020; ++seed) {
    Rng rng(seed);
    Problem whole;
    whole.m = 5;
    whole.n = 70;
    whole.k = 500;
    whole.act = random_type(rng);
    whole.weight = random_spec(rng, whole.act);
    Case c(rng, whole);
    // Strips 1.., k from 128 on: every group size divides it. Groups per column aren't sliced by k.
    PackedView& view = c.weight.view;
    const int bits = bits_of(view.spec.type);
    const std::int64_t k0 = view.spec.group_size == 0 ? 0 : 128;
    const std::int64_t group0 = view.spec.group_size == 0 ? 0 : k0 / view.spec.group_size;
    view.codes += view.codes_pitch_bytes + k0 / 64 * layout::cell_bytes(bits);
    const std::int64_t first = (view.groups_pitch + group0) * 16;
    view.scales += first;
    if (!c.weight.zeros.empty()) view.zeros = c.weight.zeros.data() + first;
    if (!c.weight.scaled_zeros.empty()) view.zeros = c.weight.scaled_zeros.data() + first;
    view.n = c.problem.n = pick(rng, 1, 54);
    view.k = c.problem.k = whole.k - k0 - pick(rng, 0, 100);
    c.solve();
    SCOPED_TRACE("seed " + std::to_string(seed) + " " + describe(c.problem));
    for (std::string_view target : cpu::available_targets()) {
      const ScopedEnv env("MIXGEMM_CPU_TARGET", std::string(target));
      for (Method method : methods()) {
        EXPECT_LE(c.relative_error(c.run(method, 2)), c.problem.act == DataType::f16 ? 5e-4 : 4e-3);
      }
    }
  }
}

// The other cases make their packed weights straight from the layout's bijection; this one takes
// the library's own road: quantize, pack, slice for tensor parallelism, multiply.
TEST(CpuGemm, PackedAndSlicedByTheLibrary) {
  Rng rng(4100);
  constexpr std::int64_t kN = 70, kK = 400, kM = 5;
  Matrix dense(kN, kK, kK);
  dense.fill_random(rng, DataType::f16);
  QuantizeOptions options;
  options.spec.zero = ZeroKind::integer;
  auto canonical = quantize(dense.data(), DataType::f16, kN, kK, kK, options);
  ASSERT_TRUE(canonical.ok()) << canonical.status().message();
  auto packed = pack(*canonical);
  ASSERT_TRUE(packed.ok()) << packed.status().message();
  auto columns = slice_n(packed->view(), 16, kN);
  ASSERT_TRUE(columns.ok()) << columns.status().message();
  auto slice = slice_k(*columns, 128, kK);
  ASSERT_TRUE(slice.ok()) << slice.status().message();
  const std::vector<float> w = dequantize(*canonical).value();

  Problem p;
  p.m = kM;
  p.n = kN - 16;
  p.k = kK - 128;
  p.weight = options.spec;
  Matrix x(kM, p.k, p.k);
  x.fill_random(rng, p.act);
  for (Method method : methods()) {
    Matrix y(kM, p.n, p.n);
    Workspace workspace(cpu::workspace_bytes(p, method));
    RunArgs args;
    args.x = x.data();
    args.ldx = p.k;
    args.weight = *slice;
    args.y = y.data();
    args.ldy = p.n;
    args.workspace = workspace.data();
    args.workspace_bytes = workspace.bytes();
    ASSERT_TRUE(cpu::gemm(p, args, method, 2).ok());
    for (std::int64_t m = 0; m < kM; ++m) {
      for (std::int64_t n = 0; n < p.n; ++n) {
        double sum = 0.0, magnitude = 0.0;
        for (std::int64_t k = 0; k < p.k; ++k) {
          const double product = f32_from_bits(x.at(m, k), p.act) *
                                 w[static_cast<std::size_t>((n + 16) * kK + k + 128)];
          sum += product;
          magnitude += std::abs(product);
        }
        ASSERT_NEAR(f32_from_bits(y.at(m, n), p.act), sum,
                    std::abs(sum) * 0x1p-11 + 2e-6 * magnitude);
      }
    }
  }
}

TEST(CpuGemm, SameBitsForAnyNumberOfThreads) {
  Rng rng(5000);
  Problem p;
  p.m = 40;
  p.n = 600;
  p.k = 1000;
  const Case c(rng, p);
  for (Method method : methods()) {
    const Matrix one = c.run(method, 1);
    for (int threads = 2; threads <= 4; ++threads) {
      const Matrix y = c.run(method, threads);
      for (std::int64_t m = 0; m < p.m; ++m) ASSERT_TRUE(same_row(one, m, y, m, p.n));
    }
  }
}

TEST(CpuGemm, BatchInvariantRowsKeepTheirBitsForEveryM) {
  for (std::uint64_t seed = 6000; seed < 6006; ++seed) {
    Rng rng(seed);
    Problem p;
    p.m = 29;
    p.n = 50;
    p.k = pick(rng, 60, 900);
    p.act = random_type(rng);
    p.weight = random_spec(rng, p.act);
    p.epilogue.activation = Activation::gelu;
    p.batch_invariant = true;
    SCOPED_TRACE("seed " + std::to_string(seed) + " " + describe(p));
    for (std::int64_t m : {1, 8, 64, 4096}) {
      Problem q = p;
      q.m = m;
      ASSERT_EQ(cpu::choose(q), Method::simd);
    }
    const Case c(rng, p);
    for (std::string_view target : cpu::available_targets()) {
      const ScopedEnv env("MIXGEMM_CPU_TARGET", std::string(target));
      const Matrix all = c.run(Method::simd, 2);
      for (std::int64_t m = 1; m <= p.m; ++m) {
        Case part = c;
        part.problem.m = m;
        const Matrix y = part.run(Method::simd, 2);
        for (std::int64_t row = 0; row < m; ++row) {
          ASSERT_TRUE(same_row(all, row, y, row, p.n)) << target << " M=" << m << " row " << row;
        }
      }
    }
  }
}

TEST(CpuGemm, InfinitiesAndNansStayInTheirRow) {
  Rng rng(7000);
  Problem p;
  p.m = 6;
  p.n = 20;
  p.k = 150;
  Case c(rng, p);
  for (std::string_view target : cpu::available_targets()) {
    const ScopedEnv env("MIXGEMM_CPU_TARGET", std::string(target));
    for (Method method : methods()) {
      Case bad = c;
      bad.x.set(1, 149, std::numeric_limits<float>::infinity(), p.act);
      bad.x.set(4, 0, std::numeric_limits<float>::quiet_NaN(), p.act);
      const Matrix clean = c.run(method, 1);
      const Matrix y = bad.run(method, 1);
      for (std::int64_t n = 0; n < p.n; ++n) {
        EXPECT_FALSE(std::isfinite(f32_from_bits(y.at(1, n), p.act)));
        EXPECT_TRUE(std::isnan(f32_from_bits(y.at(4, n), p.act)));
      }
      for (std::int64_t m : {0, 2, 3, 5}) EXPECT_TRUE(same_row(clean, m, y, m, p.n));
    }
  }
}

TEST(CpuGemm, OutputsRoundOnceToNearestEvenAndOverflowToInfinity) {
  for (DataType type : {DataType::f16, DataType::bf16}) {
    Rng rng(8000);
    Problem p;
    p.m = 64;
    p.n = 37;
    p.k = 1;
    p.act = type;
    p.weight.scale_type = DataType::f16;
    Case c(rng, p);
    // One product per output, so that the fp32 sum is exact: all that is left is the rounding.
    for (std::int64_t m = 0; m < p.m; ++m) {
      c.x.data()[m * c.x.ld()] = static_cast<std::uint16_t>(pick(rng, 0, 0x7b00));
    }
    for (std::string_view target : cpu::available_targets()) {
      const ScopedEnv env("MIXGEMM_CPU_TARGET", std::string(target));
      for (float alpha : {1.0f, 0x1p-20f, 0x1p14f}) {
        c.alpha = alpha;
        const Matrix y = c.run(Method::simd, 1);
        for (std::int64_t m = 0; m < p.m; ++m) {
          for (std::int64_t n = 0; n < p.n; ++n) {
            const auto w = static_cast<float>(c.weight.dequantized(n, 0));
            const float product = f32_from_bits(c.x.at(m, 0), type) * w * alpha;
            ASSERT_EQ(f32_from_bits(y.at(m, n), type),
                      f32_from_bits(bits_from_f32(product, type), type))
                << target << ' ' << to_string(type) << " product " << product;
          }
        }
      }
    }
  }
}

TEST(CpuGemm, ActivationsSaturateAtTheirEnds) {
  for (Activation activation : {Activation::relu, Activation::gelu, Activation::silu}) {
    Rng rng(8500);
    Problem p;
    p.m = 2;
    p.n = 40;
    p.k = 64;
    p.act = DataType::bf16;  // fp16 has no room for the smallest outputs
    p.epilogue.activation = activation;
    Case c(rng, p);
    for (float alpha : {-3000.0f, 1e-6f, 3000.0f}) {
      c.alpha = alpha;
      c.solve();
      for (std::string_view target : cpu::available_targets()) {
        const ScopedEnv env("MIXGEMM_CPU_TARGET", std::string(target));
        const Matrix y = c.run(Method::simd, 1);
        EXPECT_LE(c.relative_error(y), 3e-3) << target << ' ' << to_string(activation);
      }
    }
  }
}

TEST(CpuGemm, ResidualInPlace) {
  Rng rng(8600);
  Problem p;
  p.m = 70;
  p.n = 45;
  p.k = 100;
  p.epilogue.residual = true;
  const Case c(rng, p);
  for (Method method : methods()) {
    const Matrix apart = c.run(method, 2);
    Matrix y = c.residual;
    Workspace workspace(cpu::workspace_bytes(p, method));
    RunArgs args = c.inputs();
    args.y = y.data();
    args.ldy = y.ld();
    args.residual = y.data();
    args.workspace = workspace.data();
    args.workspace_bytes = workspace.bytes();
    ASSERT_TRUE(cpu::gemm(p, args, method, 2).ok());
    for (std::int64_t m = 0; m < p.m; ++m) ASSERT_TRUE(same_row(apart, m, y, m, p.n));
  }
}

TEST(CpuBlas, NoneIsRespectedAndNamed) {
  const ScopedEnv env("MIXGEMM_BLAS", "none");
  EXPECT_FALSE(cpu::blas_available());
  Problem p;
  p.m = 512;
  p.n = p.k = 64;
  EXPECT_EQ(cpu::choose(p), Method::simd);
  EXPECT_NE(cpu::explain_choice(p).find("MIXGEMM_BLAS=none"), std::string::npos);
  EXPECT_EQ(cpu::gemm(p, {}, Method::blas, 1).code(), StatusCode::unsupported);
}

TEST(CpuBlas, AMissingLibraryIsReportedByName) {
  const ScopedEnv env("MIXGEMM_BLAS", "/nonexistent/libblas.so");
  EXPECT_FALSE(cpu::blas_available());
  EXPECT_NE(cpu::blas_description().find("/nonexistent/libblas.so"), std::string::npos);
}

TEST(CpuBlas, ALibraryWithoutSgemmIsRefused) {
  const ScopedEnv env("MIXGEMM_BLAS", "libm.so.6");
  EXPECT_FALSE(cpu::blas_available());
  EXPECT_NE(cpu::blas_description().find("sgemm_"), std::string::npos);
}

TEST(CpuDispatch, AnUnknownTargetFallsBackToTheBest) {
  const std::string best(cpu::available_targets().front());
  const ScopedEnv env("MIXGEMM_CPU_TARGET", "pdp11");
  EXPECT_EQ(cpu::simd_target(), best);
}

TEST(CpuDispatch, ThePortableLoopsAreAlwaysThere) {
#if defined(__x86_64__) && !defined(__SSE4_2__)
  EXPECT_EQ(cpu::available_targets().back(), "portable");
#endif
  EXPECT_FALSE(cpu::available_targets().empty());
}

}  // namespace
}  // namespace mixgemm::cpu_test
