// SPDX-License-Identifier: Apache-2.0
// The chain benchmark: the GEMMs of a decoder layer, each reading what the one before wrote, a
// trivial elementwise kernel between. It shows what a launch costs when nothing can be overlapped
// but the weight stream.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "gpu/gemm_bench.hpp"
#include "gpu/modes.hpp"
#include "mixgemm/gemm.hpp"

namespace mixgemm::bench {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::uint32_t kInputSeed = 31;

/// Consecutive shapes of one model, in the order they run: "llama8b" of "llama8b.qkv".
struct Model {
  std::string name;
  std::vector<Shape> layers;
};

std::vector<Model> models_of(const std::vector<Shape>& shapes) {
  std::vector<Model> models;
  for (const Shape& shape : shapes) {
    const std::string name = shape.layer.substr(0, shape.layer.find('.'));
    if (models.empty() || models.back().name != name) models.push_back({name, {}});
    models.back().layers.push_back(shape);
  }
  for (const Model& model : models) {
    for (std::size_t i = 0; i < model.layers.size(); ++i) {
      const Shape& from = model.layers[i];
      const Shape& to = model.layers[(i + 1) % model.layers.size()];
      if (to.k > from.n) {
        throw Error(StatusCode::invalid_argument,
                    fmt::format("a chain needs each layer's K to be at most the N of the one "
                                "before; {} has K={}, {} has N={}",
                                to.layer, to.k, from.layer, from.n));
      }
    }
  }
  return models;
}

/// A model's weights, activations and plans for one M; runs whole rounds of the chain.
class Chain {
 public:
  Chain(const Model& model, const Options& options, DataType act, cudaStream_t stream)
      : model_(model), act_(act), spec_(spec_of(options, act)), weights_(model.layers.size()) {
    double bytes = 0;
    for (const Shape& shape : model.layers) {
      bytes += static_cast<double>(WeightPool::layout_of(shape, spec_).stride);
    }
    copies_ = num_copies(bytes, true);
    for (std::size_t i = 0; i < weights_.size(); ++i) {
      weights_[i].make(model.layers[i], spec_, copies_, stream);
    }
  }

  int copies() const { return copies_; }

  /// Plans all layers for m tokens and makes the first one's input.
  void prepare(std::int64_t m, const std::string& kernel, cudaStream_t stream) {
    m_ = m;
    plans_.clear();
    std::size_t workspace_bytes = 0;
    std::int64_t widest = 0;
    for (const Shape& shape : model_.layers) {
      Problem problem;
      problem.m = m;
      problem.n = shape.n;
      problem.k = shape.k;
      problem.act = act_;
      problem.weight = spec_;
      problem.device = Device::cuda;
      plans_.push_back(plan(problem, {.kernel = kernel}).value());
      workspace_bytes = std::max(workspace_bytes, plans_.back().workspace_bytes());
      widest = std::max({widest, shape.n, shape.k});
    }
    const std::size_t bytes = 2 * static_cast<std::size_t>(m * widest);
    x_.reserve(bytes, "X");
    y_.reserve(bytes, "Y");
    if (workspace_bytes > 0) {
      workspace_.reserve(workspace_bytes, "workspace");
      check(cudaMemsetAsync(workspace_.as<>(), kWorkspacePoison, workspace_bytes, stream),
            "poisoning the workspace");
    }
    reset(stream);
  }

  void reset(cudaStream_t stream) {
    check(cudaMemsetAsync(y_.as<>(), 0xff, y_.size_bytes(), stream), "poisoning Y");
    fill_activations(x_.as<>(), m_ * model_.layers[0].k, act_, kInputSeed, stream);
  }

  /// Enqueues one layer of the model: each GEMM, then the link to the next. `serial`: waits for the
  /// device after every kernel.
  void run(int copy, bool pdl, bool serial, cudaStream_t stream) {
    for (std::size_t i = 0; i < plans_.size(); ++i) {
      const Shape& shape = model_.layers[i];
      const Shape& next = model_.layers[(i + 1) % model_.layers.size()];
      RunArgs args;
      args.x = x_.as<>();
      args.ldx = shape.k;
      args.weight = weights_[i].view(copy);
      args.y = y_.as<>();
      args.ldy = shape.n;
      args.workspace = plans_[i].workspace_bytes() > 0 ? workspace_.as<>() : nullptr;
      args.workspace_bytes = plans_[i].workspace_bytes();
      args.stream = stream;
      args.pdl = pdl;
      plans_[i].run(args).throw_if_error();
      if (serial) check(cudaStreamSynchronize(stream), plans_[i].config_id());
      chain_link(y_.as<>(), shape.n, x_.as<>(), m_, next.k, act_, pdl, stream);
      if (serial) check(cudaStreamSynchronize(stream), "chain_link_kernel");
    }
  }

