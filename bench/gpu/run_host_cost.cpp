// SPDX-License-Identifier: Apache-2.0
// What a call of Plan::run costs the CPU: checks, tensor maps, launch; eager, no graph.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>
#include <vector>

#include "gpu/gemm_bench.hpp"
#include "gpu/modes.hpp"
#include "mixgemm/gemm.hpp"

namespace mixgemm::bench {
namespace {

using Json = nlohmann::ordered_json;

// Launches queue up to a depth near a thousand, after which a launch waits for the device; batches
// stay well below.
constexpr int kBatch = 200;
constexpr int kBatches = 20;

struct HostCost {
  double median_us = 0, p90_us = 0;
  double batch_us = 0;  ///< a call's share of a batch, median over batches: what a loop pays
};

HostCost host_cost(const std::function<void()>& call, const GraphTimer& timer) {
  std::vector<double> sample, shares;
  for (int batch = 0; batch < kBatches; ++batch) {
    const std::size_t before = sample.size();
    for (int i = 0; i < kBatch; ++i) {
      const auto start = std::chrono::steady_clock::now();
      call();
      const std::chrono::duration<double, std::micro> spent =
          std::chrono::steady_clock::now() - start;
      if (batch > 0) sample.push_back(spent.count());  // the first warms up
    }
    timer.synchronize();
    if (batch > 0) {
      shares.push_back(
          std::accumulate(sample.begin() + static_cast<std::ptrdiff_t>(before), sample.end(), 0.0) /
          kBatch);
    }
  }
  std::sort(sample.begin(), sample.end());
  std::sort(shares.begin(), shares.end());
  return {sample[sample.size() / 2], sample[sample.size() * 9 / 10], shares[shares.size() / 2]};
}

}  // namespace

Summary run_host_cost(const Options& options, const Callbacks& callbacks) {
  RowCounter rows(callbacks);
  GemmBench bench(options.timeout_s, false, [&](const Json& row) { rows.add(row); });
  const cudaStream_t stream = bench.timer().stream();
  for (const Shape& shape : options.shapes) {
    for (const DataType act : options.acts) {
      const QuantSpec spec = spec_of(options, act);
      WeightPool weights;
      weights.make(shape, spec, 1, stream);
      for (const std::int64_t m : options.tokens) {
        Json row = {{"host_cost", shape.layer},
                    {"gpu", bench.device().name},
                    {"act", act_name(act)},
                    {"weight", to_string(options.weight)},
                    {"group", options.group},
                    {"zero", to_string(options.zero)},
                    {"pdl", options.pdl},
                    {"m", m},
                    {"n", shape.n},
                    {"k", shape.k},
                    {"auto", options.kernel.empty()}};
        const auto watch = bench.watchdog().watch([&] {
          row["ok"] = false;
          row["error"] = fmt::format("hangs: no answer after {} s", options.timeout_s);
          rows.add(row);
        });
        try {
          Problem problem;
          problem.m = m;
          problem.n = shape.n;
          problem.k = shape.k;
          problem.act = act;
          problem.weight = spec;
          problem.device = Device::cuda;
          const Plan chosen = plan(problem, {.kernel = options.kernel}).value();
          row["config"] = chosen.config_id();
          DeviceBuffer x, y, workspace;
          x.reserve(2 * static_cast<std::size_t>(m * shape.k), "X");
          y.reserve(2 * static_cast<std::size_t>(m * shape.n), "Y");
          fill_activations(x.as<>(), m * shape.k, act, 1, stream);
          if (chosen.workspace_bytes() > 0)
            workspace.reserve(chosen.workspace_bytes(), "workspace");
          bench.timer().synchronize();

          RunArgs args;
          args.x = x.as<>();
          args.ldx = shape.k;
          args.weight = weights.view(0);
          args.y = y.as<>();
          args.ldy = shape.n;
          args.workspace = workspace.as<>();
          args.workspace_bytes = chosen.workspace_bytes();
          args.stream = stream;
          args.pdl = options.pdl;
          const HostCost run = host_cost([&] { chosen.run(args).throw_if_error(); }, bench.timer());
          const HostCost empty = host_cost([&] { empty_launch(stream); }, bench.timer());
          const HostCost planning = host_cost(
              [&] { plan(problem, {.kernel = options.kernel}).status().throw_if_error(); },
              bench.timer());
          row["run_us"] = run.median_us;
          row["run_p90_us"] = run.p90_us;
          row["run_batch_us"] = run.batch_us;
          row["empty_launch_us"] = empty.median_us;
          row["plan_us"] = planning.median_us;
          row["commit"] = commit();
          row["ok"] = true;
        } catch (const Error& error) {
          row["ok"] = false;
          row["error"] = error.what();
          check(cudaDeviceSynchronize(), fmt::format("after the host cost of {}", shape.layer));
          cudaGetLastError();
        }
        rows.add(row);
      }
    }
  }
  rows.progress(1, "done");
  return rows.summary();
}

}  // namespace mixgemm::bench
