// SPDX-License-Identifier: Apache-2.0
#include "gpu/graph_timer.hpp"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <thread>
#include <type_traits>

namespace mixgemm::bench {
namespace {

struct DestroyGraph {
  void operator()(cudaGraph_t graph) const { cudaGraphDestroy(graph); }
};
struct DestroyGraphExec {
  void operator()(cudaGraphExec_t graph) const { cudaGraphExecDestroy(graph); }
};
using Graph = std::unique_ptr<std::remove_pointer_t<cudaGraph_t>, DestroyGraph>;
using GraphExec = std::unique_ptr<std::remove_pointer_t<cudaGraphExec_t>, DestroyGraphExec>;

/// `launches` of them, the first one with copy `first`.
GraphExec capture(const GraphTimer::Launch& launch, int first, int launches, int copies,
                  cudaStream_t stream) {
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  cudaGraph_t captured = nullptr;
  try {
    for (int i = 0; i < launches; ++i) launch((first + i) % copies, stream);
  } catch (...) {
    cudaStreamEndCapture(stream, &captured);  // the first failure is the one to report
    cudaGetLastError();
    if (captured != nullptr) cudaGraphDestroy(captured);
    throw;
  }
  check(cudaStreamEndCapture(stream, &captured), "cudaStreamEndCapture");
  const Graph graph(captured);
  cudaGraphExec_t instantiated = nullptr;
  check(cudaGraphInstantiate(&instantiated, graph.get(), 0), "cudaGraphInstantiate");
  return GraphExec(instantiated);
}

}  // namespace

double GraphTimer::estimate(const Launch& launch, int copies) const {
  // First touches (module load, shared-memory opt-in) stay out of the estimate.
  constexpr int kWarm = 2, kTimed = 3;
  for (int i = 0; i < kWarm; ++i) launch(i % copies, stream());
  start_.record(stream());
  for (int i = 0; i < kTimed; ++i) launch(i % copies, stream());
  stop_.record(stream());
  stop_.synchronize();
  return stop_.us_since(start_) / kTimed;
}

Timing GraphTimer::time(const Launch& launch, int copies, const Protocol& protocol) const {
  Timing timing;
  const double estimate_us = estimate(launch, copies);
  timing.launches = num_launches(estimate_us, copies, protocol.graph_us);
  const double graph_ms = estimate_us * timing.launches * 1e-3;
  const int warmups =
      std::max(protocol.warmups, static_cast<int>(std::ceil(protocol.load.count() / graph_ms)));
  // The rotation goes on from replay to replay.
  std::vector<GraphExec> graphs;
  const int distinct = std::min(num_graphs(timing.launches, copies), warmups + protocol.replays);
  for (int i = 0; i < distinct; ++i) {
    graphs.push_back(capture(launch, i * timing.launches, timing.launches, copies, stream()));
  }
  std::size_t next = 0;
  const auto replay = [&] {
    check(cudaGraphLaunch(graphs[next].get(), stream()), "cudaGraphLaunch");
    next = (next + 1) % graphs.size();
  };

  stream_.synchronize();
  std::this_thread::sleep_for(protocol.settle);
  for (int i = 0; i < warmups; ++i) replay();
  std::vector<double> sample;
  for (int i = 0; i < protocol.replays; ++i) {
    start_.record(stream());
    replay();
    stop_.record(stream());
    // The clock is read by the CPU while the GPU works: under load, at no cost to the time.
    if (i == protocol.replays / 2) timing.clock_mhz = clock_.sm_mhz();
    stop_.synchronize();
    sample.push_back(stop_.us_since(start_) / timing.launches);
  }
  timing.us = spread_of(std::move(sample));
  return timing;
}

GraphTimer::Best GraphTimer::best_of(const std::vector<Launch>& candidates, int copies,
                                     int finalists, const Protocol& protocol) const {
  struct Screened {
    double us;
    std::size_t index;
  };
  std::vector<Screened> screened;
  std::string failure = "no candidates";
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    try {
      screened.push_back({time(candidates[i], copies, kScreening).us.median, i});
    } catch (const Error& error) {
      failure = error.what();
    }
  }
  if (screened.empty()) throw Error(StatusCode::device_error, failure);
  std::sort(screened.begin(), screened.end(),
            [](const Screened& a, const Screened& b) { return a.us < b.us; });
  screened.resize(std::min(screened.size(), static_cast<std::size_t>(finalists)));

  Best best;
  for (const Screened& finalist : screened) {
    const Timing timing = time(candidates[finalist.index], copies, protocol);
    if (best.timing.launches == 0 || timing.us.median < best.timing.us.median) {
      best = {finalist.index, timing};
    }
  }
  return best;
}

}  // namespace mixgemm::bench
