// SPDX-License-Identifier: Apache-2.0
// mixgemm compare: a packed checkpoint beside the dense one it came from: how far weights and
// outputs are off, and how long a product takes against a dense product of the same layer on the
// same device: fp32 by a BLAS on the CPU, 16 bits by cuBLASLt on a GPU.
#include <fmt/format.h>

#include <cmath>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <tuple>

#include "command.hpp"
#include "common/layer_timer.hpp"
#include "host/dense_blas.hpp"
#include "host/measure.hpp"
#include "product.hpp"

namespace mixgemm::cli {
namespace {

struct CompareOptions : ProductOptions {
  std::string against;
};

/// One layer: what is multiplied, and what came of it.
struct Layer {
  PackedLayerInfo info;
  std::vector<float> dense;  ///< [N, K]
  std::vector<std::uint16_t> x;
  std::vector<float> x_f32;
  std::vector<float> y_f32;
  std::unique_ptr<Product> product;
  double weight_error = 0.0;
  double output_error = 0.0;
  double us = 0.0;
  std::optional<double> dense_us;  ///< on the same device; none where that has no dense library

  const Problem& problem() const { return product->problem(); }
  Device device() const { return problem().device; }
};

/// Relative error of Y against x · (dense weight)ᵀ in fp64, over up to four rows.
double output_error(const Layer& layer) {
  const std::int64_t n = layer.info.n, k = layer.info.k;
  const std::int64_t m = layer.problem().m;
  const DataType act = layer.problem().act;
  const std::int64_t rows = std::min<std::int64_t>(4, m);
  const auto y = layer.product->y();
  std::vector<double> differences(static_cast<std::size_t>(n)), norms(differences.size());
  parallel_for(n, 16, 0, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t column = begin; column < end; ++column) {
      for (std::int64_t i = 0; i < rows; ++i) {
        const std::int64_t row = rows == 1 ? 0 : i * (m - 1) / (rows - 1);
        double sum = 0.0;
        for (std::int64_t j = 0; j < k; ++j) {
          sum += static_cast<double>(layer.x_f32[row * k + j]) * layer.dense[column * k + j];
        }
        const double got = f32_from_bits(y[row * n + column], act);
        differences[column] += (got - sum) * (got - sum);
        norms[column] += sum * sum;
      }
    }
  });
  double difference = 0.0, norm = 0.0;  // summed in order, so that it doesn't depend on threads
  for (std::size_t i = 0; i < norms.size(); ++i) {
    difference += differences[i];
    norm += norms[i];
  }
  return difference == 0.0 ? 0.0 : std::sqrt(difference / norm);
}

Layer prepare(const PackedCheckpoint& checkpoint, const SafetensorsFile& source,
              const PackedLayerInfo& info, const CompareOptions& options, std::uint64_t seed) {
  Layer layer;
  layer.info = info;
  const TensorView original = find_source_weight(source, info).value();
  const PackedWeight packed = checkpoint.find(info.name).value();
  layer.dense = to_f32(original, *data_type_of(original.info.dtype));
  layer.weight_error = relative_error(
      dequantize(unpack(packed.view(), options.num_threads).value()).value(), layer.dense);
  const DataType act = options.act_for(info.spec);
  PlanOptions plan_options;
  plan_options.num_threads = options.num_threads;
  layer.product = std::make_unique<Product>(packed, options.m, act,
                                            device_for(packed, options, act), plan_options);
  layer.x = bench::random_activations(options.m * info.k, act, seed);
  layer.x_f32.resize(layer.x.size());
  for (std::size_t i = 0; i < layer.x.size(); ++i) {
    layer.x_f32[i] = f32_from_bits(layer.x[i], act);
  }
  layer.y_f32.resize(static_cast<std::size_t>(options.m * info.n));
  layer.product->set_x(layer.x);
  layer.product->run();
  layer.output_error = output_error(layer);
  return layer;
}

/// Median times of call(layer), layer after layer, as a model would run, until half a second is
/// filled: what stays in the caches from one pass to the next is what would stay there in use.
template <class Call>
std::vector<double> time_passes(const std::vector<Layer*>& layers, const Call& call,
                                ProgressLine& progress, const std::string& what) {
  constexpr int kMinPasses = 5, kMaxPasses = 1000;
  constexpr double kFillUs = 500'000.0;
  std::vector<std::vector<double>> times(layers.size());
  for (Layer* layer : layers) call(*layer);
  const double start = bench::now_us();
  for (int pass = 0; pass < kMaxPasses; ++pass) {
    if (pass >= kMinPasses && bench::now_us() - start > kFillUs) break;
    for (std::size_t i = 0; i < layers.size(); ++i) {
      const double begin = bench::now_us();
      call(*layers[i]);
      times[i].push_back(bench::now_us() - begin);
      progress.update((bench::now_us() - start) / kFillUs, what);
    }
  }
  std::vector<double> medians;
  for (const auto& of_layer : times) medians.push_back(bench::median(of_layer));
  return medians;
}

