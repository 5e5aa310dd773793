// SPDX-License-Identifier: Apache-2.0
#include "selection.hpp"

#include <fmt/format.h>
#include <regex.h>

#include <filesystem>
#include <memory>
#include <system_error>

#include "util/join.hpp"

namespace mixgemm::cli {
namespace {

// Embeddings are looked up, not multiplied, and the output head is where 4 bits cost most quality.
constexpr const char* kDefaultExclude = "embed|(^|\\.)(wte|wpe|lm_head)\\.";

/// A POSIX extended regular expression; an empty one counts as not given.
class Pattern {
 public:
  Pattern(const std::string& option, const std::string& text) {
    if (text.empty()) return;
    regex_ = {new regex_t, [](regex_t* regex) {
                regfree(regex);
                delete regex;
              }};
    const int error = regcomp(regex_.get(), text.c_str(), REG_EXTENDED | REG_NOSUB);
    if (error == 0) return;
    char reason[256];
    regerror(error, regex_.get(), reason, sizeof(reason));
    throw Error(StatusCode::invalid_argument,
                fmt::format("{} must be an extended regular expression; got \"{}\" ({})", option,
                            text, reason));
  }
  bool given() const { return regex_ != nullptr; }
  bool matches(const std::string& text) const {
    return regexec(regex_.get(), text.c_str(), 0, nullptr, 0) == 0;
  }

 private:
  std::shared_ptr<regex_t> regex_;
};

/// The wanted group size, or the largest smaller one that divides K: a group that straddles the end
/// of K is legal, but other programs may not read it.
int group_size_for(std::int64_t k, const QuantizeRules& rules) {
  const int wanted = rules.spec.group_size;
  if (wanted == 0 || rules.strict_group) return wanted;
  for (int group = wanted; group >= 16; group /= 2) {
    if (k % group == 0) return group;
  }
  return wanted;
}

/// Adds the options to a command.
void add_quantize_rules(Command& command, QuantizeRules& rules) {
  command.quant_spec(rules.spec);
  command.choice("--scale-type", rules.scale_type, {"f16", "bf16"},
                 "Format of scales [bf16 for BF16 weights, else f16]");
  command.flag("--strict-group", rules.strict_group,
               "Keep --group even where K isn't a multiple of it; else the next smaller one that "
               "divides K is taken");
  command.text("--include", rules.include,
               "Extended regular expression of tensors to quantize [2-D ones that end in .weight]");
  command.text("--exclude", rules.exclude, "Extended regular expression of tensors to leave dense");
  command.flag("--no-clip-search", rules.no_clip_search,
               "Scale each group by its extremes instead of searching the least error");
}

}  // namespace

QuantizeRules::QuantizeRules() : exclude(kDefaultExclude) {}

void add_pack_options(Command& command, PackOptions& options, const std::string& input_help,
                      const std::string& output_help, const std::string& verb) {
  command.operand("input", options.input, input_help);
  command.text("-o,--output", options.output, output_help);
  add_quantize_rules(command, options.rules);
  command.flag("--drop-dense", options.drop_dense,
               "Write the packed weights alone, without biases, norms and embeddings");
  command.size("--max-shard-size", options.max_shard_bytes,
               "Split the output into shards of at most this size, e.g. 4GB; 0 = one file");
  command.flag("--dry-run", options.dry_run,
               fmt::format("List what would be {}, and write nothing", verb));
  command.threads(options.num_threads);
  command.json(options.json);
}

std::vector<std::string> quantize_rule_names() {
  return {"--weight",  "--group",   "--zero",          "--strict-group",
          "--include", "--exclude", "--no-clip-search"};
}

std::vector<QuantizeJob> select_weights(const SafetensorsFile& source, const QuantizeRules& rules,
                                        const std::string& input) {
  const Pattern include("--include", rules.include);
  const Pattern exclude("--exclude", rules.exclude);
  std::vector<QuantizeJob> jobs;
  for (const TensorInfo& tensor : source.tensors()) {
    const auto type = data_type_of(tensor.dtype);
    if (tensor.shape.size() != 2 || !type) continue;
    if (include.given() ? !include.matches(tensor.name) : !tensor.name.ends_with(".weight")) {
      continue;
    }
    if (exclude.given() && exclude.matches(tensor.name)) continue;
    if (tensor.shape[0] == 0 || tensor.shape[1] == 0) {
      throw Error(StatusCode::corrupt_data,
                  fmt::format("{}: tensor {}: a weight's dimensions must be at least 1; got [{}]",
                              input, tensor.name, joined(tensor.shape)));
    }
    QuantizeJob job;
    job.tensor = &tensor;
    job.type = *type;
    job.layer = layer_of(tensor.name);
    job.spec = rules.spec;
    job.spec.group_size = group_size_for(tensor.shape[1], rules);
    job.spec.scale_type = rules.scale_type.empty()
                              ? (*type == DataType::bf16 ? DataType::bf16 : DataType::f16)
                              : (rules.scale_type == "bf16" ? DataType::bf16 : DataType::f16);
    jobs.push_back(job);
  }
  if (jobs.empty()) {
    throw Error(StatusCode::invalid_argument,
                fmt::format("{}: none of its {} tensors is a 2-D weight that --include and "
                            "--exclude select",
                            input, source.tensors().size()));
  }
  return jobs;
}

PackedWeight quantize_one(const SafetensorsFile& source, const QuantizeJob& job,
                          const QuantizeRules& rules, int num_threads, const Progress& progress) {
  const TensorView tensor = source.find(job.tensor->name).value();
  QuantizeOptions options;
  options.spec = job.spec;
  options.search_clip = !rules.no_clip_search;
  options.num_threads = num_threads;
  options.progress = progress;
  auto packed = quantize_packed(tensor.data, job.type, job.tensor->shape[0], job.tensor->shape[1],
                                job.tensor->shape[1], options);
  if (!packed.ok()) {
    throw Error(packed.status().code(),
                fmt::format("tensor {}: {}", job.tensor->name, packed.status().message()));
  }
  return *std::move(packed);
}

void check_output(const SafetensorsFile& source, const std::string& output) {
  if (output.empty()) {
    throw Error(StatusCode::invalid_argument, "--output must be given; got none");
  }
  for (const std::string& file : source.files()) {
    std::error_code ignored;  // a target that doesn't exist yet isn't the source
    if (std::filesystem::equivalent(file, output, ignored)) {
      throw Error(StatusCode::invalid_argument,
                  fmt::format("--output must not be the input; got {} for both", output));
    }
  }
}

void add_totals(Json& report, const PackTotals& totals) {
  report.update({{"num_weights", totals.elems},
                 {"source_bytes", totals.source_bytes},
                 {"packed_bytes", totals.packed_bytes},
                 {"bits_per_weight", totals.bits_per_weight()},
                 {"seconds", totals.seconds}});
}

std::string describe(const PackTotals& totals) {
  return fmt::format("{} → {} ({:.3f} bits per weight) in {:.2f} s",
                     format_bytes(static_cast<double>(totals.source_bytes)),
                     format_bytes(static_cast<double>(totals.packed_bytes)),
                     totals.bits_per_weight(), totals.seconds);
}

}  // namespace mixgemm::cli
