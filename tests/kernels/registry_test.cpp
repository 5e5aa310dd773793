// SPDX-License-Identifier: Apache-2.0
// Every kernel of the registry × launches × ragged shapes, against the fp64 product. One test for
// each family of kernels, group size and zero-point kind.
#include "registry.hpp"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "gpu_case.hpp"
#include "launch/geometry.hpp"
#include "select/config_id.hpp"
#include "select/select.hpp"

namespace mixgemm::gpu_test {
namespace {

// One k, less than a k16 step, whole k-blocks and ragged ones, and for rings of two to four stages
// of 64 or 128 k: one less, as many, one more.
constexpr int kRaggedK[] = {1, 7, 64, 100, 128, 192, 200, 256, 384, 512, 576, 2880};
constexpr int kRaggedN[] = {1, 16, 17, 40, 130, 256, 576, 1000, 2880};
constexpr int kRaggedM[] = {1,  2,  3,  7,  8,   9,   15,  16,  17,  31,
                            33, 63, 65, 80, 100, 127, 129, 200, 255, 300};
constexpr int kTokensPerWeight = 3;
constexpr std::size_t kMaxY = (std::size_t{300} * 2890 + 8192);

struct Launch {
  LaunchConfig config;
  const char* mechanism;
};

LaunchConfig launch(int n, int m, int k, int stages, int split_k = 1, bool stream_k = false,
                    int raster_m = 8) {
  LaunchConfig l;
  l.cluster_n = n;
  l.cluster_m = m;
  l.cluster_k = k;
  l.stages = stages;
  l.split_k = split_k;
  l.stream_k = stream_k;
  l.raster_m = raster_m;
  return l;
}

LaunchConfig one_pass(int cluster_k, int stages) {
  LaunchConfig l = launch(1, 1, cluster_k, stages);
  l.one_pass = true;
  return l;
}

/// stages 0: as many as fit.
const std::vector<Launch>& tiled_launches() {
  static const std::vector<Launch> all = {
      {launch(1, 1, 1, 0), "data parallel"},
      {launch(1, 1, 1, 2), "data parallel"},
      {launch(1, 1, 1, 3, 1, false, 1), "data parallel"},
      {launch(2, 1, 1, 0), "cluster 2x1"},
      {launch(2, 1, 1, 2, 1, false, 2), "cluster 2x1"},
      {launch(1, 2, 1, 0), "cluster 1x2"},
      {launch(1, 2, 1, 3, 1, false, 3), "cluster 1x2"},
      {launch(2, 2, 1, 0), "cluster 2x2"},
      {launch(4, 1, 1, 0), "cluster 4x1"},
      {launch(4, 2, 1, 2), "cluster 4x2"},
      {launch(1, 1, 2, 0), "cluster_k"},
      {launch(1, 1, 3, 2), "cluster_k"},
      {launch(1, 1, 4, 3), "cluster_k"},
      {launch(1, 1, 8, 0), "cluster_k"},
      {launch(2, 1, 2, 0), "cluster_k with multicast"},
      {launch(1, 2, 3, 2), "cluster_k with multicast"},
      {launch(2, 2, 2, 0), "cluster_k with multicast"},
      {launch(1, 1, 1, 0, 2), "split_k"},
      {launch(1, 1, 1, 2, 3), "split_k"},
      {launch(1, 1, 1, 3, 7), "split_k"},
      {launch(2, 1, 1, 0, 2), "split_k with multicast"},
      {launch(2, 2, 1, 2, 3), "split_k with multicast"},
      {launch(1, 1, 1, 0, 1, true), "stream_k"},
      {launch(1, 1, 1, 2, 1, true, 1), "stream_k"},
      {launch(2, 1, 1, 0, 1, true), "stream_k with multicast"},
      {launch(1, 2, 1, 3, 1, true, 2), "stream_k with multicast"},
      {launch(2, 2, 1, 0, 1, true), "stream_k with multicast"},
  };
  return all;
}

const std::vector<Launch>& streaming_launches() {
  static const std::vector<Launch> all = {
      {launch(1, 1, 1, 0), "streaming"},
      {launch(1, 1, 1, 2), "streaming"},
      {launch(1, 1, 2, 0), "streaming, cluster_k"},
      {launch(1, 1, 3, 3), "streaming, cluster_k"},
      {launch(1, 1, 4, 0), "streaming, cluster_k"},
      {launch(1, 1, 8, 2), "streaming, cluster_k"},
      {one_pass(1, 0), "streaming, one pass a CTA"},
      {one_pass(2, 2), "streaming, one pass a CTA, cluster_k"},
  };
  return all;
}

struct NamedEpilogue {
  Epilogue epilogue;
  float alpha;
};
constexpr NamedEpilogue kEpilogues[] = {
    {{}, 1.0f},
    {{true, false, Activation::none}, 1.0f},
    {{true, false, Activation::relu}, 1.0f},
    {{true, true, Activation::gelu}, 0.5f},
    {{false, false, Activation::silu}, -1.25f},
    {{false, true, Activation::none}, 1.0f},
    {{true, true, Activation::silu}, 2.0f},
};

struct FamilyCase {
  select::Family family;
  int group_size;
  ZeroKind zero;
};

class RegistryTest : public testing::Test {
 public:
  explicit RegistryTest(FamilyCase which) : case_(which) {}

