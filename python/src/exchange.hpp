// SPDX-License-Identifier: Apache-2.0
// DLPack's C exchange table: what an array library puts on its array type so that an extension
// reads shapes and addresses, and asks for the current stream, without a call through Python.
// PyTorch has it from 2.11 on. Everything works without it, through __dlpack__, at ten times the
// cost a call.
#pragma once

#include <cstdint>

#include "array.hpp"

namespace mixgemm::python {

/// An array as DLPack describes it; the library that made it owns all that is pointed to.
struct DlTensor {
  void* data;
  std::int32_t device_type;
  std::int32_t device_id;
  std::int32_t num_axes;
  std::uint8_t type_code;
  std::uint8_t type_bits;
  std::uint16_t type_lanes;
  std::int64_t* shape;
  std::int64_t* stride;  // elements
  std::uint64_t byte_offset;

  void* address() const { return static_cast<char*>(data) + byte_offset; }
  std::int64_t last_axis() const { return shape[num_axes - 1]; }
  bool is_float16(DataType type) const {
    return type_bits == 16 && type_lanes == 1 && type_code == (type == DataType::bf16 ? 4 : 2);
  }
  /// Whether it lies there, as far as the library supports the device; false for other devices.
  bool is_at(Place place) const {
    return place.device == Device::cpu
               ? device_type == 1 || device_type == 3
               : (device_type == 2 || device_type == 13) && device_id == place.ordinal;
  }
  /// Whether its elements lie one after the other.
  bool is_dense() const {
    std::int64_t expected = 1;
    for (int axis = num_axes; axis-- > 0;) {
      if (shape[axis] == 0) return true;
      if (shape[axis] != 1 && stride[axis] != expected) return false;
      expected *= shape[axis];
    }
    return true;
  }
};

/// The table of one array type.
class Exchange {
 public:
  /// The table that the object's own type has, or nullptr: a subclass may mean something else by
  /// its memory, as PyTorch's fake tensors do, which have none. The GIL must be held.
  static const Exchange* of(nb::handle object);

  /// Describes an array of that type. False, and no Python exception, where it has no memory that
  /// can be described: sparse and meta tensors, tensors inside a functorch transform.
  bool read(nb::handle array, DlTensor& tensor) const;

  /// The library's current stream on a device, a cudaStream_t; null on the CPU.
  void* current_stream(Place place) const;

 private:
  struct Version {
    std::uint32_t major, minor;
  };

  // The standard's struct of version 1, in the standard's order.
  Version version_;
  const Exchange* previous_;
  int (*allocate_)(DlTensor*, void**, void*, void (*)(void*, const char*, const char*));
  int (*export_)(void*, void**);
  int (*import_)(void*, void**);
  int (*read_)(void*, DlTensor*);
  int (*current_stream_)(std::int32_t device_type, std::int32_t device_id, void**);
};

/// Takes a PyTorch tensor in through its type's table. False where it can't be described, where a
/// gradient is asked of it, or where it stands for its memory negated. The caller's reference keeps
/// the memory.
bool read_array(const Exchange& exchange, nb::handle object, const char* name, Array& array);

/// A shape, and the strides of an array of it without gaps, as tuples.
nb::tuple shape_tuple(const std::vector<std::int64_t>& shape);
nb::tuple dense_strides(const std::vector<std::int64_t>& shape);

}  // namespace mixgemm::python
