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
#include "cuda_device.hpp"
#include "mixgemm/gemm.hpp"

namespace mixgemm::python {
namespace {

constexpr std::size_t kWorkspaceAlignment = 256;

/// A plan and the device it was made for.
struct PlacedPlan {
  Plan plan;
  Place place;
};

/// How a product is to be computed, besides its operands.
struct Options {
  std::string kernel;
  int num_threads = 0;
  bool deterministic = true;
  bool batch_invariant = false;
};

Plan make_plan(const PackedView& weight, Place place, std::int64_t m, DataType act,
               const Epilogue& epilogue, const Options& options) {
  Problem problem;
  problem.m = m;
  problem.n = weight.n;
  problem.k = weight.k;
  problem.act = act;
  problem.weight = weight.spec;
  problem.epilogue = epilogue;
  problem.device = place.device;
  problem.deterministic = options.deterministic;
  problem.batch_invariant = options.batch_invariant;
  if (weight.permutation != nullptr) problem.columns = ColumnOrder::permuted;
  PlanOptions plan_options;
  plan_options.kernel = options.kernel;
  plan_options.num_threads = options.num_threads;
  const DeviceGuard guard(place);
  return plan(problem, plan_options).value();
}

/// Memory for partial sums. On the CPU it is ours; on a CUDA device it comes from the caller's
/// framework, so that its allocator knows the stream that uses it and a captured graph keeps it.
class Workspace {
 public:
  /// allocate(bytes) → (whatever keeps the memory alive, its address).
  Workspace(std::size_t bytes, Place place, const nb::object& allocate)
      : bytes_((bytes + kWorkspaceAlignment - 1) / kWorkspaceAlignment * kWorkspaceAlignment) {
    if (bytes_ == 0) return;
    if (place.device == Device::cpu) {
      owned_.reset(std::aligned_alloc(kWorkspaceAlignment, bytes_));
      if (owned_ == nullptr) throw std::bad_alloc();
      data_ = owned_.get();
      return;
    }
    allocated_ = nb::cast<nb::tuple>(allocate(bytes_));
    data_ = reinterpret_cast<void*>(nb::cast<std::uintptr_t>(allocated_[1]));
  }
  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::size_t bytes_;
  void* data_ = nullptr;
  std::unique_ptr<void, Free> owned_;
  nb::tuple allocated_;
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

void py_matmul(nb::handle x_object, const PlacedWeight& weight, nb::handle out_object,
               nb::handle bias_object, nb::handle residual_object, const std::string& activation,
               float alpha, std::uintptr_t stream, nb::object allocate, Options options, bool pdl,
               bool bf16_bits) {
  const PackedView& view = weight.view();
  // DLPack has no number for stream 0: it spells the legacy default stream 1.
  const StreamNumber number = stream == 0 ? 1 : static_cast<StreamNumber>(stream);
  const Array x = take_array(x_object, "x", number);
  const Rows x_rows = as_rows(x, view.k, "K");
  const auto check_16_bits = [&](const Array& array) {
    if (array.dtype != "uint16") refuse(array.name, " must be bfloat16; got ", array.dtype);
    return DataType::bf16;
  };
  const DataType act = bf16_bits ? check_16_bits(x) : float_type(x, false);
  if (!(x.place == weight.place)) {
    refuse("x must be where the packed weight is, on ", weight.place.name(), "; got ",
           x.place.name(),
           weight.place.device == Device::cpu ? " (to() copies a weight there)" : "");
  }

  const Array out = take_array(out_object, "out", number, true);
  check_place(out, x);
  check_dtype(out, x);
  std::vector<std::int64_t> out_shape = x.shape;
  out_shape.back() = view.n;
  if (out.shape != out_shape) {
    refuse("out must have shape ", show_shape(out_shape), "; got ", show_shape(out.shape));
  }
  const Rows out_rows = as_rows(out, view.n, "N");

  RunArgs args;
  Epilogue epilogue;
  epilogue.activation = parse_activation(activation);
  Array bias;
  if (!bias_object.is_none()) {
    bias = take_array(bias_object, "bias", number);
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
  Array residual;
  if (!residual_object.is_none()) {
    residual = take_array(residual_object, "residual", number);
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

  const Plan chosen = make_plan(view, x.place, x_rows.rows, act, epilogue, options);
  const Workspace workspace(chosen.workspace_bytes(), x.place, allocate);
  args.x = x.data;
  args.ldx = x_rows.ld;
  args.weight = view;
  args.y = out.data;
  args.ldy = out_rows.ld;
  args.alpha = alpha;
  args.workspace = workspace.data();
  args.workspace_bytes = workspace.bytes();
  args.stream = reinterpret_cast<void*>(stream);
  args.pdl = pdl;
  const nb::gil_scoped_release release;
  const DeviceGuard guard(x.place);
  chosen.run(args).throw_if_error();
}

PlacedPlan py_plan(const PlacedWeight& weight, std::int64_t m, const std::string& dtype, bool bias,
                   bool residual, const std::string& activation, Options options) {
  Epilogue epilogue;
  epilogue.bias = bias;
  epilogue.residual = residual;
  epilogue.activation = parse_activation(activation);
  return {make_plan(weight.view(), weight.place, m, parse_dtype(dtype, "dtype"), epilogue, options),
          weight.place};
}

/// A packed weight in memory that somebody else owns, checked once, multiplied often by address:
/// the PyTorch module's way in. The owner must keep the memory as long as calls are made.
class BoundWeight {
 public:
  struct Buffer {
    std::uintptr_t address = 0;
    std::size_t bytes = 0;
  };

  BoundWeight(std::int64_t n, std::int64_t k, int bits, int group_size, const std::string& zero,
              const std::string& dtype, const std::string& activation, bool is_cuda, int ordinal,
              const std::tuple<std::uintptr_t, std::size_t>& codes,
              const std::tuple<std::uintptr_t, std::size_t>& scales,
              const std::tuple<std::uintptr_t, std::size_t>& zeros,
              const std::tuple<std::uintptr_t, std::size_t>& permutation,
              const std::tuple<std::uintptr_t, std::size_t>& bias, bool pdl) {
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

  /// The dense weight, float32 [N, K]; of a weight on the CPU.
  nb::object dense() const {
    std::vector<float> values;
    {
      const nb::gil_scoped_release release;
      values = dequantize(unpack(view_).value()).value();
    }
    return give_numpy(std::move(values),
                      {static_cast<std::size_t>(view_.n), static_cast<std::size_t>(view_.k)});
  }

  /// x [m, K] → y [m, N] by address; `allocate` as for Workspace.
  void run(std::uintptr_t x, std::int64_t m, std::int64_t ldx, std::uintptr_t y,
           std::uintptr_t residual, float alpha, std::uintptr_t stream,
           const nb::object& allocate) const {
    Epilogue epilogue = epilogue_;
    epilogue.residual = residual != 0;
    const DeviceGuard guard(place_);
    const Plan chosen = make_plan(view_, place_, m, act_, epilogue, {});
    const Workspace workspace(chosen.workspace_bytes(), place_, allocate);
    RunArgs args;
    args.x = reinterpret_cast<const void*>(x);
    args.ldx = ldx;
    args.weight = view_;
    args.y = reinterpret_cast<void*>(y);
    args.ldy = view_.n;
    args.bias = bias_;
    args.residual = reinterpret_cast<const void*>(residual);
    args.ldr = view_.n;
    args.alpha = alpha;
    args.workspace = workspace.data();
    args.workspace_bytes = workspace.bytes();
    args.stream = reinterpret_cast<void*>(stream);
    args.pdl = pdl_;
    const nb::gil_scoped_release release;
    chosen.run(args).throw_if_error();
  }

 private:
  static const void* address_of(const char* name,
                                const std::tuple<std::uintptr_t, std::size_t>& buffer,
                                std::int64_t bytes) {
    if (std::get<0>(buffer) == 0 || std::get<1>(buffer) != static_cast<std::size_t>(bytes)) {
      refuse(name, " must have ", bytes, " bytes; got ", std::get<1>(buffer));
    }
    return reinterpret_cast<const void*>(std::get<0>(buffer));
  }

  PackedView view_;
  Place place_;
  DataType act_ = DataType::f16;
  Epilogue epilogue_;
  const void* bias_ = nullptr;
  bool pdl_ = false;
};

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

  using Pointer = std::tuple<std::uintptr_t, std::size_t>;
  nb::class_<BoundWeight>(m, "BoundWeight")
      .def(nb::init<std::int64_t, std::int64_t, int, int, const std::string&, const std::string&,
                    const std::string&, bool, int, const Pointer&, const Pointer&, const Pointer&,
                    const Pointer&, const Pointer&, bool>(),
           nb::arg("n"), nb::arg("k"), nb::arg("bits"), nb::arg("group_size"), nb::arg("zero"),
           nb::arg("dtype"), nb::arg("activation"), nb::arg("is_cuda"), nb::arg("ordinal"),
           nb::arg("codes"), nb::arg("scales"), nb::arg("zeros"), nb::arg("permutation"),
           nb::arg("bias"), nb::arg("pdl"))
      .def("dequantize", &BoundWeight::dense)
      .def("run", &BoundWeight::run, nb::arg("x"), nb::arg("m"), nb::arg("ldx"), nb::arg("y"),
           nb::arg("residual"), nb::arg("alpha"), nb::arg("stream"), nb::arg("allocate").none());

  m.def("matmul", &py_matmul, nb::arg("x"), nb::arg("weight"), nb::arg("out"),
        nb::arg("bias").none(), nb::arg("residual").none(), nb::arg("activation"), nb::arg("alpha"),
        nb::arg("stream"), nb::arg("allocate").none(), nb::arg("options"), nb::arg("pdl"),
        nb::arg("bf16_bits"));
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
