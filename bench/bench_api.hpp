// SPDX-License-Identifier: Apache-2.0
// What `mixgemm bench` asks of the benchmarks and what they answer: options in, rows out. The
// protocol is docs/measurement.md, the rows are bench/results/README.md.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "mixgemm/gemm.hpp"
#include "mixgemm/status.hpp"
#include "mixgemm/tuning.hpp"
#include "mixgemm/types.hpp"

namespace mixgemm::bench {

/// A layer's weight, N output features × K inputs.
struct Shape {
  std::int64_t n = 0;
  std::int64_t k = 0;
  std::string layer;  ///< e.g. "llama8b.qkv"

  friend bool operator==(const Shape&, const Shape&) = default;
};

/// The eight layers of bench/shapes.json, which every build carries inside.
const std::vector<Shape>& default_shapes();
/// 1, 2, 4, …, 8192: the 14 token counts of a complete run.
const std::vector<std::int64_t>& default_tokens();
/// Reads {"shapes":[{"n":…,"k":…,"layer":"…"},…]}. "layer" may be absent (it becomes "NxK").
/// Fails with not_found, io_error, corrupt_data (names entry, field and value).
Result<std::vector<Shape>> load_shapes(const std::string& path);

/// What is measured.
enum class Mode {
  gemm,       ///< each shape × token count by itself, back to back
  chain,      ///< the four GEMMs of a decoder layer, each depending on the one before
  host_cost,  ///< CPU time of Plan::run, eager
};

/// One benchmark run. Empty lists stand for the defaults of the mode.
struct Options {
  Mode mode = Mode::gemm;
  std::vector<Shape> shapes;         ///< default_shapes()
  std::vector<std::int64_t> tokens;  ///< gemm: default_tokens(); chain: 1, 8, 16; host_cost: 1
  std::vector<DataType> acts = {DataType::f16};
  WeightType weight = WeightType::int4;
  int group = 128;  ///< 0 = per column
  ZeroKind zero = ZeroKind::none;
  bool pdl = true;  ///< CUDA: programmatic dependent launch
  /// A kernel or configuration id; empty: what the plan picks. With all_configs: kernel ids to
  /// choose from, with shell wildcards.
  std::string kernel;
  bool all_configs = false;  ///< CUDA: all launches the plan considers, of all fitting kernels
  bool baselines = true;     ///< also time the dense BLAS
  std::int64_t load_ms = 0;  ///< CUDA, Mode::gemm: so long under load before timing; 0: from rest
  int num_threads = 0;       ///< CPU: 0 = all cores
  double timeout_s = 120;    ///< CUDA: a measurement that takes longer is a hang (see run_cuda)
};

/// Called from one thread at a time; both may be empty.
struct Callbacks {
  std::function<void(const nlohmann::ordered_json& row)> row;  ///< as soon as it is measured
  std::function<void(double fraction, std::string_view what)> progress;
};

/// How a run went. A failed row is one that breaks the error contract or could not be measured; it
/// carries "ok": false and "error".
struct Summary {
  int rows = 0;
  int failed = 0;
};

/// Benchmark on the current CUDA device. Fails with unsupported without a usable one or in a
/// CPU-only build, with invalid_argument on options that break a rule.
/// NOTE: a kernel that hangs can't be stopped from inside its process. After timeout_s the row that
/// names it is delivered (from a watchdog thread) and the process ends with kHangExitCode.
Result<Summary> run_cuda(const Options& options, const Callbacks& callbacks);
inline constexpr int kHangExitCode = 86;

/// Benchmark on the CPU, with a dense fp32 product of a BLAS found at run time as the baseline
/// (keys blas, blas_f32_us, speedup_over_blas after the common ones). Mode::gemm only.
Result<Summary> run_cpu(const Options& options, const Callbacks& callbacks);

/// A layer to tune, with the format of its weight (scale_type is set from the activation type).
struct TuneLayer {
  Shape shape;
  QuantSpec spec;
};

/// One run of tuning.
struct TuneRun {
  Device device = Device::cpu;
  std::vector<TuneLayer> layers;
  std::vector<std::int64_t> tokens;
  std::vector<DataType> acts = {DataType::f16};
  double seconds = 2.5;  ///< for one problem
  bool pdl = true;       ///< CUDA: programmatic dependent launch
  bool force = false;    ///< measure what the cache already has, too
  double timeout_s = 120;
};

/// All may be empty. `entry` and `failed` follow each problem.
struct TuneCallbacks {
  std::function<void(double fraction, const std::string& what)> progress;
  std::function<void(const Shape& shape, const TuningEntry& entry)> entry;
  std::function<void(const Shape& shape, const Problem& problem, const Status& why)> failed;
  std::function<bool()> stop;
};

struct TuneSummary {
  int tuned = 0;
  int known = 0;   ///< were in the cache before
  int failed = 0;  ///< no candidate could be measured
  bool stopped = false;
};

/// Tunes every layer × activation type × M that `cache` doesn't have for this device and library,
/// and adds what it finds, problem by problem. Fails where the device as a whole does.
Result<TuneSummary> run_tune(const TuneRun& run, TuningCache& cache,
                             const TuneCallbacks& callbacks);

/// One measured GEMM: the keys of bench/results/README.md. Times in µs; a negative time or error
/// means "not measured" and becomes null.
struct GemmRow {
  std::string gpu;  ///< device name (CPU rows: the processor's)
  std::string kernel, config;
  bool is_auto = false;  ///< key "auto": true only for what the plan itself picks
  DataType act = DataType::f16;
  QuantSpec spec;  ///< keys weight, group, zero
  bool pdl = false;
  std::int64_t m = 0, n = 0, k = 0;
  std::string layer;
  double us = -1;
  double floor_us = -1, cublas_us = -1, ideal_us = -1;
  double rel_err = -1, rel_err_cublas = -1;
  double clock_mhz = -1;
  bool ok = true;
  std::string error;  ///< why not ok; absent when empty
};

/// The row as JSON, keys in the order of bench/results/README.md; tflops, gbps and commit are
/// filled in here. Append further keys to the result.
nlohmann::ordered_json to_json(const GemmRow& row);

/// "fp16" / "bf16": activation types as rows and options spell them.
std::string_view act_name(DataType act);

/// Bytes that a GEMM must move: codes, scales, zeros (padding included), X and Y.
double bytes_moved(std::int64_t m, std::int64_t n, std::int64_t k, const QuantSpec& spec);
/// Bytes of the packed codes alone: what the streaming floor reads.
double code_bytes(std::int64_t n, std::int64_t k, WeightType weight);

/// The project's yardstick for 16-bit tensor cores: what "ideal" means (docs/measurement.md).
constexpr double kPeakTflops = 800;
/// max(floor, 2·M·N·K / kPeakTflops), µs.
double ideal_us(std::int64_t m, std::int64_t n, std::int64_t k, double floor_us);

/// Short hash of the commit this program was built from, "-dirty" appended when its tree was
/// changed; "unknown" outside a repository.
std::string_view commit();

/// The table for a person that ends a run: one line per row, gemm, chain and host-cost rows apart.
std::string format_table(const std::vector<nlohmann::ordered_json>& rows);

/// Rows of a file of bench/results, in its order. Fails with not_found, io_error, and corrupt_data
/// (names file and line).
Result<std::vector<nlohmann::ordered_json>> load_rows(const std::string& path);

/// One problem in two files.
struct RowChange {
  /// "slower" and "faster": by more than the threshold and the noise; "noisy": by more than the
  /// threshold, but the repeats spread as far; "same"; "failed" and "fixed": only one of the two
  /// could be measured; "new" and "gone": only one of the files has it.
  std::string_view verdict;
  std::string problem;          ///< layer, types, M and what else tells rows apart
  double old_us = -1, us = -1;  ///< negative: not measured
  double noise = 0;             ///< relative: half the spreads of the repeats, added; 1 % at least
  std::string old_config, config;

  double ratio() const { return us / old_us; }
};

struct Comparison {
  std::vector<RowChange> rows;  ///< in the order of the new rows, then what is gone
  int slower = 0, faster = 0, noisy = 0, failed = 0;
  double ratio = 0;        ///< geometric mean of new time ÷ old; 0: no row in common
  double floor_ratio = 0;  ///< the same of the streaming floor: how the machines differ; 0: unknown
  double cublas_ratio = 0;  ///< … and of the dense product
  bool same_device = true;
};

/// Matches rows by problem (what plans picked with what plans picked, others by configuration).
/// threshold: relative, e.g. 0.05.
Comparison compare_rows(const std::vector<nlohmann::ordered_json>& before,
                        const std::vector<nlohmann::ordered_json>& after, double threshold);
/// The table for a person; rows that are "same" only with `all`.
std::string format_comparison(const Comparison& comparison, double threshold, bool all);

}  // namespace mixgemm::bench
