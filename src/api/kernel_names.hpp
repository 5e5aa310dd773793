// SPDX-License-Identifier: Apache-2.0
// What to say when a kernel that was asked for by name isn't there.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "mixgemm/status.hpp"

namespace mixgemm {

/// Up to `limit` of the candidates, nearest to `name` first (edit distance; ties in the order
/// given).
std::vector<std::string> nearest_names(std::string_view name,
                                       const std::vector<std::string>& candidates,
                                       std::size_t limit = 3);

/// not_found: names the kernel, the nearest ones of `candidates`, and where all are listed. `hint`,
/// if any, follows (such as how to build the missing one).
Status kernel_not_found(std::string_view name, const std::vector<std::string>& candidates,
                        std::string_view hint = {});

}  // namespace mixgemm
