// SPDX-License-Identifier: Apache-2.0
// mixgemm inspect: what a checkpoint contains, from its headers alone.
#include <fmt/format.h>

#include <memory>

#include "command.hpp"
#include "util/join.hpp"

namespace mixgemm::cli {
namespace {

struct InspectOptions {
  std::string input;
  bool json = false;
};

Json tensor_json(const TensorInfo& tensor) {
  return {{"name", tensor.name},
          {"dtype", tensor.dtype},
          {"shape", tensor.shape},
          {"bytes", tensor.size_bytes()}};
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  return shape.empty() ? "scalar" : joined(shape, "×");
}

int inspect_packed(const SafetensorsFile& file, const InspectOptions& options) {
  const auto checkpoint = PackedCheckpoint::from(file, {.verify_on_find = false}).value();
  Json layers = Json::array(), dense = Json::array();
  Table table({"name", "kind", "N×K", "bits per weight", "size"});
  double packed_bytes = 0.0, dense_bytes = 0.0, elems = 0.0;
  for (const PackedLayerInfo& layer : checkpoint.layers()) {
    Json item = {{"name", layer.name},
                 {"format_version", layer.format_version},
                 {"n", layer.n},
                 {"k", layer.k},
                 {"permuted", layer.columns == ColumnOrder::permuted},
                 {"bytes", layer.size_bytes},
                 {"bits_per_weight", layer.bits_per_weight()}};
    item.update(to_json(layer.spec));
    layers.push_back(item);
    table.add(
        {layer.name,
         fmt::format("{}, {} scales{}", describe(layer.spec), to_string(layer.spec.scale_type),
                     layer.columns == ColumnOrder::permuted ? ", permuted" : ""),
         fmt::format("{}×{}", layer.n, layer.k), fmt::format("{:.3f}", layer.bits_per_weight()),
         format_bytes(static_cast<double>(layer.size_bytes))});
    packed_bytes += static_cast<double>(layer.size_bytes);
    elems += static_cast<double>(layer.n) * static_cast<double>(layer.k);
  }
  for (const TensorInfo& tensor : checkpoint.dense()) {
    dense.push_back(tensor_json(tensor));
    table.add({tensor.name, tensor.dtype, shape_text(tensor.shape), "",
               format_bytes(static_cast<double>(tensor.size_bytes()))});
    dense_bytes += static_cast<double>(tensor.size_bytes());
  }
  if (options.json) {
    print_json({{"files", file.files()},
                {"file_bytes", file.file_bytes()},
                {"packed", true},
                {"metadata", checkpoint.metadata()},
                {"layers", layers},
                {"dense", dense}});
    return kExitOk;
  }
  print(table.to_string("llrrr"));
  print(fmt::format("{} packed layers, {} ({:.3f} bits per weight); {} dense tensors, {}\n",
                    checkpoint.layers().size(), format_bytes(packed_bytes),
                    elems > 0.0 ? 8.0 * packed_bytes / elems : 0.0, checkpoint.dense().size(),
                    format_bytes(dense_bytes)));
  return kExitOk;
}

int run_inspect(const InspectOptions& options) {
  const auto file = SafetensorsFile::open(options.input).value();
  if (PackedCheckpoint::is_packed(file)) return inspect_packed(file, options);
  Json dense = Json::array();
  Table table({"name", "dtype", "shape", "size"});
  double bytes = 0.0;
  for (const TensorInfo& tensor : file.tensors()) {
    dense.push_back(tensor_json(tensor));
    table.add({tensor.name, tensor.dtype, shape_text(tensor.shape),
               format_bytes(static_cast<double>(tensor.size_bytes()))});
    bytes += static_cast<double>(tensor.size_bytes());
  }
  if (options.json) {
    print_json({{"files", file.files()},
                {"file_bytes", file.file_bytes()},
                {"packed", false},
                {"metadata", file.metadata()},
                {"dense", dense}});
    return kExitOk;
  }
  print(table.to_string("llrr"));
  print(fmt::format("{} dense tensors, {}; no packed weights\n", file.tensors().size(),
                    format_bytes(bytes)));
  return kExitOk;
}

}  // namespace

void register_inspect(CLI::App& app, Selected& selected) {
  auto options = std::make_shared<InspectOptions>();
  Command command(app, selected, "inspect", "List the tensors and packed weights of a checkpoint");
  command.operand("file", options->input, "A packed or dense checkpoint");
  command.json(options->json);
  command.runs([=] { return run_inspect(*options); });
}

}  // namespace mixgemm::cli
