// SPDX-License-Identifier: Apache-2.0
// Each rule of docs/errors.md: what is legal passes, what breaks one rule is refused with a message
// that names the rule and the value.
#include "api/check.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "call.hpp"

namespace mixgemm {
namespace {

using ::testing::HasSubstr;
using ::testing::Values;

constexpr std::int64_t kHuge = std::numeric_limits<std::int64_t>::max();

template <class T>
const T* shifted(const T* pointer, std::ptrdiff_t bytes) {
  return reinterpret_cast<const T*>(reinterpret_cast<std::uintptr_t>(pointer) + bytes);
}
void* shifted(void* pointer, std::ptrdiff_t bytes) { return static_cast<char*>(pointer) + bytes; }

/// Drops const: y is given an address that belongs to an input.
template <class T>
void* writable(const T* pointer) {
  return const_cast<T*>(pointer);
}

Status check(const Call& call) { return check_args(call.problem, call.args, call.workspace_bytes); }

void expect_refused(const Status& status, const std::vector<std::string>& words) {
  EXPECT_EQ(status.code(), StatusCode::invalid_argument) << status.message();
  for (const std::string& word : words) EXPECT_THAT(status.message(), HasSubstr(word));
}

// ------------------------------------------------------------------ problems

struct BrokenProblem {
  const char* name;
  std::function<void(Problem&)> break_it;
  std::vector<std::string> words;
};

class CheckProblem : public ::testing::TestWithParam<BrokenProblem> {};

TEST_P(CheckProblem, NamesRuleAndValue) {
  Problem problem = make_call().problem;
  ASSERT_TRUE(check_problem(problem).ok());
  GetParam().break_it(problem);
  expect_refused(check_problem(problem), GetParam().words);
}

void make_cuda_with_bf16_scales(Problem& p) {
  p.device = Device::cuda;
  p.weight.scale_type = DataType::bf16;
}

// clang-format off
INSTANTIATE_TEST_SUITE_P(Rules, CheckProblem, Values(
    BrokenProblem{"ZeroM", [](Problem& p) { p.m = 0; }, {"m must be 1 ..", "got 0"}},
    BrokenProblem{"NegativeN", [](Problem& p) { p.n = -5; }, {"n must be 1 ..", "got -5"}},
    BrokenProblem{"HugeK", [](Problem& p) { p.k = std::int64_t{1} << 31; },
                  {"k must be 1 .. 2147483647", "got 2147483648"}},
    BrokenProblem{"ActF32", [](Problem& p) { p.act = DataType::f32; },
                  {"act must be f16 or bf16", "got f32"}},
    BrokenProblem{"UnknownAct", [](Problem& p) { p.act = DataType{7}; },
                  {"act must be f16 or bf16", "unknown value 7"}},
    BrokenProblem{"UnknownWeightType", [](Problem& p) { p.weight.type = WeightType{2}; },
                  {"weight.type must be int4 or int8", "unknown value 2"}},
    BrokenProblem{"UnknownZeroKind", [](Problem& p) { p.weight.zero = ZeroKind{3}; },
                  {"weight.zero must be", "unknown value 3"}},
    BrokenProblem{"GroupSize", [](Problem& p) { p.weight.group_size = 48; },
                  {"group_size must be 0 (per column), 16, 32, 64 or 128; got 48"}},
    BrokenProblem{"ScaleType", [](Problem& p) { p.weight.scale_type = DataType::f32; },
                  {"scale_type must be f16 or bf16", "got f32"}},
    BrokenProblem{"Activation", [](Problem& p) { p.epilogue.activation = Activation{9}; },
                  {"epilogue.activation must be", "unknown value 9"}},
    BrokenProblem{"Device", [](Problem& p) { p.device = Device{4}; },
                  {"device must be cpu or cuda", "unknown value 4"}},
    BrokenProblem{"CudaScaleType", make_cuda_with_bf16_scales,
                  {"scale_type must be act = f16 on cuda", "got bf16"}}),
    [](const auto& info) { return info.param.name; });
// clang-format on

TEST(CheckProblemLegal, EveryCombinationOfTheTable) {
  for (const DataType act : {DataType::f16, DataType::bf16}) {
    for (const DataType scale : {DataType::f16, DataType::bf16}) {
      for (const int group : {0, 16, 32, 64, 128}) {
        for (const auto type : {WeightType::int4, WeightType::int8}) {
          for (const auto zero : {ZeroKind::none, ZeroKind::integer, ZeroKind::scaled}) {
            Problem p;
            p.m = p.n = 1;
            p.k = 7;
            p.act = act;
            p.weight = {type, zero, group, scale};
            EXPECT_TRUE(check_problem(p).ok()) << check_problem(p).message();
          }
        }
      }
    }
  }
}

// ------------------------------------------------------------------ arguments

struct BrokenCall {
  const char* name;
  std::function<void(Call&)> break_it;
  std::vector<std::string> words;
};

class CheckArgs : public ::testing::TestWithParam<BrokenCall> {};

TEST_P(CheckArgs, NamesRuleAndValue) {
  Call call = make_call();
  ASSERT_TRUE(check(call).ok()) << check(call).message();
  GetParam().break_it(call);
  expect_refused(check(call), GetParam().words);
}

void move_to_cuda(Call& c) { c.problem.device = c.args.weight.device = Device::cuda; }

// clang-format off
INSTANTIATE_TEST_SUITE_P(Pointers, CheckArgs, Values(
    BrokenCall{"NullX", [](Call& c) { c.args.x = nullptr; }, {"x must not be null"}},
    BrokenCall{"NullY", [](Call& c) { c.args.y = nullptr; }, {"y must not be null"}},
    BrokenCall{"NullBias", [](Call& c) { c.args.bias = nullptr; }, {"bias must not be null"}},
    BrokenCall{"NullResidual", [](Call& c) { c.args.residual = nullptr; },
               {"residual must not be null"}},
    BrokenCall{"BiasUnasked", [](Call& c) { c.problem.epilogue.bias = false; },
               {"bias must be null where the problem's epilogue has no bias; got address 0x"}},
    BrokenCall{"ResidualUnasked", [](Call& c) { c.problem.epilogue.residual = false; },
               {"residual must be null where the problem's epilogue has no residual; got"}},
    BrokenCall{"OddX", [](Call& c) { c.args.x = shifted(c.args.x, 1); },
               {"x must be aligned to 2 bytes", "got address 0x"}},
    BrokenCall{"OddY", [](Call& c) { c.args.y = shifted(c.args.y, 1); },
               {"y must be aligned to 2 bytes"}},
    BrokenCall{"OddBias", [](Call& c) { c.args.bias = shifted(c.args.bias, 1); },
               {"bias must be aligned to 2 bytes"}},
    BrokenCall{"OddResidual", [](Call& c) { c.args.residual = shifted(c.args.residual, 1); },
               {"residual must be aligned to 2 bytes"}}),
    [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(Sizes, CheckArgs, Values(
    BrokenCall{"Ldx", [](Call& c) { c.args.ldx = 99; }, {"ldx must be at least K = 100; got 99"}},
    BrokenCall{"Ldy", [](Call& c) { c.args.ldy = 32; }, {"ldy must be at least N = 33; got 32"}},
    BrokenCall{"Ldr", [](Call& c) { c.args.ldr = 0; }, {"ldr must be at least N = 33; got 0"}},
    BrokenCall{"NegativeLdx", [](Call& c) { c.args.ldx = -kHuge; }, {"ldx must be at least"}},
    BrokenCall{"LdxTimesTwo", [](Call& c) { c.args.ldx = kHuge; },
               {"x with M = 3", "does not fit the address space"}},
    BrokenCall{"LdyTimesRows", [](Call& c) { c.args.ldy = kHuge / 4 * 2; },
               {"y with M = 3", "does not fit the address space"}},
    BrokenCall{"ResidualPastTheEnd",
               [](Call& c) { c.args.residual = reinterpret_cast<void*>(~std::uintptr_t{15}); },
               {"residual with M = 3", "does not fit the address space"}},
    BrokenCall{"AlphaNan", [](Call& c) { c.args.alpha = NAN; }, {"alpha must be finite; got nan"}},
    BrokenCall{"AlphaInf", [](Call& c) { c.args.alpha = -INFINITY; },
               {"alpha must be finite; got -inf"}}),
    [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(Weight, CheckArgs, Values(
    BrokenCall{"N", [](Call& c) { c.args.weight.n = 34; }, {"weight.n must be", "33; got 34"}},
    BrokenCall{"K", [](Call& c) { c.args.weight.k = 99; }, {"weight.k must be", "100; got 99"}},
    BrokenCall{"Spec", [](Call& c) { c.args.weight.spec.group_size = 32; },
               {"weight.spec must be", "group_size=64", "group_size=32"}},
    BrokenCall{"OnTheGpu", [](Call& c) { c.args.weight.device = Device::cuda; },
               {"weight.device must be cpu; got cuda"}},
    BrokenCall{"NotOnTheGpu", [](Call& c) { c.problem.device = Device::cuda; },
               {"weight.device must be cuda; got cpu", "to_cuda()"}},
    BrokenCall{"NullCodes", [](Call& c) { c.args.weight.codes = nullptr; },
               {"weight.codes must not be null"}},
    BrokenCall{"UnalignedCodes", [](Call& c) { c.args.weight.codes += 8; },
               {"weight.codes must be aligned to 16 bytes"}},
    BrokenCall{"NullScales", [](Call& c) { c.args.weight.scales = nullptr; },
               {"weight.scales must not be null"}},
    BrokenCall{"OddScales",
               [](Call& c) { c.args.weight.scales = shifted(c.args.weight.scales, 1); },
               {"weight.scales must be aligned to 2 bytes on cpu"}},
    BrokenCall{"UnalignedScalesOnTheGpu",
               [](Call& c) { move_to_cuda(c); c.args.weight.scales += 1; },
               {"weight.scales must be aligned to 16 bytes on cuda"}},
    BrokenCall{"UnalignedZerosOnTheGpu",
               [](Call& c) {
                 move_to_cuda(c);
                 c.args.weight.zeros = shifted(c.args.weight.zeros, 2);
               },
               {"weight.zeros must be aligned to 16 bytes on cuda"}},
    BrokenCall{"NullZeros", [](Call& c) { c.args.weight.zeros = nullptr; },
               {"weight.zeros must be given where the zero-point kind is integer"}},
    BrokenCall{"ZerosUnasked",
               [](Call& c) { c.problem.weight.zero = c.args.weight.spec.zero = ZeroKind::none; },
               {"weight.zeros must be null where the zero-point kind is none"}},
    BrokenCall{"OddScaledZeros",
               [](Call& c) {
                 c.problem.weight.zero = c.args.weight.spec.zero = ZeroKind::scaled;
                 c.args.weight.zeros = shifted(c.args.weight.zeros, 1);
               },
               {"weight.zeros must be aligned to 2 bytes on cpu"}},
    BrokenCall{"ShortCodesPitch", [](Call& c) { c.args.weight.codes_pitch_bytes -= 16; },
               {"weight.codes_pitch_bytes must be", "1024 bytes", "got 1008"}},
    BrokenCall{"OddCodesPitch", [](Call& c) { c.args.weight.codes_pitch_bytes += 8; },
               {"weight.codes_pitch_bytes must be a multiple of 16", "got 1032"}},
    BrokenCall{"HugeCodesPitch", [](Call& c) { c.args.weight.codes_pitch_bytes = kHuge / 16 * 16; },
               {"weight.codes with N = 33", "does not fit the address space"}},
    BrokenCall{"ShortGroupsPitch", [](Call& c) { c.args.weight.groups_pitch = 1; },
               {"weight.groups_pitch must be at least the 2 groups", "got 1"}},
    BrokenCall{"HugeGroupsPitch", [](Call& c) { c.args.weight.groups_pitch = kHuge; },
               {"weight.groups_pitch", "does not fit the address space"}}),
    [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(Workspace, CheckArgs, Values(
    BrokenCall{"Null", [](Call& c) { c.args.workspace = nullptr; },
               {"workspace must not be null: this plan needs 512 bytes"}},
    BrokenCall{"Unaligned",
               [](Call& c) { c.args.workspace = shifted(c.args.workspace, 128); },
               {"workspace must be aligned to 256 bytes"}},
    BrokenCall{"TooSmall", [](Call& c) { c.args.workspace_bytes = 511; },
               {"workspace_bytes must be at least 512", "got 511"}},
    BrokenCall{"OnY", [](Call& c) { c.args.workspace = c.args.y; },
               {"workspace must not overlap y"}},
    BrokenCall{"OnX", [](Call& c) { c.args.x = c.args.workspace; },
               {"workspace must not overlap x"}},
    BrokenCall{"OnBias", [](Call& c) { c.args.bias = c.args.workspace; },
               {"workspace must not overlap bias"}},
    BrokenCall{"OnResidual", [](Call& c) { c.args.residual = c.args.workspace; },
               {"workspace must not overlap residual"}}),
    [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(Overlap, CheckArgs, Values(
    BrokenCall{"YOnX", [](Call& c) { c.args.y = writable(c.args.x); }, {"y must not overlap x"}},
    BrokenCall{"YOnCodes", [](Call& c) { c.args.y = writable(c.args.weight.codes); },
               {"y must not overlap weight.codes"}},
    BrokenCall{"YOnScales", [](Call& c) { c.args.y = writable(c.args.weight.scales); },
               {"y must not overlap weight.scales"}},
    BrokenCall{"YOnZeros", [](Call& c) { c.args.y = writable(c.args.weight.zeros); },
               {"y must not overlap weight.zeros"}},
    BrokenCall{"YOnBias", [](Call& c) { c.args.bias = shifted(c.args.y, 2); },
               {"y must not overlap bias"}},
    BrokenCall{"ResidualOneOff",
               [](Call& c) {
                 c.args.residual = shifted(c.args.y, 2);
                 c.args.ldr = c.args.ldy;
               },
               {"y must not overlap residual, except in place"}},
    BrokenCall{"ResidualOtherPitch", [](Call& c) { c.args.residual = c.args.y; },
               {"y must not overlap residual, except in place", "ldy = 34", "ldr = 35"}}),
    [](const auto& info) { return info.param.name; });
// clang-format on

TEST(CheckArgsLegal, ResidualInPlace) {
  Call call = make_call();
  call.args.residual = call.args.y;
  call.args.ldr = call.args.ldy;
  EXPECT_TRUE(check(call).ok()) << check(call).message();
}

TEST(CheckArgsLegal, XAndYAreColumnsOfOneBuffer) {
  Call call = make_call({.epilogue = {}});
  RunArgs& a = call.args;
  const std::int64_t ld = call.problem.k + call.problem.n;
  char* buffer = call.allocate(static_cast<std::size_t>(call.problem.m * ld * 2));
  a.x = buffer;
  a.y = buffer + call.problem.k * 2;
  a.ldx = a.ldy = ld;
  EXPECT_TRUE(check(call).ok()) << check(call).message();
  a.y = buffer + call.problem.k * 2 - 2;
  expect_refused(check(call), {"y must not overlap x"});
}

TEST(CheckArgsLegal, WorkspaceIsIgnoredWhereNoneIsNeeded) {
  Call call = make_call({.workspace_bytes = 0});
  call.args.workspace = call.args.y;
  EXPECT_TRUE(check(call).ok()) << check(call).message();
}

TEST(CheckReferenceArgs, YIsDouble) {
  Call call = make_call();
  AlignedBuffer y(static_cast<std::size_t>(call.problem.m * call.args.ldy * 8));
  call.args.y = y.get();
  EXPECT_TRUE(check_reference_args(call.problem, call.args).ok());
  call.args.y = y.get() + 4;
  expect_refused(check_reference_args(call.problem, call.args), {"y must be aligned to 8 bytes"});
}

TEST(CheckReferenceArgs, WeightOfACudaProblemIsACpuView) {
  Call call = make_call();
  call.problem.device = Device::cuda;
  AlignedBuffer y(static_cast<std::size_t>(call.problem.m * call.args.ldy * 8));
  call.args.y = y.get();
  EXPECT_TRUE(check_reference_args(call.problem, call.args).ok());
}

// Overlap of two matrices against the set of their bytes, so that the arithmetic on pitches and
// offsets can't be wrong in a corner. Where pitches differ the rule is coarser (it refuses shared
// address ranges), so acceptance is only demanded where it is exact.
TEST(CheckArgsProperty, OverlapAgreesWithTheSetOfBytes) {
  constexpr unsigned kSeed = 20240607;
  std::mt19937 random(kSeed);
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  int refused = 0;
  int accepted_inside = 0;  // accepted although the address ranges intersect
  for (int round = 0; round < 20000; ++round) {
    Shape shape{.m = pick(1, 4), .n = pick(1, 6), .k = pick(1, 6)};
    shape.epilogue = {};
    shape.workspace_bytes = 0;
    Call call = make_call(shape);
    RunArgs& a = call.args;
    const AlignedBuffer buffer(1024);
    a.ldx = std::max(shape.k, shape.n) + pick(0, 8);
    a.ldy = pick(0, 3) == 0 ? shape.n + pick(0, 8) : a.ldx;
    const char* x = buffer.get() + 2 * pick(0, 40);
    char* y = buffer.get() + 2 * pick(0, 40);
    a.x = x;
    a.y = y;

    std::set<const char*> elements;
    for (std::int64_t i = 0; i < shape.m; ++i) {
      for (std::int64_t j = 0; j < shape.k; ++j) elements.insert(x + 2 * (i * a.ldx + j));
    }
    bool shared = false;
    for (std::int64_t i = 0; i < shape.m; ++i) {
      for (std::int64_t j = 0; j < shape.n; ++j) {
        shared |= elements.contains(y + 2 * (i * a.ldy + j));
      }
    }
    const bool ok = check(call).ok();
    const char* y_last = y + 2 * ((shape.m - 1) * a.ldy + shape.n - 1);
    const bool ranges_meet = *elements.begin() <= y_last && y <= *elements.rbegin();
    refused += ok ? 0 : 1;
    accepted_inside += ok && ranges_meet ? 1 : 0;
    const std::string where = "seed " + std::to_string(kSeed) + " round " + std::to_string(round);
    if (shared) {
      ASSERT_FALSE(ok) << where;
    } else if (shape.m == 1 || a.ldx == a.ldy) {
      ASSERT_TRUE(ok) << where << ": " << check(call).message();
    }
  }
  EXPECT_GT(refused, 1000);
  EXPECT_GT(accepted_inside, 1000);
}

}  // namespace
}  // namespace mixgemm
