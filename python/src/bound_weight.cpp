// SPDX-License-Identifier: Apache-2.0
#include "bound_weight.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <utility>

#include "bindings.hpp"

namespace mixgemm::python {
namespace {

const void* address_of(const char* name, const BoundWeight::Memory& buffer, std::int64_t bytes) {
  if (std::get<0>(buffer) == 0 || std::get<1>(buffer) != static_cast<std::size_t>(bytes)) {
    refuse(name, " must have ", bytes, " bytes; got ", std::get<1>(buffer));
  }
  return reinterpret_cast<const void*>(std::get<0>(buffer));
}

}  // namespace

BoundWeight::BoundWeight(std::int64_t n, std::int64_t k, int bits, int group_size,
                         const std::string& zero, const std::string& dtype,
                         const std::string& activation, bool is_cuda, int ordinal,
                         const Memory& codes, const Memory& scales, const Memory& zeros,
                         const Memory& permutation, const Memory& bias, bool pdl) {
  place_ = {is_cuda ? Device::cuda : Device::cpu, is_cuda ? ordinal : 0};
  act_ = parse_dtype(dtype, "dtype");
  pdl_ = pdl;
  view_.n = n;
  view_.k = k;
  view_.spec.type = parse_bits(bits);
  view_.spec.group_size = group_size;
  view_.spec.zero = parse_zero(zero);
  view_.spec.scale_type = act_;
  view_.device = place_.device;
  view_.codes_pitch_bytes = (k + 63) / 64 * 128 * bits;
  if (n < 1 || k < 1) refuse("N and K must be at least 1; got ", n, " and ", k);
  if (group_size < 0) {
    refuse("group_size must be 0 (per column), 16, 32, 64 or 128; got ", group_size);
  }
  view_.groups_pitch = view_.groups();
  const std::int64_t strips = (n + 15) / 16;
  const std::int64_t per_group = strips * view_.groups() * 16;
  const bool byte_zeros = view_.spec.zero == ZeroKind::integer && !is_cuda;
  view_.codes = static_cast<const std::uint8_t*>(
      address_of("codes", codes, strips * view_.codes_pitch_bytes));
  view_.scales = static_cast<const std::uint16_t*>(address_of("scales", scales, per_group * 2));
  if (view_.spec.zero != ZeroKind::none) {
    view_.zeros = address_of("zeros", zeros, per_group * (byte_zeros ? 1 : 2));
  }
  if (std::get<0>(permutation) != 0) {
    view_.permutation =
        static_cast<const std::int32_t*>(address_of("permutation", permutation, k * 4));
    // On a device the gather reads zeros for such an index.
    for (std::int64_t j = 0; j < (is_cuda ? 0 : k); ++j) {
      if (view_.permutation[j] < 0 || view_.permutation[j] >= k) {
        refuse("permutation must hold indices 0 .. ", k - 1, "; element ", j, " is ",
               view_.permutation[j]);
      }
    }
  }
  epilogue_.activation = parse_activation(activation);
  if (std::get<0>(bias) != 0) {
    epilogue_.bias = true;
    bias_ = address_of("bias", bias, n * 2);
  }
}

nb::object BoundWeight::dense() const {
  std::vector<float> values;
  {
    const nb::gil_scoped_release release;
    values = dequantize(unpack(view_).value()).value();
  }
  return give_numpy(std::move(values),
                    {static_cast<std::size_t>(view_.n), static_cast<std::size_t>(view_.k)});
}

void BoundWeight::run(std::uintptr_t x, std::int64_t m, std::int64_t ldx, std::uintptr_t y,
                      std::uintptr_t residual, float alpha, std::uintptr_t stream,
                      nb::handle allocate) const {
  multiply(reinterpret_cast<const void*>(x), m, ldx, reinterpret_cast<void*>(y),
           reinterpret_cast<const void*>(residual), alpha, reinterpret_cast<void*>(stream),
           allocate, nullptr);
}

void BoundWeight::hold(nb::dict buffers, nb::object empty, nb::object dtype, nb::object allocate,
                       nb::object kept) {
  for (std::size_t i = 0; i < kNumBuffers; ++i) held_[i].tensor = nb::borrow(find(buffers, i));
  for (Held& held : held_) {
    if (held.tensor.is_none()) continue;
    const Exchange* exchange = Exchange::of(held.tensor);
    DlTensor tensor;
    if (exchange == nullptr || !exchange->read(held.tensor, tensor)) return;
    held.address = tensor.address();
  }
  empty_ = std::move(empty);
  dtype_ = std::move(dtype);
  allocate_ = std::move(allocate);
  kept_scratch_ = kept.is_none() ? nullptr : nb::cast<KeptScratch*>(kept);
  kept_ = std::move(kept);
}

nb::object BoundWeight::forward(nb::handle x_object, nb::handle buffers) {
  const Exchange* exchange = Exchange::of(x_object);
  if (exchange == nullptr || !empty_.is_valid() || !is_held(*exchange, buffers)) {
    return nb::none();
  }
  DlTensor x;
  if (!exchange->read(x_object, x) || !x.is_at(place_) || !x.is_float16(act_) || x.num_axes < 1 ||
      x.last_axis() != view_.k) {
    return nb::none();
  }
  std::int64_t ldx = view_.k;
  if (!x.is_dense()) {
    if (x.num_axes != 2 || x.stride[0] < view_.k || (view_.k > 1 && x.stride[1] != 1)) {
      return nb::none();
    }
    ldx = x.stride[0];
  }
  std::int64_t m = 1;
  for (int axis = 0; axis + 1 < x.num_axes; ++axis) m *= x.shape[axis];
  set_output_shape(x);
  // Copies: another thread may set another shape while this one allocates.
  const nb::object shape = output_shape_, strides = output_strides_;
  nb::object y_object = empty_(shape, strides, dtype_);
  DlTensor y;
  if (!exchange->read(y_object, y)) return nb::none();
  if (!y.is_at(place_)) {  // `empty` allocates on the current device
    y_object = x_object.attr("new_empty")(shape);
    if (!exchange->read(y_object, y)) return nb::none();
  }
  if (m > 0) {
    multiply(x.address(), m, ldx, y.address(), nullptr, 1.0f, exchange->current_stream(place_),
             allocate_, kept_scratch_);
  }
  return y_object;
}

/// The module's buffer, borrowed; None where it isn't there.
nb::handle BoundWeight::find(nb::handle buffers, std::size_t index) {
  static const std::array<PyObject*, kNumBuffers> names = {
      PyUnicode_InternFromString("codes"), PyUnicode_InternFromString("scales"),
      PyUnicode_InternFromString("zeros"), PyUnicode_InternFromString("bias"),
      PyUnicode_InternFromString("permutation")};
  PyObject* found = PyDict_GetItemWithError(buffers.ptr(), names[index]);
  return found != nullptr ? found : Py_None;
}

/// Whether the buffers are still those that were bound, where they were.
bool BoundWeight::is_held(const Exchange& exchange, nb::handle buffers) const {
  for (std::size_t i = 0; i < kNumBuffers; ++i) {
    const nb::handle tensor = find(buffers, i);
    if (tensor.ptr() != held_[i].tensor.ptr()) return false;
    DlTensor now;
    if (!tensor.is_none() && (!exchange.read(tensor, now) || now.address() != held_[i].address)) {
      return false;
    }
  }
  return true;
}

/// Sets output_shape_ and output_strides_ for x's: the same objects as long as shapes repeat.
void BoundWeight::set_output_shape(const DlTensor& x) {
  const std::size_t num_axes = static_cast<std::size_t>(x.num_axes);
  if (seen_shape_.size() == num_axes &&
      std::equal(seen_shape_.begin(), seen_shape_.end(), x.shape)) {
    return;
  }
  seen_shape_.assign(x.shape, x.shape + num_axes);
  std::vector<std::int64_t> shape = seen_shape_;
  shape.back() = view_.n;
  output_shape_ = shape_tuple(shape);
  output_strides_ = dense_strides(shape);
}

void BoundWeight::multiply(const void* x, std::int64_t m, std::int64_t ldx, void* y,
                           const void* residual, float alpha, void* stream, nb::handle allocate,
                           KeptScratch* kept) const {
  Epilogue epilogue = epilogue_;
  epilogue.residual = residual != nullptr;
  const DeviceGuard guard(place_);
  const Plan chosen = make_plan(view_, place_, m, act_, epilogue, {});
  const Workspace workspace(chosen.workspace_bytes(), place_, allocate, kept, stream);
  RunArgs args;
  args.x = x;
  args.ldx = ldx;
  args.weight = view_;
  args.y = y;
  args.ldy = view_.n;
  args.bias = bias_;
  args.residual = residual;
  args.ldr = view_.n;
  args.alpha = alpha;
  args.workspace = workspace.data();
  args.workspace_bytes = workspace.bytes();
  args.stream = stream;
  args.pdl = pdl_;
  const nb::gil_scoped_release release;
  chosen.run(args).throw_if_error();
}

void bind_bound_weight(nb::module_& m) {
  using Memory = BoundWeight::Memory;
  nb::class_<BoundWeight>(m, "BoundWeight")
      .def(nb::init<std::int64_t, std::int64_t, int, int, const std::string&, const std::string&,
                    const std::string&, bool, int, const Memory&, const Memory&, const Memory&,
                    const Memory&, const Memory&, bool>(),
           nb::arg("n"), nb::arg("k"), nb::arg("bits"), nb::arg("group_size"), nb::arg("zero"),
           nb::arg("dtype"), nb::arg("activation"), nb::arg("is_cuda"), nb::arg("ordinal"),
           nb::arg("codes"), nb::arg("scales"), nb::arg("zeros"), nb::arg("permutation"),
           nb::arg("bias"), nb::arg("pdl"))
      .def("dequantize", &BoundWeight::dense)
      .def("run", &BoundWeight::run, nb::arg("x"), nb::arg("m"), nb::arg("ldx"), nb::arg("y"),
           nb::arg("residual"), nb::arg("alpha"), nb::arg("stream"), nb::arg("allocate").none())
      .def("hold", &BoundWeight::hold, nb::arg("buffers"), nb::arg("empty"), nb::arg("dtype"),
           nb::arg("allocate").none(), nb::arg("kept").none());
}

}  // namespace mixgemm::python
