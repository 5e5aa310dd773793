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

PackTotals write(const SafetensorsFile& source, const std::vector<QuantizeJob>& jobs,
                 const PackOptions& options) {
  PackTotals totals;
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

int run_quantize(const PackOptions& options) {
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
  check_output(source, options.output);
  const PackTotals totals = write(source, jobs, options);
  if (options.json) {
    Json report = {{"output", options.output}, {"num_layers", jobs.size()}};
    add_totals(report, totals);
    report["layers"] = describe_jobs(jobs);
    print_json(report);
  } else {
    print(fmt::format("{}: {} layers, {}\n", options.output, jobs.size(), describe(totals)));
  }
  return kExitOk;
}

}  // namespace

void register_quantize(CLI::App& app, Selected& selected) {
  auto options = std::make_shared<PackOptions>();
  Command command(app, selected, "quantize",
                  "Quantize and pack the linear weights of a checkpoint");
  add_pack_options(command, *options,
                   "A .safetensors file, an index of shards, or a directory with one of them",
                   "File to write; it appears whole or not at all", "quantized");
  command.runs([=] { return run_quantize(*options); });
}

}  // namespace mixgemm::cli
