// SPDX-License-Identifier: Apache-2.0
// Vocabulary of the library: number formats, zero-point kinds, quantization specs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "mixgemm/export.hpp"

namespace mixgemm {

/// 16- and 32-bit floating-point formats of activations, outputs, scales and dense weights.
enum class DataType : std::uint8_t { f16 = 0, bf16 = 1, f32 = 2 };

/// Width of a weight code. Codes are unsigned; signedness lives in the zero point.
enum class WeightType : std::uint8_t { int4 = 0, int8 = 1 };

/// How a code becomes a weight (docs/packed_layout.md):
///   none    w = (q − 2^(bits−1)) · s           the implicit zero, 8 or 128
///   integer w = (q − z) · s                    z is a stored code, one per group
///   scaled  w = q · s − z                      z is already multiplied by the scale
enum class ZeroKind : std::uint8_t { none = 0, integer = 1, scaled = 2 };

/// Activation function of the epilogue. gelu is the tanh approximation.
enum class Activation : std::uint8_t { none = 0, relu = 1, gelu = 2, silu = 3 };

/// Where pointers live and where a plan runs.
enum class Device : std::uint8_t { cpu = 0, cuda = 1 };

/// Whether a packed weight's columns are in the order of the input features, or in another that a
/// permutation gives (PackedView::permutation).
enum class ColumnOrder : std::uint8_t { natural = 0, permuted = 1 };

/// Number of bits of one code.
constexpr int bits_of(WeightType type) { return type == WeightType::int4 ? 4 : 8; }

/// Number of bytes of one element.
constexpr int bytes_of(DataType type) { return type == DataType::f32 ? 4 : 2; }

/// The zero point that ZeroKind::none stands for.
constexpr int implicit_zero(WeightType type) { return type == WeightType::int4 ? 8 : 128; }

/// Everything that says how the numbers of a quantized weight are to be read.
struct QuantSpec {
  WeightType type = WeightType::int4;
  ZeroKind zero = ZeroKind::none;
  int group_size = 128;  ///< consecutive k that share a scale: 16, 32, 64, 128; 0 = per column
  DataType scale_type = DataType::f16;  ///< f16 or bf16; kernels need scale type = activation type

  friend constexpr bool operator==(const QuantSpec&, const QuantSpec&) = default;
};

/// Groups along K. The last group may be partial: K need not be a multiple of the group size.
constexpr std::int64_t num_groups(std::int64_t k, int group_size) {
  return group_size == 0 ? 1 : (k + group_size - 1) / group_size;
}

/// "f16", "bf16", "f32"; "int4", "int8"; "none", "integer", "scaled"; ... as files and the CLI
/// spell them. The static strings never go away.
MIXGEMM_API std::string_view to_string(DataType type);
MIXGEMM_API std::string_view to_string(WeightType type);
MIXGEMM_API std::string_view to_string(ZeroKind kind);
MIXGEMM_API std::string_view to_string(Activation activation);
MIXGEMM_API std::string_view to_string(Device device);

}  // namespace mixgemm
