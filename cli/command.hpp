// SPDX-License-Identifier: Apache-2.0
// What the sub-commands share: registration, exit codes, output, progress, parsing of options.
// Sub-commands report failures by throwing mixgemm::Error (Result::value() does); main prints one
// line and maps the code to an exit code (docs/cli.md).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "mixgemm/checkpoint.hpp"
#include "mixgemm/status.hpp"
#include "mixgemm/types.hpp"
#include "mixgemm/weight.hpp"

namespace CLI {
class App;
}

namespace mixgemm::cli {

using Json = nlohmann::ordered_json;

/// Exit codes; part of the program's interface.
enum ExitCode : int {
  kExitOk = 0,
  kExitFailure = 1,        ///< out of memory, a device error, a bug
  kExitUsage = 2,          ///< wrong options, or a value that breaks a rule
  kExitNotFound = 3,       ///< no such file, tensor, layer or kernel
  kExitIo = 4,             ///< the operating system refused to read or write
  kExitCorrupt = 5,        ///< a file contradicts itself or has another format version
  kExitUnsupported = 6,    ///< legal, but not with this build or on this machine
  kExitMismatch = 7,       ///< verify: the numbers differ more than allowed
  kExitInterrupted = 130,  ///< Ctrl-C or SIGTERM; nothing half-written stays behind
};

ExitCode exit_code_of(StatusCode code);

/// What parsing leaves behind: the chosen sub-command, to be run after all options are checked.
struct Selected {
  std::string name;
  std::function<int()> run;
};

/// A sub-command's options. Between CLI11 and the sub-commands, so that one file pays for
/// compiling it. Targets keep their value where an option isn't given, and must outlive the parse.
class Command {
 public:
  enum class Need { optional, required };

  Command(CLI::App& app, Selected& selected, const std::string& name, const std::string& help);

  /// A required operand.
  void operand(const std::string& name, std::string& target, const std::string& help);
  /// One operand or more, the last on the command line.
  void operands(const std::string& name, std::vector<std::string>& target, const std::string& help);
  /// An operand that is one of `choices`.
  void action(const std::string& name, std::string& target, const std::vector<std::string>& choices,
              const std::string& help);
  void flag(const std::string& name, bool& target, const std::string& help);
  void text(const std::string& name, std::string& target, const std::string& help,
            Need need = Need::optional);
  /// One of `choices`.
  void choice(const std::string& name, std::string& target, const std::vector<std::string>& choices,
              const std::string& help);
  void integer(const std::string& name, std::int64_t& target, std::int64_t min, std::int64_t max,
               const std::string& help, Need need = Need::optional);
  void real(const std::string& name, std::optional<double>& target, const std::string& help);
  /// Bytes, with a unit: "4GB", "500MB".
  void size(const std::string& name, std::uint64_t& target, const std::string& help);
  /// Comma-separated lists.
  void texts(const std::string& name, std::vector<std::string>& target, const std::string& help);
  void integers(const std::string& name, std::vector<std::int64_t>& target, std::int64_t min,
                std::int64_t max, const std::string& help);

  // Options that several commands have.
  void json(bool& target, const std::string& help = "Print JSON instead of a table");
  void threads(int& target);
  void quant_spec(QuantSpec& target);
  void act(std::optional<DataType>& target, const std::string& help);
  /// Unset where not given: device_or_default() decides then.
  void device(std::optional<Device>& target);
  /// --tuning, in force once the command runs: the syntax of MIXGEMM_TUNING.
  void tuning();

  /// Whether the option was given, once the parse is done.
  bool given(const std::string& name) const;
  /// What to do when this command is chosen.
  void runs(std::function<int()> body);

 private:
  Selected& selected_;
  std::string name_;
  CLI::App* app_;
  std::shared_ptr<std::string> tuning_;  // what --tuning was given
};

void register_info(CLI::App& app, Selected& selected);
void register_kernels(CLI::App& app, Selected& selected);
void register_quantize(CLI::App& app, Selected& selected);
void register_convert(CLI::App& app, Selected& selected);
void register_inspect(CLI::App& app, Selected& selected);
void register_verify(CLI::App& app, Selected& selected);
void register_compare(CLI::App& app, Selected& selected);
void register_run(CLI::App& app, Selected& selected);
void register_bench(CLI::App& app, Selected& selected);
void register_report(CLI::App& app, Selected& selected);
void register_tune(CLI::App& app, Selected& selected);
void register_tuning(CLI::App& app, Selected& selected);
void register_explain(CLI::App& app, Selected& selected);

/// Writes to standard output; a failure there (a full disk, a closed pipe) is an io_error.
void print(const std::string& text);
void print_json(const Json& value);

/// A table for people: columns as wide as their widest cell.
class Table {
 public:
  explicit Table(std::vector<std::string> header) { rows_.push_back(std::move(header)); }
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  /// align: one letter a column, l or r; the last letter stands for the columns after it.
  std::string to_string(const std::string& align = "lr") const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

/// A progress line with the time left on standard error, drawn only when that is a terminal.
/// Thread-safe.
class ProgressLine {
 public:
  ProgressLine();
  ~ProgressLine() { clear(); }
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  void update(double fraction, const std::string& what);
  void clear();

 private:
  std::mutex mutex_;
  bool enabled_ = false;
  bool drawn_ = false;
  double last_seconds_ = -1.0;
  double start_seconds_ = -1.0;
  double start_fraction_ = 0.0;
};

/// Thrown by InterruptGuard::check().
struct Interrupted {};

/// While one exists, the first SIGINT or SIGTERM is kept for check() instead of ending the process,
/// so that temporary files are removed; the second ends it as usual.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;
  void check() const;
  bool requested() const;
};

/// "int4 g128", "int8 per column, integer zeros", …
std::string describe(const QuantSpec& spec);
/// The spec's fields under the names that files and bench rows use.
Json to_json(const QuantSpec& spec);
/// "fp16" or "bf16", as options and bench rows spell activation types.
std::string act_name(DataType act);
/// "bf16" → bf16; "fp16" and "f16" → f16.
DataType parse_act(const std::string& name);
/// 1536 → "1.5 KB", …
std::string format_bytes(double bytes);

/// The name of the layer that a weight tensor belongs to: without its ".weight".
std::string layer_of(const std::string& tensor);
/// The dense weight of a layer in the checkpoint it came from: [N, K], f16, bf16 or f32. Fails with
/// not_found, or invalid_argument when shape or type don't fit.
Result<TensorView> find_source_weight(const SafetensorsFile& source, const PackedLayerInfo& layer);
/// The packed weight named `name`, ".weight" at the end being optional; lists what there is
/// otherwise.
Result<PackedWeight> find_layer(const PackedCheckpoint& checkpoint, const std::string& name);

/// ‖a − b‖ / ‖b‖ in the Frobenius norm; b = 0 gives 0 or infinity.
double relative_error(const std::vector<float>& a, const std::vector<float>& b);
/// A dense tensor's elements as fp32. type: f16, bf16 or f32.
std::vector<float> to_f32(const TensorView& tensor, DataType type);

/// The device asked for; else the first GPU where it can run kernels, else the CPU.
Device device_or_default(const std::optional<Device>& asked);

}  // namespace mixgemm::cli
