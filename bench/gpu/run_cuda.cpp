// SPDX-License-Identifier: Apache-2.0
// The entry: options checked, mode dispatched, failures turned into a Status.
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "bench_api.hpp"
#include "gpu/modes.hpp"

namespace mixgemm::bench {
namespace {

Status check_options(const Options& options) {
  constexpr std::int64_t kMaxTokens = std::numeric_limits<std::int32_t>::max();
  for (const std::int64_t m : options.tokens) {
    if (m < 1 || m > kMaxTokens) {
      return {StatusCode::invalid_argument,
              fmt::format("M must be from 1 to {}; got {}", kMaxTokens, m)};
    }
  }
  const int groups[] = {0, 16, 32, 64, 128};
  if (std::find(std::begin(groups), std::end(groups), options.group) == std::end(groups)) {
    return {
        StatusCode::invalid_argument,
        fmt::format("group_size must be 0 (per column), 16, 32, 64 or 128; got {}", options.group)};
  }
  if (options.acts.empty()) {
    return {StatusCode::invalid_argument, "at least one activation type is needed; got none"};
  }
  for (const DataType act : options.acts) {
    if (act == DataType::f32) {
      return {StatusCode::invalid_argument, "activations must be fp16 or bf16; got f32"};
    }
  }
  if (options.load_ms < 0 || (options.load_ms > 0 && options.mode != Mode::gemm)) {
    return {StatusCode::invalid_argument,
            fmt::format("load_ms must be 0 or more, and 0 unless the mode is gemm; got {}",
                        options.load_ms)};
  }
  if (!(options.timeout_s >= 0)) {
    return {StatusCode::invalid_argument,
            fmt::format("the timeout must be 0 (none) or more seconds; got {}", options.timeout_s)};
  }
  return {};
}

Options with_defaults(Options options) {
  if (options.shapes.empty()) options.shapes = default_shapes();
  if (options.tokens.empty()) {
    switch (options.mode) {
      case Mode::gemm: options.tokens = default_tokens(); break;
      case Mode::chain: options.tokens = {1, 8, 16}; break;
      case Mode::host_cost: options.tokens = {1}; break;
    }
  }
  return options;
}

}  // namespace

Result<Summary> run_cuda(const Options& asked, const Callbacks& callbacks) {
  if (Status status = check_options(asked); !status.ok()) return status;
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess || count == 0) {
    cudaGetLastError();
    return Status(
        StatusCode::unsupported,
        fmt::format("no usable CUDA device: {}",
                    error == cudaSuccess ? "the driver shows none" : cudaGetErrorString(error)));
  }
  const Options options = with_defaults(asked);
  try {
    switch (options.mode) {
      case Mode::gemm: return run_gemms(options, callbacks);
      case Mode::chain: return run_chains(options, callbacks);
      case Mode::host_cost: return run_host_cost(options, callbacks);
    }
  } catch (const Error& error) {
    return Status(error.code(), error.what());
  }
  return Status(StatusCode::internal, "unknown benchmark mode");
}

}  // namespace mixgemm::bench
