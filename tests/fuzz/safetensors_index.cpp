// SPDX-License-Identifier: Apache-2.0
// Any text as the index of a sharded checkpoint: refused, or every file is a plain name.
#include <cstdint>
#include <cstdlib>

#include "import/safetensors_header.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto files =
      mixgemm::parse_safetensors_index({reinterpret_cast<const char*>(data), size}, "index");
  if (!files.ok()) return 0;
  if (files->empty()) std::abort();
  for (const auto& [tensor, file] : *files) {
    if (file.empty() || file == ".." || file.find('/') != file.npos) std::abort();
  }
  return 0;
}
