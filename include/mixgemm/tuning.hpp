// SPDX-License-Identifier: Apache-2.0
// Measured choices: caches of the fastest configuration per device and problem, which plan()
// consults before its cost model, and the search that fills them (docs/tuning.md).
//
//   MIXGEMM_TUNING=mine.json program            // or, in the program:
//   set_tuning("mine.json").throw_if_error();
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "mixgemm/export.hpp"
#include "mixgemm/gemm.hpp"
#include "mixgemm/status.hpp"
#include "mixgemm/types.hpp"

namespace mixgemm {

/// Version of the cache files. A reader refuses any other.
inline constexpr int kTuningFormatVersion = 1;

/// The machine that a time was measured on. A time of one device says nothing about another.
struct TuningDevice {
  Device device = Device::cpu;
  std::string name;  ///< as DeviceInfo has it
  int arch = 0;      ///< as DeviceInfo has it
  int num_sms = 0;   ///< or cores

  friend bool operator==(const TuningDevice&, const TuningDevice&) = default;
};

/// The device that plan() decides for: the CPU, or the current CUDA device. Fails with unsupported
/// where there is none.
MIXGEMM_API Result<TuningDevice> tuning_device(Device device);

/// One problem's fastest configuration on one device.
struct TuningEntry {
  TuningDevice device;
  std::string library;  ///< version of the library whose kernels were measured
  /// m, n, k, act, weight (but for scale_type) and batch_invariant count; the rest is ignored.
  Problem problem;
  std::string config;        ///< configuration id
  double us = 0;             ///< its time
  std::string measured_on;   ///< the device that took it, where it is another one of its kind
  double noise = 0;          ///< (largest − smallest) ÷ median of the repeats
  std::string model_config;  ///< what the cost model picks; empty: not recorded
  double model_us = -1;      ///< its time; negative: not measured
  int num_candidates = 0;    ///< configurations that were timed
};

/// Entries by device, library version and problem. A plain value; not thread-safe.
class MIXGEMM_API TuningCache {
 public:
  /// Reads the text of a cache; `name` is for messages. Fails with corrupt_data (names the entry,
  /// the field and the value) or version_mismatch.
  static Result<TuningCache> parse(std::string_view json, const std::string& name);
  /// Reads a file. Fails additionally with not_found and io_error.
  static Result<TuningCache> load(const std::string& path);

  /// Entries in a fixed order, one a line, so that caches diff well.
  std::string to_json() const;
  /// Writes a file, whole or not at all; makes its folder where that is missing.
  Status save(const std::string& path) const;

  /// Adds an entry; one for the same device, library and problem is replaced.
  void add(TuningEntry entry);
  /// Adds all entries of `other`, which win.
  void merge(const TuningCache& other);

  /// In the order of to_json().
  const std::vector<TuningEntry>& entries() const { return entries_; }
  /// The entry of exactly this device, library version and problem, or nullptr.
  const TuningEntry* find(const TuningDevice& device, std::string_view library,
                          const Problem& problem) const;
  /// For this library version: find(), or else the nearest tuned M within a factor of 2 whose
  /// configuration cuts both into the same number of token tiles. nullptr: nothing fits.
  const TuningEntry* lookup(const TuningDevice& device, const Problem& problem) const;

 private:
  std::vector<TuningEntry> entries_;  // sorted by key
};

/// Can an entry measured with `entry_library` serve this library? Kernels may change with every
/// minor version.
MIXGEMM_API bool tuning_is_current(std::string_view entry_library);

/// A cache that plan() consults, or refused.
struct TuningSource {
  std::string name;             ///< the file, or "built in: h100.json"
  std::size_t num_entries = 0;  ///< for any device, of this library version
  std::string note;             ///< why it or a part of it is ignored; empty: all of it is in use
};

/// What plan() consults, later ones winning: the caches built into the library; then the files of
/// the environment variable MIXGEMM_TUNING, or where it isn't set default_tuning_path() if that
/// exists; then what add_tuning() added. A cache that can't be read is refused by name, in a
/// warning (MIXGEMM_LOG) and here, and otherwise ignored.
MIXGEMM_API std::vector<TuningSource> tuning_sources();

/// Consults `files` in place of MIXGEMM_TUNING, in the variable's own syntax: paths separated by
/// ':', later ones winning; "off": no cache at all, the built-in ones included; "" as if unset.
/// What can be read is used; the first failure is returned. Plans made before keep what they are.
MIXGEMM_API Status set_tuning(std::string_view files);
/// Consults this cache too, before all others. `name` is for tuning_sources().
MIXGEMM_API void add_tuning(const TuningCache& cache, const std::string& name);

/// $XDG_CACHE_HOME/mixgemm/tuning.json or ~/.cache/mixgemm/tuning.json; empty where neither
/// variable is set.
MIXGEMM_API std::string default_tuning_path();

/// A configuration that plan() considers, or a kernel that it can't.
struct PlanCandidate {
  std::string config;        ///< configuration id; of one that is out, the kernel id
  double estimated_us = -1;  ///< by the cost model; negative: there is none
  double tuned_us = -1;      ///< as a cache has it for exactly this problem; negative: it doesn't
  bool picked = false;       ///< what plan() returns
  std::string breakdown;     ///< where the estimated time goes
  std::string why_not;       ///< why it is out; empty: it can run
};

/// Up to `limit` of what can run, and the picked and tuned ones: as plan() ranks them, its untuned
/// pick first, then kernels that it doesn't look at for this M, by their best launch; last every
/// kernel that can't run, with the reason. Fails as plan() does.
MIXGEMM_API Result<std::vector<PlanCandidate>> plan_candidates(const Problem& problem,
                                                               std::size_t limit = 12);

/// One timing of a search.
struct TuneMeasurement {
  double us = 0;
  double noise = 0;  ///< (largest − smallest) ÷ median of the repeats
};
/// Times a configuration. effort, in (0, 1]: how much of a full measurement's work to spend. A
/// configuration whose measurement fails is out.
using TuneMeasure =
    std::function<Result<TuneMeasurement>(const std::string& config, double effort)>;

struct TuneOptions {
  double seconds = 2.5;  ///< stop screening after about this long
  /// Asked before each measurement; true ends the search with the best that was measured in full.
  std::function<bool()> stop;
};

/// Searches for the fastest of the candidates by successive halving: all are screened with little
/// effort, the best third again with more, the best few in full, and with them the first candidate,
/// which must be what the plan picks untuned: it stays unless another is faster by more than the
/// noise. Fails with invalid_argument (no candidates), with the last measurement's failure when
/// none works, and with unsupported when stopped before anything was measured in full.
MIXGEMM_API Result<TuningEntry> tune(const Problem& problem, const TuningDevice& device,
                                     const std::vector<std::string>& candidates,
                                     const TuneMeasure& measure, const TuneOptions& options = {});

}  // namespace mixgemm
