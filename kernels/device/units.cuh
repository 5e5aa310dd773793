// SPDX-License-Identifier: Apache-2.0
// The units of a thread's sums, by its kernel's activations and whether scales are folded.
#pragma once

#include "device/row_units.cuh"
#include "device/wide_units.cuh"
#include "kernel_config.hpp"

namespace mixgemm::device {

/// Where weights take the scales themselves: units of one.
struct NoUnits {
  struct Windows {};
};

template <bool kFolded, DataType kAct, WeightType kWeight>
struct UnitsOf {
  using Type = NoUnits;
};
template <WeightType kWeight>
struct UnitsOf<true, DataType::f16, kWeight> {
  using Type = RowUnits<kWeight>;
};
template <WeightType kWeight>
struct UnitsOf<true, DataType::bf16, kWeight> {
  using Type = WideUnits<kWeight>;
};

}  // namespace mixgemm::device