  /// What one layer of the model makes of the first input: X of the layer after it.
  std::vector<std::uint16_t> output(bool pdl, bool serial, cudaStream_t stream) {
    reset(stream);
    for (int copy = 0; copy < copies_; ++copy) run(copy, pdl, serial, stream);
    check(cudaStreamSynchronize(stream), "the chain");
    std::vector<std::uint16_t> bits(static_cast<std::size_t>(m_ * model_.layers[0].k));
    check(cudaMemcpy(bits.data(), x_.as<>(), 2 * bits.size(), cudaMemcpyDeviceToHost),
          "copy of the chain's output");
    return bits;
  }

  std::string configs() const {
    std::string all;
    for (const Plan& plan : plans_) all += (all.empty() ? "" : " ") + plan.config_id();
    return all;
  }

 private:
  const Model& model_;
  const DataType act_;
  const QuantSpec spec_;
  std::vector<WeightPool> weights_;
  int copies_ = 0;
  std::int64_t m_ = 0;
  std::vector<Plan> plans_;
  DeviceBuffer x_, y_, workspace_;
};

}  // namespace

Summary run_chains(const Options& options, const Callbacks& callbacks) {
  RowCounter rows(callbacks);
  GemmBench bench(options.timeout_s, false, [&](const Json& row) { rows.add(row); });
  const GraphTimer& timer = bench.timer();
  const std::vector<Model> models = models_of(options.shapes);
  const double total =
      static_cast<double>(models.size() * options.acts.size() * options.tokens.size());
  double done = 0;
  for (const Model& model : models) {
    double floor_us = 0, floor_nopdl_us = 0;
    for (const Shape& shape : model.layers) {
      const auto watch = bench.watchdog().watch([&] {
        rows.add({{"chain", model.name}, {"ok", false}, {"error", "hangs: the streaming floor"}});
      });
      floor_us += bench.floors(shape, options.weight).with_pdl.us;
      floor_nopdl_us += bench.floors(shape, options.weight).without_pdl.us;
    }
    for (const DataType act : options.acts) {
      Chain chain(model, options, act, timer.stream());
      for (const std::int64_t m : options.tokens) {
        rows.progress(done++ / total,
                      fmt::format("chain {} {} M={}", model.name, act_name(act), m));
        for (const bool pdl : {true, false}) {
          Json row = {{"chain", model.name},
                      {"gpu", bench.device().name},
                      {"act", act_name(act)},
                      {"weight", to_string(options.weight)},
                      {"group", options.group},
                      {"zero", to_string(options.zero)},
                      {"pdl", pdl},
                      {"m", m},
                      {"auto", options.kernel.empty()}};
          const auto watch = bench.watchdog().watch([&] {
            row["ok"] = false;
            row["error"] = fmt::format("hangs: no answer after {} s", options.timeout_s);
            rows.add(row);
          });
          try {
            chain.prepare(m, options.kernel, timer.stream());
            row["config"] = chain.configs();
            // Kernels are deterministic, so overlapping may not change a bit.
            const auto expected = chain.output(false, true, timer.stream());
            const auto actual = chain.output(pdl, false, timer.stream());
            const Timing timing = timer.time(
                [&](int copy, cudaStream_t stream) { chain.run(copy, pdl, false, stream); },
                chain.copies());
            const double floor = pdl ? floor_us : floor_nopdl_us;
            row["chain_us"] = timing.us.median;
            row["chain_us_min"] = timing.us.min;
            row["chain_us_max"] = timing.us.max;
            row["floor_us"] = floor_us;
            row["floor_nopdl_us"] = floor_nopdl_us;
            row["ratio"] = timing.us.median / floor;
            row["clock_mhz"] = timing.clock_mhz;
            row["commit"] = commit();
            row["ok"] = actual == expected;
            if (actual != expected) {
              row["error"] = "the chain's output differs from that of its kernels run one by one";
            }
          } catch (const Error& error) {
            row["ok"] = false;
            row["error"] = error.what();
            rows.add(row);
            check(cudaDeviceSynchronize(), fmt::format("after chain {}", model.name));
            cudaGetLastError();
            continue;
          }
          rows.add(row);
        }
      }
    }
  }
  rows.progress(1, "done");
  return rows.summary();
}

}  // namespace mixgemm::bench
