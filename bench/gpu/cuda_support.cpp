// SPDX-License-Identifier: Apache-2.0
#include "gpu/cuda_support.hpp"

#include <dlfcn.h>
#include <fmt/format.h>

namespace mixgemm::bench {

void check(cudaError_t error, std::string_view what) {
  if (error == cudaSuccess) return;
  const StatusCode code =
      error == cudaErrorMemoryAllocation ? StatusCode::out_of_memory : StatusCode::device_error;
  throw Error(code,
              fmt::format("{}: {} ({})", what, cudaGetErrorString(error), cudaGetErrorName(error)));
}

void check_launch(std::string_view kernel) {
  check(cudaGetLastError(), fmt::format("launch of {}", kernel));
}

void DeviceBuffer::reserve(std::size_t bytes, std::string_view purpose) {
  if (bytes <= bytes_) return;
  check(cudaFree(data_), "cudaFree");
  data_ = nullptr;
  bytes_ = 0;
  check(cudaMalloc(&data_, bytes),
        fmt::format("cudaMalloc of {:.1f} MB for {}", static_cast<double>(bytes) * 1e-6, purpose));
  bytes_ = bytes;
}

double Event::us_since(const Event& start) const {
  float ms = 0;
  check(cudaEventElapsedTime(&ms, start.event_, event_), "cudaEventElapsedTime");
  return 1e3 * static_cast<double>(ms);
}

SharedLibrary SharedLibrary::open(const std::string& name) {
  SharedLibrary library;
  library.handle_ = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library.handle_ != nullptr) library.name_ = name;
  return library;
}

void* SharedLibrary::find_symbol(const char* symbol) const {
  return handle_ == nullptr ? nullptr : dlsym(handle_, symbol);
}

}  // namespace mixgemm::bench
