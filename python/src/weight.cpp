// SPDX-License-Identifier: Apache-2.0
// Weights: quantize, pack, unpack, slices, and the copy to a CUDA device.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <optional>
#include <string_view>
#include <tuple>
#include <utility>

#include "bindings.hpp"
#include "cuda_device.hpp"

namespace mixgemm::python {
namespace {

QuantSpec make_spec(int bits, int group_size, const std::string& zero,
                    const std::string& scale_dtype) {
  QuantSpec spec;
  spec.type = parse_bits(bits);
  spec.group_size = group_size;
  spec.zero = parse_zero(zero);
  spec.scale_type = parse_dtype(scale_dtype, "scale_dtype");
  return spec;
}

/// A matrix on the CPU whose rows are contiguous.
Rows cpu_matrix(const Array& array) {
  if (array.shape.size() != 2) {
    refuse(array.name, " must be a matrix [N, K]; got shape ", show_shape(array.shape));
  }
  if (array.place.device != Device::cpu) {
    refuse(array.name, " must be on the CPU; got an array on ", array.place.name());
  }
  return as_rows(array, array.shape[1], "K");
}

/// Calls a Python callable from the worker threads. What it raises is kept and raised once the work
/// is done: the library's progress callback must not throw.
class PythonProgress {
 public:
  explicit PythonProgress(nb::object callable) : callable_(std::move(callable)) {}

  Progress callback() {
    if (callable_.is_none()) return {};
    return [this](double fraction) {
      const nb::gil_scoped_acquire gil;
      if (raised_) return;
      try {
        callable_(fraction);
      } catch (...) {
        raised_ = std::current_exception();
      }
    };
  }
  void rethrow() const {
    if (raised_) std::rethrow_exception(raised_);
  }

 private:
  nb::object callable_;
  std::exception_ptr raised_;
};

void check_threads(int num_threads) {
  if (num_threads < 0) refuse("num_threads must be 0 (all cores) or more; got ", num_threads);
}

struct QuantizeCall {
  Array w;
  Rows rows;
  DataType type = DataType::f32;
  QuantizeOptions options;

