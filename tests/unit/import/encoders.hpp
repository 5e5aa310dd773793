// SPDX-License-Identifier: Apache-2.0
// Encoders of the checkpoint formats, written from their definitions (docs/checkpoints.md) and
// sharing nothing with the importers: bit by bit, one code at a time.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "mixgemm/checkpoint.hpp"
#include "util/half.hpp"

namespace mixgemm::testing {

using Json = nlohmann::json;

/// A tensor to be written, and tampered with before.
struct RawTensor {
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::vector<std::uint8_t> bytes;

  template <class T>
  T* as() {
    return reinterpret_cast<T*>(bytes.data());
  }
};

template <class T>
RawTensor raw(std::string dtype, std::vector<std::int64_t> shape, const std::vector<T>& values) {
  RawTensor tensor{std::move(dtype), std::move(shape), {}};
  tensor.bytes.resize(values.size() * sizeof(T));
  std::memcpy(tensor.bytes.data(), values.data(), tensor.bytes.size());
  return tensor;
}

/// A checkpoint in memory: tensors and the config's quantization section.
struct RawCheckpoint {
  std::map<std::string, RawTensor> tensors;
  Json quantization;

  /// model.safetensors and config.json in `folder`.
  void write(const std::string& folder, std::uint64_t max_shard_bytes = 0) const {
    std::filesystem::create_directories(folder);
    auto writer = SafetensorsWriter::create(folder + "/model.safetensors",
                                            {.max_shard_bytes = max_shard_bytes})
                      .value();
    for (const auto& [name, tensor] : tensors) {
      writer.declare(name, tensor.dtype, tensor.shape).throw_if_error();
    }
    for (const auto& [name, tensor] : tensors) {
      writer.write(name, tensor.bytes.data(), tensor.bytes.size()).throw_if_error();
    }
    writer.finish().throw_if_error();
    Json config = {{"model_type", "llama"}};
    if (!quantization.is_null()) config["quantization_config"] = quantization;
    std::ofstream(folder + "/config.json") << config.dump(2);
  }
};

/// Codes, zeros and scales of a layer as a quantizer leaves them; group_of says which group a k is
/// in.
struct RawLayer {
  std::int64_t n = 0, k = 0, groups = 0;
  int bits = 4;
  DataType scale_type = DataType::f16;
  std::vector<int> codes;              // [N, K]
  std::vector<int> zeros;              // [N, G]
  std::vector<std::uint16_t> scales;   // [N, G]
  std::vector<std::int32_t> group_of;  // [K]

