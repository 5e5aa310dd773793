// SPDX-License-Identifier: Apache-2.0
// mixgemm quantize: a dense checkpoint → a packed one. Each selected weight is quantized and packed
// in one streaming pass and written; the rest of the checkpoint is copied unchanged.
#include <fmt/format.h>

#include <chrono>
#include <memory>

#include "command.hpp"
#include "selection.hpp"

namespace mixgemm::cli {
namespace {

struct Options {
  std::string input;
  std::string output;
  QuantizeRules rules;
  bool drop_dense = false;
  bool dry_run = false;
  std::uint64_t max_shard_bytes = 0;
  int num_threads = 0;
  bool json = false;
};

/// What the command did, for its summary.
struct Totals {
  std::int64_t elems = 0;
  std::uint64_t source_bytes = 0;
  std::uint64_t packed_bytes = 0;
  double seconds = 0.0;
};

Totals write(const SafetensorsFile& source, const std::vector<QuantizeJob>& jobs,
             const Options& options) {
  Totals totals;
  const auto start = std::chrono::steady_clock::now();
  const InterruptGuard interrupt;
  auto writer =
      PackedCheckpointWriter::create(options.output, {.max_shard_bytes = options.max_shard_bytes})
          .value();
  std::map<std::string, bool> quantized;
  for (const QuantizeJob& job : jobs) {
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
  for (const QuantizeJob& job : jobs) {
    interrupt.check();
    const auto bytes = static_cast<double>(job.tensor->size_bytes());
    const PackedWeight packed =
        quantize_one(source, job, options.rules, options.num_threads, [&](double fraction) {
          progress.update(
              (done_bytes + fraction * bytes) / static_cast<double>(totals.source_bytes),
              job.layer);
        });
    writer.write_packed(job.layer, packed.view()).throw_if_error();
    totals.packed_bytes += packed.size_bytes();
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

Json describe_jobs(const std::vector<QuantizeJob>& jobs) {
  Json list = Json::array();
  for (const QuantizeJob& job : jobs) {
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
  const std::vector<QuantizeJob> jobs = select_weights(source, options.rules, options.input);
  if (options.dry_run) {
    if (options.json) {
      print_json({{"layers", describe_jobs(jobs)}});
    } else {
      Table table({"tensor", "dtype", "N", "K", "becomes"});
      for (const QuantizeJob& job : jobs) {
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
  add_quantize_rules(command, options->rules);
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
