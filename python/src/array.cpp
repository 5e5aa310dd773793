// SPDX-License-Identifier: Apache-2.0
#include "array.hpp"

#include <nanobind/stl/string.h>

#include <utility>

namespace mixgemm::python {
namespace {

// Device types of DLPack.
constexpr int kCpu = 1;
constexpr int kCuda = 2;
constexpr int kCudaHost = 3;  // page-locked memory, the CPU's
constexpr int kCudaManaged = 13;

bool is_cuda(int device_type) { return device_type == kCuda || device_type == kCudaManaged; }

nb::dlpack::dtype dtype_from_text(std::string_view text) {
  using Code = nb::dlpack::dtype_code;
  const auto make = [](Code code, int bits) {
    nb::dlpack::dtype type;
    type.code = static_cast<std::uint8_t>(code);
    type.bits = static_cast<std::uint8_t>(bits);
    type.lanes = 1;
    return type;
  };
  if (text == "float16") return make(Code::Float, 16);
  if (text == "bfloat16") return make(Code::Bfloat, 16);
  if (text == "float32") return make(Code::Float, 32);
  if (text == "int32") return make(Code::Int, 32);
  return make(Code::UInt, 8);
}

std::string python_type(nb::handle object) {
  return nb::cast<std::string>(
      nb::handle(reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()))).attr("__name__"));
}

/// Calls object.__dlpack__() for the newest protocol that the producer knows.
nb::object capsule_of(nb::handle object, const char* name, bool cuda, StreamNumber stream) {
  nb::dict keywords;
  keywords["max_version"] = nb::make_tuple(1, 1);
  if (cuda) keywords["stream"] = stream;
  const nb::object method = object.attr("__dlpack__");
  try {
    try {
      return method(**keywords);
    } catch (nb::python_error& error) {
      if (!error.matches(PyExc_TypeError)) throw;
      nb::del(keywords["max_version"]);  // producers from before the 2023 array API
      return method(**keywords);
    }
  } catch (nb::python_error& error) {
    nb::raise_from(error, PyExc_TypeError, "%s can't be taken through DLPack: %s", name,
                   nb::cast<std::string>(nb::str(error.value())).c_str());
  }
}

}  // namespace

std::string dtype_text(nb::dlpack::dtype type) {
  using Code = nb::dlpack::dtype_code;
  const auto code = static_cast<Code>(type.code);
  const char* kind = code == Code::Int      ? "int"
                     : code == Code::UInt   ? "uint"
                     : code == Code::Float  ? "float"
                     : code == Code::Bfloat ? "bfloat"
                     : code == Code::Bool   ? "bool"
                                            : nullptr;
  if (kind == nullptr || type.lanes != 1) {
    return cat("DLPack type (", int{type.code}, ", ", int{type.bits}, ", ", type.lanes, ")");
  }
  return code == Code::Bool ? kind : kind + std::to_string(int{type.bits});
}

Array take_array(nb::handle object, const char* name, StreamNumber stream, bool writable) {
  nb::object source = nb::borrow(object);
  if (nb::hasattr(object, "__dlpack__") && nb::hasattr(object, "__dlpack_device__")) {
    const auto device = nb::cast<nb::tuple>(object.attr("__dlpack_device__")());
    source = capsule_of(object, name, is_cuda(nb::cast<int>(device[0])), stream);
  } else if (!PyObject_CheckBuffer(object.ptr())) {
    nb::raise_type_error("%s must be an array that speaks DLPack or the buffer protocol; got %s",
                         name, python_type(object).c_str());
  }
  Array array;
  array.name = name;
  bool taken = false;
  if (writable) {
    nb::ndarray<> handle;
    taken = nb::try_cast<nb::ndarray<>>(source, handle);
    if (taken) array.handle = nb::ndarray<nb::ro>(handle);
  } else {
    taken = nb::try_cast<nb::ndarray<nb::ro>>(source, array.handle);
  }
  if (!taken) {
    nb::raise_type_error("%s must be %s array of numbers; got %s", name,
                         writable ? "a writable" : "an", python_type(object).c_str());
  }
  const int device_type = array.handle.device_type();
  if (is_cuda(device_type)) {
    array.place = {Device::cuda, array.handle.device_id()};
  } else if (device_type != kCpu && device_type != kCudaHost) {
    refuse(name, " must be on the CPU or a CUDA device; got DLPack device type ", device_type);
  }
  array.data = const_cast<void*>(static_cast<const void*>(array.handle.data()));
  array.dtype = dtype_text(array.handle.dtype());
  for (std::size_t axis = 0; axis < array.handle.ndim(); ++axis) {
    array.shape.push_back(static_cast<std::int64_t>(array.handle.shape(axis)));
    array.stride.push_back(array.handle.stride(axis));
  }
  return array;
}