  float scale(std::int64_t row, std::int64_t g) const {
    return f32_from_bits(scales[static_cast<std::size_t>(row * groups + g)], scale_type);
  }
  /// (code − zero) · scale, [N, K]. Exact in fp32: 9 bits by 11.
  std::vector<float> dense() const {
    std::vector<float> w(codes.size());
    for (std::int64_t row = 0; row < n; ++row) {
      for (std::int64_t i = 0; i < k; ++i) {
        const std::int64_t g = group_of[static_cast<std::size_t>(i)];
        const int code = codes[static_cast<std::size_t>(row * k + i)];
        const int zero = zeros[static_cast<std::size_t>(row * groups + g)];
        w[static_cast<std::size_t>(row * k + i)] = static_cast<float>(code - zero) * scale(row, g);
      }
    }
    return w;
  }
};

/// What to draw a layer from.
struct LayerShape {
  std::int64_t n = 32, k = 128, group_size = 64;  // −1: per output feature
  int bits = 4;
  bool sym = true;
  bool act_order = false;
  DataType scale_type = DataType::f16;
};

inline RawLayer random_layer(const LayerShape& shape, std::uint64_t seed) {
  std::mt19937_64 rng(seed);
  RawLayer layer;
  layer.n = shape.n;
  layer.k = shape.k;
  layer.bits = shape.bits;
  layer.scale_type = shape.scale_type;
  const std::int64_t size = shape.group_size == -1 ? shape.k : shape.group_size;
  layer.groups = (shape.k + size - 1) / size;
  const int limit = 1 << shape.bits;
  layer.codes.resize(static_cast<std::size_t>(shape.n * shape.k));
  for (int& code : layer.codes) code = static_cast<int>(rng() % static_cast<unsigned>(limit));
  layer.zeros.resize(static_cast<std::size_t>(shape.n * layer.groups));
  for (int& zero : layer.zeros) {
    zero = shape.sym ? limit / 2 : static_cast<int>(rng() % static_cast<unsigned>(limit));
  }
  layer.scales.resize(layer.zeros.size());
  for (auto& scale : layer.scales) {
    scale = bits_from_f32(0.001f + 0.01f * static_cast<float>(rng() % 1000) / 1000.0f,
                          shape.scale_type);
  }
  std::vector<std::int32_t> order(static_cast<std::size_t>(shape.k));
  std::iota(order.begin(), order.end(), 0);
  if (shape.act_order) {
    for (std::size_t i = order.size() - 1; i > 0; --i) std::swap(order[i], order[rng() % (i + 1)]);
  }
  layer.group_of.resize(order.size());
  for (std::size_t i = 0; i < order.size(); ++i) {
    layer.group_of[static_cast<std::size_t>(order[i])] =
        static_cast<std::int32_t>(static_cast<std::int64_t>(i) / size);
  }
  return layer;
}

/// Sets `bits` bits at position `at` of a word's lane.
inline void put(std::vector<std::uint32_t>& words, std::int64_t word, int lane, int bits,
                int value) {
  words[static_cast<std::size_t>(word)] |= static_cast<std::uint32_t>(value) << (lane * bits);
}

inline std::string scale_dtype(DataType type) { return type == DataType::bf16 ? "BF16" : "F16"; }

/// [N, G] → [G, N].
template <class T>
std::vector<T> transposed(const std::vector<T>& values, std::int64_t rows, std::int64_t columns) {
  std::vector<T> out(values.size());
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < columns; ++c) {
      out[static_cast<std::size_t>(c * rows + r)] =
          values[static_cast<std::size_t>(r * columns + c)];
    }
  }
  return out;
}

/// version: 1 stores zero − 1, 2 the zero.
inline void encode_gptq(RawCheckpoint& to, const std::string& name, const RawLayer& layer,
                        int version, bool with_g_idx) {
  const int per_word = 32 / layer.bits;
  std::vector<std::uint32_t> qweight(static_cast<std::size_t>(layer.k / per_word * layer.n));
  for (std::int64_t row = 0; row < layer.n; ++row) {
    for (std::int64_t i = 0; i < layer.k; ++i) {
      put(qweight, i / per_word * layer.n + row, static_cast<int>(i % per_word), layer.bits,
          layer.codes[static_cast<std::size_t>(row * layer.k + i)]);
    }
  }
  std::vector<std::uint32_t> qzeros(static_cast<std::size_t>(layer.groups * layer.n / per_word));
  for (std::int64_t row = 0; row < layer.n; ++row) {
    for (std::int64_t g = 0; g < layer.groups; ++g) {
      const int zero = layer.zeros[static_cast<std::size_t>(row * layer.groups + g)];
      const int stored = (version == 1 ? zero - 1 : zero) & ((1 << layer.bits) - 1);
      put(qzeros, g * (layer.n / per_word) + row / per_word, static_cast<int>(row % per_word),
          layer.bits, stored);
    }
  }
  to.tensors[name + ".qweight"] = raw("I32", {layer.k / per_word, layer.n}, qweight);
  to.tensors[name + ".qzeros"] = raw("I32", {layer.groups, layer.n / per_word}, qzeros);
  to.tensors[name + ".scales"] = raw(scale_dtype(layer.scale_type), {layer.groups, layer.n},
                                     transposed(layer.scales, layer.n, layer.groups));
  if (with_g_idx) to.tensors[name + ".g_idx"] = raw("I32", {layer.k}, layer.group_of);
}

