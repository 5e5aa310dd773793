// SPDX-License-Identifier: Apache-2.0
// mixgemm quantize: a dense checkpoint → a packed one. Each selected weight is quantized and packed
// in one streaming pass and written; the rest of the checkpoint is copied unchanged.
#include <fmt/format.h>
#include <regex.h>

#include <chrono>
#include <filesystem>
#include <memory>
#include <optional>
#include <system_error>

#include "command.hpp"

namespace mixgemm::cli {
namespace {

// Embeddings are looked up, not multiplied, and the output head is where 4 bits cost most quality.
constexpr const char* kDefaultExclude = "embed|(^|\\.)(wte|wpe|lm_head)\\.";

struct Options {
  std::string input;
  std::string output;
  QuantSpec spec;
  std::string scale_type;
  std::string include;
  std::string exclude = kDefaultExclude;
  bool strict_group = false;
  bool no_clip_search = false;
  bool drop_dense = false;
  bool dry_run = false;
  std::uint64_t max_shard_bytes = 0;
  int num_threads = 0;
  bool json = false;
};

/// One weight to quantize.
struct Job {
  const TensorInfo* tensor = nullptr;
  DataType type = DataType::f32;
  std::string layer;
  QuantSpec spec;
};

/// What the command did, for its summary.
struct Totals {
  std::int64_t elems = 0;
  std::uint64_t source_bytes = 0;
  std::uint64_t packed_bytes = 0;
  double seconds = 0.0;
};

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
int group_size_for(std::int64_t k, const Options& options) {
  const int wanted = options.spec.group_size;
  if (wanted == 0 || options.strict_group) return wanted;
  for (int group = wanted; group >= 16; group /= 2) {
    if (k % group == 0) return group;
  }
  return wanted;
}

std::vector<Job> select(const SafetensorsFile& source, const Options& options) {
  const Pattern include("--include", options.include);
  const Pattern exclude("--exclude", options.exclude);
  std::vector<Job> jobs;
  for (const TensorInfo& tensor : source.tensors()) {
    const auto type = data_type_of(tensor.dtype);
    if (tensor.shape.size() != 2 || !type) continue;
    if (include.given() ? !include.matches(tensor.name) : !tensor.name.ends_with(".weight")) {
      continue;
    }
    if (exclude.given() && exclude.matches(tensor.name)) continue;
    Job job;
    job.tensor = &tensor;
    job.type = *type;
    job.layer = layer_of(tensor.name);
    job.spec = options.spec;
    job.spec.group_size = group_size_for(tensor.shape[1], options);
    job.spec.scale_type = options.scale_type.empty()
                              ? (*type == DataType::bf16 ? DataType::bf16 : DataType::f16)
                              : (options.scale_type == "bf16" ? DataType::bf16 : DataType::f16);
    jobs.push_back(job);
  }
  if (jobs.empty()) {
    throw Error(StatusCode::invalid_argument,
                fmt::format("{}: none of its {} tensors is a 2-D weight that --include and "
                            "--exclude select",
                            options.input, source.tensors().size()));
  }
  return jobs;
}

void refuse_to_overwrite_source(const SafetensorsFile& source, const std::string& output) {
  for (const std::string& file : source.files()) {
    std::error_code ignored;  // a target that doesn't exist yet isn't the source
    if (std::filesystem::equivalent(file, output, ignored)) {
      throw Error(StatusCode::invalid_argument,
                  fmt::format("--output must not be the input; got {} for both", output));
    }
  }
}

Totals write(const SafetensorsFile& source, const std::vector<Job>& jobs, const Options& options) {
  Totals totals;
  const auto start = std::chrono::steady_clock::now();
  const InterruptGuard interrupt;
  auto writer =
      PackedCheckpointWriter::create(options.output, {.max_shard_bytes = options.max_shard_bytes})
          .value();
  std::map<std::string, bool> quantized;
  for (const Job& job : jobs) {
    writer.declare_packed(job.layer, job.tensor->shape[0], job.tensor->shape[1], job.spec)
        .throw_if_error();
    quantized[job.tensor->name] = true;
    totals.elems += job.tensor->num_elems();
    totals.source_bytes += job.tensor->size_bytes();
  }
  if (!options.drop_dense) {
    for (const TensorInfo& tensor : source.tensors()) {
      if (quantized.contains(tensor.name)) continue;
      writer.declare_dense(tensor.name, tensor.dtype, tensor.shape).throw_if_error();
    }
  }
  for (const auto& [key, value] : source.metadata()) {
    writer.set_metadata(key, value).throw_if_error();
  }
  writer.begin().throw_if_error();

  ProgressLine progress;
  double done_bytes = 0.0;
  for (const Job& job : jobs) {
    interrupt.check();
    const TensorView tensor = source.find(job.tensor->name).value();
    const auto bytes = static_cast<double>(job.tensor->size_bytes());
    QuantizeOptions quantize_options;
    quantize_options.spec = job.spec;
    quantize_options.search_clip = !options.no_clip_search;
    quantize_options.num_threads = options.num_threads;
    quantize_options.progress = [&](double fraction) {
      progress.update((done_bytes + fraction * bytes) / static_cast<double>(totals.source_bytes),
                      job.layer);
    };
    auto packed = quantize_packed(tensor.data, job.type, job.tensor->shape[0], job.tensor->shape[1],
                                  job.tensor->shape[1], quantize_options);
    if (!packed.ok()) {
      throw Error(packed.status().code(),
                  fmt::format("tensor {}: {}", job.tensor->name, packed.status().message()));
    }
    writer.write_packed(job.layer, packed->view()).throw_if_error();
    totals.packed_bytes += packed->size_bytes();
    done_bytes += bytes;
  }
  if (!options.drop_dense) {
    for (const TensorInfo& tensor : source.tensors()) {
      if (quantized.contains(tensor.name)) continue;
      interrupt.check();
      writer.write_dense(tensor.name, source.find(tensor.name).value()).throw_if_error();
    }
  }
  writer.finish().throw_if_error();
  totals.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return totals;
}

Json describe_jobs(const std::vector<Job>& jobs) {
  Json list = Json::array();
  for (const Job& job : jobs) {
    Json item = {{"layer", job.layer},
                 {"n", job.tensor->shape[0]},
                 {"k", job.tensor->shape[1]},
                 {"source_dtype", job.tensor->dtype}};
    item.update(to_json(job.spec));
    list.push_back(item);
  }
  return list;
}

int run_quantize(const Options& options) {
  const SafetensorsFile source = SafetensorsFile::open(options.input).value();
  if (PackedCheckpoint::is_packed(source)) {
    throw Error(StatusCode::invalid_argument,
                fmt::format("{}: input must be a dense checkpoint; this one is packed already",
                            options.input));
  }
  const std::vector<Job> jobs = select(source, options);
  if (options.dry_run) {
    if (options.json) {
      print_json({{"layers", describe_jobs(jobs)}});
    } else {
      Table table({"tensor", "dtype", "N", "K", "becomes"});
      for (const Job& job : jobs) {
        table.add({job.tensor->name, job.tensor->dtype, std::to_string(job.tensor->shape[0]),
                   std::to_string(job.tensor->shape[1]), describe(job.spec)});
      }
      print(table.to_string("llrrl"));
    }
    return kExitOk;
  }
  if (options.output.empty()) {
    throw Error(StatusCode::invalid_argument, "--output must be given; got none");
  }
  refuse_to_overwrite_source(source, options.output);
  const Totals totals = write(source, jobs, options);
  const double bits =
      8.0 * static_cast<double>(totals.packed_bytes) / static_cast<double>(totals.elems);
  if (options.json) {
    print_json({{"output", options.output},
                {"num_layers", jobs.size()},
                {"num_weights", totals.elems},
                {"source_bytes", totals.source_bytes},
                {"packed_bytes", totals.packed_bytes},
                {"bits_per_weight", bits},
                {"seconds", totals.seconds},
                {"layers", describe_jobs(jobs)}});
  } else {
    print(
        fmt::format("{}: {} layers, {} → {} ({:.3f} bits per weight) in {:.2f} s\n", options.output,
                    jobs.size(), format_bytes(static_cast<double>(totals.source_bytes)),
                    format_bytes(static_cast<double>(totals.packed_bytes)), bits, totals.seconds));
  }
  return kExitOk;
}

}  // namespace

void register_quantize(CLI::App& app, Selected& selected) {
  auto options = std::make_shared<Options>();
  Command command(app, selected, "quantize",
                  "Quantize and pack the linear weights of a checkpoint");
  command.operand("input", options->input,
                  "A .safetensors file, an index of shards, or a directory with one of them");
  command.text("-o,--output", options->output, "File to write; it appears whole or not at all");
  command.quant_spec(options->spec);
  command.choice("--scale-type", options->scale_type, {"f16", "bf16"},
                 "Format of scales [bf16 for BF16 weights, else f16]");
  command.flag("--strict-group", options->strict_group,
               "Keep --group even where K isn't a multiple of it; else the next smaller one that "
               "divides K is taken");
  command.text("--include", options->include,
               "Extended regular expression of tensors to quantize [2-D ones that end in .weight]");
  command.text("--exclude", options->exclude,
               "Extended regular expression of tensors to leave dense");
  command.flag("--no-clip-search", options->no_clip_search,
               "Scale each group by its extremes instead of searching the least error");
  command.flag("--drop-dense", options->drop_dense,
               "Write the packed weights alone, without biases, norms and embeddings");
  command.size("--max-shard-size", options->max_shard_bytes,
               "Split the output into shards of at most this size, e.g. 4GB; 0 = one file");
  command.flag("--dry-run", options->dry_run, "List what would be quantized, and write nothing");
  command.threads(options->num_threads);
  command.json(options->json);
  command.runs([=] { return run_quantize(*options); });
}

}  // namespace mixgemm::cli
