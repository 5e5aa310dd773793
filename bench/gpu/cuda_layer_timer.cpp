// SPDX-License-Identifier: Apache-2.0
// Times layers of a model on a CUDA device, beside cuBLASLt.
#include "common/layer_timer.hpp"
#include "gpu/clock.hpp"
#include "gpu/cublas.hpp"
#include "gpu/graph_timer.hpp"
#include "gpu/weight_pool.hpp"

namespace mixgemm::bench {
namespace {

class CudaLayerTimer final : public LayerTimer {
 public:
  CudaLayerTimer() : timer_(clock_), cublas_(CublasLt::load()) {}

  std::string dense_library() const override {
    return cublas_ ? cublas_->description() : std::string();
  }

  double run_us(const Plan& plan, const RunArgs& args, double model_bytes) override {
    weights_.copy(args.weight, model_copies(WeightPool::bytes_of(args.weight), model_bytes),
                  timer_.stream());
    RunArgs rotated = args;
    const auto launch = [&](int copy, cudaStream_t stream) {
      rotated.weight = weights_.view(copy);
      rotated.stream = stream;
      plan.run(rotated).throw_if_error();
    };
    return timer_.time(launch, weights_.copies()).us.median;
  }

  double dense_us(const Problem& problem, const void* x, const std::vector<std::uint16_t>& w,
                  double model_bytes) override {
    const std::size_t bytes = 2 * w.size();
    const std::size_t stride = (bytes + 255) / 256 * 256;  // the alignment that cuBLASLt assumes
    const int copies = model_copies(static_cast<double>(bytes), model_bytes);
    dense_.reserve(stride * static_cast<std::size_t>(copies), "dense weights");
    y_.reserve(2 * static_cast<std::size_t>(problem.m * problem.n), "Y of the dense product");
    for (int copy = 0; copy < copies; ++copy) {
      check(cudaMemcpyAsync(dense_.as<>() + stride * static_cast<std::size_t>(copy),
                            copy == 0 ? static_cast<const void*>(w.data()) : dense_.as<>(), bytes,
                            cudaMemcpyDefault, timer_.stream()),
            "copy of the dense weight");
    }
    timer_.synchronize();
    const CublasLt::Product product(*cublas_, problem.m, problem.n, problem.k, problem.act);
    std::vector<GraphTimer::Launch> heuristics;
    for (std::size_t i = 0; i < product.num_heuristics(); ++i) {
      heuristics.push_back([&, i](int copy, cudaStream_t stream) {
        product.run(i, x, dense_.as<>() + stride * static_cast<std::size_t>(copy), y_.as<>(),
                    stream);
      });
    }
    return timer_.best_of(heuristics, copies).timing.us.median;
  }

 private:
  ClockReader clock_;
  GraphTimer timer_;
  std::unique_ptr<CublasLt> cublas_;
  WeightPool weights_;
  DeviceBuffer dense_, y_;
};

}  // namespace

std::unique_ptr<LayerTimer> make_cuda_layer_timer() { return std::make_unique<CudaLayerTimer>(); }

}  // namespace mixgemm::bench
