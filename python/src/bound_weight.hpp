// SPDX-License-Identifier: Apache-2.0
// A packed weight in a framework's memory, bound once and multiplied often.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "exchange.hpp"
#include "product.hpp"

namespace mixgemm::python {

/// A packed weight in memory that somebody else owns, checked once. The owner must keep the memory
/// as long as `run` is called; `forward` looks itself.
class BoundWeight {
 public:
  /// Where a buffer lies, and its size in bytes; (0, 0) where there is none.
  using Memory = std::tuple<std::uintptr_t, std::size_t>;

  BoundWeight(std::int64_t n, std::int64_t k, int bits, int group_size, const std::string& zero,
              const std::string& dtype, const std::string& activation, bool is_cuda, int ordinal,
              const Memory& codes, const Memory& scales, const Memory& zeros,
              const Memory& permutation, const Memory& bias, bool pdl);

  /// The dense weight, float32 [N, K]; of a weight on the CPU.
  nb::object dense() const;

  /// x [m, K] → y [m, N] by address; `allocate` as for Workspace.
  void run(std::uintptr_t x, std::int64_t m, std::int64_t ldx, std::uintptr_t y,
           std::uintptr_t residual, float alpha, std::uintptr_t stream, nb::handle allocate) const;

  /// Takes what `forward` needs: the module's buffers that were bound, empty(shape, strides, dtype)
  /// for results, the dtype, `allocate` as for Workspace, and the device's KeptScratch, or None.
  /// The buffers live as long as we do.
  void hold(nb::dict buffers, nb::object empty, nb::object dtype, nb::object allocate,
            nb::object kept);

  /// y = the product of x with the held weight, on the current stream of x's library. None where x
  /// isn't what the product takes as it is (another type, dtype, device or shape, rows that aren't
  /// contiguous), or where a buffer has been replaced since: the caller finds out what to do.
  nb::object forward(nb::handle x, nb::handle buffers);

 private:
  static constexpr std::size_t kNumBuffers = 5;
  struct Held {
    nb::object tensor;  // or None
    const void* address = nullptr;
  };

  static nb::handle find(nb::handle buffers, std::size_t index);
  bool is_held(const Exchange& exchange, nb::handle buffers) const;
  void set_output_shape(const DlTensor& x);
  void multiply(const void* x, std::int64_t m, std::int64_t ldx, void* y, const void* residual,
                float alpha, void* stream, nb::handle allocate, KeptScratch* kept) const;

  PackedView view_;
  Place place_;
  DataType act_ = DataType::f16;
  Epilogue epilogue_;
  const void* bias_ = nullptr;
  bool pdl_ = false;

  // Of `forward`; empty_ is null until everything is held.
  std::array<Held, kNumBuffers> held_;
  nb::object empty_, dtype_, allocate_, kept_;
  KeptScratch* kept_scratch_ = nullptr;  // what kept_ is, or nullptr
  std::vector<std::int64_t> seen_shape_;
  nb::object output_shape_, output_strides_;
};

}  // namespace mixgemm::python
