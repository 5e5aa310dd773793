// SPDX-License-Identifier: Apache-2.0
// The JSON of safetensors: parsed and checked, and written. No files here.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "mixgemm/checkpoint.hpp"
#include "mixgemm/status.hpp"

namespace mixgemm {

/// The format's own limit on the length of a header.
inline constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;
/// Bytes before the header: its length, u64.
inline constexpr std::uint64_t kHeaderLengthBytes = 8;
inline constexpr std::size_t kMaxRank = 32;
inline constexpr std::string_view kMetadataKey = "__metadata__";

struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;  ///< in the order of their bytes, which they cover exactly
  std::map<std::string, std::string> metadata;
};

/// Parses a header and checks it against `data_bytes`, the size of the section behind it. `where`
/// begins every message.
Result<SafetensorsHeader> parse_safetensors_header(std::string_view json, std::uint64_t data_bytes,
                                                   std::string_view where);

/// Size of a tensor, with the rules on dtype, rank and overflow. `where` begins every message.
Result<std::uint64_t> tensor_bytes(std::string_view name, std::string_view dtype,
                                   const std::vector<std::int64_t>& shape, std::string_view where);

/// The header's JSON, without padding. Names and metadata must be UTF-8.
std::string format_safetensors_header(const std::vector<TensorInfo>& tensors,
                                      const std::map<std::string, std::string>& metadata);

/// Parses an index: tensor name → file name. A file name must be a plain name, so that an index
/// can't reach outside its directory.
Result<std::unordered_map<std::string, std::string>> parse_safetensors_index(
    std::string_view json, std::string_view where);

/// The JSON of an index.
std::string format_safetensors_index(const std::map<std::string, std::string>& files_of_tensors,
                                     std::uint64_t total_bytes);

}  // namespace mixgemm
