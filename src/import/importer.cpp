// SPDX-License-Identifier: Apache-2.0
#include "import/importer.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "import/errors.hpp"
#include "util/half.hpp"
#include "util/join.hpp"
#include "weight/checks.hpp"

namespace mixgemm {

Result<std::vector<std::string>> find_layers(const SafetensorsFile& file, std::string_view suffix,
                                             std::initializer_list<std::string_view> parts) {
  std::set<std::string> names;
  const auto layer_of = [](const std::string& tensor, std::string_view end) {
    return tensor.substr(0, tensor.size() - end.size());
  };
  for (const TensorInfo& tensor : file.tensors()) {
    if (!tensor.name.ends_with(suffix)) continue;
    if (tensor.name.size() == suffix.size()) {
      return failure(StatusCode::corrupt_data, "tensor {}: must have a layer's name before {}",
                     in_quotes(tensor.name), suffix);
    }
    names.insert(layer_of(tensor.name, suffix));
  }
  for (const TensorInfo& tensor : file.tensors()) {
    for (const std::string_view part : parts) {
      if (!tensor.name.ends_with(part) || names.contains(layer_of(tensor.name, part))) continue;
      return failure(StatusCode::corrupt_data, "tensor {}: must belong to a layer; {} is missing",
                     in_quotes(tensor.name),
                     in_quotes(layer_of(tensor.name, part) + std::string(suffix)));
    }
  }
  return std::vector<std::string>(names.begin(), names.end());
}

Result<TensorInfo> layer_tensor(const SafetensorsFile& file, const std::string& layer,
                                std::string_view suffix,
                                std::initializer_list<std::string_view> dtypes) {
  const std::string name = layer + std::string(suffix);
  const TensorInfo* tensor = file.info(name);
  if (tensor == nullptr) {
    return failure(StatusCode::corrupt_data, "layer {}: must have a tensor {}; it is missing",
                   in_quotes(layer), in_quotes(name));
  }
  if (std::find(dtypes.begin(), dtypes.end(), tensor->dtype) == dtypes.end()) {
    return failure(StatusCode::corrupt_data, "tensor {}: dtype must be {}; got {}", in_quotes(name),
                   joined(dtypes, " or "), tensor->dtype);
  }
  return *tensor;
}

Status check_shape(const TensorInfo& tensor, const std::vector<std::int64_t>& shape,
                   std::string_view rule) {
  if (tensor.shape == shape) return {};
  return failure(StatusCode::corrupt_data, "tensor {}: shape must be {} = [{}]; got [{}]",
                 in_quotes(tensor.name), rule, joined(shape), joined(tensor.shape));
}

Status check_matrix(const TensorInfo& tensor, std::string_view rule) {
  if (tensor.shape.size() == 2) return {};
  return failure(StatusCode::corrupt_data, "tensor {}: shape must be {}; got [{}]",
                 in_quotes(tensor.name), rule, joined(tensor.shape));
}

Status check_layer_size(const std::string& layer, std::int64_t n, std::int64_t k) {
  const Status status = check_size(n, k);
  if (status.ok()) return {};
  return failure(StatusCode::corrupt_data, "layer {}: {}", in_quotes(layer), status.message());
}

Result<WeightType> weight_type_of(std::int64_t bits, std::string_view field) {
  if (bits == 4) return WeightType::int4;
  if (bits == 8) return WeightType::int8;
  return failure(StatusCode::unsupported, "{} must be 4 or 8; got {}", field, bits);
}

// ------------------------------------------------------------------ groups

Result<Grouping> plan_groups(std::int64_t k, std::int64_t size, std::string_view field) {
  if (size != -1 && size < 1) {
    return failure(StatusCode::corrupt_data,
                   "{} must be −1 (one group per output feature) or at least 1; got {}", field,
                   size);
  }
  Grouping groups;
  if (size == -1 || size >= k) {
    groups.source_size = k;
    return groups;
  }
  groups.source_size = size;
  groups.source_groups = (k + size - 1) / size;
  for (const int ours : {128, 64, 32, 16}) {
    if (size % ours != 0) continue;
    groups.group_size = ours;
    groups.repeat = size / ours;
    return groups;
  }
  return failure(StatusCode::unsupported,
                 "{} must be −1, a multiple of 16, or at least K = {}; got {}", field, k, size);
}

Result<std::vector<std::int32_t>> permutation_of(const TensorView& g_idx, std::int64_t k,
                                                 const Grouping& groups) {
  const std::string where = fmt::format("tensor {}", in_quotes(g_idx.info.name));
  const auto group_at = [&](std::int64_t i) -> std::int64_t {
    if (g_idx.info.dtype == "I64") return static_cast<const std::int64_t*>(g_idx.data)[i];
    return static_cast<const std::int32_t*>(g_idx.data)[i];
  };
  std::vector<std::int64_t> counts(static_cast<std::size_t>(groups.source_groups));
  bool in_order = true;
  for (std::int64_t i = 0; i < k; ++i) {
    const std::int64_t group = group_at(i);
    if (group < 0 || group >= groups.source_groups) {
      return failure(StatusCode::corrupt_data, "{}: must hold groups in 0 … {}; element {} is {}",
                     where, groups.source_groups - 1, i, group);
    }
    ++counts[static_cast<std::size_t>(group)];
    in_order = in_order && group == i / groups.source_size;
  }
  if (in_order) return std::vector<std::int32_t>();
  std::vector<std::int64_t> next(counts.size());
  for (std::int64_t g = 0; g < groups.source_groups; ++g) {
    const std::int64_t begin = g * groups.source_size;
    const std::int64_t wanted = std::min(k - begin, groups.source_size);
    const std::int64_t count = counts[static_cast<std::size_t>(g)];
    if (count != wanted) {
      return failure(StatusCode::corrupt_data,
                     "{}: group {} must have {} of the K = {} elements; got {}", where, g, wanted,
                     k, count);
    }
    next[static_cast<std::size_t>(g)] = begin;
  }
  std::vector<std::int32_t> permutation(static_cast<std::size_t>(k));
  for (std::int64_t i = 0; i < k; ++i) {
    std::int64_t& at = next[static_cast<std::size_t>(group_at(i))];
    permutation[static_cast<std::size_t>(at++)] = static_cast<std::int32_t>(i);
  }
  return permutation;
}

std::vector<std::int32_t> inverse(const std::vector<std::int32_t>& permutation) {
  std::vector<std::int32_t> result(permutation.size());
  for (std::size_t j = 0; j < permutation.size(); ++j) {
    result[static_cast<std::size_t>(permutation[j])] = static_cast<std::int32_t>(j);
  }
  return result;
}

// ------------------------------------------------------------------ codes in 32-bit words

Result<WordTensors<TensorInfo>> word_tensors(const SafetensorsFile& file,
                                             const std::string& layer) {
  auto qweight = layer_tensor(file, layer, ".qweight", {"I32"});
  if (!qweight.ok()) return qweight.status();
  auto qzeros = layer_tensor(file, layer, ".qzeros", {"I32"});
  if (!qzeros.ok()) return qzeros.status();
  auto scales = layer_tensor(file, layer, ".scales", {"F16", "BF16", "F32"});
  if (!scales.ok()) return scales.status();
  return WordTensors<TensorInfo>{*std::move(qweight), *std::move(qzeros), *std::move(scales)};
}

Result<WordTensors<TensorView>> word_views(const SafetensorsFile& file, const std::string& layer) {
  auto qweight = file.find(layer + ".qweight");
  if (!qweight.ok()) return qweight.status();
  auto qzeros = file.find(layer + ".qzeros");
  if (!qzeros.ok()) return qzeros.status();
  auto scales = file.find(layer + ".scales");
  if (!scales.ok()) return scales.status();
  return WordTensors<TensorView>{*std::move(qweight), *std::move(qzeros), *std::move(scales)};
}

Result<Grouping> word_groups(const WordTensors<TensorInfo>& tensors, const ImportedLayer& layer,
                             int codes_per_word, std::int64_t size, std::string_view field) {
  auto groups = plan_groups(layer.k, size, field);
  if (!groups.ok()) return groups;
  const std::int64_t num_groups = groups->source_groups;
  if (Status s = check_shape(tensors.scales, {num_groups, layer.n}, "[K / group_size, N]");
      !s.ok()) {
    return s;
  }
  if (Status s = check_shape(tensors.qzeros, {num_groups, layer.n / codes_per_word},
                             "[K / group_size, N·bits/32]");
      !s.ok()) {
    return s;
  }
  return groups;
}

// ------------------------------------------------------------------ scales

DataType scale_type_for(const TensorInfo& scales, const ImportOptions& options) {
  if (options.scale_type) return *options.scale_type;
  return scales.dtype == "BF16" ? DataType::bf16 : DataType::f16;
}

double FloatMatrix::at(std::int64_t row, std::int64_t group) const {
  const std::int64_t i = row * row_stride + group * group_stride;
  if (tensor.info.dtype == "F32") return static_cast<const float*>(tensor.data)[i];
  return f32_from_bits(static_cast<const std::uint16_t*>(tensor.data)[i],
                       tensor.info.dtype == "BF16" ? DataType::bf16 : DataType::f16);
}

std::string FloatMatrix::where(std::int64_t row, std::int64_t group) const {
  return fmt::format("tensor {}: row {}, group {}", in_quotes(tensor.info.name), row, group);
}

Result<std::uint16_t> to_scale_type(double value, DataType type, bool exact,
                                    std::string_view where) {
  if (!std::isfinite(value)) {
    return failure(StatusCode::corrupt_data, "{}: must be finite; got {}", where, value);
  }
  // Through float: exact for every float, and for the product of two 16-bit ones.
  const std::uint16_t bits = bits_from_f32(static_cast<float>(value), type);
  const double rounded = f32_from_bits(bits, type);
  if (!std::isfinite(rounded)) {
    return failure(StatusCode::corrupt_data, "{}: must fit {}; got {}", where, to_string(type),
                   value);
  }
  if (exact && rounded != value) {
    return failure(StatusCode::corrupt_data,
                   "{}: must be exact in {}, unless a scale type to round to is asked for; got {}",
                   where, to_string(type), value);
  }
  return bits;
}

Status fill_scales(const FloatMatrix& scales, const Grouping& groups, const ImportOptions& options,
                   CanonicalWeight& weight) {
  const std::int64_t num_groups = weight.groups();
  weight.scales.resize(static_cast<std::size_t>(weight.n * num_groups));
  for (std::int64_t row = 0; row < weight.n; ++row) {
    for (std::int64_t g = 0; g < num_groups; ++g) {
      const std::int64_t source = groups.source_of(g);
      const double value = scales.at(row, source);
      const auto bits = to_scale_type(value, weight.spec.scale_type, !options.scale_type, "");
      if (!bits.ok()) {  // the place is spelled out only when it is needed
        return to_scale_type(value, weight.spec.scale_type, !options.scale_type,
                             scales.where(row, source))
            .status();
      }
      weight.scales[static_cast<std::size_t>(row * num_groups + g)] = *bits;
    }
  }
  return {};
}

}  // namespace mixgemm