/// Times the layers of the CPU; returns the BLAS's name.
std::optional<std::string> time_on_cpu(const std::vector<Layer*>& layers, ProgressLine& progress) {
  const auto ours = time_passes(
      layers, [](Layer& layer) { layer.product->run(); }, progress, "mixgemm");
  for (std::size_t i = 0; i < layers.size(); ++i) layers[i]->us = ours[i];
  const auto blas = bench::DenseBlas::find();
  if (!blas) return std::nullopt;
  const auto multiply = [&](Layer& layer) {
    const Problem& problem = layer.problem();
    if (problem.m == 1) {
      blas->gemv(problem.n, problem.k, layer.x_f32.data(), layer.dense.data(), layer.y_f32.data());
    } else {
      blas->gemm(problem.m, problem.n, problem.k, layer.x_f32.data(), layer.dense.data(),
                 layer.y_f32.data());
    }
  };
  const auto dense = time_passes(layers, multiply, progress, blas->name());
  for (std::size_t i = 0; i < layers.size(); ++i) layers[i]->dense_us = dense[i];
  return blas->name();
}

/// Times the layers of the GPU; returns the dense library's name. A dense product's time doesn't
/// depend on the numbers, so layers of one shape share it.
std::optional<std::string> time_on_gpu(const std::vector<Layer*>& layers, ProgressLine& progress) {
  const auto timer = bench::make_cuda_layer_timer();
  double packed_bytes = 0.0, dense_bytes = 0.0;
  for (const Layer* layer : layers) {
    packed_bytes += static_cast<double>(layer->info.size_bytes);
    dense_bytes += 2.0 * static_cast<double>(layer->dense.size());
  }
  std::map<std::tuple<std::int64_t, std::int64_t, DataType>, double> dense_us;
  double done = 0.0;
  for (Layer* layer : layers) {
    progress.update(done++ / static_cast<double>(layers.size()), layer->info.name);
    const Problem& problem = layer->problem();
    const RunArgs& args = layer->product->args();
    layer->us = timer->run_us(layer->product->plan(), args, packed_bytes);
    if (timer->dense_library().empty()) continue;
    const auto key = std::tuple(problem.n, problem.k, problem.act);
    if (!dense_us.contains(key)) {
      std::vector<std::uint16_t> w(layer->dense.size());
      for (std::size_t i = 0; i < w.size(); ++i) w[i] = bits_from_f32(layer->dense[i], problem.act);
      dense_us[key] = timer->dense_us(problem, args.x, w, dense_bytes);
    }
    layer->dense_us = dense_us[key];
  }
  const std::string library = timer->dense_library();
  return library.empty() ? std::nullopt : std::optional(library);
}

/// What stands beside the layers of a device: never another device's product.
struct DenseColumn {
  Device device;
  const char* key;    ///< of the time in JSON, as in rows of `bench`
  std::string title;  ///< in the table
};

std::vector<DenseColumn> dense_columns(const std::vector<Layer>& layers) {
  bool cpu = false;
  std::set<DataType> gpu_types;
  for (const Layer& layer : layers) {
    if (layer.device() == Device::cpu) cpu = true;
    if (layer.device() == Device::cuda) gpu_types.insert(layer.problem().act);
  }
  std::vector<DenseColumn> columns;
  if (cpu) columns.push_back({Device::cpu, "blas_f32_us", "fp32 BLAS µs"});
  if (gpu_types.size() == 1) {
    columns.push_back(
        {Device::cuda, "cublas_us", fmt::format("cuBLAS {} µs", act_name(*gpu_types.begin()))});
  } else if (!gpu_types.empty()) {
    columns.push_back({Device::cuda, "cublas_us", "cuBLAS µs"});
  }
  return columns;
}

/// The table and the JSON rows, which say the same.
class Report {
 public:
  explicit Report(std::vector<DenseColumn> columns)
      : columns_(std::move(columns)), table_(header(columns_)) {}

  struct Line {
    std::string name, shape, format;
    double bits_per_weight = 0.0, weight_error = 0.0, output_error = 0.0, us = 0.0;
    std::optional<Device> device;  ///< none where there are several
    std::optional<double> dense_us;
  };
  /// Adds to the table; returns the line as JSON.
  Json add(const Line& line) {
    std::vector<std::string> cells = {line.name,
                                      line.shape,
                                      line.format,
                                      fmt::format("{:.3f}", line.bits_per_weight),
                                      fmt::format("{:.4f}", line.weight_error),
                                      fmt::format("{:.4f}", line.output_error),
                                      fmt::format("{:.1f}", line.us)};
    Json row = {{"layer", line.name},
                {"bits_per_weight", line.bits_per_weight},
                {"rel_err_weight", line.weight_error},
                {"rel_err_output", line.output_error},
                {"us", line.us}};
    for (const DenseColumn& column : columns_) {
      const bool own = line.device == column.device && line.dense_us;
      cells.push_back(own ? fmt::format("{:.1f}", *line.dense_us) : "-");
      if (!line.device || line.device == column.device) {
        row[column.key] = own ? Json(*line.dense_us) : Json();
      }
    }
    cells.push_back(line.dense_us ? fmt::format("{:.2f}×", *line.dense_us / line.us) : "-");
    row["speedup"] = line.dense_us ? Json(*line.dense_us / line.us) : Json();
    row["device"] = line.device ? Json(to_string(*line.device)) : Json();
    table_.add(std::move(cells));
    return row;
  }
  std::string table() const { return table_.to_string("lllr"); }

