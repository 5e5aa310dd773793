// SPDX-License-Identifier: Apache-2.0
// Packed checkpoints on disk.
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <map>
#include <memory>
#include <tuple>
#include <utility>

#include "bindings.hpp"
#include "mixgemm/checkpoint.hpp"

namespace mixgemm::python {
namespace {

/// A dense tensor of a file: its bytes as uint8, and what they mean. The Python side views them as
/// the dtype, which may be one that DLPack or NumPy lacks.
struct DenseTensor {
  TensorView view;
};

PackedCheckpoint open_checkpoint(const std::string& path, bool verify) {
  const nb::gil_scoped_release release;
  PackedOpenOptions options;
  options.verify_on_find = verify;
  return PackedCheckpoint::open(path, options).value();
}

PlacedWeight find_packed(const PackedCheckpoint& checkpoint, const std::string& name) {
  const nb::gil_scoped_release release;  // checksums of the whole weight
  return {checkpoint.find(name).value(), {}};
}

nb::object bytes_of_tensor(nb::handle self) {
  const auto& tensor = nb::cast<const DenseTensor&>(self);
  return give_bytes(tensor.view.data, tensor.view.bytes, self);
}

struct DenseSource {
  std::string dtype;
  std::vector<std::int64_t> shape;
  Array bytes;
};

/// Name, dtype as safetensors spells it, shape, bytes as an array of uint8.
using DenseArgument = std::tuple<std::string, std::string, std::vector<std::int64_t>, nb::object>;

void save(const std::string& path, const std::map<std::string, PlacedWeight>& packed,
          const std::vector<DenseArgument>& dense,
          const std::map<std::string, std::string>& metadata, std::uint64_t max_shard_bytes) {
  std::map<std::string, DenseSource> tensors;
  for (const auto& [name, dtype, shape, bytes] : dense) {
    tensors.emplace(name, DenseSource{dtype, shape, take_array(bytes, "tensor", 1)});
  }
  for (const auto& [name, weight] : packed) {
    if (weight.place.device == Device::cpu) continue;
    refuse("save writes packed weights on the CPU; ", name, " is on ", weight.place.name());
  }
  const nb::gil_scoped_release release;
  WriteOptions options;
  options.max_shard_bytes = max_shard_bytes;
  auto writer = PackedCheckpointWriter::create(path, options).value();
  for (const auto& [key, value] : metadata) writer.set_metadata(key, value).throw_if_error();
  for (const auto& [name, weight] : packed) {
    const PackedView& view = weight.view();
    const auto columns = view.permutation == nullptr ? ColumnOrder::natural : ColumnOrder::permuted;
    writer.declare_packed(name, view.n, view.k, view.spec, columns).throw_if_error();
  }
  for (const auto& [name, tensor] : tensors) {
    writer.declare_dense(name, tensor.dtype, tensor.shape).throw_if_error();
  }
  for (const auto& [name, weight] : packed) {
    writer.write_packed(name, weight.view()).throw_if_error();
  }
  for (const auto& [name, tensor] : tensors) {
    std::size_t bytes = 1;
    for (const std::int64_t dim : tensor.bytes.shape) bytes *= static_cast<std::size_t>(dim);
    writer.write_dense(name, tensor.bytes.data, bytes).throw_if_error();
  }
  writer.finish().throw_if_error();
}

}  // namespace

void bind_checkpoint(nb::module_& m) {
  nb::class_<DenseTensor>(m, "DenseTensor")
      .def_prop_ro("dtype", [](const DenseTensor& t) { return t.view.info.dtype; })
      .def_prop_ro("shape", [](const DenseTensor& t) { return t.view.info.shape; })
      .def_prop_ro("bytes", &bytes_of_tensor);
  nb::class_<PackedCheckpoint>(m, "PackedCheckpoint")
      .def("packed_names", &PackedCheckpoint::names)
      .def("dense_names",
           [](const PackedCheckpoint& c) {
             std::vector<std::string> names;
             for (const TensorInfo& info : c.dense()) names.push_back(info.name);
             return names;
           })
      .def("metadata", &PackedCheckpoint::metadata)
      .def("files", [](const PackedCheckpoint& c) { return c.file().files(); })
      .def("packed", &find_packed, nb::arg("name"))
      .def(
          "dense",
          [](const PackedCheckpoint& c, const std::string& name) {
            return DenseTensor{c.find_dense(name).value()};
          },
          nb::arg("name"))
      .def("verify", [](const PackedCheckpoint& c) {
        const nb::gil_scoped_release release;
        c.verify().throw_if_error();
      });
  m.def("open_checkpoint", &open_checkpoint, nb::arg("path"), nb::arg("verify"));
  m.def("save", &save, nb::arg("path"), nb::arg("packed"), nb::arg("dense"), nb::arg("metadata"),
        nb::arg("max_shard_bytes"));
}

}  // namespace mixgemm::python
