// SPDX-License-Identifier: Apache-2.0
// Any config and any tensors through every importer: refused with a sentence, or every layer is a
// legal weight or refused with one. Input: the length of the config (two bytes, little-endian), the
// config, and a safetensors file.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>

#include "mixgemm/import.hpp"

namespace {

using namespace mixgemm;

void require(bool condition) {
  if (!condition) std::abort();
}

void import_all(const SafetensorsFile& file, std::string_view config,
                const ImportOptions& options) {
  const auto model = ModelCheckpoint::from(file, config, options);
  if (!model.ok()) {
    require(!model.status().message().empty());
    return;
  }
  for (const ImportedLayer& layer : model->layers()) {
    require(model->info(layer.name) == &layer);
    const auto weight = model->load(layer.name, 1);
    if (!weight.ok()) {
      require(!weight.status().message().empty());
      continue;
    }
    require(weight->n == layer.n && weight->k == layer.k && weight->spec == layer.spec);
    require(weight->permutation.empty() == (layer.columns == ColumnOrder::natural));
    require(validate(*weight).ok());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const std::size_t wanted = data[0] | static_cast<std::size_t>(data[1]) << 8;
  const std::size_t config_bytes = wanted < size - 2 ? wanted : size - 2;
  const std::string_view config(reinterpret_cast<const char*>(data) + 2, config_bytes);
  const std::uint8_t* tensors = data + 2 + config_bytes;
  const std::size_t tensors_bytes = size - 2 - config_bytes;

  static const int fd = ::memfd_create("input", MFD_CLOEXEC);
  static const std::string path = "/proc/self/fd/" + std::to_string(fd);
  require(::ftruncate(fd, 0) == 0);
  require(::pwrite(fd, tensors, tensors_bytes, 0) == static_cast<ssize_t>(tensors_bytes));
  const auto file = SafetensorsFile::open(path);
  if (!file.ok()) return 0;
  import_all(*file, config, {});
  import_all(*file, config, {.scale_type = DataType::bf16});
  return 0;
}