  void TestBody() override {
    MIXGEMM_NEED_DEVICE();
    Session& session = Session::instance();
    session.arena->reset();
    Runner runner(*session.arena, session.stream, kMaxY, kMaxWorkspace);
    const std::size_t mark = session.arena->mark();
    std::mt19937 random(static_cast<unsigned>(
        1000 * case_.group_size + 100 * static_cast<int>(case_.zero) +
        10 * static_cast<int>(case_.family.act) + static_cast<int>(case_.family.weight)));
    QuantSpec spec;
    spec.type = case_.family.weight;
    spec.zero = case_.zero;
    spec.group_size = case_.group_size;
    spec.scale_type = case_.family.act;
    for (const int k : kRaggedK) {
      const int n = kRaggedN[random() % std::size(kRaggedN)];
      const TestWeight weight(*session.arena, n, k, spec, static_cast<std::uint32_t>(random()),
                              session.stream);
      const std::size_t weight_mark = session.arena->mark();
      for (int i = 0; i < kTokensPerWeight; ++i) {
        const int m = kRaggedM[random() % std::size(kRaggedM)];
        const TestInputs inputs(*session.arena, weight, m, case_.family.act,
                                static_cast<std::uint32_t>(random()), session.stream);
        run_all(runner, weight, inputs, i == 0);
        runner.collect();
        session.arena->reset(weight_mark);
        if (HasFailure()) return;  // one broken shape says enough
      }
      weight.check_untouched(runner.extra("a kernel wrote to the weight"), session.stream);
      runner.collect();
      session.arena->reset(mark);
    }
  }

 private:
  /// Every kernel of the family, each with a third of the launches; the turn moves on, so that each
  /// launch meets each epilogue, placement and many shapes.
  void run_all(Runner& runner, const TestWeight& weight, const TestInputs& in, bool repeat) {
    const select::DeviceFacts& facts = device_facts();
    const Problem problem = problem_for(weight.view(), in.m, in.act, {});
    for (const KernelEntry& entry : kernel_registry()) {
      if (std::string_view(entry.epilogue) != "standard") continue;
      if (!select::runs_on(entry.config.arch, facts.arch)) continue;
      if (select::why_unfit(entry.config, problem) != nullptr) continue;
      const bool tiled = select::is_tiled(entry.config);
      const auto& launches = tiled ? tiled_launches() : streaming_launches();
      for (std::size_t i = 0; i < launches.size(); ++i) {
        if ((i + turn_ / 7) % (tiled ? 3 : 1) != 0) continue;
        LaunchConfig l = launches[i].config;
        if (l.stages == 0) l.stages = select::deepest_ring(entry.config, in.m);
        TestRun run;
        const bool multicast_x = l.cluster_n > 1;
        run.x = multicast_x ? Placement::aligned : kPlacements[turn_ % 3];
        if (select::why_unfit(entry.config, l, problem, facts, run.x == Placement::aligned))
          continue;
        run.y = kPlacements[turn_ / 3 % 3];
        run.residual = kPlacements[turn_ / 2 % 3];
        const NamedEpilogue& e = kEpilogues[turn_ % std::size(kEpilogues)];
        run.epilogue = e.epilogue;
        run.alpha = e.alpha;
        run.repeat = repeat;
        run.pdl = turn_ % 2 == 1;
        run.mechanism = launches[i].mechanism;
        ++turn_;
        runner.run(weight, in, select::config_id(entry.id, case_.group_size, l), run);
      }
    }
  }

  const FamilyCase case_;
  std::size_t turn_ = 0;
};

std::string name_of(const FamilyCase& c) {
  return std::string(to_string(c.family.act)) + "_" + std::string(to_string(c.family.weight)) +
         "_g" + std::to_string(c.group_size) + "_" + std::string(to_string(c.zero));
}

}  // namespace

/// A test for every family that the build's registry has kernels of.
void register_registry_tests() {
  std::map<std::tuple<DataType, WeightType, Quant, bool>, bool> families;
  for (const KernelEntry& entry : kernel_registry()) {
    const KernelConfig& c = entry.config;
    if (std::string_view(entry.epilogue) != "standard") continue;
    families[{c.act, c.weight, c.quant, c.fine_groups}] = true;
  }
  for (const auto& [key, present] : families) {
    const auto& [act, weight, quant, fine] = key;
    std::vector<int> groups = fine ? std::vector<int>{16, 32} : std::vector<int>{64, 128};
    if (quant == Quant::column) groups = {0};
    if (quant == Quant::group_zero && !fine) groups.push_back(0);
    for (const int group : groups) {
      std::vector<ZeroKind> zeros = {ZeroKind::none};
      if (quant == Quant::group_zero) zeros = {ZeroKind::integer, ZeroKind::scaled};
      for (const ZeroKind zero : zeros) {
        const FamilyCase c{{act, weight, quant, fine}, group, zero};
        testing::RegisterTest("Registry", name_of(c).c_str(), nullptr, nullptr, __FILE__, __LINE__,
                              [c]() -> testing::Test* { return new RegistryTest(c); });
      }
    }
  }
}

}  // namespace mixgemm::gpu_test
