// SPDX-License-Identifier: Apache-2.0
// ModelCheckpoint: which format a checkpoint has, by its config, and the importer for it.
#include <algorithm>
#include <array>
#include <filesystem>
#include <utility>

#include "import/errors.hpp"
#include "import/importer.hpp"
#include "import/mapped_file.hpp"

namespace mixgemm {
namespace {

namespace fs = std::filesystem;

struct Format {
  CheckpointFormat format;
  std::string_view method;  // of quant_method
  std::string_view marker;  // suffix of a tensor that every layer has
  ImporterResult (*import)(const SafetensorsFile&, ConfigSection, const ImportOptions&);
};

constexpr std::array kFormats = {
    Format{CheckpointFormat::gptq, "gptq", ".qweight", import_gptq},
    Format{CheckpointFormat::awq, "awq", ".qweight", import_awq},
    Format{CheckpointFormat::compressed_tensors, "compressed-tensors", ".weight_packed",
           import_compressed_tensors},
    Format{CheckpointFormat::hqq, "hqq", ".W_q", import_hqq},
};

/// The text of a file, or nothing where there is none.
Result<std::optional<std::string>> read_optional(const std::string& path) {
  std::error_code ignored;
  if (!fs::exists(path, ignored)) return std::optional<std::string>();
  const auto file = MappedFile::open(path);
  if (!file.ok()) return file.status();
  return std::optional<std::string>(std::in_place, reinterpret_cast<const char*>((*file)->data()),
                                    (*file)->size());
}

/// A tensor that only quantized checkpoints have, or nullptr.
const TensorInfo* quantized_tensor(const SafetensorsFile& file) {
  for (const TensorInfo& tensor : file.tensors()) {
    for (const Format& format : kFormats) {
      if (tensor.name.ends_with(format.marker)) return &tensor;
    }
  }
  return nullptr;
}

/// Settings that a config.json has in its quantization section; older tools wrote them to a file of
/// their own, whose name then says the method.
struct QuantizationSettings {
  std::optional<ConfigSection> section;
  std::string method;
};

Result<QuantizationSettings> find_settings(std::string_view config_text) {
  QuantizationSettings found;
  if (config_text.empty()) return found;
  auto config = ConfigSection::parse(config_text, "config.json");
  if (!config.ok()) return config.status();
  for (const char* key : {"quantization_config", "compression_config"}) {
    if (!config->has(key)) continue;
    ConfigSection section = config->section(key);
    const std::string fallback =
        std::string_view(key) == "compression_config" ? "compressed-tensors" : "";
    found.method =
        section.text("quant_method", fallback.empty() ? std::nullopt : std::optional(fallback));
    config->merge(section);
    if (!config->status().ok()) return config->status();
    found.section = std::move(section);
    return found;
  }
  return found;
}

}  // namespace

std::string_view to_string(CheckpointFormat format) {
  for (const Format& known : kFormats) {
    if (known.format == format) return known.method;
  }
  return "dense";
}

class ModelCheckpoint::Impl {
 public:
  explicit Impl(const SafetensorsFile& opened) : file(opened) {}

  static Result<ModelCheckpoint> make(const SafetensorsFile& file,
                                      const QuantizationSettings& settings,
                                      const ImportOptions& options);

