// SPDX-License-Identifier: Apache-2.0
// A legal problem with buffers of the right sizes, for tests to break one rule at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "layout/packed.hpp"
#include "mixgemm/gemm.hpp"

namespace mixgemm {

/// Zeroed memory on a 256-byte boundary.
class AlignedBuffer {
 public:
  explicit AlignedBuffer(std::size_t bytes)
      : memory_(std::calloc(bytes + 256, 1), std::free),
        begin_(reinterpret_cast<char*>((reinterpret_cast<std::uintptr_t>(memory_.get()) + 255) /
                                       256 * 256)) {}
  char* get() const { return begin_; }

 private:
  std::unique_ptr<void, void (*)(void*)> memory_;
  char* begin_;
};

/// What a test may ask of make_call().
struct Shape {
  std::int64_t m = 3, n = 33, k = 100;
  QuantSpec spec = {.zero = ZeroKind::integer, .group_size = 64};
  Epilogue epilogue = {.bias = true, .residual = true};
  std::size_t workspace_bytes = 512;
};

/// A problem, its arguments, and the memory behind them.
struct Call {
  Problem problem;
  RunArgs args;
  std::size_t workspace_bytes = 0;
  std::vector<AlignedBuffer> memory;

  char* allocate(std::size_t bytes) { return memory.emplace_back(bytes).get(); }
};

/// Every argument legal, nothing overlapping, leading dimensions a little larger than needed.
inline Call make_call(const Shape& shape = {}) {
  Call call;
  Problem& p = call.problem;
  p.m = shape.m;
  p.n = shape.n;
  p.k = shape.k;
  p.weight = shape.spec;
  p.epilogue = shape.epilogue;
  call.workspace_bytes = shape.workspace_bytes;

  RunArgs& a = call.args;
  const auto size = [](std::int64_t value) { return static_cast<std::size_t>(value); };
  a.ldx = p.k + 3;
  a.ldy = p.n + 1;
  a.x = call.allocate(size(p.m * a.ldx * 2));
  a.y = call.allocate(size(p.m * a.ldy * 2));
  if (p.epilogue.bias) a.bias = call.allocate(size(p.n * 2));
  if (p.epilogue.residual) {
    a.ldr = p.n + 2;
    a.residual = call.allocate(size(p.m * a.ldr * 2));
  }
  if (shape.workspace_bytes > 0) {
    a.workspace = call.allocate(shape.workspace_bytes);
    a.workspace_bytes = shape.workspace_bytes;
  }

  PackedView& w = a.weight;
  w.n = p.n;
  w.k = p.k;
  w.spec = p.weight;
  w.codes_pitch_bytes = layout::strip_bytes(p.k, bits_of(p.weight.type));
  w.groups_pitch = w.groups();
  const std::int64_t strips = layout::num_strips(p.n);
  const std::size_t scale_bytes = size(strips * w.groups_pitch * layout::kStripRows * 2);
  w.codes =
      reinterpret_cast<const std::uint8_t*>(call.allocate(size(strips * w.codes_pitch_bytes)));
  w.scales = reinterpret_cast<const std::uint16_t*>(call.allocate(scale_bytes));
  if (p.weight.zero != ZeroKind::none) w.zeros = call.allocate(scale_bytes);
  return call;
}

}  // namespace mixgemm