inline Json gptq_config(const LayerShape& shape, int version) {
  return {
      {"quant_method", "gptq"},         {"bits", shape.bits},
      {"group_size", shape.group_size}, {"sym", shape.sym},
      {"desc_act", shape.act_order},    {"checkpoint_format", version == 1 ? "gptq" : "gptq_v2"}};
}

/// Which n of its eight a nibble of an AWQ word belongs to, from the lowest.
inline constexpr int kAwqOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};

inline void encode_awq(RawCheckpoint& to, const std::string& name, const RawLayer& layer) {
  const auto lane_of = [](std::int64_t row) {
    int lane = 0;
    while (kAwqOrder[lane] != row % 8) ++lane;
    return lane;
  };
  std::vector<std::uint32_t> qweight(static_cast<std::size_t>(layer.k * layer.n / 8));
  std::vector<std::uint32_t> qzeros(static_cast<std::size_t>(layer.groups * layer.n / 8));
  for (std::int64_t row = 0; row < layer.n; ++row) {
    for (std::int64_t i = 0; i < layer.k; ++i) {
      put(qweight, i * (layer.n / 8) + row / 8, lane_of(row), 4,
          layer.codes[static_cast<std::size_t>(row * layer.k + i)]);
    }
    for (std::int64_t g = 0; g < layer.groups; ++g) {
      put(qzeros, g * (layer.n / 8) + row / 8, lane_of(row), 4,
          layer.zeros[static_cast<std::size_t>(row * layer.groups + g)]);
    }
  }
  to.tensors[name + ".qweight"] = raw("I32", {layer.k, layer.n / 8}, qweight);
  to.tensors[name + ".qzeros"] = raw("I32", {layer.groups, layer.n / 8}, qzeros);
  to.tensors[name + ".scales"] = raw(scale_dtype(layer.scale_type), {layer.groups, layer.n},
                                     transposed(layer.scales, layer.n, layer.groups));
}

inline Json awq_config(const LayerShape& shape) {
  return {{"quant_method", "awq"},
          {"bits", 4},
          {"group_size", shape.group_size},
          {"zero_point", true},
          {"version", "gemm"}};
}

enum class ZeroPoints { none, bytes, packed };

inline void encode_compressed_tensors(RawCheckpoint& to, const std::string& name,
                                      const RawLayer& layer, ZeroPoints zero_points,
                                      bool with_g_idx) {
  const int per_word = 32 / layer.bits;
  const std::int64_t row_words = (layer.k + per_word - 1) / per_word;
  std::vector<std::uint32_t> packed(static_cast<std::size_t>(layer.n * row_words));
  for (std::int64_t row = 0; row < layer.n; ++row) {
    for (std::int64_t i = 0; i < layer.k; ++i) {
      put(packed, row * row_words + i / per_word, static_cast<int>(i % per_word), layer.bits,
          layer.codes[static_cast<std::size_t>(row * layer.k + i)]);
    }
  }
  to.tensors[name + ".weight_packed"] = raw("I32", {layer.n, row_words}, packed);
  to.tensors[name + ".weight_shape"] = raw("I64", {2}, std::vector<std::int64_t>{layer.n, layer.k});
  to.tensors[name + ".weight_scale"] =
      raw(scale_dtype(layer.scale_type), {layer.n, layer.groups}, layer.scales);
  const int offset = 1 << (layer.bits - 1);
  if (zero_points == ZeroPoints::bytes) {
    std::vector<std::int8_t> zeros;
    for (const int zero : layer.zeros) zeros.push_back(static_cast<std::int8_t>(zero - offset));
    to.tensors[name + ".weight_zero_point"] = raw("I8", {layer.n, layer.groups}, zeros);
  } else if (zero_points == ZeroPoints::packed) {
    const std::int64_t rows = (layer.n + per_word - 1) / per_word;
    std::vector<std::uint32_t> zeros(static_cast<std::size_t>(rows * layer.groups));
    for (std::int64_t row = 0; row < layer.n; ++row) {
      for (std::int64_t g = 0; g < layer.groups; ++g) {
        put(zeros, row / per_word * layer.groups + g, static_cast<int>(row % per_word), layer.bits,
            layer.zeros[static_cast<std::size_t>(row * layer.groups + g)]);
      }
    }
    to.tensors[name + ".weight_zero_point"] = raw("I32", {rows, layer.groups}, zeros);
  }
  if (with_g_idx) to.tensors[name + ".weight_g_idx"] = raw("I32", {layer.k}, layer.group_of);
}

