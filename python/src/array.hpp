// SPDX-License-Identifier: Apache-2.0
// Arrays of other libraries, taken in and handed out through DLPack without copies.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "mixgemm/status.hpp"
#include "mixgemm/types.hpp"

namespace mixgemm::python {

namespace nb = nanobind;

/// The parts' text, one after the other: for messages, which are made once per failure.
template <class... Parts>
std::string cat(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  throw Error(StatusCode::invalid_argument, cat(parts...));
}

/// Where an array lives.
struct Place {
  Device device = Device::cpu;
  int ordinal = 0;  ///< which CUDA device; 0 on the CPU

  friend bool operator==(const Place&, const Place&) = default;
  std::string name() const {
    return device == Device::cpu ? "cpu" : "cuda:" + std::to_string(ordinal);
  }
};

/// An array taken in. One that came through __dlpack__ keeps the memory alive as long as it lives,
/// also while the GIL is released.
struct Array {
  std::string_view name;       ///< the argument's
  nb::ndarray<nb::ro> handle;  ///< empty where the caller's reference keeps the memory
  void* data = nullptr;
  Place place;
  std::string dtype;                 ///< "float16", "bfloat16", "uint8", ...
  std::vector<std::int64_t> shape;   ///< elements
  std::vector<std::int64_t> stride;  ///< elements
};

/// The stream on which a CUDA array is asked for, in the DLPack protocol's numbers: the producer
/// makes it wait for what it still computes. Ignored for CPU arrays.
using StreamNumber = std::int64_t;

/// Takes `object` in through __dlpack__, or through the buffer protocol where it has none. Raises
/// TypeError for anything else, and where the producer refuses (a tensor that requires grad, a
/// read-only array asked for writing), with the producer's words.
Array take_array(nb::handle object, const char* name, StreamNumber stream, bool writable = false);

/// "float16", "uint8"; for what has no such name, DLPack's numbers.
std::string dtype_text(nb::dlpack::dtype type);

/// Refuses an array whose dtype isn't f16, bf16 or (where allowed) f32.
DataType float_type(const Array& array, bool allow_f32);

/// An array of rows: [..., columns] with unit stride along the last axis and one stride over all
/// others.
struct Rows {
  std::int64_t rows = 0;  ///< product of all axes but the last
  std::int64_t ld = 0;    ///< elements from one row to the next
};

/// The array as rows of `columns`. Refuses another last axis, and strides that rows can't have.
Rows as_rows(const Array& array, std::int64_t columns, const char* columns_name);

/// "(2, 3)".
std::string show_shape(const std::vector<std::int64_t>& shape);

/// Memory of ours as an array that any DLPack consumer takes; `owner` lives as long as the array.
/// Read-only.
nb::object give_array(const void* data, std::vector<std::size_t> shape, std::string_view dtype,
                      Place place, nb::handle owner);

/// Bytes of ours as a read-only NumPy array; `owner` lives as long as the array.
nb::object give_bytes(const void* data, std::size_t bytes, nb::handle owner);

/// A vector handed over to Python as a NumPy array.
template <class T>
nb::object give_numpy(std::vector<T> values, std::vector<std::size_t> shape) {
  auto* kept = new std::vector<T>(std::move(values));
  nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return nb::cast(nb::ndarray<nb::numpy, T>(kept->data(), shape.size(), shape.data(), owner));
}

/// "float16", "fp16", "f16" → f16, and likewise; refuses anything else, naming the argument.
DataType parse_dtype(const std::string& text, const char* name);
/// f16 → "float16".
const char* dtype_name_of(DataType type);
WeightType parse_bits(int bits);
ZeroKind parse_zero(const std::string& text);
Activation parse_activation(const std::string& text);

}  // namespace mixgemm::python
