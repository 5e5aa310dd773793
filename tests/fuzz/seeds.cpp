// SPDX-License-Identifier: Apache-2.0
// Writes the seed corpus, one folder per target, into the first folder given: small legal inputs
// that reach every branch of the formats, from which the fuzzers start. Those of the importers are
// the fixtures in the second folder.
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "import/packed_header.hpp"
#include "layout/packed.hpp"
#include "mixgemm/checkpoint.hpp"

namespace {

using namespace mixgemm;
namespace fs = std::filesystem;

void write_text(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

void write_dense(const fs::path& path) {
  auto writer = SafetensorsWriter::create(path.string()).value();
  writer.set_metadata("format", "pt").throw_if_error();
  writer.declare("bias", "F32", {3}).throw_if_error();
  writer.declare("scalar", "I64", {}).throw_if_error();
  writer.declare("odd", "U8", {1, 3}).throw_if_error();
  writer.write("bias", "0123456789ab", 12).throw_if_error();
  writer.write("scalar", "01234567", 8).throw_if_error();
  writer.write("odd", "012", 3).throw_if_error();
  writer.finish().throw_if_error();
}

void write_packed(const fs::path& path, const QuantSpec& spec) {
  PackedView view;
  view.n = 3;
  view.k = 20;
  view.spec = spec;
  view.codes_pitch_bytes = layout::strip_bytes(view.k, bits_of(spec.type));
  view.groups_pitch = view.groups();
  const std::vector<std::uint8_t> codes(static_cast<std::size_t>(view.codes_pitch_bytes), 0x12);
  const std::vector<std::uint16_t> scales(static_cast<std::size_t>(view.groups()) * 16, 0);
  view.codes = codes.data();
  view.scales = scales.data();
  view.zeros = spec.zero == ZeroKind::none ? nullptr : scales.data();
  auto writer = PackedCheckpointWriter::create(path.string()).value();
  writer.declare_packed("w", view.n, view.k, spec).throw_if_error();
  writer.declare_dense("b", "F16", {1}).throw_if_error();
  writer.write_packed("w", view).throw_if_error();
  writer.write_dense("b", "xy", 2).throw_if_error();
  writer.finish().throw_if_error();
}

std::string read_text(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

/// A model directory as one input: the length of its config, the config, its tensors.
void write_model(const fs::path& path, const fs::path& model) {
  const std::string config = read_text(model / "config.json");
  const std::string length = {static_cast<char>(config.size() & 0xff),
                              static_cast<char>(config.size() >> 8)};
  write_text(path, length + config + read_text(model / "model.safetensors"));
}

void write_all(const fs::path& root, const fs::path& models) {
  for (const char* target :
       {"safetensors", "safetensors_index", "packed_header", "checkpoint_import"}) {
    fs::remove_all(root / target);
    fs::create_directories(root / target);
  }
  for (const auto& entry : fs::directory_iterator(models)) {
    if (!entry.is_directory()) continue;
    write_model(root / "checkpoint_import" / entry.path().filename(), entry.path());
  }
  write_text(root / "safetensors/empty", std::string("\2\0\0\0\0\0\0\0{}", 10));
  write_dense(root / "safetensors/dense");
  int number = 0;
  for (const WeightType type : {WeightType::int4, WeightType::int8}) {
    for (const ZeroKind zero : {ZeroKind::none, ZeroKind::integer, ZeroKind::scaled}) {
      const QuantSpec spec{type, zero, type == WeightType::int4 ? 16 : 0, DataType::f16};
      const std::string name = std::to_string(number++);
      write_packed(root / "safetensors" / ("packed" + name), spec);
      PackedLayerInfo layer;
      layer.n = 4096;
      layer.k = 14336;
      layer.spec = spec;
      layer.codes_crc = 0x89abcdef;
      write_text(root / "packed_header" / name, format_packed_header(layer));
    }
  }
  write_text(root / "safetensors_index/two",
             R"({"metadata":{"total_size":2,"x":[null,true,-1,0.5]},)"
             R"("weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}})");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s FOLDER MODELS\n", argv[0]);
    return 2;
  }
  try {
    write_all(argv[1], argv[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
