// SPDX-License-Identifier: Apache-2.0
// Which dense weights of a checkpoint are quantized, how, and where to: what `quantize` and
// `convert` share.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "command.hpp"

namespace mixgemm::cli {

/// Which weights, and how.
struct QuantizeRules {
  QuantSpec spec;
  std::string scale_type;
  std::string include;
  std::string exclude;
  bool strict_group = false;
  bool no_clip_search = false;

  QuantizeRules();
};

/// Options of both commands.
struct PackOptions {
  std::string input;
  std::string output;
  QuantizeRules rules;  ///< for dense weights
  bool drop_dense = false;
  bool dry_run = false;
  std::uint64_t max_shard_bytes = 0;  ///< 0: one file
  int num_threads = 0;
  bool json = false;
};

/// Adds the options to a command; `verb`, in the past tense, is what the command does to a weight.
void add_pack_options(Command& command, PackOptions& options, const std::string& input_help,
                      const std::string& output_help, const std::string& verb);
/// Names of the options that are rules, but for --scale-type.
std::vector<std::string> quantize_rule_names();

/// One weight to quantize.
struct QuantizeJob {
  const TensorInfo* tensor = nullptr;  ///< of the checkpoint, [N, K]
  DataType type = DataType::f32;
  std::string layer;
  QuantSpec spec;
};

/// The selected 2-D tensors of the checkpoint, in its order; at least one. `input` begins the
/// message.
std::vector<QuantizeJob> select_weights(const SafetensorsFile& source, const QuantizeRules& rules,
                                        const std::string& input);

/// Quantizes and packs one. Failures are thrown and name the tensor.
PackedWeight quantize_one(const SafetensorsFile& source, const QuantizeJob& job,
                          const QuantizeRules& rules, int num_threads, const Progress& progress);

/// Throws if there is no output or it is one of the source's files.
void check_output(const SafetensorsFile& source, const std::string& output);

/// What a command did, for its summary.
struct PackTotals {
  std::int64_t elems = 0;
  std::uint64_t source_bytes = 0;
  std::uint64_t packed_bytes = 0;
  double seconds = 0.0;

  double bits_per_weight() const {
    return 8.0 * static_cast<double>(packed_bytes) / static_cast<double>(elems);
  }
};

/// Adds them to a report.
void add_totals(Json& report, const PackTotals& totals);
/// "90.6 MB → 11.9 MB (4.125 bits per weight) in 0.51 s"
std::string describe(const PackTotals& totals);

}  // namespace mixgemm::cli
