// SPDX-License-Identifier: Apache-2.0
// Memory of a packed weight while it is being written.
#pragma once

#include <cstdint>
#include <memory>

#include "mixgemm/status.hpp"
#include "mixgemm/weight.hpp"

namespace mixgemm {

/// One 256-byte-aligned allocation: codes, then scales, then zeros, each part 256-byte aligned.
/// Nothing in it is initialized.
struct PackedBuffer {
  PackedView view;  ///< what the finished weight will show; the pointers below are its, writable
  std::uint8_t* codes = nullptr;          ///< [strips][k-blocks][cell]
  std::uint16_t* scales = nullptr;        ///< [strips][G][16]
  std::uint8_t* integer_zeros = nullptr;  ///< [strips][G][16], or null
  std::uint16_t* scaled_zeros = nullptr;  ///< [strips][G][16], or null
  std::shared_ptr<void> storage;
};

/// Allocates for a weight whose spec and size passed check_spec() and check_size(); out_of_memory
/// names the bytes.
Result<PackedBuffer> allocate_packed(std::int64_t n, std::int64_t k, const QuantSpec& spec);

/// The code that fills the padding inside a packed weight: worth 0 wherever codes alone decide.
constexpr std::uint8_t padding_code(const QuantSpec& spec) {
  return spec.zero == ZeroKind::none ? static_cast<std::uint8_t>(implicit_zero(spec.type)) : 0;
}

}  // namespace mixgemm
