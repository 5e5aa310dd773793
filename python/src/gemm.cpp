// SPDX-License-Identifier: Apache-2.0
// Plans and products.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstdlib>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>

#include "bindings.hpp"
#include "exchange.hpp"
#include "product.hpp"

namespace mixgemm::python {
namespace {

/// A plan and the device it was made for.
struct PlacedPlan {
  Plan plan;
  Place place;
};

/// Must lie where the others do; refuses by both names.
void check_place(const Array& array, const Array& x) {
  if (array.place == x.place) return;
  refuse(array.name, " must be where x is, on ", x.place.name(), "; got ", array.place.name());
}

void check_dtype(const Array& array, const Array& x) {
  if (array.dtype == x.dtype) return;
  refuse(array.name, " must have x's dtype ", x.dtype, "; got ", array.dtype);
}

/// The operands of a product; bias and residual may be absent.
struct Operands {
  Array x, out;
  std::optional<Array> bias, residual;
};

/// How a product's operands are combined.
struct Terms {
  Activation activation = Activation::none;
  float alpha = 1.0f;
  bool pdl = false;
};

std::vector<std::int64_t> output_shape(const Array& x, std::int64_t n) {
  std::vector<std::int64_t> shape = x.shape;
  if (!shape.empty()) shape.back() = n;
  return shape;
}

/// Checks what only the operands can break, then multiplies. allocate, kept: as for Workspace.
void multiply(const PlacedWeight& weight, const Operands& operands, DataType act,
              const Terms& terms, const Options& options, void* stream, nb::handle allocate,
              KeptScratch* kept) {
  const PackedView& view = weight.view();
  const Array& x = operands.x;
  const Array& out = operands.out;
  const Rows x_rows = as_rows(x, view.k, "K");
  if (!(x.place == weight.place)) {
    refuse("x must be where the packed weight is, on ", weight.place.name(), "; got ",
           x.place.name(),
           weight.place.device == Device::cpu ? " (to() copies a weight there)" : "");
  }
  check_place(out, x);
  check_dtype(out, x);
  const std::vector<std::int64_t> out_shape = output_shape(x, view.n);
  if (out.shape != out_shape) {
    refuse("out must have shape ", show_shape(out_shape), "; got ", show_shape(out.shape));
  }
  const Rows out_rows = as_rows(out, view.n, "N");

  RunArgs args;
  Epilogue epilogue;
  epilogue.activation = terms.activation;
  if (operands.bias) {
    const Array& bias = *operands.bias;
    check_place(bias, x);
    check_dtype(bias, x);
    if (bias.shape != std::vector<std::int64_t>{view.n}) {
      refuse("bias must have shape ", show_shape({view.n}), "; got ", show_shape(bias.shape));
    }
    if (view.n > 1 && bias.stride[0] != 1) {
      refuse("bias must have unit stride; got ", bias.stride[0], " (make it contiguous)");
    }
    epilogue.bias = true;
    args.bias = bias.data;
  }
  if (operands.residual) {
    const Array& residual = *operands.residual;
    check_place(residual, x);
    check_dtype(residual, x);
    if (residual.shape != out_shape) {
      refuse("residual must have shape ", show_shape(out_shape), "; got ",
             show_shape(residual.shape));
    }
    epilogue.residual = true;
    args.residual = residual.data;
    args.ldr = as_rows(residual, view.n, "N").ld;
  }
  if (x_rows.rows == 0) return;

  const DeviceGuard guard(x.place);
  const Plan chosen = make_plan(view, x.place, x_rows.rows, act, epilogue, options);
  const Workspace workspace(chosen.workspace_bytes(), x.place, allocate, kept, stream);
  args.x = x.data;
  args.ldx = x_rows.ld;
  args.weight = view;
  args.y = out.data;
  args.ldy = out_rows.ld;
  args.alpha = terms.alpha;
  args.workspace = workspace.data();
  args.workspace_bytes = workspace.bytes();
  args.stream = stream;
  args.pdl = terms.pdl;
  const nb::gil_scoped_release release;
  chosen.run(args).throw_if_error();
}

/// With arrays of any library, through DLPack.
void py_matmul(nb::handle x, const PlacedWeight& weight, nb::handle out, nb::handle bias,
               nb::handle residual, const std::string& activation, float alpha,
               std::uintptr_t stream, nb::handle allocate, const Options& options, bool pdl,
               bool bf16_bits) {
  // DLPack has no number for stream 0: it spells the legacy default stream 1.
  const StreamNumber number = stream == 0 ? 1 : static_cast<StreamNumber>(stream);
  Operands operands;
  operands.x = take_array(x, "x", number);
  as_rows(operands.x, weight.view().k, "K");
  if (bf16_bits && operands.x.dtype != "uint16") {
    refuse("x must be bfloat16; got ", operands.x.dtype);
  }
  const DataType act = bf16_bits ? DataType::bf16 : float_type(operands.x, false);
  operands.out = take_array(out, "out", number, true);
  const Terms terms{parse_activation(activation), alpha, pdl};
  if (!bias.is_none()) operands.bias = take_array(bias, "bias", number);
  if (!residual.is_none()) operands.residual = take_array(residual, "residual", number);
  multiply(weight, operands, act, terms, options, reinterpret_cast<void*>(stream), allocate,
           nullptr);
}

/// The same on the current stream of x's library, with arrays whose type has DLPack's C exchange
/// table and which no gradient is asked of. Returns `out`, made here where it is None.
/// memory(device) → (empty(shape, strides, dtype), `allocate` as for Workspace, the device's
/// KeptScratch or None). None where an array isn't such a one: the way through __dlpack__ takes it,
/// or says why not.
nb::object py_matmul_here(nb::handle x, const PlacedWeight& weight, nb::object out, nb::handle bias,
                          nb::handle residual, const std::string& activation, float alpha,
                          const Options& options, bool pdl, nb::handle memory) {
  const Exchange* exchange = Exchange::of(x);
  if (exchange == nullptr) return nb::none();
  Operands operands;
  const auto take = [&](nb::handle object, const char* name, Array& array) {
    return Exchange::of(object) == exchange && read_array(*exchange, object, name, array);
  };
  if (!take(x, "x", operands.x)) return nb::none();
  as_rows(operands.x, weight.view().k, "K");
  const DataType act = float_type(operands.x, false);
  const Terms terms{parse_activation(activation), alpha, pdl};
  if (!bias.is_none() && !take(bias, "bias", operands.bias.emplace())) return nb::none();
  if (!residual.is_none() && !take(residual, "residual", operands.residual.emplace())) {
    return nb::none();
  }
  const nb::tuple made = nb::cast<nb::tuple>(memory(x.attr("device")));
  if (out.is_none()) {
    const std::vector<std::int64_t> shape = output_shape(operands.x, weight.view().n);
    out = made[0](shape_tuple(shape), dense_strides(shape), x.attr("dtype"));
    if (!take(out, "out", operands.out)) return nb::none();
    if (!(operands.out.place == operands.x.place)) out = x.attr("new_empty")(shape_tuple(shape));
  }
  if (!take(out, "out", operands.out)) return nb::none();
  const nb::object kept = made[2];
  multiply(weight, operands, act, terms, options, exchange->current_stream(operands.x.place),
           made[1], kept.is_none() ? nullptr : nb::cast<KeptScratch*>(kept));
  return out;
}

PlacedPlan py_plan(const PlacedWeight& weight, std::int64_t m, const std::string& dtype, bool bias,
                   bool residual, const std::string& activation, Options options) {
  Epilogue epilogue;
  epilogue.bias = bias;
  epilogue.residual = residual;
  epilogue.activation = parse_activation(activation);
  const DeviceGuard guard(weight.place);
  return {make_plan(weight.view(), weight.place, m, parse_dtype(dtype, "dtype"), epilogue, options),
          weight.place};
}

nb::dict show_kernel(const KernelInfo& kernel) {
  nb::dict info;
  info["id"] = kernel.id;
  info["device"] = std::string(to_string(kernel.device));
  info["arch"] = kernel.arch;
  info["registers"] = kernel.registers;
  info["shared_bytes"] = kernel.shared_bytes;
  info["reason"] = kernel.reason;
  return info;
}

nb::dict show_device(const DeviceInfo& device) {
  nb::dict info;
  info["device"] = std::string(to_string(device.device));
  info["name"] = device.name;
  info["arch"] = device.arch;
  info["num_sms"] = device.num_sms;
  info["usable"] = device.usable;
  info["note"] = device.note;
  return info;
}

}  // namespace

void bind_gemm(nb::module_& m) {
  nb::class_<PlacedPlan>(m, "Plan",
                         "How a product runs: which kernel with which configuration, and why. "
                         "Made by `plan`; immutable.")
      .def_prop_ro(
          "kernel_id", [](const PlacedPlan& p) { return p.plan.kernel_id(); },
          "The compiled part, e.g. 'sm90_f16_i4_g_t128x256x64_coop'.")
      .def_prop_ro(
          "config_id", [](const PlacedPlan& p) { return p.plan.config_id(); },
          "With the run-time part, e.g. '...@g128_c2x1_s4_sk2'. `matmul` takes it as `kernel`.")
      .def_prop_ro(
          "workspace_bytes", [](const PlacedPlan& p) { return p.plan.workspace_bytes(); },
          "Bytes of scratch memory that a run takes.")
      .def_prop_ro(
          "device", [](const PlacedPlan& p) { return p.place.name(); }, "Where it runs.")
      .def(
          "explain",
          [](const PlacedPlan& p) {
            const DeviceGuard guard(p.place);
            return p.plan.explain();
          },
          "Which kernel and why, a few lines for a person.")
      .def("__repr__",
           [](const PlacedPlan& p) { return cat("<mixgemm.Plan ", p.plan.config_id(), ">"); });

  nb::class_<Options>(m, "Options")
      .def(
          "__init__",
          [](Options* self, std::string kernel, int num_threads, bool deterministic,
             bool batch_invariant) {
            new (self) Options{std::move(kernel), num_threads, deterministic, batch_invariant};
          },
          nb::arg("kernel"), nb::arg("num_threads"), nb::arg("deterministic"),
          nb::arg("batch_invariant"));

  m.def("matmul", &py_matmul, nb::arg("x"), nb::arg("weight"), nb::arg("out"),
        nb::arg("bias").none(), nb::arg("residual").none(), nb::arg("activation"), nb::arg("alpha"),
        nb::arg("stream"), nb::arg("allocate").none(), nb::arg("options"), nb::arg("pdl"),
        nb::arg("bf16_bits"));
  m.def("matmul_here", &py_matmul_here, nb::arg("x"), nb::arg("weight"), nb::arg("out").none(),
        nb::arg("bias").none(), nb::arg("residual").none(), nb::arg("activation"), nb::arg("alpha"),
        nb::arg("options"), nb::arg("pdl"), nb::arg("memory"));
  m.def("plan", &py_plan, nb::arg("weight"), nb::arg("m"), nb::arg("dtype"), nb::arg("bias"),
        nb::arg("residual"), nb::arg("activation"), nb::arg("options"));
  m.def("synchronize", [](int ordinal, std::uintptr_t stream) {
    const nb::gil_scoped_release release;
    wait_for_stream(ordinal, reinterpret_cast<void*>(stream));
  });
  m.def("kernels", [] {
    nb::list list;
    for (const KernelInfo& kernel : kernels()) list.append(show_kernel(kernel));
    return list;
  });
  m.def("devices", [] {
    nb::list list;
    for (const DeviceInfo& device : devices()) list.append(show_device(device));
    return list;
  });
}

}  // namespace mixgemm::python
