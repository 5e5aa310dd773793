// SPDX-License-Identifier: Apache-2.0
// mixgemm compare: a packed checkpoint beside the dense one it came from: how far weights and
// outputs are off, and how long a product takes against a dense fp32 product of the same layer.
#include <fmt/format.h>

#include <cmath>
#include <memory>
#include <optional>

#include "command.hpp"
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
  std::vector<double> times_us, blas_times_us;

  double us() const { return bench::median(times_us); }
  double blas_us() const { return bench::median(blas_times_us); }
};

/// Relative error of Y against x · (dense weight)ᵀ in fp64, over up to four rows.
double output_error(const Layer& layer) {
  const std::int64_t n = layer.info.n, k = layer.info.k;
  const std::int64_t m = layer.product->problem().m;
  const DataType act = layer.product->problem().act;
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

/// Times call(layer) layer after layer, as a model would run, until half a second is filled: what
/// stays in the caches from one pass to the next is what would stay there in use.
template <class Call>
void time_passes(std::vector<Layer>& layers, std::vector<double> Layer::*times, const Call& call,
                 ProgressLine& progress, const char* what) {
  constexpr int kMinPasses = 5, kMaxPasses = 1000;
  constexpr double kFillUs = 500'000.0;
  for (Layer& layer : layers) call(layer);
  const double start = bench::now_us();
  for (int pass = 0; pass < kMaxPasses; ++pass) {
    if (pass >= kMinPasses && bench::now_us() - start > kFillUs) break;
    for (Layer& layer : layers) {
      const double begin = bench::now_us();
      call(layer);
      (layer.*times).push_back(bench::now_us() - begin);
      progress.update((bench::now_us() - start) / kFillUs, what);
    }
  }
}

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
  time_passes(
      layers, &Layer::times_us, [](Layer& layer) { layer.product->run(); }, progress, "mixgemm");
  const auto blas = bench::DenseBlas::find();
  if (blas) {
    time_passes(
        layers, &Layer::blas_times_us,
        [&](Layer& layer) {
          if (options.m == 1) {
            blas->gemv(layer.info.n, layer.info.k, layer.x_f32.data(), layer.dense.data(),
                       layer.y_f32.data());
          } else {
            blas->gemm(options.m, layer.info.n, layer.info.k, layer.x_f32.data(),
                       layer.dense.data(), layer.y_f32.data());
          }
        },
        progress, blas->name().c_str());
  }
  progress.clear();

  Table table({"layer", "N×K", "format", "bits/weight", "weight error", "output error", "µs",
               "fp32 BLAS µs", "speed-up"});
  Json rows = Json::array();
  const auto add = [&](const std::string& name, const std::string& shape, const std::string& format,
                       double bits, double weight_error, double y_error, double us,
                       double blas_us) {
    table.add({name, shape, format, fmt::format("{:.3f}", bits),
               fmt::format("{:.4f}", weight_error), fmt::format("{:.4f}", y_error),
               fmt::format("{:.1f}", us), blas ? fmt::format("{:.1f}", blas_us) : "-",
               blas ? fmt::format("{:.2f}×", blas_us / us) : "-"});
    Json row = {{"layer", name},
                {"bits_per_weight", bits},
                {"rel_err_weight", weight_error},
                {"rel_err_output", y_error},
                {"us", us}};
    row["blas_f32_us"] = blas ? Json(blas_us) : Json();
    row["speedup"] = blas ? Json(blas_us / us) : Json();
    return row;
  };
  double elems = 0.0, bytes = 0.0, us = 0.0, blas_us = 0.0, weight_errors = 0.0,
         output_errors = 0.0;
  for (const Layer& layer : layers) {
    Json row = add(layer.info.name, fmt::format("{}×{}", layer.info.n, layer.info.k),
                   describe(layer.info.spec), layer.info.bits_per_weight(), layer.weight_error,
                   layer.output_error, layer.us(), blas ? layer.blas_us() : 0.0);
    row["n"] = layer.info.n;
    row["k"] = layer.info.k;
    row["kernel"] = layer.product->plan().kernel_id();
    row["device"] = to_string(layer.product->problem().device);
    row.update(to_json(layer.info.spec));
    rows.push_back(row);
    const double count = static_cast<double>(layer.info.n) * static_cast<double>(layer.info.k);
    elems += count;
    bytes += static_cast<double>(layer.info.size_bytes);
    us += layer.us();
    blas_us += blas ? layer.blas_us() : 0.0;
    weight_errors += layer.weight_error * layer.weight_error * count;
    output_errors += layer.output_error * layer.output_error * count;
  }
  // Errors of the total: root mean square over the layers, weighted by their number of weights.
  Json total = add(fmt::format("total of {} layers", layers.size()), "", "", 8.0 * bytes / elems,
                   std::sqrt(weight_errors / elems), std::sqrt(output_errors / elems), us, blas_us);
  total["num_layers"] = layers.size();
  total["num_weights"] = elems;
  if (options.json) {
    print_json({{"file", options.file},
                {"against", options.against},
                {"m", options.m},
                {"act", act_name(layers.front().product->problem().act)},
                {"threads", options.num_threads > 0 ? options.num_threads : default_num_threads()},
                {"blas", blas ? Json(blas->name()) : Json()},
                {"layers", rows},
                {"total", total}});
  } else {
    print(table.to_string("lllr"));
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