 private:
  static std::vector<std::string> header(const std::vector<DenseColumn>& columns) {
    std::vector<std::string> titles = {"layer",        "N×K",          "format", "bits/weight",
                                       "weight error", "output error", "µs"};
    for (const DenseColumn& column : columns) titles.push_back(column.title);
    titles.push_back("speed-up");
    return titles;
  }

  std::vector<DenseColumn> columns_;
  Table table_;
};

int run_compare(const CompareOptions& options) {
  const auto checkpoint = PackedCheckpoint::open(options.file).value();
  const auto source = SafetensorsFile::open(options.against).value();
  if (checkpoint.layers().empty()) {
    throw Error(StatusCode::invalid_argument,
                fmt::format("{}: must have at least one packed layer; got none", options.file));
  }
  std::vector<Layer> layers;
  ProgressLine progress;
  for (const PackedLayerInfo& info : checkpoint.layers()) {
    progress.update(
        static_cast<double>(layers.size()) / static_cast<double>(checkpoint.layers().size()),
        info.name);
    layers.push_back(prepare(checkpoint, source, info, options, layers.size()));
  }
  std::vector<Layer*> on_cpu, on_gpu;
  for (Layer& layer : layers) {
    (layer.device() == Device::cuda ? on_gpu : on_cpu).push_back(&layer);
  }
  Json report = {
      {"file", options.file},
      {"against", options.against},
      {"m", options.m},
      {"act", act_name(layers.front().problem().act)},
      {"threads", options.num_threads > 0 ? options.num_threads : default_num_threads()}};
  const auto name = [](const std::optional<std::string>& library) {
    return library ? Json(*library) : Json();
  };
  if (!on_cpu.empty()) report["blas"] = name(time_on_cpu(on_cpu, progress));
  if (!on_gpu.empty()) report["cublas"] = name(time_on_gpu(on_gpu, progress));
  progress.clear();

  Report lines(dense_columns(layers));
  Report::Line total;
  total.name = fmt::format("total of {} layers", layers.size());
  const bool one_device = on_cpu.empty() || on_gpu.empty();
  if (one_device) total.device = layers.front().device();
  // A sum over several devices says nothing about either.
  if (one_device && layers.front().dense_us) total.dense_us = 0.0;
  Json rows = Json::array();
  double elems = 0.0, bytes = 0.0, weight_errors = 0.0, output_errors = 0.0;
  for (const Layer& layer : layers) {
    Json row =
        lines.add({layer.info.name, fmt::format("{}×{}", layer.info.n, layer.info.k),
                   describe(layer.info.spec), layer.info.bits_per_weight(), layer.weight_error,
                   layer.output_error, layer.us, layer.device(), layer.dense_us});
    row["n"] = layer.info.n;
    row["k"] = layer.info.k;
    row["kernel"] = layer.product->plan().kernel_id();
    row["act"] = act_name(layer.problem().act);
    row.update(to_json(layer.info.spec));
    rows.push_back(row);
    const double count = static_cast<double>(layer.info.n) * static_cast<double>(layer.info.k);
    elems += count;
    bytes += static_cast<double>(layer.info.size_bytes);
    total.us += layer.us;
    if (total.dense_us) *total.dense_us += *layer.dense_us;
    weight_errors += layer.weight_error * layer.weight_error * count;
    output_errors += layer.output_error * layer.output_error * count;
  }
  // Errors of the total: root mean square over the layers, weighted by their number of weights.
  total.bits_per_weight = 8.0 * bytes / elems;
  total.weight_error = std::sqrt(weight_errors / elems);
  total.output_error = std::sqrt(output_errors / elems);
  Json sum = lines.add(total);
  sum["num_layers"] = layers.size();
  sum["num_weights"] = elems;
  if (options.json) {
    report["layers"] = rows;
    report["total"] = sum;
    print_json(report);
  } else {
    print(lines.table());
  }
  return kExitOk;
}

}  // namespace

void register_compare(CLI::App& app, Selected& selected) {
  auto options = std::make_shared<CompareOptions>();
  Command command(app, selected, "compare",
                  "Errors and times of every packed layer beside the dense checkpoint");
  add_product_options(command, *options, 65536, Command::Need::optional);
  command.text("--against", options->against, "The dense checkpoint it was made from",
               Command::Need::required);
  command.runs([=] { return run_compare(*options); });
}

}  // namespace mixgemm::cli
