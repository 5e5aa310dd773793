// SPDX-License-Identifier: Apache-2.0
#include "product.hpp"

#include <fmt/format.h>

#include <cstring>
#include <new>

#if defined(MIXGEMM_HAS_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace mixgemm::cli {
namespace {

#if defined(MIXGEMM_HAS_CUDA)
void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    throw Error(StatusCode::device_error, fmt::format("{}: {}", what, cudaGetErrorString(error)));
  }
}

void synchronize(Device device) {
  if (device == Device::cuda) check(cudaDeviceSynchronize(), "waiting for the device");
}
#else
void synchronize(Device) {}
#endif

Problem problem_of(const PackedWeight& weight, std::int64_t m, DataType act, Device device) {
  Problem problem;
  problem.m = m;
  problem.n = weight.view().n;
  problem.k = weight.view().k;
  problem.act = act;
  problem.weight = weight.view().spec;
  problem.device = device;
  return problem;
}

/// rows·columns 16-bit values; the bound is far above any memory and far below overflow.
std::size_t matrix_bytes(std::int64_t rows, std::int64_t columns) {
  constexpr std::int64_t kMaxElems = std::int64_t{1} << 46;
  if (rows > kMaxElems / columns) {
    throw Error(StatusCode::out_of_memory,
                fmt::format("a matrix of {}×{} does not fit any memory", rows, columns));
  }
  return static_cast<std::size_t>(2 * rows * columns);
}

}  // namespace

void add_product_options(Command& command, ProductOptions& options, std::int64_t max_m,
                         Command::Need need_m) {
  command.operand("file", options.file, "A packed checkpoint");
  command.integer("--m", options.m, 1, max_m, "Tokens: rows of X and Y", need_m);
  command.act(options.act, "Format of X and Y: fp16 or bf16 [that of the layer's scales]");
  command.device(options.device);
  command.threads(options.num_threads);
  command.json(options.json);
}

Device device_for(const PackedWeight& weight, const ProductOptions& options, DataType act) {
  const Device device = device_or_default(options.device);
  if (options.device || device == Device::cpu) return device;
  return plan(problem_of(weight, options.m, act, device)) ? device : Device::cpu;
}

Buffer::Buffer(Device device, std::size_t bytes) : device_(device) {
  bytes = bytes == 0 ? 1 : bytes;
#if defined(MIXGEMM_HAS_CUDA)
  if (device == Device::cuda) {
    void* data = nullptr;
    check(cudaMalloc(&data, bytes), "allocating device memory");
    data_ = std::shared_ptr<void>(data, [](void* p) { cudaFree(p); });
    return;
  }
#endif
  constexpr std::align_val_t kAlignment{256};
  data_ = std::shared_ptr<void>(::operator new(bytes, kAlignment),
                                [](void* p) { ::operator delete(p, kAlignment); });
}

void Buffer::upload(const void* source, std::size_t bytes) {
#if defined(MIXGEMM_HAS_CUDA)
  if (device_ == Device::cuda) {
    check(cudaMemcpy(data(), source, bytes, cudaMemcpyHostToDevice), "copying to the device");
    return;
  }
#endif
  std::memcpy(data(), source, bytes);
}

void Buffer::download(void* target, std::size_t bytes) const {
#if defined(MIXGEMM_HAS_CUDA)
  if (device_ == Device::cuda) {
    check(cudaMemcpy(target, data(), bytes, cudaMemcpyDeviceToHost), "copying from the device");
    return;
  }
#endif
  std::memcpy(target, data(), bytes);
}

Product::Product(const PackedWeight& weight, std::int64_t m, DataType act, Device device,
                 const PlanOptions& options)
    : device_(device),
      source_(weight),
      weight_(device == Device::cuda ? to_cuda(weight.for_gathered_x()).value()
                                     : weight.for_gathered_x()),
      plan_(mixgemm::plan(problem_of(weight, m, act, device), options).value()),
      x_(device, matrix_bytes(m, weight.view().k)),
      y_(device, matrix_bytes(m, weight.view().n)),
      workspace_(device, plan_.workspace_bytes()) {
  args_.x = x_.data();
  args_.ldx = weight.view().k;
  args_.weight = weight_.view();
  args_.y = y_.data();
  args_.ldy = weight.view().n;
  args_.workspace = workspace_.data();
  args_.workspace_bytes = plan_.workspace_bytes();
  // NaN in both formats, so that an output that nothing wrote shows.
  const std::vector<std::uint16_t> poison(static_cast<std::size_t>(m * weight.view().n), 0x7fff);
  y_.upload(poison.data(), 2 * poison.size());
}

void Product::set_x(const std::vector<std::uint16_t>& x) {
  if (source_.permutation().empty()) {
    x_.upload(x.data(), 2 * x.size());
    return;
  }
  std::vector<std::uint16_t> gathered(x.size());
  gather_columns(source_.view(), x.data(), problem().m, problem().k, gathered.data(), problem().k)
      .throw_if_error();
  x_.upload(gathered.data(), 2 * gathered.size());
}

void Product::run() {
  plan_.run(args_).throw_if_error();
  synchronize(device_);
}

std::vector<std::uint16_t> Product::y() const {
  std::vector<std::uint16_t> values(static_cast<std::size_t>(problem().m * problem().n));
  y_.download(values.data(), 2 * values.size());
  return values;
}

}  // namespace mixgemm::cli
