// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

namespace mixgemm::tuning {

/// A file of tuning/ as it was when the library was built.
struct ShippedCache {
  const char* name;
  const char* json;
};
std::span<const ShippedCache> shipped_caches();

}  // namespace mixgemm::tuning
