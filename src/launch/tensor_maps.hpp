// SPDX-License-Identifier: Apache-2.0
// Encoded tensor maps, remembered. Encoding is a pure function of a TensorMapShape and costs some
// 0.3 µs; a decoder's layers ask for the same few hundred maps again and again.
#pragma once

#include "kernel_config.hpp"
#include "launch/geometry.hpp"
#include "mixgemm/status.hpp"

namespace mixgemm::cuda {

/// Finds the driver's encoder. Fails where there is no driver or one that is too old; asked at plan
/// time, so that encode() can't fail for that reason.
Status load_tensor_map_encoder();

/// Writes the map to `out`: from the cache, or encoded and then remembered. Thread-safe, never
/// allocates, never synchronizes, so it may run under stream capture.
Status encode(const launch::TensorMapShape& shape, TensorMap& out);

}  // namespace mixgemm::cuda
