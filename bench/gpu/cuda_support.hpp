// SPDX-License-Identifier: Apache-2.0
// Ownership and error checks for the CUDA benchmark. A failed call throws mixgemm::Error, which
// run_cuda() turns into a Status or a failed row.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>
#include <string_view>

#include "mixgemm/status.hpp"

namespace mixgemm::bench {

/// Throws Error(device_error or out_of_memory) "what: CUDA's sentence (its name)".
void check(cudaError_t error, std::string_view what);
/// Throws when the kernel launch before it failed.
void check_launch(std::string_view kernel);

/// Device memory that grows on demand and is never smaller than it was, so that a sweep over layers
/// allocates a few times in all.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  ~DeviceBuffer() { cudaFree(data_); }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  /// At least `bytes`; what was inside may be lost. `purpose` is for the message of a failure.
  void reserve(std::size_t bytes, std::string_view purpose);
  template <class T = std::byte>
  T* as() const {
    return static_cast<T*>(data_);
  }
  std::size_t size_bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

class Stream {
 public:
  Stream() {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
  }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  cudaStream_t get() const { return stream_; }
  void synchronize() const { check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

 private:
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  Event() { check(cudaEventCreate(&event_), "cudaEventCreate"); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(cudaStream_t stream) const {
    check(cudaEventRecord(event_, stream), "cudaEventRecord");
  }
  void synchronize() const { check(cudaEventSynchronize(event_), "cudaEventSynchronize"); }
  /// µs since `start`; both complete.
  double us_since(const Event& start) const;

 private:
  cudaEvent_t event_ = nullptr;
};

/// A shared library opened at run time, closed never: CUDA libraries don't survive being unloaded.
class SharedLibrary {
 public:
  /// Opens the first of `names` that opens; empty() when none does.
  template <class Names>
  static SharedLibrary open_first(const Names& names) {
    for (const auto& name : names) {
      if (SharedLibrary library = open(name); !library.empty()) return library;
    }
    return {};
  }
  bool empty() const { return handle_ == nullptr; }
  const std::string& name() const { return name_; }
  /// Sets `function` to the symbol; false (and nullptr) when the library lacks it.
  template <class Function>
  bool find(const char* symbol, Function*& function) const {
    function = reinterpret_cast<Function*>(find_symbol(symbol));
    return function != nullptr;
  }

 private:
  static SharedLibrary open(const std::string& name);
  void* find_symbol(const char* symbol) const;

  void* handle_ = nullptr;
  std::string name_;
};

}  // namespace mixgemm::bench
