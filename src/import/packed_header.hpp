// SPDX-License-Identifier: Apache-2.0
// The header of one packed weight: a flat JSON object, kept as a string in a file's __metadata__
// (docs/file_format.md). No files here.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "mixgemm/checkpoint.hpp"
#include "mixgemm/status.hpp"

namespace mixgemm {

/// Metadata keys. All keys that begin with kReservedPrefix are ours.
inline constexpr std::string_view kReservedPrefix = "mixgemm.";
inline constexpr std::string_view kVersionKey = "mixgemm.format_version";
inline constexpr std::string_view kPackedKeyPrefix = "mixgemm.packed.";  ///< + name: a header
inline constexpr std::string_view kDenseKeyPrefix = "mixgemm.crc32c.";   ///< + name: eight digits

/// A tensor that a packed weight consists of.
struct PackedPart {
  std::string_view suffix;  ///< ".codes", ".scales", ".zeros", ".permutation"
  std::string_view dtype;
  std::vector<std::int64_t> shape;
};

/// All that a packed weight may consist of.
inline constexpr std::string_view kPackedSuffixes[] = {".codes", ".scales", ".zeros",
                                                       ".permutation"};

/// The parts of a packed weight, in that order, zeros only where the zero kind stores some, a
/// permutation only where columns are permuted.
std::vector<PackedPart> packed_parts(std::int64_t n, std::int64_t k, const QuantSpec& spec,
                                     ColumnOrder columns);
inline std::vector<PackedPart> packed_parts(const PackedLayerInfo& layer) {
  return packed_parts(layer.n, layer.k, layer.spec, layer.columns);
}

/// Where a layer's header keeps the checksum of the part with this suffix.
std::uint32_t& stored_crc(PackedLayerInfo& layer, std::string_view suffix);
inline std::uint32_t stored_crc(const PackedLayerInfo& layer, std::string_view suffix) {
  return stored_crc(const_cast<PackedLayerInfo&>(layer), suffix);
}

/// Checks that N, K and spec are legal. `where` begins the message.
Status check_packed_shape(std::int64_t n, std::int64_t k, const QuantSpec& spec,
                          std::string_view where);

/// The header's text; its length doesn't depend on the checksums.
std::string format_packed_header(const PackedLayerInfo& layer);

/// Parses and checks a header: version first, then every field, then the header's own checksum.
/// Sets all of PackedLayerInfo but name and size_bytes. `where` begins every message.
Result<PackedLayerInfo> parse_packed_header(std::string_view json, std::string_view where);

/// CRC-32C as files spell it: eight lower-case hexadecimal digits.
std::string format_crc(std::uint32_t crc);
/// Parses format_crc's spelling; `where` begins the message.
Result<std::uint32_t> parse_crc(std::string_view text, std::string_view where);

/// Checks values that any later arithmetic relies on: scales (and scaled zeros) are finite, integer
/// zeros are codes, a permutation has every index once. part: which; count: elements. `where`
/// begins the message.
Status check_values(std::string_view part, const QuantSpec& spec, const void* data,
                    std::size_t count, std::string_view where);

}  // namespace mixgemm