DataType float_type(const Array& array, bool allow_f32) {
  if (array.dtype == "float16") return DataType::f16;
  if (array.dtype == "bfloat16") return DataType::bf16;
  if (array.dtype == "float32" && allow_f32) return DataType::f32;
  refuse(array.name, " must be float16", allow_f32 ? ", bfloat16 or float32" : " or bfloat16",
         "; got ", array.dtype);
}

Rows as_rows(const Array& array, std::int64_t columns, const char* columns_name) {
  if (array.shape.empty() || array.shape.back() != columns) {
    refuse(array.name, " must have shape [..., ", columns_name, " = ", columns, "]; got ",
           show_shape(array.shape));
  }
  const std::size_t last = array.shape.size() - 1;
  Rows rows;
  rows.rows = 1;
  for (std::size_t axis = 0; axis < last; ++axis) rows.rows *= array.shape[axis];
  rows.ld = columns;
  if (rows.rows == 0) return rows;
  const auto bad_strides = [&](const char* rule) {
    refuse(array.name, rule, "; got shape ", show_shape(array.shape), " with strides ",
           show_shape(array.stride), " (make it contiguous)");
  };
  if (columns > 1 && array.stride[last] != 1) bad_strides("'s last axis must have unit stride");
  std::int64_t expected = 0;  // the stride that continues the axes seen so far; 0: none seen
  for (std::size_t axis = last; axis-- > 0;) {
    if (array.shape[axis] == 1) continue;
    if (expected == 0) {
      rows.ld = array.stride[axis];
      expected = rows.ld;
    } else if (array.stride[axis] != expected) {
      bad_strides(" must have one stride from row to row over all its axes");
    }
    expected *= array.shape[axis];
  }
  if (rows.ld < columns) bad_strides("'s rows must not overlap or run backwards");
  return rows;
}

std::string show_shape(const std::vector<std::int64_t>& shape) {
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + (shape.size() == 1 ? ",)" : ")");
}

nb::object give_array(const void* data, std::vector<std::size_t> shape, std::string_view dtype,
                      Place place, nb::handle owner) {
  return nb::cast(nb::ndarray<nb::ro, nb::array_api>(
      data, shape.size(), shape.data(), owner, nullptr, dtype_from_text(dtype),
      place.device == Device::cuda ? kCuda : kCpu, place.ordinal));
}

nb::object give_bytes(const void* data, std::size_t bytes, nb::handle owner) {
  using Bytes = nb::ndarray<nb::numpy, const std::uint8_t>;
  return nb::cast(Bytes(data, 1, &bytes, owner));
}

DataType parse_dtype(const std::string& text, const char* name) {
  if (text == "float16" || text == "fp16" || text == "f16") return DataType::f16;
  if (text == "bfloat16" || text == "bf16") return DataType::bf16;
  refuse(name, " must be \"float16\" or \"bfloat16\"; got \"", text, "\"");
}

const char* dtype_name_of(DataType type) {
  return type == DataType::f16 ? "float16" : type == DataType::bf16 ? "bfloat16" : "float32";
}

WeightType parse_bits(int bits) {
  if (bits == 4) return WeightType::int4;
  if (bits == 8) return WeightType::int8;
  refuse("bits must be 4 or 8; got ", bits);
}

ZeroKind parse_zero(const std::string& text) {
  for (const ZeroKind kind : {ZeroKind::none, ZeroKind::integer, ZeroKind::scaled}) {
    if (text == to_string(kind)) return kind;
  }
  refuse("zero must be \"none\", \"integer\" or \"scaled\"; got \"", text, "\"");
}

Activation parse_activation(const std::string& text) {
  for (const Activation a :
       {Activation::none, Activation::relu, Activation::gelu, Activation::silu}) {
    if (text == to_string(a)) return a;
  }
  refuse("epilogue must be None, \"relu\", \"gelu\" or \"silu\"; got \"", text, "\"");
}

}  // namespace mixgemm::python
