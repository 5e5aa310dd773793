// SPDX-License-Identifier: Apache-2.0
// Which kernel and which launch for a problem: every legal candidate of the registry, ranked by a
// cost model of the device (docs/architecture.md). Pure arithmetic: same inputs, same answer, on
// any machine.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernel_config.hpp"
#include "mixgemm/gemm.hpp"
#include "registry.hpp"

namespace mixgemm::select {

inline constexpr int kMaxClusterSize = 8;

/// What the model knows of a device. The rates are sustained ones, not data-sheet peaks.
struct DeviceFacts {
  int arch = 90;
  int num_sms = 132;
  double clock_mhz = 1755;  ///< SM clock under load
  double dram_bytes_per_us = 3.1e6;
  std::int64_t l2_bytes = 50 << 20;
  SharedLimits shared;  ///< shared memory of a CTA and of an SM
  /// Clusters of a size (index 1 .. 8) that the device holds at once, at one and at two CTAs per
  /// SM. 0 = such a cluster can't be launched.
  std::array<std::array<int, kMaxClusterSize + 1>, 2> resident_clusters{};

  int resident(int ctas_per_sm, int cluster_size) const {
    return resident_clusters[ctas_per_sm == 2 ? 1 : 0][static_cast<std::size_t>(cluster_size)];
  }
};

/// An H100 SXM: for tests, and wherever a device can't be asked.
DeviceFacts h100_facts();

/// Where the time of a candidate goes, µs. `total_us` is what candidates are ranked by.
struct Estimate {
  double fixed_us = 0;   ///< launch, prologue, first stage's latency
  double stream_us = 0;  ///< bytes that must cross HBM
  double loop_us = 0;    ///< main loops of the busiest SM, all waves
  double output_us = 0;  ///< epilogues not hidden behind a main loop
  double reduce_us = 0;  ///< sums over the k ranges of a tile
  double total_us = 0;
  const char* bound = "";  ///< what the main loop waits for: "math", "L2", "latency", or "HBM"
};

struct Candidate {
  const KernelEntry* entry = nullptr;
  LaunchConfig launch;
  Estimate estimate;
};

/// Does code for one architecture run on a device of another (both compute capability × 10)?
/// Kernels for 80 run on everything newer, beyond 8.x through PTX; those for 90 on Hopper alone.
bool runs_on(int kernel_arch, int device_arch);

/// The kernels that can serve a problem, found once per (types, quantization) and then by index.
class KernelIndex {
 public:
  explicit KernelIndex(std::span<const KernelEntry> registry);

  /// Kernels with the standard epilogue to choose from for this problem on such a device, in
  /// registry order: Hopper's own on Hopper, else those for SM80, which also serve a family that a
  /// build has no Hopper kernel of. Empty: the build has none.
  std::span<const KernelEntry* const> kernels(const Problem& problem, int device_arch = 90) const;
  /// By id, or nullptr.
  const KernelEntry* find(std::string_view kernel_id) const;

 private:
  std::span<const KernelEntry> registry_;
  using Families = std::array<std::vector<const KernelEntry*>, 2 * 2 * 3 * 2>;
  Families hopper_, ampere_;
};

/// What a problem's weight asks of a kernel.
struct Family {
  DataType act = DataType::f16;
  WeightType weight = WeightType::int4;
  Quant quant = Quant::group;
  bool fine_groups = false;
};
Family family_of(const Problem& problem);
/// Is it a kernel with token tiles, for any M, or the streaming one?
bool is_tiled(const KernelConfig& config);
/// Ring stages of a plan's launch for M tokens: as many as fit. The streaming kernel's rings leave
/// half the SM to the next launch where that still makes a ring; 0 where not even two stages fit.
/// Without limits: those that all devices of the kernel's architecture keep.
int deepest_ring(const KernelConfig& config, std::int64_t m);
int deepest_ring(const KernelConfig& config, std::int64_t m, const SharedLimits& limits);
/// "f16 x int4, group scales and zeros, groups of 16 or 32".
std::string describe(const Family& family);

/// nullptr where the kernel can serve the problem, else the rule that it breaks.
const char* why_unfit(const KernelConfig& config, const Problem& problem);
/// nullptr where the kernel may be launched so for the problem, else the rule. `x_by_tma`: X is
/// 16-byte aligned in base and pitch.
const char* why_unfit(const KernelConfig& config, const LaunchConfig& launch,
                      const Problem& problem, const DeviceFacts& device, bool x_by_tma);

/// The launches worth considering for a kernel and a problem, all of them legal. Deterministic
/// order. For batch-invariant problems: those that sum each output in one fixed order.
std::vector<LaunchConfig> launches(const KernelConfig& config, const Problem& problem,
                                   const DeviceFacts& device);

/// The model.
Estimate estimate(const KernelConfig& config, const LaunchConfig& launch, const Problem& problem,
                  const DeviceFacts& device);

/// The best `keep` candidates among the given kernels, fastest first; ties go to the earlier
/// kernel, then to the earlier launch.
std::vector<Candidate> rank(const Problem& problem, std::span<const KernelEntry* const> kernels,
                            const DeviceFacts& device, std::size_t keep);

/// Should a configuration that was measured to be the fastest at another M serve this problem? Not
/// where the model holds its first candidate to be faster by more than it usually errs, 10 %: a
/// tile of 128 tokens that was the fastest at M = 128 fits M = 64 and takes as long there.
bool holds_here(const KernelConfig& config, const LaunchConfig& launch, const Problem& problem,
                const DeviceFacts& device, const Candidate& first);

}  // namespace mixgemm::select
