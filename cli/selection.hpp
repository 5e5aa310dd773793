// SPDX-License-Identifier: Apache-2.0
// Which dense weights of a checkpoint are quantized, and how: what `quantize` and `convert` share.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "command.hpp"

namespace mixgemm::cli {

/// Options of both commands.
struct QuantizeRules {
  QuantSpec spec;
  std::string scale_type;
  std::string include;
  std::string exclude;
  bool strict_group = false;
  bool no_clip_search = false;

  QuantizeRules();
};

/// Adds the options to a command.
void add_quantize_rules(Command& command, QuantizeRules& rules);
/// Their names, but for --scale-type.
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

/// Throws if `output` is one of the source's files.
void refuse_to_overwrite_source(const SafetensorsFile& source, const std::string& output);

}  // namespace mixgemm::cli
