// SPDX-License-Identifier: Apache-2.0
// mixgemm convert: a model's checkpoint, quantized by another tool or dense → a packed one. Layer
// by layer: what is in memory at a time is one layer. A run that was stopped is continued by the
// same command.
#include <fmt/format.h>
#include <malloc.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <memory>

#include "command.hpp"
#include "mixgemm/import.hpp"
#include "mixgemm/version.hpp"
#include "selection.hpp"

namespace mixgemm::cli {
namespace {

namespace fs = std::filesystem;

/// One layer to be.
struct Job {
  std::string name;
  std::int64_t n = 0, k = 0;
  QuantSpec spec;
  ColumnOrder columns = ColumnOrder::natural;
  std::uint64_t source_bytes = 0;
  std::optional<QuantizeJob> quantize;  // a dense weight; else a layer to import
};

struct ConvertTotals : PackTotals {
  std::int64_t num_continued = 0;  ///< layers that an earlier run had written
};

std::vector<Job> plan_jobs(const ModelCheckpoint& model, const PackOptions& options) {
  std::vector<Job> jobs;
  if (model.format() == CheckpointFormat::dense) {
    for (const QuantizeJob& weight : select_weights(model.file(), options.rules, options.input)) {
      jobs.push_back({weight.layer, weight.tensor->shape[0], weight.tensor->shape[1], weight.spec,
                      ColumnOrder::natural, weight.tensor->size_bytes(), weight});
    }
    return jobs;
  }
  for (const ImportedLayer& layer : model.layers()) {
    jobs.push_back(
        {layer.name, layer.n, layer.k, layer.spec, layer.columns, layer.source_bytes, {}});
  }
  return jobs;
}

/// Tensors that are copied: all that no job consumes.
std::vector<TensorInfo> dense_tensors(const ModelCheckpoint& model, const std::vector<Job>& jobs,
                                      const PackOptions& options) {
  std::vector<TensorInfo> dense;
  if (options.drop_dense) return dense;
  std::map<std::string, bool> quantized;
  for (const Job& job : jobs) {
    if (job.quantize) quantized[job.quantize->tensor->name] = true;
  }
  for (const TensorInfo& tensor : model.others()) {
    if (!quantized.contains(tensor.name)) dense.push_back(tensor);
  }
  return dense;
}

/// What the output's bytes depend on, beside the tensors' names and shapes: the state of the input
/// files, the options, and the program.
std::string resume_key(const ModelCheckpoint& model, const PackOptions& options) {
  const QuantizeRules& rules = options.rules;
  std::string key =
      fmt::format("mixgemm {} {} scale={} strict={} clip={} include={} exclude={}",
                  mixgemm::version(), to_string(model.format()), rules.scale_type,
                  rules.strict_group, !rules.no_clip_search, rules.include, rules.exclude);
  std::vector<std::string> files = model.file().files();
  const fs::path folder = fs::path(files.front()).parent_path();
  for (const char* config : {"config.json", "quantize_config.json", "quant_config.json"}) {
    files.push_back((folder / config).string());
  }
  for (const std::string& file : files) {
    struct stat info {};
    if (::stat(file.c_str(), &info) != 0) continue;
    key += fmt::format(" {}:{}:{}.{:09}", fs::path(file).filename().string(), info.st_size,
                       info.st_mtim.tv_sec, info.st_mtim.tv_nsec);
  }
  return key;
}

/// Gives back the memory of the pages that reading a tensor has brought in, so that what stays is
/// bounded by a layer also where nothing else asks for memory. They can be read again.
void release_pages(const TensorView& tensor) {
  if (tensor.storage.get() == tensor.data) return;  // a copy, not the mapping
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto address = reinterpret_cast<std::uintptr_t>(tensor.data);
  const std::uintptr_t begin = (address + page - 1) / page * page;
  const std::uintptr_t end = (address + tensor.bytes) / page * page;
  // An optimization that may fail.
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

void release_pages(const SafetensorsFile& file, const Job& job) {
  for (const TensorInfo& tensor : file.tensors()) {
    if (!tensor.name.starts_with(job.name) || tensor.size_bytes() == 0) continue;
    if (const auto view = file.find(tensor.name); view.ok()) release_pages(*view);
  }
}

/// Layers come and go, and glibc, which learns to keep blocks of their size for itself, fragments
/// over them: 160 MB stayed where 43 were in use. A fixed threshold has it give each one back.
void return_large_blocks() {
#if defined(__GLIBC__)
  ::mallopt(M_MMAP_THRESHOLD, 1 << 20);
#endif
}

PackedWeight make(const ModelCheckpoint& model, const Job& job, const PackOptions& options,
                  const Progress& progress) {
  if (job.quantize) {
    return quantize_one(model.file(), *job.quantize, options.rules, options.num_threads, progress);
  }
  progress(0.0);
  const CanonicalWeight weight = model.load(job.name, options.num_threads).value();
  progress(0.5);
  auto packed = pack(weight, options.num_threads);
  if (!packed.ok()) {
    throw Error(packed.status().code(),
                fmt::format("layer {}: {}", job.name, packed.status().message()));
  }
  return *std::move(packed);
}

void write_layers(const ModelCheckpoint& model, const std::vector<Job>& jobs,
                  const std::vector<TensorInfo>& dense, const PackOptions& options,
                  PackedCheckpointWriter& writer, ConvertTotals& totals) {
  const InterruptGuard interrupt;
  for (const Job& job : jobs) {
    writer.declare_packed(job.name, job.n, job.k, job.spec, job.columns).throw_if_error();
    totals.elems += job.n * job.k;
    totals.source_bytes += job.source_bytes;
  }
  for (const TensorInfo& tensor : dense) {
    writer.declare_dense(tensor.name, tensor.dtype, tensor.shape).throw_if_error();
  }
  for (const auto& [key, value] : model.file().metadata()) {
    writer.set_metadata(key, value).throw_if_error();
  }
  writer.begin().throw_if_error();

  ProgressLine progress;
  double done_bytes = 0.0;
  for (const Job& job : jobs) {
    interrupt.check();
    const auto bytes = static_cast<double>(job.source_bytes);
    const auto update = [&](double fraction) {
      progress.update((done_bytes + fraction * bytes) / static_cast<double>(totals.source_bytes),
                      job.name);
    };
    if (writer.is_written(job.name)) {
      ++totals.num_continued;
      update(1.0);
    } else {
      const PackedWeight packed = make(model, job, options, update);
      writer.write_packed(job.name, packed.view()).throw_if_error();
      release_pages(model.file(), job);
    }
    done_bytes += bytes;
  }
  for (const TensorInfo& tensor : dense) {
    if (writer.is_written(tensor.name)) continue;
    interrupt.check();
    const TensorView view = model.file().find(tensor.name).value();
    writer.write_dense(tensor.name, view).throw_if_error();
    release_pages(view);
  }
  writer.finish().throw_if_error();
}

ConvertTotals write(const ModelCheckpoint& model, const std::vector<Job>& jobs,
                    const PackOptions& options) {
  return_large_blocks();
  ConvertTotals totals;
  const auto start = std::chrono::steady_clock::now();
  auto writer =
      PackedCheckpointWriter::create(options.output, {.max_shard_bytes = options.max_shard_bytes,
                                                      .resume_key = resume_key(model, options)})
          .value();
  try {
    write_layers(model, jobs, dense_tensors(model, jobs, options), options, writer, totals);
  } catch (const Interrupted&) {
    throw;  // what there is stays, to be continued
  } catch (...) {
    writer.abandon();
    throw;
  }
  const auto written = PackedCheckpoint::open(options.output, {.verify_on_find = false}).value();
  for (const PackedLayerInfo& layer : written.layers()) totals.packed_bytes += layer.size_bytes;
  totals.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return totals;
}

Json describe_jobs(const std::vector<Job>& jobs) {
  Json list = Json::array();
  for (const Job& job : jobs) {
    Json item = {{"layer", job.name},
                 {"n", job.n},
                 {"k", job.k},
                 {"permuted", job.columns == ColumnOrder::permuted}};
    item.update(to_json(job.spec));
    list.push_back(item);
  }
  return list;
}

int run_convert(const PackOptions& options, const Command& command) {
  ImportOptions import_options;
  if (!options.rules.scale_type.empty()) {
    import_options.scale_type = options.rules.scale_type == "bf16" ? DataType::bf16 : DataType::f16;
  }
  const auto model = ModelCheckpoint::open(options.input, import_options).value();
  if (PackedCheckpoint::is_packed(model.file())) {
    throw Error(StatusCode::invalid_argument,
                fmt::format("{}: input must be a checkpoint of another tool or a dense one; this "
                            "one is packed already",
                            options.input));
  }
  if (model.format() != CheckpointFormat::dense) {
    for (const std::string& name : quantize_rule_names()) {
      if (!command.given(name)) continue;
      throw Error(StatusCode::invalid_argument,
                  fmt::format("{} must not be given for a checkpoint that is quantized already; {} "
                              "is {}",
                              name, options.input, to_string(model.format())));
    }
  }
  const std::vector<Job> jobs = plan_jobs(model, options);
  const std::string format(to_string(model.format()));
  if (options.dry_run) {
    if (options.json) {
      print_json({{"format", format}, {"layers", describe_jobs(jobs)}});
    } else {
      Table table({"layer", "N", "K", "becomes", ""});
      for (const Job& job : jobs) {
        table.add({job.name, std::to_string(job.n), std::to_string(job.k), describe(job.spec),
                   job.columns == ColumnOrder::permuted ? "columns permuted" : ""});
      }
      print(table.to_string("lrrl"));
    }
    return kExitOk;
  }
  check_output(model.file(), options.output);
  const ConvertTotals totals = write(model, jobs, options);
  if (options.json) {
    Json report = {{"output", options.output},
                   {"format", format},
                   {"num_layers", jobs.size()},
                   {"num_continued", totals.num_continued}};
    add_totals(report, totals);
    report["layers"] = describe_jobs(jobs);
    print_json(report);
    return kExitOk;
  }
  print(fmt::format(
      "{}: {} layers from {}, {}{}\n", options.output, jobs.size(), format, describe(totals),
      totals.num_continued == 0
          ? ""
          : fmt::format("; {} were there from an earlier run", totals.num_continued)));
  return kExitOk;
}

}  // namespace

void register_convert(CLI::App& app, Selected& selected) {
  auto options = std::make_shared<PackOptions>();
  Command command(app, selected, "convert",
                  "Pack a model's checkpoint: GPTQ, AWQ, compressed-tensors, HQQ, or dense");
  add_pack_options(command, *options,
                   "A model directory with config.json, or a .safetensors file or index in one",
                   "File to write; it appears whole or not at all, and a stopped run is continued",
                   "converted");
  command.runs([=] { return run_convert(*options, command); });
}

}  // namespace mixgemm::cli
