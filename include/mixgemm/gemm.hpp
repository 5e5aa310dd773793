// SPDX-License-Identifier: Apache-2.0
// Problem → Plan → run: Y[M,N] = epilogue(X[M,K] · dequant(W)[N,K]ᵀ).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "mixgemm/export.hpp"
#include "mixgemm/status.hpp"
#include "mixgemm/types.hpp"
#include "mixgemm/weight.hpp"

namespace mixgemm {

/// What happens to an fp32 sum before it is rounded and stored:
///   y = activation(alpha · (x · w) + bias[n]) + residual[m, n]
struct Epilogue {
  bool bias = false;
  bool residual = false;
  Activation activation = Activation::none;

  friend constexpr bool operator==(const Epilogue&, const Epilogue&) = default;
};

/// What is asked. Nothing in it depends on addresses, so one plan serves many calls.
struct Problem {
  std::int64_t m = 0;            ///< tokens, ≥ 1
  std::int64_t n = 0;            ///< output features, ≥ 1
  std::int64_t k = 0;            ///< reduction, ≥ 1
  DataType act = DataType::f16;  ///< of X, Y, bias and residual: f16 or bf16
  QuantSpec weight;
  Epilogue epilogue;
  Device device = Device::cpu;
  bool deterministic = true;     ///< same inputs, same bits, run to run
  bool batch_invariant = false;  ///< a row of X gives the same bits of Y for every M
  /// permuted: the weight has a permutation, and the plan puts X's columns in its order first, in
  /// the workspace.
  ColumnOrder columns = ColumnOrder::natural;
};

/// Options of plan().
struct PlanOptions {
  /// A kernel id, or a configuration id that fixes run-time choices too. Empty: the plan picks.
  std::string kernel;
  int num_threads = 0;  ///< CPU plans: 0 = all cores
};

/// The addresses of one call. Leading dimensions are in elements.
struct RunArgs {
  const void* x = nullptr;         ///< [M, K] row-major
  std::int64_t ldx = 0;            ///< ≥ K
  PackedView weight;               ///< must match the plan's N, K, spec, device, column order
  void* y = nullptr;               ///< [M, N] row-major
  std::int64_t ldy = 0;            ///< ≥ N
  const void* bias = nullptr;      ///< [N], required exactly when the problem has a bias
  const void* residual = nullptr;  ///< [M, N], required exactly when the problem has a residual
  std::int64_t ldr = 0;            ///< ≥ N
  float alpha = 1.0f;
  void* workspace = nullptr;  ///< at least Plan::workspace_bytes(), 256-byte aligned
  std::size_t workspace_bytes = 0;
  void* stream = nullptr;  ///< cudaStream_t; ignored on the CPU
  /// Programmatic dependent launch: the caller promises that no kernel still in flight writes the
  /// packed weight (docs/sm90_kernel.md). Ignored on the CPU.
  bool pdl = false;
};

/// A decision: which kernel, with which configuration. Immutable, cheap to copy, and safe to run
/// from several threads at once (with different outputs and workspaces).
class MIXGEMM_API Plan {
 public:
  /// A plan's working part; one implementation per backend, behind this interface.
  class Impl;

  Plan() = default;
  explicit Plan(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}

  /// Checks the arguments, then multiplies. CUDA: enqueues on args.stream and returns. CPU: returns
  /// when Y is complete. On a failed check nothing has been touched.
  Status run(const RunArgs& args) const;

  const Problem& problem() const;
  /// The compiled part, e.g. "sm90_f16_i4_g_t128x256x64_coop" or "cpu_f16_i4_simd".
  const std::string& kernel_id() const;
  /// With the run-time part, e.g. "…@g128_c2x1_s4_sk2".
  const std::string& config_id() const;
  std::size_t workspace_bytes() const;
  /// Which kernel and why, a few lines for a person.
  std::string explain() const;

 private:
  std::shared_ptr<const Impl> impl_;
};

/// Decides how to run a problem. Every legal problem gets a plan on every supported machine; an
/// illegal one gets a Status that names the rule and the value.
MIXGEMM_API Result<Plan> plan(const Problem& problem, const PlanOptions& options = {});

/// One compiled kernel, as `mixgemm kernels` lists it.
struct KernelInfo {
  std::string id;
  Device device = Device::cpu;
  int arch = 0;                  ///< 90, 80; 0 on the CPU
  int registers = 0;             ///< per thread at launch; 0 where unknown (no device, CPU)
  std::size_t shared_bytes = 0;  ///< of its default configuration
  std::string reason;            ///< why the variant is there (the manifest's words)
};

/// Every kernel of this build, the CPU's included, in a stable order.
MIXGEMM_API std::vector<KernelInfo> kernels();

/// A device this process can plan for.
struct DeviceInfo {
  Device device = Device::cpu;
  std::string name;
  int arch = 0;     ///< compute capability × 10, e.g. 90; 0 on the CPU
  int num_sms = 0;  ///< or cores
  bool usable = true;
  std::string note;      ///< why it isn't usable, or what was found (BLAS, SIMD target, driver)
  double clock_mhz = 0;  ///< highest SM clock; on the CPU as of now; 0 = unknown
  std::int64_t memory_bytes = 0;  ///< of the device; 0 = unknown
  double memory_gbps = 0;         ///< by its data sheet; 0 = unknown
};

/// The CPU first, then CUDA devices. Never fails: a missing driver is a note.
MIXGEMM_API std::vector<DeviceInfo> devices();

/// The oracle: Y in fp64 from the unrounded dequantized weight, on the CPU, alpha, bias, activation
/// and residual applied in fp64. args.y: double [M, ldy]; everything else as in Plan::run with a
/// CPU view, except that a weight may have a permutation whatever Problem::columns says.
MIXGEMM_API Status reference_gemm(const Problem& problem, const RunArgs& args);

}  // namespace mixgemm
