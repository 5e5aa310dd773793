// SPDX-License-Identifier: Apache-2.0
#include "exchange.hpp"

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

namespace mixgemm::python {
namespace {

constexpr std::uint32_t kMajorVersion = 1;
// Types seen; a process with more kinds of arrays takes the way through __dlpack__ for the rest.
constexpr std::size_t kMaxTypes = 16;

static_assert(offsetof(DlTensor, shape) == 24 && sizeof(DlTensor) == 48,
              "DlTensor must have the layout of the standard's DLTensor");

}  // namespace

const Exchange* Exchange::of(nb::handle object) {
  struct Entry {
    PyObject* type;  // kept, so that no other type gets its address
    const Exchange* table;
  };
  static auto* known = new std::vector<Entry>;  // outlives the interpreter: never destroyed
  PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()));
  for (const Entry& entry : *known) {
    if (entry.type == type) return entry.table;
  }
  if (known->size() >= kMaxTypes) return nullptr;
  const Exchange* table = nullptr;
  const nb::object own = nb::getattr(nb::handle(type), "__dict__");
  const char* name = "__dlpack_c_exchange_api__";
  if (nb::cast<bool>(own.attr("__contains__")(name))) {
    const nb::object capsule = own[name];
    table =
        static_cast<const Exchange*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (table == nullptr) PyErr_Clear();
    while (table != nullptr && table->version_.major != kMajorVersion) table = table->previous_;
    if (table != nullptr && (table->read_ == nullptr || table->current_stream_ == nullptr)) {
      table = nullptr;
    }
  }
  known->push_back({nb::borrow(nb::handle(type)).release().ptr(), table});
  return table;
}

bool Exchange::read(nb::handle array, DlTensor& tensor) const {
  if (read_(array.ptr(), &tensor) == 0) return true;
  PyErr_Clear();
  return false;
}

void* Exchange::current_stream(Place place) const {
  if (place.device == Device::cpu) return nullptr;
  void* stream = nullptr;
  if (current_stream_(2, place.ordinal, &stream) != 0) nb::raise_python_error();
  return stream;
}

bool read_array(const Exchange& exchange, nb::handle object, const char* name, Array& array) {
  DlTensor tensor;
  if (!exchange.read(object, tensor)) return false;
  if (nb::cast<bool>(object.attr("requires_grad")) || nb::cast<bool>(object.attr("is_neg")())) {
    return false;
  }
  array.name = name;
  if (tensor.is_at({Device::cuda, tensor.device_id})) {
    array.place = {Device::cuda, tensor.device_id};
  } else if (!tensor.is_at({Device::cpu, 0})) {
    return false;
  }
  array.data = tensor.address();
  array.dtype = dtype_text({tensor.type_code, tensor.type_bits, tensor.type_lanes});
  array.shape.assign(tensor.shape, tensor.shape + tensor.num_axes);
  array.stride.assign(tensor.stride, tensor.stride + tensor.num_axes);
  return true;
}

nb::tuple shape_tuple(const std::vector<std::int64_t>& shape) {
  nb::object tuple = nb::steal(PyTuple_New(static_cast<Py_ssize_t>(shape.size())));
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    PyTuple_SET_ITEM(tuple.ptr(), static_cast<Py_ssize_t>(axis), PyLong_FromLongLong(shape[axis]));
  }
  return nb::borrow<nb::tuple>(tuple);
}

nb::tuple dense_strides(const std::vector<std::int64_t>& shape) {
  std::vector<std::int64_t> strides(shape.size());
  std::int64_t stride = 1;
  for (std::size_t axis = shape.size(); axis-- > 0;) {
    strides[axis] = stride;
    stride *= std::max<std::int64_t>(shape[axis], 1);
  }
  return shape_tuple(strides);
}

}  // namespace mixgemm::python
