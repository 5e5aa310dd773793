// SPDX-License-Identifier: Apache-2.0
// Plans on a device: what they pick by themselves is correct, what they refuse has a reason.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "gpu_case.hpp"
#include "registry.hpp"
#include "select/config_id.hpp"
#include "select/select.hpp"

namespace mixgemm::gpu_test {
namespace {

bool build_has(const QuantSpec& spec, DataType act) {
  Problem p;
  p.m = p.n = p.k = 64;
  p.act = act;
  p.weight = spec;
  static const select::KernelIndex index(kernel_registry());
  // Without a tiled kernel a family serves few tokens only.
  const auto kernels = index.kernels(p, device_facts().arch);
  return std::any_of(kernels.begin(), kernels.end(),
                     [](const KernelEntry* e) { return select::is_tiled(e->config); });
}

TEST(AutoPlan, IsRightForRandomProblems) {
  MIXGEMM_NEED_DEVICE();
  Session& session = Session::instance();
  session.arena->reset();
  Runner runner(*session.arena, session.stream, std::size_t{2100} * 3100, kMaxWorkspace);
  const std::size_t mark = session.arena->mark();
  std::mt19937 random(21);
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  const auto size = [&](int most) {
    return static_cast<int>(std::exp2(
        std::uniform_real_distribution<double>(0, std::log2(static_cast<double>(most)))(random)));
  };
  const ZeroKind zeros[] = {ZeroKind::none, ZeroKind::integer, ZeroKind::scaled};
  const int groups[] = {0, 16, 32, 64, 128};
  for (int i = 0; i < 250; ++i) {
    const DataType act = pick(0, 1) == 0 ? DataType::f16 : DataType::bf16;
    const QuantSpec spec{pick(0, 2) > 0 ? WeightType::int4 : WeightType::int8, zeros[pick(0, 2)],
                         groups[pick(0, 4)], act};
    if (!build_has(spec, act)) continue;
    const TestWeight weight(*session.arena, size(3000), size(4096), spec, static_cast<unsigned>(i),
                            session.stream);
    const TestInputs in(*session.arena, weight, size(2000), act, static_cast<unsigned>(i),
                        session.stream);
    for (int turn = 0; turn < 3; ++turn) {
      TestRun run;
      run.epilogue = {pick(0, 1) == 1, pick(0, 1) == 1, static_cast<Activation>(pick(0, 3))};
      run.x = kPlacements[pick(0, 2)];
      run.y = kPlacements[pick(0, 2)];
      run.residual = kPlacements[pick(0, 2)];
      run.pdl = pick(0, 1) == 1;
      run.mechanism = "plan's own choice";
      runner.run(weight, in, "", run);
    }
    runner.collect();
    session.arena->reset(mark);
    if (HasFailure()) return;
  }
}

TEST(AutoPlan, IsRightAtLayerSize) {
  MIXGEMM_NEED_DEVICE();
  Session& session = Session::instance();
  const QuantSpec spec;
  if (!build_has(spec, DataType::f16)) GTEST_SKIP() << "no f16 x int4 group kernels in this build";
  session.arena->reset();
  Runner runner(*session.arena, session.stream, std::size_t{2100} * 4200, kMaxWorkspace);
  const TestWeight weight(*session.arena, 4096, 4096, spec, 1, session.stream);
  const std::size_t mark = session.arena->mark();
  for (const int m : {1, 2, 4, 8, 16, 17, 32, 64, 128, 256, 512, 1024, 2048}) {
    const TestInputs in(*session.arena, weight, m, DataType::f16, 7, session.stream);
    TestRun run;
    run.repeat = true;
    run.mechanism = "plan's own choice";
    runner.run(weight, in, "", run);
    runner.collect();
    session.arena->reset(mark);
  }
}

TEST(AutoPlan, SlicesOfAWeightMultiplyWithoutRepacking) {
  MIXGEMM_NEED_DEVICE();
  Session& session = Session::instance();
  const QuantSpec spec;
  if (!build_has(spec, DataType::f16)) GTEST_SKIP() << "no f16 x int4 group kernels in this build";
  session.arena->reset();
  const int n = 512, k = 1024, m = 33;
  const CanonicalWeight whole = random_weight(n, k, spec, 8);
  const auto packed = pack(whole);
  ASSERT_TRUE(packed);
  const auto on_device = to_cuda(*packed);
  ASSERT_TRUE(on_device);
  const Matrix x = make_matrix(*session.arena, m, k, Placement::aligned);
  fill_matrix(x, DataType::f16, 3, -1, 1, session.stream);
  const auto product = [&](const PackedView& weight, int first_k) {
    const Matrix y = make_matrix(*session.arena, m, static_cast<int>(weight.n), Placement::aligned);
    const auto made = plan(problem_for(weight, m, DataType::f16, {}));
    EXPECT_TRUE(made) << made.status().message();
    RunArgs args;
    args.x = x.data() + first_k;
    args.ldx = x.ld;
    args.weight = weight;
    args.y = y.data();
    args.ldy = y.ld;
    args.workspace_bytes = made->workspace_bytes();
    args.workspace = session.arena->allocate(args.workspace_bytes);
    args.stream = session.stream;
    const Status status = made->run(args);
    EXPECT_TRUE(status) << status.message();
    return y;
  };
  // Half of N: the same as a weight of its own that was packed from those rows.
  const auto half = slice_n(on_device->view(), 256, 512);
  ASSERT_TRUE(half) << half.status().message();
  CanonicalWeight rows = whole;
  rows.n = 256;
  rows.codes.erase(rows.codes.begin(), rows.codes.begin() + 256 * k);
  rows.scales.erase(rows.scales.begin(), rows.scales.begin() + 256 * whole.groups());
  const auto rows_packed = pack(rows);
  ASSERT_TRUE(rows_packed);
  const auto rows_on_device = to_cuda(*rows_packed);
  ASSERT_TRUE(rows_on_device);
  // Half of K likewise, with X's columns to match.
  const auto late = slice_k(on_device->view(), 512, 1024);
  ASSERT_TRUE(late) << late.status().message();
  const auto late_cpu = slice_k(packed->view(), 512, 1024);
  ASSERT_TRUE(late_cpu);
  const auto late_on_device = to_cuda(PackedWeight(*late_cpu, nullptr));
  ASSERT_TRUE(late_on_device);

  auto* const findings = session.arena->allocate_array<Findings>(1);
  check_cuda(cudaMemsetAsync(findings, 0, sizeof(Findings), session.stream), "findings");
  check_same(product(*half, 0), product(rows_on_device->view(), 0), findings, session.stream);
  check_same(product(*late, 512), product(late_on_device->view(), 512), findings, session.stream);
  Findings found;
  check_cuda(cudaStreamSynchronize(session.stream), "slices");
  check_cuda(cudaMemcpy(&found, findings, sizeof(found), cudaMemcpyDeviceToHost), "findings");
  EXPECT_EQ(found.differing, 0u);
  Summary::instance().count("slices", 4);
}

TEST(BatchInvariant, ARowsBitsDependNeitherOnMNorOnItsPlace) {
  MIXGEMM_NEED_DEVICE();
  Session& session = Session::instance();
  const int n = 300, k = 1000, most = 300;
  for (const DataType act : {DataType::f16, DataType::bf16}) {
    for (const ZeroKind zero : {ZeroKind::none, ZeroKind::scaled}) {
      for (const int group : {0, 32, 128}) {
        const QuantSpec spec{WeightType::int4, zero, group, act};
        if (!build_has(spec, act)) continue;
        session.arena->reset();
        const TestWeight weight(*session.arena, n, k, spec, 3, session.stream);
        const Matrix x = make_matrix(*session.arena, most, k, Placement::aligned);
        fill_matrix(x, act, 11, -1, 1, session.stream);
        const Matrix all = make_matrix(*session.arena, most, n, Placement::aligned);
        const Matrix part = make_matrix(*session.arena, most, n, Placement::aligned);
        auto* const findings = session.arena->allocate_array<Findings>(1);
        check_cuda(cudaMemsetAsync(findings, 0, sizeof(Findings), session.stream), "findings");
        const auto run = [&](int first, int m, const Matrix& y) {
          Problem problem = problem_for(weight.view(), m, act, {});
          problem.batch_invariant = true;
          const auto made = plan(problem);
          ASSERT_TRUE(made) << made.status().message();
          RunArgs args;
          args.x = x.data() + first * x.ld;
          args.ldx = x.ld;
          args.weight = weight.view();
          args.y = y.data() + first * y.ld;
          args.ldy = y.ld;
          args.stream = session.stream;
          const Status status = made->run(args);
          ASSERT_TRUE(status) << status.message();
        };
        run(0, most, all);
        for (const int m : {1, 2, 7, 8, 16, 17, 32, 64, 65, 100, 128, 256}) {
          const int first = most - m;
          run(first, m, part);
          Matrix a = all, b = part;
          a.rows = b.rows = m;
          a.first += static_cast<std::size_t>(first * a.ld);
          b.first += static_cast<std::size_t>(first * b.ld);
          check_same(a, b, findings, session.stream);
          Summary::instance().count("batch invariance");
        }
        check_cuda(cudaStreamSynchronize(session.stream), "batch invariance");
        Findings found;
        check_cuda(cudaMemcpy(&found, findings, sizeof(found), cudaMemcpyDeviceToHost), "findings");
        EXPECT_EQ(found.differing, 0u)
            << to_string(act) << " zero " << to_string(zero) << " group " << group;
      }
    }
  }
}

TEST(Plan, IsRememberedAndExplainsItself) {
  MIXGEMM_NEED_DEVICE();
  if (kernel_registry().empty()) GTEST_SKIP() << "this build has no kernels";
  const KernelConfig& c = kernel_registry()[0].config;
  Problem p;
  p.m = 16;
  p.n = 4096;
  p.k = 4096;
  p.act = p.weight.scale_type = c.act;
  p.weight.type = c.weight;
  p.weight.group_size = c.quant == Quant::column ? 0 : c.fine_groups ? 32 : 128;
  p.weight.zero = c.quant == Quant::group_zero ? ZeroKind::integer : ZeroKind::none;
  p.device = Device::cuda;
  const auto a = plan(p), b = plan(p);
  ASSERT_TRUE(a) << a.status().message();
  EXPECT_EQ(a->config_id(), b->config_id());
  const std::string why = a->explain();
  EXPECT_EQ(why.substr(0, a->config_id().size()), a->config_id());
  EXPECT_NE(why.find("estimated     tuned"), std::string::npos) << why;
  EXPECT_EQ(why.back(), '\n');
  // The whole id asks for the same plan again.
  PlanOptions options;
  options.kernel = a->config_id();
  const auto named = plan(p, options);
  ASSERT_TRUE(named) << named.status().message();
  EXPECT_EQ(named->config_id(), a->config_id());
  EXPECT_EQ(named->workspace_bytes(), a->workspace_bytes());
}

TEST(Plan, RefusalsNameTheRuleAndTheValue) {
  MIXGEMM_NEED_DEVICE();
  const KernelEntry* tiled = nullptr;
  for (const KernelEntry& e : kernel_registry()) {
    if (e.config.schedule == Schedule::cooperative && e.config.quant == Quant::group &&
        !e.config.fine_groups) {
      tiled = &e;
    }
  }
  if (tiled == nullptr) GTEST_SKIP() << "no cooperative group kernel in this build";
  Problem p;
  p.m = 64;
  p.n = 256;
  p.k = 256;
  p.act = p.weight.scale_type = tiled->config.act;
  p.weight.type = tiled->config.weight;
  p.device = Device::cuda;
  const std::string id = tiled->id;
  const auto refused = [&](const std::string& kernel, StatusCode code, const std::string& words) {
    PlanOptions options;
    options.kernel = kernel;
    const auto made = plan(p, options);
    ASSERT_FALSE(made) << kernel;
    EXPECT_EQ(made.status().code(), code) << made.status().message();
    EXPECT_NE(made.status().message().find(words), std::string::npos) << made.status().message();
  };
  refused("sm90_f16_i4_g_t1x1x1_coop", StatusCode::not_found, "sm90_f16_i4_g_t1x1x1_coop");
  refused(id + "@g64_c1x1_s2", StatusCode::invalid_argument, "must be the problem's 128; got 64");
  refused(id + "@g128_c1x1_s17", StatusCode::invalid_argument, "stages must be 2 to 16");
  refused(id + "@g128_c8x2_s2", StatusCode::invalid_argument, "at most 8 CTAs");
  refused(id + "@g128_c1x1x2_s2_sk2", StatusCode::invalid_argument, "not both");
  refused(id + "@g128_c1x1_s2_sk99", StatusCode::invalid_argument, "split_k must not exceed");
  p.k = 64;
  refused(id + "@g128_c1x1x2_s2", StatusCode::invalid_argument, "cluster_k must not exceed");
  p.k = 256;
  refused(id + "@nonsense", StatusCode::invalid_argument, "nonsense");
  p.weight.group_size = 32;
  refused(id, StatusCode::invalid_argument, "fine groups");
  p.weight.group_size = 128;
  p.batch_invariant = true;
  refused(id + "@g128_c1x1_s2_sk2", StatusCode::invalid_argument, "batch_invariant");
  p.batch_invariant = false;
  p.weight.scale_type = p.act == DataType::f16 ? DataType::bf16 : DataType::f16;
  refused("", StatusCode::invalid_argument, "scale_type must be act");
}

TEST(Kernels, AreListedWithRegistersAndSharedMemory) {
  MIXGEMM_NEED_DEVICE();
  std::size_t listed = 0;
  for (const KernelInfo& kernel : kernels()) {
    if (kernel.device != Device::cuda) continue;
    ++listed;
    // The driver isn't made to compile a kernel that is there as PTX only.
    if (kernel.arch / 10 == device_facts().arch / 10) {
      EXPECT_GT(kernel.registers, 0) << kernel.id;
    }
    EXPECT_GT(kernel.shared_bytes, 0u) << kernel.id;
    EXPECT_FALSE(kernel.reason.empty()) << kernel.id;
  }
  EXPECT_EQ(listed, kernel_registry().size());
}

TEST(Devices, WithoutADriverThereIsANote) {
  bool any = false;
  for (const DeviceInfo& device : devices()) {
    if (device.device != Device::cuda) continue;
    any = true;
    EXPECT_FALSE(device.note.empty());
    if (device.usable) continue;
    Problem p;
    p.m = p.n = p.k = 64;
    p.device = Device::cuda;
    if (!why_no_device().empty()) {
      EXPECT_EQ(plan(p).status().code(), StatusCode::unsupported) << plan(p).status().message();
      const auto packed = pack(random_weight(16, 64, {}, 5));
      ASSERT_TRUE(packed);
      EXPECT_EQ(to_cuda(*packed).status().code(), StatusCode::unsupported);
      EXPECT_FALSE(kernels().empty());
    }
  }
  EXPECT_TRUE(any);
}

}  // namespace
}  // namespace mixgemm::gpu_test
