// SPDX-License-Identifier: Apache-2.0
// The parts of the extension module, one file each.
#pragma once

#include "array.hpp"
#include "mixgemm/weight.hpp"

namespace mixgemm::python {

/// A packed weight and where it lies. Immutable, like the PackedWeight in it.
struct PlacedWeight {
  PackedWeight weight;
  Place place;

  const PackedView& view() const { return weight.view(); }
};

void bind_weight(nb::module_& m);        // weight.cpp
void bind_gemm(nb::module_& m);          // gemm.cpp
void bind_scratch(nb::module_& m);       // scratch.cpp
void bind_bound_weight(nb::module_& m);  // bound_weight.cpp
void bind_torch_calls(nb::module_& m);   // torch_calls.cpp
void bind_checkpoint(nb::module_& m);    // checkpoint.cpp
void bind_tuning(nb::module_& m);        // tuning.cpp

}  // namespace mixgemm::python
