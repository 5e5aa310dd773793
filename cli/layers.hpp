// SPDX-License-Identifier: Apache-2.0
// The layers and types that `bench` and `tune` are asked for.
#pragma once

#include <string>
#include <vector>

#include "bench_api.hpp"

namespace mixgemm::cli {

/// The layers of a shape file (empty: bench/shapes.json), all or those named.
std::vector<bench::Shape> select_shapes(const std::string& file,
                                        const std::vector<std::string>& layers);
/// "fp16", "bf16" → types; throws Error on any other word.
std::vector<DataType> parse_acts(const std::vector<std::string>& names);

}  // namespace mixgemm::cli
