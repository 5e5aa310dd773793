// SPDX-License-Identifier: Apache-2.0
// The C ABI over the C++ API: translation only. Every function that can fail runs inside guarded(),
// so that no exception leaves; structs are read by the size that the caller's header gave them.
#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "mixgemm/checkpoint.hpp"
#include "mixgemm/gemm.hpp"
#include "mixgemm/mixgemm.h"
#include "mixgemm/status.hpp"
#include "mixgemm/weight.hpp"

using mixgemm::Result;
using mixgemm::Status;
using mixgemm::StatusCode;

struct mixgemm_weight {
  mixgemm::PackedWeight weight;
};

struct mixgemm_checkpoint {
  mixgemm::PackedCheckpoint checkpoint;
};

struct mixgemm_plan {
  mixgemm::Plan plan;
  mutable std::once_flag explained;
  mutable std::string explanation;
};

namespace {

// The C enumerators are the C++ ones.
template <class Enum>
constexpr bool same(int c, Enum cpp) {
  return c == static_cast<int>(cpp);
}
static_assert(same(MIXGEMM_OK, StatusCode::ok));
static_assert(same(MIXGEMM_INVALID_ARGUMENT, StatusCode::invalid_argument));
static_assert(same(MIXGEMM_UNSUPPORTED, StatusCode::unsupported));
static_assert(same(MIXGEMM_NOT_FOUND, StatusCode::not_found));
static_assert(same(MIXGEMM_IO_ERROR, StatusCode::io_error));
static_assert(same(MIXGEMM_CORRUPT_DATA, StatusCode::corrupt_data));
static_assert(same(MIXGEMM_VERSION_MISMATCH, StatusCode::version_mismatch));
static_assert(same(MIXGEMM_OUT_OF_MEMORY, StatusCode::out_of_memory));
static_assert(same(MIXGEMM_DEVICE_ERROR, StatusCode::device_error));
static_assert(same(MIXGEMM_INTERNAL, StatusCode::internal));
static_assert(same(MIXGEMM_F16, mixgemm::DataType::f16));
static_assert(same(MIXGEMM_BF16, mixgemm::DataType::bf16));
static_assert(same(MIXGEMM_F32, mixgemm::DataType::f32));
static_assert(same(MIXGEMM_INT4, mixgemm::WeightType::int4));
static_assert(same(MIXGEMM_INT8, mixgemm::WeightType::int8));
static_assert(same(MIXGEMM_ZERO_NONE, mixgemm::ZeroKind::none));
static_assert(same(MIXGEMM_ZERO_INTEGER, mixgemm::ZeroKind::integer));
static_assert(same(MIXGEMM_ZERO_SCALED, mixgemm::ZeroKind::scaled));
static_assert(same(MIXGEMM_ACTIVATION_NONE, mixgemm::Activation::none));
static_assert(same(MIXGEMM_ACTIVATION_RELU, mixgemm::Activation::relu));
static_assert(same(MIXGEMM_ACTIVATION_GELU, mixgemm::Activation::gelu));
static_assert(same(MIXGEMM_ACTIVATION_SILU, mixgemm::Activation::silu));
static_assert(same(MIXGEMM_CPU, mixgemm::Device::cpu));
static_assert(same(MIXGEMM_CUDA, mixgemm::Device::cuda));

// ------------------------------------------------------------------ errors

thread_local std::string last_error;

mixgemm_status_t fail(StatusCode code, const char* message) noexcept {
  try {
    last_error = message;
  } catch (...) {
    last_error.clear();  // no memory for the sentence: the code alone tells
  }
  return static_cast<mixgemm_status_t>(code);
}

/// Runs a body that returns Status; whatever it throws becomes a code and a sentence.
template <class Body>
mixgemm_status_t guarded(Body&& body) noexcept {
  try {
    const Status status = body();
    return status.ok() ? MIXGEMM_OK : fail(status.code(), status.message().c_str());
  } catch (const std::bad_alloc&) {
    return fail(StatusCode::out_of_memory, "out of memory");
  } catch (const mixgemm::Error& error) {
    return fail(error.code(), error.what());
  } catch (const std::exception& error) {
    return fail(StatusCode::internal, error.what());
  } catch (...) {
    return fail(StatusCode::internal, "an unknown exception");
  }
}

template <class... Args>
Status invalid(fmt::format_string<Args...> format, Args&&... args) {
  return Status(StatusCode::invalid_argument, fmt::format(format, std::forward<Args>(args)...));
}

Status null_argument(const char* name) { return invalid("{} must not be null", name); }

// ------------------------------------------------------------------ structs by size

constexpr std::size_t kMaxStructSize = 4096;  // more is an uninitialized struct_size

/// What the library knows of a struct: its C name and how much of it every version has.
template <class T>
struct Layout;

#define MIXGEMM_LAYOUT(type, init, first_optional)                           \
  template <>                                                                \
  struct Layout<type> {                                                      \
    static constexpr const char* kName = #type;                              \
    static constexpr const char* kInit = #init;                              \
    static constexpr std::size_t kRequired = offsetof(type, first_optional); \
    static type defaults() { return init; }                                  \
  }
MIXGEMM_LAYOUT(mixgemm_problem_t, MIXGEMM_PROBLEM_INIT, bias);
MIXGEMM_LAYOUT(mixgemm_plan_options_t, MIXGEMM_PLAN_OPTIONS_INIT, num_threads);
MIXGEMM_LAYOUT(mixgemm_run_args_t, MIXGEMM_RUN_ARGS_INIT, bias);
MIXGEMM_LAYOUT(mixgemm_quantize_options_t, MIXGEMM_QUANTIZE_OPTIONS_INIT, search_clip);
MIXGEMM_LAYOUT(mixgemm_canonical_t, MIXGEMM_CANONICAL_INIT, zeros);
MIXGEMM_LAYOUT(mixgemm_weight_info_t, MIXGEMM_WEIGHT_INFO_INIT, device);
MIXGEMM_LAYOUT(mixgemm_kernel_info_t, MIXGEMM_KERNEL_INFO_INIT, device);
MIXGEMM_LAYOUT(mixgemm_device_info_t, MIXGEMM_DEVICE_INFO_INIT, num_sms);
#undef MIXGEMM_LAYOUT

template <class T>
Status check_struct_size(const T* given) {
  if (given->struct_size >= Layout<T>::kRequired && given->struct_size <= kMaxStructSize) {
    return Status();
  }
  return invalid("{}.struct_size must be {} .. {} (start from {}); got {}", Layout<T>::kName,
                 Layout<T>::kRequired, kMaxStructSize, Layout<T>::kInit, given->struct_size);
}

/// Copies what the caller's header knows over the defaults. What this library doesn't know must be
/// zero, since it can't honour it.
template <class T>
Status read_struct(const T* given, T& out) {
  if (Status s = check_struct_size(given); !s) return s;
  const std::size_t size = given->struct_size;
  out = Layout<T>::defaults();
  std::memcpy(&out, given, std::min(size, sizeof(T)));
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  for (std::size_t i = sizeof(T); i < size; ++i) {
    if (bytes[i] != 0) {
      return Status(StatusCode::unsupported,
                    fmt::format("{}: byte {} is set, but version {} of the library knows {} bytes "
                                "of it",
                                Layout<T>::kName, i, mixgemm::version(), sizeof(T)));
    }
  }
  return Status();
}

/// Fills in as much as the caller's header knows; struct_size stays the caller's.
template <class T>
Status write_struct(const T& value, T* out) {
  if (Status s = check_struct_size(out); !s) return s;
  const std::size_t size = std::min(out->struct_size, sizeof(T));
  constexpr std::size_t kSkip = sizeof(out->struct_size);
  std::memcpy(reinterpret_cast<unsigned char*>(out) + kSkip,
              reinterpret_cast<const unsigned char*>(&value) + kSkip, size - kSkip);
  return Status();
}

// ------------------------------------------------------------------ fields

/// An enumerator from outside; checked here because a cast to the C++ enum's byte would wrap.
template <class Enum>
Status read_enum(const char* field, std::int32_t value, Enum last, Enum& out) {
  if (value < 0 || value > static_cast<std::int32_t>(last)) {
    return invalid("{} must be 0 .. {}; got {}", field, static_cast<std::int32_t>(last), value);
  }
  out = static_cast<Enum>(value);
  return Status();
}

Status read_flag(const char* field, std::int32_t value, bool& out) {
  if (value != 0 && value != 1) return invalid("{} must be 0 or 1; got {}", field, value);
  out = value == 1;
  return Status();
}

Status read_reserved(const char* field, std::int32_t value) {
  return value == 0 ? Status() : invalid("{} must be 0; got {}", field, value);
}

Status read_spec(const mixgemm_quant_spec_t& given, mixgemm::QuantSpec& out) {
  if (Status s = read_enum("spec.type", given.type, mixgemm::WeightType::int8, out.type); !s) {
    return s;
  }
  if (Status s = read_enum("spec.zero", given.zero, mixgemm::ZeroKind::scaled, out.zero); !s) {
    return s;
  }
  out.group_size = given.group_size;
  return read_enum("spec.scale_type", given.scale_type, mixgemm::DataType::f32, out.scale_type);
}

mixgemm_quant_spec_t to_c(const mixgemm::QuantSpec& spec) {
  return {static_cast<std::int32_t>(spec.type), static_cast<std::int32_t>(spec.zero),
          spec.group_size, static_cast<std::int32_t>(spec.scale_type)};
}

Status read_problem(const mixgemm_problem_t* given, mixgemm::Problem& out) {
  mixgemm_problem_t c;
  if (Status s = read_struct(given, c); !s) return s;
  out.m = c.m;
  out.n = c.n;
  out.k = c.k;
  if (Status s = read_enum("act", c.act, mixgemm::DataType::f32, out.act); !s) return s;
  if (Status s = read_spec(c.weight, out.weight); !s) return s;
  if (Status s = read_flag("bias", c.bias, out.epilogue.bias); !s) return s;
  if (Status s = read_flag("residual", c.residual, out.epilogue.residual); !s) return s;
  if (Status s =
          read_enum("activation", c.activation, mixgemm::Activation::silu, out.epilogue.activation);
      !s) {
    return s;
  }
  if (Status s = read_enum("device", c.device, mixgemm::Device::cuda, out.device); !s) return s;
  if (Status s = read_flag("deterministic", c.deterministic, out.deterministic); !s) return s;
  if (Status s = read_flag("batch_invariant", c.batch_invariant, out.batch_invariant); !s) return s;
  return read_enum("columns", c.columns, mixgemm::ColumnOrder::permuted, out.columns);
}

/// Moves a result into a new handle.
template <class Handle, class T>
Status deliver(Result<T> result, Handle** out) {
  if (!result.ok()) return result.status();
  *out = new Handle{std::move(*result)};
  return Status();
}

/// A slice shares its parent's memory, which the handle therefore keeps alive.
Status deliver_slice(const mixgemm_weight_t* parent, Result<mixgemm::PackedView> view,
                     mixgemm_weight_t** out) {
  if (!view.ok()) return view.status();
  *out = new mixgemm_weight{
      mixgemm::PackedWeight(*view, std::make_shared<mixgemm::PackedWeight>(parent->weight))};
  return Status();
}

// Lists whose strings the C side may keep.
const std::vector<mixgemm::KernelInfo>& kernel_list() {
  static const std::vector<mixgemm::KernelInfo> list = mixgemm::kernels();
  return list;
}
const std::vector<mixgemm::DeviceInfo>& device_list() {
  static const std::vector<mixgemm::DeviceInfo> list = mixgemm::devices();
  return list;
}

Status check_index(const char* what, std::size_t idx, std::size_t count) {
  if (idx < count) return Status();
  return Status(
      StatusCode::not_found,
      fmt::format("there are {} {}, so idx must be below that; got {}", count, what, idx));
}

}  // namespace

