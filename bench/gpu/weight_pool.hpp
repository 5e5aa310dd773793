// SPDX-License-Identifier: Apache-2.0
// Cold copies of one packed weight on the device: of a random one made there, or of a given one.
#pragma once

#include <cstdint>

#include "bench_api.hpp"
#include "gpu/cuda_support.hpp"
#include "gpu/floor.hpp"

namespace mixgemm::bench {

/// All copies hold the same numbers at different addresses: cold all the same, and whichever copy
/// the last timed launch read, its output can be checked.
class WeightPool {
 public:
  /// Fills codes, scales and zeros of all copies. spec.scale_type is the activation type.
  void make(const Shape& shape, const QuantSpec& spec, int copies, cudaStream_t stream);
  /// Only scales and zeros anew, for the same shape and codes and another spec of the same sizes.
  void remake_scales(const QuantSpec& spec, cudaStream_t stream);

  /// Copies of a whole weight that lies on the device.
  void copy(const PackedView& weight, int copies, cudaStream_t stream);
  /// What one copy of it takes.
  static double bytes_of(const PackedView& weight) {
    return static_cast<double>(layout_of({weight.n, weight.k, ""}, weight.spec).stride);
  }

  PackedView view(int copy) const;
  int copies() const { return copies_; }
  /// Bytes of one copy, codes with scales and zeros.
  std::size_t copy_bytes() const { return layout_.stride; }
  /// The floor of reading the codes; `timer` must use the stream that made them.
  Floor measure_floor(const GraphTimer& timer, int num_sms, bool pdl) const;

  /// Where the parts of a copy lie, bytes from its start; each part begins at a multiple of 256.
  struct Layout {
    std::size_t codes_bytes = 0;
    std::size_t scales = 0;
    std::size_t zeros = 0;  ///< 0: none
    std::size_t stride = 0;
    std::int64_t num_scales = 0;
  };
  static Layout layout_of(const Shape& shape, const QuantSpec& spec);

 private:
  Shape shape_;
  QuantSpec spec_;
  int copies_ = 0;
  Layout layout_;
  DeviceBuffer memory_;
};

}  // namespace mixgemm::bench
