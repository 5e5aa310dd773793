// SPDX-License-Identifier: Apache-2.0
// What every product of the extension needs: a plan for where the weight lies, and scratch memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>

#include "array.hpp"
#include "cuda_device.hpp"
#include "mixgemm/gemm.hpp"
#include "scratch.hpp"

namespace mixgemm::python {

/// How a product is to be computed, besides its operands.
struct Options {
  std::string kernel;
  int num_threads = 0;
  bool deterministic = true;
  bool batch_invariant = false;
};

/// The plan for a product of m rows. The place's device must be current (DeviceGuard).
Plan make_plan(const PackedView& weight, Place place, std::int64_t m, DataType act,
               const Epilogue& epilogue, const Options& options);

/// Memory for partial sums. On the CPU it is ours; on a CUDA device it comes from the caller's
/// framework, so that its allocator knows the stream that uses it and a captured graph keeps it.
/// To be destroyed after the product is enqueued, with the GIL.
class Workspace {
 public:
  /// allocate(bytes) → (whatever keeps the memory alive, its address); called on a device alone,
  /// and only where memory is needed. kept: nullptr, or the device's blocks, of which that of
  /// `stream` serves unless the stream is being captured; then `allocate` is as for it, too. The
  /// place's device must be current.
  Workspace(std::size_t bytes, Place place, nb::handle allocate, KeptScratch* kept = nullptr,
            void* stream = nullptr);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::size_t bytes_;
  void* data_ = nullptr;
  std::unique_ptr<void, Free> owned_;
  nb::tuple allocated_;
  KeptScratch* kept_ = nullptr;  // whose block_ this is; nullptr: it isn't
  void* stream_ = nullptr;
  KeptScratch::Block block_;
};

}  // namespace mixgemm::python