extern "C" {

// ------------------------------------------------------------------ errors and version

const char* mixgemm_status_name(int32_t status) {
  // A string_view of a literal: terminated.
  return mixgemm::to_string(static_cast<StatusCode>(status)).data();
}

const char* mixgemm_last_error(void) { return last_error.c_str(); }

const char* mixgemm_version(void) { return mixgemm::version(); }

int32_t mixgemm_packed_format_version(void) { return mixgemm::kPackedFormatVersion; }

// ------------------------------------------------------------------ weights

mixgemm_status_t mixgemm_weight_quantize(const void* w, int32_t type, int64_t n, int64_t k,
                                         int64_t ldw, const mixgemm_quantize_options_t* options,
                                         mixgemm_weight_t** weight) {
  return guarded([&]() -> Status {
    if (weight == nullptr) return null_argument("weight");
    *weight = nullptr;
    if (w == nullptr) return null_argument("w");
    mixgemm::DataType data_type{};
    if (Status s = read_enum("type", type, mixgemm::DataType::f32, data_type); !s) return s;
    mixgemm_quantize_options_t c = MIXGEMM_QUANTIZE_OPTIONS_INIT;
    if (options != nullptr) {
      if (Status s = read_struct(options, c); !s) return s;
    }
    mixgemm::QuantizeOptions cpp;
    if (Status s = read_spec(c.spec, cpp.spec); !s) return s;
    if (Status s = read_flag("search_clip", c.search_clip, cpp.search_clip); !s) return s;
    cpp.num_threads = c.num_threads;
    return deliver(mixgemm::quantize_packed(w, data_type, n, k, ldw, cpp), weight);
  });
}

mixgemm_status_t mixgemm_weight_pack(const mixgemm_canonical_t* canonical, int32_t num_threads,
                                     mixgemm_weight_t** weight) {
  return guarded([&]() -> Status {
    if (weight == nullptr) return null_argument("weight");
    *weight = nullptr;
    if (canonical == nullptr) return null_argument("canonical");
    mixgemm_canonical_t c;
    if (Status s = read_struct(canonical, c); !s) return s;
    mixgemm::CanonicalWeight cpp;
    cpp.n = c.n;
    cpp.k = c.k;
    if (Status s = read_spec(c.spec, cpp.spec); !s) return s;
    // The arrays' sizes follow from these three, so they are checked before a byte is read.
    constexpr std::int64_t kMax = INT32_MAX;
    if (c.n < 1 || c.n > kMax) return invalid("n must be 1 .. {}; got {}", kMax, c.n);
    if (c.k < 1 || c.k > kMax) return invalid("k must be 1 .. {}; got {}", kMax, c.k);
    const int group = c.spec.group_size;
    if (group != 0 && group != 16 && group != 32 && group != 64 && group != 128) {
      return invalid("group_size must be 0 (per column), 16, 32, 64 or 128; got {}", group);
    }
    if (c.codes == nullptr) return null_argument("codes");
    if (c.scales == nullptr) return null_argument("scales");
    const bool integer = cpp.spec.zero == mixgemm::ZeroKind::integer;
    const bool scaled = cpp.spec.zero == mixgemm::ZeroKind::scaled;
    if (integer != (c.zeros != nullptr)) {
      return invalid("zeros must be {} where the zero-point kind is {}", integer ? "given" : "null",
                     mixgemm::to_string(cpp.spec.zero));
    }
    if (scaled != (c.scaled_zeros != nullptr)) {
      return invalid("scaled_zeros must be {} where the zero-point kind is {}",
                     scaled ? "given" : "null", mixgemm::to_string(cpp.spec.zero));
    }
    const std::int64_t per_group = c.n * cpp.groups();
    cpp.codes.assign(c.codes, c.codes + c.n * c.k);
    cpp.scales.assign(c.scales, c.scales + per_group);
    if (integer) cpp.zeros.assign(c.zeros, c.zeros + per_group);
    if (scaled) cpp.scaled_zeros.assign(c.scaled_zeros, c.scaled_zeros + per_group);
    return deliver(mixgemm::pack(cpp, num_threads), weight);
  });
}

mixgemm_status_t mixgemm_weight_unpack(const mixgemm_weight_t* weight, int32_t num_threads,
                                       uint8_t* codes, uint16_t* scales, uint8_t* zeros,
                                       uint16_t* scaled_zeros) {
  return guarded([&]() -> Status {
    if (weight == nullptr) return null_argument("weight");
    if (codes == nullptr) return null_argument("codes");
    if (scales == nullptr) return null_argument("scales");
    const mixgemm::PackedView& view = weight->weight.view();
    const bool integer = view.spec.zero == mixgemm::ZeroKind::integer;
    const bool scaled = view.spec.zero == mixgemm::ZeroKind::scaled;
    if (integer != (zeros != nullptr)) {
      return invalid("zeros must be {} where the zero-point kind is {}", integer ? "given" : "null",
                     mixgemm::to_string(view.spec.zero));
    }
    if (scaled != (scaled_zeros != nullptr)) {
      return invalid("scaled_zeros must be {} where the zero-point kind is {}",
                     scaled ? "given" : "null", mixgemm::to_string(view.spec.zero));
    }
    if (view.permutation != nullptr) {
      return Status(StatusCode::unsupported,
                    "weight must have no permutation, which these arrays have no place for; "
                    "mixgemm_weight_for_gathered_x() gives the weight without it");
    }
    const Result<mixgemm::CanonicalWeight> result = mixgemm::unpack(view, num_threads);
    if (!result.ok()) return result.status();
    std::copy(result->codes.begin(), result->codes.end(), codes);
    std::copy(result->scales.begin(), result->scales.end(), scales);
    if (integer) std::copy(result->zeros.begin(), result->zeros.end(), zeros);
    if (scaled) {
      std::copy(result->scaled_zeros.begin(), result->scaled_zeros.end(), scaled_zeros);
    }
    return Status();
  });
}

mixgemm_status_t mixgemm_weight_slice_n(const mixgemm_weight_t* weight, int64_t begin, int64_t end,
                                        mixgemm_weight_t** slice) {
  return guarded([&]() -> Status {
    if (slice == nullptr) return null_argument("slice");
    *slice = nullptr;
    if (weight == nullptr) return null_argument("weight");
    return deliver_slice(weight, mixgemm::slice_n(weight->weight.view(), begin, end), slice);
  });
}

mixgemm_status_t mixgemm_weight_slice_k(const mixgemm_weight_t* weight, int64_t begin, int64_t end,
                                        mixgemm_weight_t** slice) {
  return guarded([&]() -> Status {
    if (slice == nullptr) return null_argument("slice");
    *slice = nullptr;
    if (weight == nullptr) return null_argument("weight");
    return deliver_slice(weight, mixgemm::slice_k(weight->weight.view(), begin, end), slice);
  });
}

mixgemm_status_t mixgemm_weight_to_cuda(const mixgemm_weight_t* weight,
                                        mixgemm_weight_t** on_device) {
  return guarded([&]() -> Status {
    if (on_device == nullptr) return null_argument("on_device");
    *on_device = nullptr;
    if (weight == nullptr) return null_argument("weight");
    return deliver(mixgemm::to_cuda(weight->weight), on_device);
  });
}

mixgemm_status_t mixgemm_weight_get_info(const mixgemm_weight_t* weight,
                                         mixgemm_weight_info_t* info) {
  return guarded([&]() -> Status {
    if (weight == nullptr) return null_argument("weight");
    if (info == nullptr) return null_argument("info");
    const mixgemm::PackedView& view = weight->weight.view();
    mixgemm_weight_info_t c = MIXGEMM_WEIGHT_INFO_INIT;
    c.n = view.n;
    c.k = view.k;
    c.spec = to_c(view.spec);
    c.device = static_cast<std::int32_t>(view.device);
    c.size_bytes = weight->weight.size_bytes();
    return write_struct(c, info);
  });
}

const int32_t* mixgemm_weight_permutation(const mixgemm_weight_t* weight) {
  return weight == nullptr ? nullptr : weight->weight.view().permutation;
}

mixgemm_status_t mixgemm_weight_gather_columns(const mixgemm_weight_t* weight, const void* x,
                                               int64_t m, int64_t ldx, void* gathered, int64_t ldg,
                                               int32_t num_threads) {
  return guarded([&]() -> Status {
    if (weight == nullptr) return null_argument("weight");
    return mixgemm::gather_columns(weight->weight.view(), x, m, ldx, gathered, ldg, num_threads);
  });
}

mixgemm_status_t mixgemm_weight_for_gathered_x(const mixgemm_weight_t* weight,
                                               mixgemm_weight_t** gathered) {
  return guarded([&]() -> Status {
    if (gathered == nullptr) return null_argument("gathered");
    *gathered = nullptr;
    if (weight == nullptr) return null_argument("weight");
    return deliver(Result<mixgemm::PackedWeight>(weight->weight.for_gathered_x()), gathered);
  });
}

void mixgemm_weight_free(mixgemm_weight_t* weight) { delete weight; }

// ------------------------------------------------------------------ packed checkpoints

mixgemm_status_t mixgemm_checkpoint_open(const char* path, mixgemm_checkpoint_t** checkpoint) {
  return guarded([&]() -> Status {
    if (checkpoint == nullptr) return null_argument("checkpoint");
    *checkpoint = nullptr;
    if (path == nullptr) return null_argument("path");
    return deliver(mixgemm::PackedCheckpoint::open(path), checkpoint);
  });
}

size_t mixgemm_checkpoint_num_weights(const mixgemm_checkpoint_t* checkpoint) {
  return checkpoint == nullptr ? 0 : checkpoint->checkpoint.layers().size();
}

const char* mixgemm_checkpoint_weight_name(const mixgemm_checkpoint_t* checkpoint, size_t idx) {
  if (idx >= mixgemm_checkpoint_num_weights(checkpoint)) return nullptr;
  return checkpoint->checkpoint.layers()[idx].name.c_str();
}

mixgemm_status_t mixgemm_checkpoint_weight(const mixgemm_checkpoint_t* checkpoint, const char* name,
                                           mixgemm_weight_t** weight) {
  return guarded([&]() -> Status {
    if (weight == nullptr) return null_argument("weight");
    *weight = nullptr;
    if (checkpoint == nullptr) return null_argument("checkpoint");
    if (name == nullptr) return null_argument("name");
    return deliver(checkpoint->checkpoint.find(name), weight);
  });
}

void mixgemm_checkpoint_close(mixgemm_checkpoint_t* checkpoint) { delete checkpoint; }

mixgemm_status_t mixgemm_checkpoint_save(const char* path, size_t num_weights,
                                         const char* const* names,
                                         const mixgemm_weight_t* const* weights) {
  return guarded([&]() -> Status {
    if (path == nullptr) return null_argument("path");
    if (num_weights == 0) return invalid("num_weights must be at least 1; got 0");
    if (names == nullptr) return null_argument("names");
    if (weights == nullptr) return null_argument("weights");
    for (std::size_t i = 0; i < num_weights; ++i) {
      if (names[i] == nullptr) return invalid("names[{}] must not be null", i);
      if (weights[i] == nullptr) return invalid("weights[{}] must not be null", i);
    }
    auto writer = mixgemm::PackedCheckpointWriter::create(path);
    if (!writer.ok()) return writer.status();
    for (std::size_t i = 0; i < num_weights; ++i) {
      const mixgemm::PackedView& view = weights[i]->weight.view();
      const auto columns = view.permutation == nullptr ? mixgemm::ColumnOrder::natural
                                                       : mixgemm::ColumnOrder::permuted;
      if (Status s = writer->declare_packed(names[i], view.n, view.k, view.spec, columns); !s) {
        return s;
      }
    }
    for (std::size_t i = 0; i < num_weights; ++i) {
      if (Status s = writer->write_packed(names[i], weights[i]->weight.view()); !s) return s;
    }
    return writer->finish();
  });
}

// ------------------------------------------------------------------ plans

mixgemm_status_t mixgemm_plan_create(const mixgemm_problem_t* problem,
                                     const mixgemm_plan_options_t* options, mixgemm_plan_t** plan) {
  return guarded([&]() -> Status {
    if (plan == nullptr) return null_argument("plan");
    *plan = nullptr;
    if (problem == nullptr) return null_argument("problem");
    mixgemm::Problem cpp;
    if (Status s = read_problem(problem, cpp); !s) return s;
    mixgemm::PlanOptions cpp_options;
    if (options != nullptr) {
      mixgemm_plan_options_t c;
      if (Status s = read_struct(options, c); !s) return s;
      if (c.kernel != nullptr) cpp_options.kernel = c.kernel;
      cpp_options.num_threads = c.num_threads;
      if (Status s = read_reserved("reserved", c.reserved); !s) return s;
    }
    Result<mixgemm::Plan> result = mixgemm::plan(cpp, cpp_options);
    if (!result.ok()) return result.status();
    auto handle = std::make_unique<mixgemm_plan>();
    handle->plan = std::move(*result);
    *plan = handle.release();
    return Status();
  });
}

size_t mixgemm_plan_workspace_bytes(const mixgemm_plan_t* plan) {
  return plan == nullptr ? 0 : plan->plan.workspace_bytes();
}

const char* mixgemm_plan_kernel_id(const mixgemm_plan_t* plan) {
  return plan == nullptr ? "" : plan->plan.kernel_id().c_str();
}

const char* mixgemm_plan_config_id(const mixgemm_plan_t* plan) {
  return plan == nullptr ? "" : plan->plan.config_id().c_str();
}

const char* mixgemm_plan_explain(const mixgemm_plan_t* plan) {
  if (plan == nullptr) return "";
  const mixgemm_status_t status = guarded([&]() -> Status {
    std::call_once(plan->explained, [&] { plan->explanation = plan->plan.explain(); });
    return Status();
  });
  return status == MIXGEMM_OK ? plan->explanation.c_str() : "";
}

mixgemm_status_t mixgemm_plan_run(const mixgemm_plan_t* plan, const mixgemm_run_args_t* args) {
  return guarded([&]() -> Status {
    if (plan == nullptr) return null_argument("plan");
    if (args == nullptr) return null_argument("args");
    mixgemm_run_args_t c;
    if (Status s = read_struct(args, c); !s) return s;
    if (c.weight == nullptr) return null_argument("weight");
    mixgemm::RunArgs cpp;
    cpp.x = c.x;
    cpp.ldx = c.ldx;
    cpp.weight = c.weight->weight.view();
    cpp.y = c.y;
    cpp.ldy = c.ldy;
    cpp.bias = c.bias;
    cpp.residual = c.residual;
    cpp.ldr = c.ldr;
    cpp.alpha = c.alpha;
    cpp.workspace = c.workspace;
    cpp.workspace_bytes = c.workspace_bytes;
    cpp.stream = c.stream;
    if (Status s = read_flag("pdl", c.pdl, cpp.pdl); !s) return s;
    return plan->plan.run(cpp);
  });
}

void mixgemm_plan_free(mixgemm_plan_t* plan) { delete plan; }

// ------------------------------------------------------------------ what there is

size_t mixgemm_num_kernels(void) {
  size_t count = 0;
  guarded([&]() -> Status {
    count = kernel_list().size();
    return Status();
  });
  return count;
}

mixgemm_status_t mixgemm_kernel_get_info(size_t idx, mixgemm_kernel_info_t* info) {
  return guarded([&]() -> Status {
    if (info == nullptr) return null_argument("info");
    if (Status s = check_index("kernels", idx, kernel_list().size()); !s) return s;
    const mixgemm::KernelInfo& kernel = kernel_list()[idx];
    mixgemm_kernel_info_t c = MIXGEMM_KERNEL_INFO_INIT;
    c.id = kernel.id.c_str();
    c.device = static_cast<std::int32_t>(kernel.device);
    c.arch = kernel.arch;
    c.registers = kernel.registers;
    c.shared_bytes = kernel.shared_bytes;
    c.reason = kernel.reason.c_str();
    return write_struct(c, info);
  });
}

size_t mixgemm_num_devices(void) {
  size_t count = 0;
  guarded([&]() -> Status {
    count = device_list().size();
    return Status();
  });
  return count;
}

mixgemm_status_t mixgemm_device_get_info(size_t idx, mixgemm_device_info_t* info) {
  return guarded([&]() -> Status {
    if (info == nullptr) return null_argument("info");
    if (Status s = check_index("devices", idx, device_list().size()); !s) return s;
    const mixgemm::DeviceInfo& device = device_list()[idx];
    mixgemm_device_info_t c = MIXGEMM_DEVICE_INFO_INIT;
    c.device = static_cast<std::int32_t>(device.device);
    c.arch = device.arch;
    c.name = device.name.c_str();
    c.num_sms = device.num_sms;
    c.usable = device.usable ? 1 : 0;
    c.note = device.note.c_str();
    return write_struct(c, info);
  });
}

}  // extern "C"
