// SPDX-License-Identifier: Apache-2.0
// The header of a packed weight: any text is refused or survives a round trip; any fields survive
// one if they are legal, and are refused if not.
#include "import/packed_header.hpp"

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

using namespace mixgemm;

bool same(const PackedLayerInfo& a, const PackedLayerInfo& b) {
  return a.n == b.n && a.k == b.k && a.spec == b.spec && a.columns == b.columns &&
         a.permutation_crc == b.permutation_crc && a.codes_crc == b.codes_crc &&
         a.scales_crc == b.scales_crc && a.zeros_crc == b.zeros_crc;
}

void require(bool condition) {
  if (!condition) std::abort();
}

/// Fields from raw bytes, out-of-range ones included.
PackedLayerInfo layer_from(const std::uint8_t* data, std::size_t size) {
  std::uint8_t raw[40] = {};
  std::memcpy(raw, data, size < sizeof(raw) ? size : sizeof(raw));
  PackedLayerInfo layer;
  std::memcpy(&layer.n, raw, 8);
  std::memcpy(&layer.k, raw + 8, 8);
  layer.n = raw[34] % 2 != 0 ? layer.n : layer.n & 0x7fffffff;
  layer.k = raw[34] / 2 % 2 != 0 ? layer.k : layer.k & 0x7fffffff;
  layer.spec.type = static_cast<WeightType>(raw[16] % 2);
  layer.spec.zero = static_cast<ZeroKind>(raw[17] % 3);
  layer.spec.scale_type = static_cast<DataType>(raw[18] % 3);
  layer.spec.group_size = raw[19];
  std::memcpy(&layer.codes_crc, raw + 20, 4);
  std::memcpy(&layer.scales_crc, raw + 24, 4);
  if (layer.spec.zero != ZeroKind::none) std::memcpy(&layer.zeros_crc, raw + 28, 4);
  layer.columns = static_cast<ColumnOrder>(raw[35] % 2);
  if (layer.columns == ColumnOrder::permuted) std::memcpy(&layer.permutation_crc, raw + 36, 4);
  return layer;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (const auto parsed = parse_packed_header(text, "layer"); parsed.ok()) {
    const auto again = parse_packed_header(format_packed_header(*parsed), "layer");
    require(again.ok() && same(*parsed, *again));
    static_cast<void>(packed_parts(*parsed));
  }
  const PackedLayerInfo layer = layer_from(data, size);
  const bool legal = check_packed_shape(layer.n, layer.k, layer.spec, "layer").ok();
  const auto parsed = parse_packed_header(format_packed_header(layer), "layer");
  require(parsed.ok() == legal);
  if (legal) require(same(*parsed, layer));
  return 0;
}