  SafetensorsFile file;
  CheckpointFormat format = CheckpointFormat::dense;
  std::unique_ptr<const Importer> importer;  // none: dense
  std::vector<ImportedLayer> no_layers;
  std::vector<TensorInfo> others;
};

Result<ModelCheckpoint> ModelCheckpoint::Impl::make(const SafetensorsFile& file,
                                                    const QuantizationSettings& settings,
                                                    const ImportOptions& options) {
  if (options.scale_type && *options.scale_type == DataType::f32) {
    return failure(StatusCode::invalid_argument, "scale_type must be f16 or bf16; got f32");
  }
  auto impl = std::make_shared<Impl>(file);
  if (!settings.section) {
    if (const TensorInfo* tensor = quantized_tensor(file); tensor != nullptr) {
      return failure(StatusCode::corrupt_data,
                     "{}: tensor {} is quantized, so config.json must have a quantization_config; "
                     "it is missing",
                     file.files().front(), in_quotes(tensor->name));
    }
    impl->others = file.tensors();
    return ModelCheckpoint(std::move(impl));
  }
  const auto* format = std::find_if(kFormats.begin(), kFormats.end(), [&](const Format& known) {
    return known.method == settings.method;
  });
  if (format == kFormats.end()) {
    return failure(StatusCode::unsupported,
                   "{} must be gptq, awq, compressed-tensors or hqq; got {}",
                   settings.section->field("quant_method"), in_quotes(settings.method));
  }
  auto importer = format->import(file, *settings.section, options);
  if (!importer.ok()) {
    return failure(importer.status().code(), "{}: {}", file.files().front(),
                   importer.status().message());
  }
  impl->format = format->format;
  impl->importer = *std::move(importer);
  if (impl->importer->layers().empty()) {
    return failure(StatusCode::corrupt_data,
                   "{}: {} {} must have tensors *{}; got none of {} tensors", file.files().front(),
                   settings.section->field("quant_method"), settings.method, format->marker,
                   file.tensors().size());
  }
  for (const TensorInfo& tensor : file.tensors()) {
    if (impl->importer->claimed().contains(tensor.name)) continue;
    for (const Format& other : kFormats) {
      if (!tensor.name.ends_with(other.marker)) continue;
      return failure(StatusCode::corrupt_data,
                     "{}: tensor {}: must not be in a checkpoint whose {} is {}",
                     file.files().front(), in_quotes(tensor.name),
                     settings.section->field("quant_method"), settings.method);
    }
    impl->others.push_back(tensor);
  }
  return ModelCheckpoint(std::move(impl));
}

Result<ModelCheckpoint> ModelCheckpoint::from(const SafetensorsFile& file, std::string_view config,
                                              const ImportOptions& options) {
  const auto settings = find_settings(config);
  if (!settings.ok()) return settings.status();
  return Impl::make(file, *settings, options);
}

Result<ModelCheckpoint> ModelCheckpoint::open(const std::string& path,
                                              const ImportOptions& options) {
  const auto file = SafetensorsFile::open(path);
  if (!file.ok()) return file.status();
  const fs::path folder = fs::path(file->files().front()).parent_path();
  const auto text = read_optional((folder / "config.json").string());
  if (!text.ok()) return text.status();
  auto settings = find_settings(text->value_or(""));
  if (!settings.ok()) {
    return failure(settings.status().code(), "{}: {}", folder.string(),
                   settings.status().message());
  }
  const std::pair<const char*, const char*> kOldFiles[] = {{"quantize_config.json", "gptq"},
                                                           {"quant_config.json", "awq"}};
  for (const auto& [name, method] : kOldFiles) {
    if (settings->section) break;
    const auto old = read_optional((folder / name).string());
    if (!old.ok()) return old.status();
    if (!old->has_value()) continue;
    auto section = ConfigSection::parse(**old, name);
    if (!section.ok()) return section.status();
    settings->method = section->text("quant_method", method);
    if (!section->status().ok()) return section->status();
    settings->section = *std::move(section);
  }
  return Impl::make(*file, *settings, options);
}

CheckpointFormat ModelCheckpoint::format() const { return impl_->format; }

const std::vector<ImportedLayer>& ModelCheckpoint::layers() const {
  return impl_->importer == nullptr ? impl_->no_layers : impl_->importer->layers();
}

const ImportedLayer* ModelCheckpoint::info(std::string_view name) const {
  const auto& all = layers();
  const auto it = std::lower_bound(
      all.begin(), all.end(), name,
      [](const ImportedLayer& layer, std::string_view wanted) { return layer.name < wanted; });
  return it != all.end() && it->name == name ? &*it : nullptr;
}

Result<CanonicalWeight> ModelCheckpoint::load(std::string_view name, int num_threads) const {
  const ImportedLayer* layer = info(name);
  if (layer == nullptr) {
    return failure(StatusCode::not_found, "{}: no quantized layer {}", impl_->file.files().front(),
                   in_quotes(name));
  }
  auto weight =
      impl_->importer->load(static_cast<std::size_t>(layer - layers().data()), num_threads);
  if (weight.ok()) return weight;
  return failure(weight.status().code(), "{}: {}", impl_->file.files().front(),
                 weight.status().message());
}

const std::vector<TensorInfo>& ModelCheckpoint::others() const { return impl_->others; }
const SafetensorsFile& ModelCheckpoint::file() const { return impl_->file; }

}  // namespace mixgemm
