// SPDX-License-Identifier: Apache-2.0
// mixgemm run: one product with one layer of a packed checkpoint.
#include <fmt/format.h>

#include <cmath>
#include <memory>
#include <optional>

#include "command.hpp"
#include "host/measure.hpp"
#include "product.hpp"
#include "util/join.hpp"

namespace mixgemm::cli {
namespace {

struct RunOptions : ProductOptions {
  std::string layer;
  std::string x;
  std::string output;
  std::string kernel;
  std::int64_t seed = 0;
  bool check = false;
  bool explain = false;
};

/// X from a safetensors file: the tensor "x", or the only one. Rounded to the activation type.
std::vector<std::uint16_t> read_x(const RunOptions& options, std::int64_t k, DataType act) {
  const auto file = SafetensorsFile::open(options.x).value();
  const TensorInfo* info = file.info("x");
  if (info == nullptr && file.tensors().size() == 1) info = &file.tensors().front();
  if (info == nullptr) {
    throw Error(StatusCode::not_found,
                fmt::format("{} must have a tensor named x, or a single tensor; it has {}",
                            options.x, file.tensors().size()));
  }
  const auto type = data_type_of(info->dtype);
  if (!type) {
    throw Error(StatusCode::invalid_argument, fmt::format("tensor {} must be F16, BF16 or F32; got "
                                                          "{}",
                                                          info->name, info->dtype));
  }
  if (info->shape != std::vector<std::int64_t>{options.m, k}) {
    throw Error(StatusCode::invalid_argument,
                fmt::format("tensor {} must have shape [M, K] = [{}, {}]; got [{}]", info->name,
                            options.m, k, joined(info->shape)));
  }
  const auto values = to_f32(file.find(info->name).value(), *type);
  std::vector<std::uint16_t> x(values.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    x[i] = bits_from_f32(values[i], act);
    if (!std::isfinite(f32_from_bits(x[i], act))) {
      throw Error(StatusCode::invalid_argument,
                  fmt::format("tensor {}: element [{}, {}] must be finite in {}; got {}",
                              info->name, i / static_cast<std::size_t>(k),
                              i % static_cast<std::size_t>(k), act_name(act), values[i]));
    }
  }
  return x;
}

void write_y(const std::string& path, const Product& product, const std::vector<std::uint16_t>& y) {
  auto writer = SafetensorsWriter::create(path).value();
  writer.declare("y", dtype_name(product.problem().act), {product.problem().m, product.problem().n})
      .throw_if_error();
  writer.write("y", y.data(), 2 * y.size()).throw_if_error();
  writer.finish().throw_if_error();
}

/// Relative Frobenius error of Y against the fp64 oracle.
double oracle_error(const Product& product, const PackedWeight& weight,
                    const std::vector<std::uint16_t>& x, const std::vector<std::uint16_t>& y) {
  Problem problem = product.problem();
  problem.device = Device::cpu;
  std::vector<double> expected(y.size());
  RunArgs args;
  args.x = x.data();
  args.ldx = problem.k;
  args.weight = weight.view();
  args.y = expected.data();
  args.ldy = problem.n;
  reference_gemm(problem, args).throw_if_error();
  double difference = 0.0, norm = 0.0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    const double got = f32_from_bits(y[i], problem.act);
    difference += (got - expected[i]) * (got - expected[i]);
    norm += expected[i] * expected[i];
  }
  return difference == 0.0 ? 0.0 : std::sqrt(difference / norm);
}

int run_run(const RunOptions& options) {
  const auto checkpoint = PackedCheckpoint::open(options.file).value();
  const PackedWeight weight = find_layer(checkpoint, options.layer).value();
  const DataType act = options.act_for(weight.view().spec);
  PlanOptions plan_options;
  plan_options.kernel = options.kernel;
  plan_options.num_threads = options.num_threads;
  const Device device =
      options.kernel.empty() ? device_for(weight, options, act) : device_or_default(options.device);
  Product product(weight, options.m, act, device, plan_options);

  const auto x = options.x.empty()
                     ? bench::random_activations(options.m * weight.view().k, act,
                                                 static_cast<std::uint64_t>(options.seed))
                     : read_x(options, weight.view().k, act);
  product.set_x(x);
  product.run();
  const auto y = product.y();
  if (!options.output.empty()) write_y(options.output, product, y);
  // The first call is the result; the time is that of calls after it, once memory is warm.
  const double us = bench::median_us([&](std::int64_t) { product.run(); });

  const Problem& problem = product.problem();
  Json report = {{"layer", layer_of(options.layer)},
                 {"m", problem.m},
                 {"n", problem.n},
                 {"k", problem.k},
                 {"act", act_name(act)},
                 {"device", to_string(device)},
                 {"kernel", product.plan().kernel_id()},
                 {"config", product.plan().config_id()},
                 {"workspace_bytes", product.plan().workspace_bytes()},
                 {"us", us}};
  report.update(to_json(problem.weight));
  std::string text =
      fmt::format("{}: [{}, {}] × [{}, {}]ᵀ, {}, {}: {:.1f} µs with {}\n", layer_of(options.layer),
                  problem.m, problem.k, problem.n, problem.k, act_name(act),
                  describe(problem.weight), us, product.plan().config_id());
  if (options.check) {
    const double error = oracle_error(product, weight, x, y);
    report["rel_err"] = error;
    text += fmt::format("relative error against the fp64 oracle: {:.2e}\n", error);
  }
  if (options.explain) {
    report["explain"] = product.plan().explain();
    text += product.plan().explain();
    if (!text.ends_with('\n')) text += '\n';
  }
  if (!options.output.empty()) {
    report["output"] = options.output;
    text += fmt::format("y written to {}\n", options.output);
  }
  if (options.json) {
    print_json(report);
  } else {
    print(text);
  }
  return kExitOk;
}

}  // namespace

void register_run(CLI::App& app, Selected& selected) {
  auto options = std::make_shared<RunOptions>();
  Command command(app, selected, "run",
                  "Multiply activations by one layer of a packed checkpoint: Y = X · Wᵀ");
  add_product_options(command, *options, 2147483647, Command::Need::required);
  command.text("--layer", options->layer, "Name of the packed layer, see inspect",
               Command::Need::required);
  command.text("--x", options->x,
               "X as a safetensors file: its tensor x, or its only one, of shape [M, K] [standard "
               "normal values]");
  command.text("-o,--output", options->output, "Write Y as the tensor y of this file");
  command.text("--kernel", options->kernel,
               "A kernel or configuration id instead of the plan's choice");
  command.integer("--seed", options->seed, 0, 2147483647, "Seed of X where no --x is given");
  command.flag("--check", options->check, "Compare Y with the fp64 oracle");
  command.flag("--explain", options->explain, "Say which kernel was chosen, and why");
  command.tuning();
  command.runs([=] { return run_run(*options); });
}

}  // namespace mixgemm::cli