  QuantizeCall(nb::handle array, int bits, int group_size, const std::string& zero,
               const std::string& scale_dtype, bool search_clip, int num_threads, bool bf16_bits) {
    w = take_array(array, "w", 1);
    rows = cpu_matrix(w);
    type = bf16_bits ? DataType::bf16 : float_type(w, true);
    options.spec = make_spec(bits, group_size, zero, scale_dtype);
    options.search_clip = search_clip;
    check_threads(num_threads);
    options.num_threads = num_threads;
  }
};

using CanonicalParts = std::tuple<nb::object, nb::object, nb::object, nb::object>;

/// (codes u8 [N, K], scales u16 [N, G], zeros u8 or u16 [N, G] or None, permutation i32 [K] or
/// None).
CanonicalParts give_canonical(CanonicalWeight weight) {
  const auto n = static_cast<std::size_t>(weight.n);
  const auto k = static_cast<std::size_t>(weight.k);
  const auto groups = static_cast<std::size_t>(weight.groups());
  nb::object zeros = nb::none();
  if (weight.spec.zero == ZeroKind::integer)
    zeros = give_numpy(std::move(weight.zeros), {n, groups});
  if (weight.spec.zero == ZeroKind::scaled) {
    zeros = give_numpy(std::move(weight.scaled_zeros), {n, groups});
  }
  nb::object permutation = nb::none();
  if (!weight.permutation.empty()) permutation = give_numpy(std::move(weight.permutation), {k});
  return {give_numpy(std::move(weight.codes), {n, k}),
          give_numpy(std::move(weight.scales), {n, groups}), zeros, permutation};
}

template <class T>
std::vector<T> copy_matrix(nb::handle object, const char* name, std::int64_t rows,
                           std::int64_t columns) {
  const Array array = take_array(object, name, 1);
  const std::string dtype = cat("uint", 8 * sizeof(T));
  if (array.dtype != dtype) refuse(name, " must be ", dtype, "; got ", array.dtype);
  const Rows r = cpu_matrix(array);
  if (array.shape != std::vector<std::int64_t>{rows, columns}) {
    refuse(name, " must have shape ", show_shape({rows, columns}), "; got ",
           show_shape(array.shape));
  }
  std::vector<T> copy(static_cast<std::size_t>(rows * columns));
  for (std::int64_t row = 0; row < rows; ++row) {
    std::memcpy(copy.data() + row * columns, static_cast<const T*>(array.data) + row * r.ld,
                static_cast<std::size_t>(columns) * sizeof(T));
  }
  return copy;
}

std::vector<std::int32_t> take_permutation(nb::handle object, std::int64_t k) {
  const Array array = take_array(object, "permutation", 1);
  if (array.dtype != "int32") refuse("permutation must be int32; got ", array.dtype);
  if (array.shape != std::vector<std::int64_t>{k}) {
    refuse("permutation must have shape ", show_shape({k}), "; got ", show_shape(array.shape));
  }
  if (array.place.device != Device::cpu || (k > 1 && array.stride[0] != 1)) {
    refuse("permutation must be contiguous on the CPU");
  }
  const auto* const values = static_cast<const std::int32_t*>(array.data);
  return {values, values + k};
}

CanonicalWeight take_canonical(nb::handle codes, nb::handle scales, nb::handle zeros,
                               nb::handle permutation, const QuantSpec& spec) {
  CanonicalWeight weight;
  const Array shape = take_array(codes, "codes", 1);
  if (shape.shape.size() != 2) {
    refuse("codes must be a matrix [N, K]; got shape ", show_shape(shape.shape));
  }
  weight.n = shape.shape[0];
  weight.k = shape.shape[1];
  weight.spec = spec;
  // Before the shapes that follow from it are asked for.
  if (const int g = spec.group_size; g != 0 && g != 16 && g != 32 && g != 64 && g != 128) {
    refuse("group_size must be 0 (per column), 16, 32, 64 or 128; got ", g);
  }
  const std::int64_t groups = weight.groups();
  weight.codes = copy_matrix<std::uint8_t>(codes, "codes", weight.n, weight.k);
  weight.scales = copy_matrix<std::uint16_t>(scales, "scales", weight.n, groups);
  if ((spec.zero == ZeroKind::none) != zeros.is_none()) {
    refuse("zeros must be ", spec.zero == ZeroKind::none ? "None" : "given", " where zero = \"",
           to_string(spec.zero), "\"");
  }
  if (spec.zero == ZeroKind::integer) {
    weight.zeros = copy_matrix<std::uint8_t>(zeros, "zeros", weight.n, groups);
  } else if (spec.zero == ZeroKind::scaled) {
    weight.scaled_zeros = copy_matrix<std::uint16_t>(zeros, "zeros", weight.n, groups);
  }
  if (!permutation.is_none()) weight.permutation = take_permutation(permutation, weight.k);
  return weight;
}

CanonicalParts py_quantize(nb::handle w, int bits, int group_size, const std::string& zero,
                           const std::string& scale_dtype, bool search_clip, int num_threads,
                           nb::object progress, bool bf16_bits) {
  QuantizeCall call(w, bits, group_size, zero, scale_dtype, search_clip, num_threads, bf16_bits);
  PythonProgress reporter(std::move(progress));
  call.options.progress = reporter.callback();
  std::optional<Result<CanonicalWeight>> result;
  {
    const nb::gil_scoped_release release;
    result.emplace(quantize(call.w.data, call.type, call.w.shape[0], call.w.shape[1], call.rows.ld,
                            call.options));
  }
  reporter.rethrow();
  return give_canonical(std::move(*result).value());
}

PlacedWeight py_quantize_packed(nb::handle w, int bits, int group_size, const std::string& zero,
                                const std::string& scale_dtype, bool search_clip, int num_threads,
                                nb::object progress, bool bf16_bits) {
  QuantizeCall call(w, bits, group_size, zero, scale_dtype, search_clip, num_threads, bf16_bits);
  PythonProgress reporter(std::move(progress));
  call.options.progress = reporter.callback();
  std::optional<Result<PackedWeight>> result;
  {
    const nb::gil_scoped_release release;
    result.emplace(quantize_packed(call.w.data, call.type, call.w.shape[0], call.w.shape[1],
                                   call.rows.ld, call.options));
  }
  reporter.rethrow();
  return {std::move(*result).value(), {}};
}

PlacedWeight py_pack(nb::handle codes, nb::handle scales, nb::handle zeros, nb::handle permutation,
                     int bits, int group_size, const std::string& zero,
                     const std::string& scale_dtype, int num_threads) {
  check_threads(num_threads);
  const CanonicalWeight weight = take_canonical(codes, scales, zeros, permutation,
                                                make_spec(bits, group_size, zero, scale_dtype));
  const nb::gil_scoped_release release;
  return {pack(weight, num_threads).value(), {}};
}

nb::object py_dequantize(nb::handle codes, nb::handle scales, nb::handle zeros,
                         nb::handle permutation, int bits, int group_size, const std::string& zero,
                         const std::string& scale_dtype) {
  const CanonicalWeight weight = take_canonical(codes, scales, zeros, permutation,
                                                make_spec(bits, group_size, zero, scale_dtype));
  std::optional<Result<std::vector<float>>> dense;
  {
    const nb::gil_scoped_release release;
    dense.emplace(dequantize(weight));
  }
  return give_numpy(std::move(*dense).value(),
                    {static_cast<std::size_t>(weight.n), static_cast<std::size_t>(weight.k)});
}

CanonicalParts py_unpack(const PlacedWeight& packed, int num_threads) {
  check_threads(num_threads);
  if (packed.place.device != Device::cpu) {
    refuse("unpack needs a packed weight on the CPU; got one on ", packed.place.name());
  }
  std::optional<Result<CanonicalWeight>> result;
  {
    const nb::gil_scoped_release release;
    result.emplace(unpack(packed.view(), num_threads));
  }
  return give_canonical(std::move(*result).value());
}

/// "cuda" → nothing, "cuda:2" → 2; -1 for any other text.
std::optional<int> parse_cuda(const std::string& device) {
  constexpr std::string_view kPrefix = "cuda:";
  if (device == "cuda") return std::nullopt;
  const std::size_t digits = device.size() - std::min(device.size(), kPrefix.size());
  if (!device.starts_with(kPrefix) || digits < 1 || digits > 4) return -1;
  int ordinal = 0;
  for (const char c : device.substr(kPrefix.size())) {
    if (c < '0' || c > '9') return -1;
    ordinal = 10 * ordinal + (c - '0');
  }
  return ordinal;
}

nb::object py_to(nb::handle self, nb::handle device) {
  const auto& packed = nb::cast<const PlacedWeight&>(self);
  const auto text = nb::cast<std::string>(nb::str(device));
  const bool on_cuda = packed.place.device == Device::cuda;
  if (text == packed.place.name() || (text == "cuda" && on_cuda)) return nb::borrow(self);
  const std::optional<int> ordinal = parse_cuda(text);
  if (ordinal == -1 || on_cuda) {
    refuse("to() copies a packed weight from the CPU to \"cuda\" or \"cuda:0\" and so on; got \"",
           text, "\" for one on ", packed.place.name());
  }
  const int count = num_cuda_devices();
  if (count == 0) to_cuda(packed.weight).value();  // says why there is none
  const Place place{Device::cuda, ordinal ? *ordinal : current_cuda_device()};
  if (place.ordinal >= count) {
    refuse("device must be cuda:0 .. cuda:", count - 1, "; got ", place.name());
  }
  PlacedWeight copy{{}, place};
  {
    const nb::gil_scoped_release release;
    const DeviceGuard guard(place);
    copy.weight = to_cuda(packed.weight).value();
  }
  return nb::cast(std::move(copy));
}

/// The same memory, seen through another view.
PlacedWeight with_view(const PlacedWeight& packed, const PackedView& view) {
  // The old weight keeps the memory: a PackedWeight doesn't show what holds it.
  return {PackedWeight(view, std::make_shared<PackedWeight>(packed.weight)), packed.place};
}

/// Bytes of a part as an array [strips, ...]; a slice has gaps between its strips, hence refused.
nb::object part(nb::handle self, const char* what) {
  const auto& packed = nb::cast<const PlacedWeight&>(self);
  const PackedView& view = packed.view();
  if (std::string_view(what) == "permutation") {
    if (view.permutation == nullptr) return nb::none();
    return give_array(view.permutation, {static_cast<std::size_t>(view.k)}, "int32", packed.place,
                      self);
  }
  const auto strips = static_cast<std::size_t>((view.n + 15) / 16);
  const auto k_blocks = static_cast<std::size_t>((view.k + 63) / 64);
  const auto groups = static_cast<std::size_t>(view.groups());
  const auto cell = static_cast<std::size_t>(128 * bits_of(view.spec.type));
  if (static_cast<std::size_t>(view.codes_pitch_bytes) != k_blocks * cell ||
      view.groups_pitch != view.groups()) {
    refuse("the parts of a slice of K are not contiguous: unpack and pack it first");
  }
  if (std::string_view(what) == "codes") {
    return give_array(view.codes, {strips, k_blocks, cell}, "uint8", packed.place, self);
  }
  const char* scale_dtype = dtype_name_of(view.spec.scale_type);
  if (std::string_view(what) == "scales") {
    return give_array(view.scales, {strips, groups, 16}, scale_dtype, packed.place, self);
  }
  if (view.spec.zero == ZeroKind::none) return nb::none();
  const bool bytes = view.spec.zero == ZeroKind::integer && packed.place.device == Device::cpu;
  return give_array(view.zeros, {strips, groups, 16}, bytes ? "uint8" : scale_dtype, packed.place,
                    self);
}

std::string show(const PlacedWeight& packed) {
  const PackedView& view = packed.view();
  return cat(
      "<mixgemm.PackedWeight ", view.n, "x", view.k, " ", to_string(view.spec.type),
      view.spec.group_size == 0 ? std::string(" per column") : cat(" group ", view.spec.group_size),
      " zero=", to_string(view.spec.zero), " scales ", dtype_name_of(view.spec.scale_type),
      view.permutation == nullptr ? "" : " permuted columns", " on ", packed.place.name(), ", ",
      packed.weight.size_bytes(), " bytes>");
}

}  // namespace

void bind_weight(nb::module_& m) {
  nb::class_<PlacedWeight>(
      m, "PackedWeight",
      "A quantized weight in the kernels' layout: what `matmul` takes, on the CPU or on a CUDA "
      "device. Immutable; slices share its memory. Made by `pack`, `quantize_packed`, `load` and "
      "`to`.")
      .def_prop_ro(
          "n", [](const PlacedWeight& w) { return w.view().n; }, "Output features N.")
      .def_prop_ro(
          "k", [](const PlacedWeight& w) { return w.view().k; }, "Input features K.")
      .def_prop_ro(
          "shape", [](const PlacedWeight& w) { return std::tuple(w.view().n, w.view().k); },
          "(N, K).")
      .def_prop_ro(
          "bits", [](const PlacedWeight& w) { return bits_of(w.view().spec.type); },
          "Bits of one code, 4 or 8.")
      .def_prop_ro(
          "group_size", [](const PlacedWeight& w) { return w.view().spec.group_size; },
          "Consecutive k that share a scale; 0: one scale per output feature.")
      .def_prop_ro(
          "zero", [](const PlacedWeight& w) { return std::string(to_string(w.view().spec.zero)); },
          "Zero-point kind: 'none', 'integer' or 'scaled'.")
      .def_prop_ro(
          "scale_dtype",
          [](const PlacedWeight& w) { return dtype_name_of(w.view().spec.scale_type); },
          "'float16' or 'bfloat16'.")
      .def_prop_ro(
          "device", [](const PlacedWeight& w) { return w.place.name(); },
          "'cpu', or 'cuda:0' and so on.")
      .def_prop_ro(
          "nbytes", [](const PlacedWeight& w) { return w.weight.size_bytes(); },
          "Bytes of codes, scales, zeros and permutation, padding included.")
      .def_prop_ro(
          "codes", [](nb::handle self) { return part(self, "codes"); },
          "The packed codes, uint8 [strips, k-blocks, bytes of a cell]: a read-only DLPack array "
          "over the same memory.")
      .def_prop_ro(
          "scales", [](nb::handle self) { return part(self, "scales"); },
          "The scales, scale_dtype [strips, groups, 16]: a read-only DLPack array over the same "
          "memory.")
      .def_prop_ro(
          "zeros", [](nb::handle self) { return part(self, "zeros"); },
          "The zeros, [strips, groups, 16], or None: uint8 where zero is 'integer' and the weight "
          "is on the CPU, else scale_dtype.")
      .def_prop_ro(
          "permutation", [](nb::handle self) { return part(self, "permutation"); },
          "The order of the packed columns, int32 [K], or None: column j of the codes multiplies "
          "column permutation[j] of x, as in a checkpoint quantized in activation order. `matmul` "
          "takes care of it.")
      .def(
          "for_gathered_x",
          [](const PlacedWeight& w) {
            return PlacedWeight{w.weight.for_gathered_x(), w.place};
          },
          "The same weight, which shares the memory, without its permutation: for an x whose "
          "columns are in its order already, x[..., permutation].")
      .def("to", &py_to, nb::arg("device").none(),
           nb::sig("def to(self, device: object) -> PackedWeight"),
           "A copy on a CUDA device: 'cuda' (the current one), 'cuda:1', or a torch.device; the "
           "weight itself where it is there already. Returns when the copy is complete.")
      .def(
          "slice_n",
          [](const PlacedWeight& w, std::int64_t begin, std::int64_t end) {
            return with_view(w, slice_n(w.view(), begin, end).value());
          },
          nb::arg("begin"), nb::arg("end"),
          "Output features [begin, end): a view of the same bytes. Both must be multiples of 16, "
          "except that end may be N.")
      .def(
          "slice_k",
          [](const PlacedWeight& w, std::int64_t begin, std::int64_t end) {
            return with_view(w, slice_k(w.view(), begin, end).value());
          },
          nb::arg("begin"), nb::arg("end"),
          "Input features [begin, end): a view of the same bytes. Both must be multiples of "
          "lcm(64, group_size), except that end may be K.")
      .def("__repr__", &show);

  m.def("quantize", &py_quantize, nb::arg("w"), nb::arg("bits"), nb::arg("group_size"),
        nb::arg("zero"), nb::arg("scale_dtype"), nb::arg("search_clip"), nb::arg("num_threads"),
        nb::arg("progress").none(), nb::arg("bf16_bits"));
  m.def("quantize_packed", &py_quantize_packed, nb::arg("w"), nb::arg("bits"),
        nb::arg("group_size"), nb::arg("zero"), nb::arg("scale_dtype"), nb::arg("search_clip"),
        nb::arg("num_threads"), nb::arg("progress").none(), nb::arg("bf16_bits"));
  m.def("pack", &py_pack, nb::arg("codes"), nb::arg("scales"), nb::arg("zeros").none(),
        nb::arg("permutation").none(), nb::arg("bits"), nb::arg("group_size"), nb::arg("zero"),
        nb::arg("scale_dtype"), nb::arg("num_threads"));
  m.def("dequantize", &py_dequantize, nb::arg("codes"), nb::arg("scales"), nb::arg("zeros").none(),
        nb::arg("permutation").none(), nb::arg("bits"), nb::arg("group_size"), nb::arg("zero"),
        nb::arg("scale_dtype"));
  m.def("unpack", &py_unpack, nb::arg("packed"), nb::arg("num_threads"));
}

}  // namespace mixgemm::python
