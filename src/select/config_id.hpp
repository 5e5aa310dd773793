// SPDX-License-Identifier: Apache-2.0
// Configuration ids: a kernel id and the run-time part, e.g.
//   sm90_f16_i4_gz_t128x256x64_coop@g128_c2x1_s4_sk2
// The same string names a configuration in plans, benchmark rows, tuning caches and profiles.
#pragma once

#include <string>
#include <string_view>

#include "kernel_config.hpp"
#include "mixgemm/status.hpp"

namespace mixgemm::select {

/// kernel_id + "@g{group}_c{n}x{m}[x{k}]_s{stages}[_sk{split_k}|_streamk][_1p][_r{raster_m}]".
/// group_size 0 is per column; the raster is left out where it is LaunchConfig's default.
std::string config_id(std::string_view kernel_id, int group_size, const LaunchConfig& launch);

/// A configuration id taken apart.
struct ParsedConfigId {
  std::string kernel_id;
  bool has_launch = false;  ///< false: only a kernel id, the rest is free
  int group_size = 0;
  LaunchConfig launch;
};

/// The inverse of config_id(); also takes a bare kernel id. Fails with invalid_argument, quoting
/// the part that doesn't parse.
Result<ParsedConfigId> parse_config_id(std::string_view text);

}  // namespace mixgemm::select