inline Json compressed_tensors_config(const LayerShape& shape) {
  Json weights = {{"num_bits", shape.bits},
                  {"type", "int"},
                  {"symmetric", shape.sym},
                  {"dynamic", false},
                  {"actorder", nullptr}};
  weights["strategy"] = shape.group_size == -1 ? "channel" : "group";
  weights["group_size"] = shape.group_size == -1 ? Json() : Json(shape.group_size);
  if (shape.act_order) weights["actorder"] = "group";
  const Json group = {{"targets", {"Linear"}},
                      {"weights", weights},
                      {"input_activations", nullptr},
                      {"output_activations", nullptr}};
  return {{"quant_method", "compressed-tensors"},
          {"format", "pack-quantized"},
          {"quantization_status", "compressed"},
          {"ignore", {"lm_head"}},
          {"config_groups", {{"group_0", group}}}};
}

/// zeros: [N, G] fp16, (code − zero) · scale.
inline void encode_hqq(RawCheckpoint& to, const std::string& name, const RawLayer& layer,
                       const std::vector<float>& zeros) {
  const std::int64_t rows = layer.n * layer.groups;
  const std::int64_t size = layer.k / layer.groups;
  const auto code_at = [&](std::int64_t row, std::int64_t column) {
    return static_cast<std::uint8_t>(layer.codes[static_cast<std::size_t>(row * size + column)]);
  };
  std::vector<std::uint8_t> bytes;
  const std::int64_t packed_rows = layer.bits == 4 ? rows / 2 : rows;
  for (std::int64_t row = 0; row < packed_rows; ++row) {
    for (std::int64_t c = 0; c < size; ++c) {
      const int high = code_at(row, c);
      bytes.push_back(static_cast<std::uint8_t>(
          layer.bits == 8 ? high : high << 4 | code_at(row + rows / 2, c)));
    }
  }
  std::vector<std::uint16_t> zero_bits;
  for (const float zero : zeros) zero_bits.push_back(bits_from_f32(zero, layer.scale_type));
  const std::string dtype = scale_dtype(layer.scale_type);
  const auto number = [&](std::int32_t value) {
    return raw("I32", {}, std::vector<std::int32_t>{value});
  };
  const auto flag = [&](std::uint8_t value) {
    return raw("U8", {}, std::vector<std::uint8_t>{value});
  };
  to.tensors[name + ".W_q"] = raw("U8", {packed_rows, size}, bytes);
  to.tensors[name + ".scale"] = raw(dtype, {rows, 1}, layer.scales);
  to.tensors[name + ".zero"] = raw(dtype, {rows, 1}, zero_bits);
  to.tensors[name + ".shape"] = raw("I64", {2}, std::vector<std::int64_t>{layer.n, layer.k});
  to.tensors[name + ".nbits"] = number(layer.bits);
  to.tensors[name + ".group_size"] = number(static_cast<std::int32_t>(size));
  to.tensors[name + ".axis"] = number(1);
  to.tensors[name + ".view_as_float"] = flag(0);
  to.tensors[name + ".channel_wise"] = flag(1);
}

inline Json hqq_config(const LayerShape& shape) {
  const Json params = {{"nbits", shape.bits}, {"group_size", shape.group_size}, {"axis", 1}};
  return {{"quant_method", "hqq"},
          {"quant_config",
           {{"weight_quant_params", params},
            {"scale_quant_params", nullptr},
            {"zero_quant_params", nullptr}}}};
}

/// A directory that goes with the object.
class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "mixgemm-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp: " + name);
    path_ = name;
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

}  // namespace mixgemm::testing
