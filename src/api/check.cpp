// SPDX-License-Identifier: Apache-2.0
#include "api/check.hpp"

#include <fmt/format.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>

#include "layout/packed.hpp"

namespace mixgemm {
namespace {

constexpr std::int64_t kMaxDimension = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t kElementBytes = 2;  // of X, Y, bias and residual

/// Formats and returns a failure. Kept out of line and cold, so that the good path stays compares.
template <class... Args>
[[gnu::cold, gnu::noinline]] Status invalid(fmt::format_string<Args...> format, Args&&... args) {
  return Status(StatusCode::invalid_argument, fmt::format(format, std::forward<Args>(args)...));
}

bool aligned(const void* pointer, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0;
}

bool known(DataType type) { return type <= DataType::f32; }
bool known_group(int size) {
  return size == 0 || size == 16 || size == 32 || size == 64 || size == 128;
}

/// Shows an enumerator by name, or by number where it has none.
template <class Enum>
std::string show(Enum value, bool is_known) {
  return is_known ? std::string(to_string(value))
                  : fmt::format("the unknown value {}", static_cast<int>(value));
}

std::string show(const QuantSpec& spec) {
  return fmt::format("{} zero={} group_size={} scale_type={}", to_string(spec.type),
                     to_string(spec.zero), spec.group_size, to_string(spec.scale_type));
}

/// A row-major matrix in memory, in bytes; a vector is one row.
struct Region {
  const char* name;
  std::uintptr_t begin;
  std::int64_t rows;
  std::int64_t row_bytes;    // ≥ 1
  std::int64_t pitch_bytes;  // from one row to the next, ≥ row_bytes
  std::uintptr_t end;        // one past the last byte
};

/// Fills in the end; false where the region leaves the address space.
bool close(Region& region) {
  std::int64_t bytes = 0;
  return !__builtin_mul_overflow(region.rows - 1, region.pitch_bytes, &bytes) &&
         !__builtin_add_overflow(bytes, region.row_bytes, &bytes) &&
         !__builtin_add_overflow(region.begin, static_cast<std::uintptr_t>(bytes), &region.end);
}

/// Do the two share a byte? Exact for single rows and for equal pitches, so that X and Y may be
/// columns of one buffer; where pitches differ, sharing an address range counts.
bool share_bytes(const Region& a, const Region& b) {
  if (a.end <= b.begin || b.end <= a.begin) return false;
  if (a.rows == 1 && b.rows == 1) return true;
  if (a.rows > 1 && b.rows > 1 && a.pitch_bytes != b.pitch_bytes) return true;
  const std::int64_t pitch = a.rows > 1 ? a.pitch_bytes : b.pitch_bytes;
  // Rows repeat every `pitch` bytes: b's row starts `offset` after one of a's.
  const auto step = static_cast<std::uintptr_t>(pitch);
  const auto offset = static_cast<std::int64_t>((b.begin % step + step - a.begin % step) % step);
  return offset < a.row_bytes || offset > pitch - b.row_bytes;
}

/// A matrix argument of `columns` elements a row.
Status check_matrix(Region& region, std::int64_t ld, std::int64_t columns, const char* ld_name,
                    const char* columns_name, std::int64_t element_bytes) {
  if (region.begin == 0) return invalid("{} must not be null", region.name);
  if (region.begin % static_cast<std::uintptr_t>(element_bytes) != 0) {
    return invalid("{} must be aligned to {} bytes; got address {:#x}", region.name, element_bytes,
                   region.begin);
  }
  if (ld < columns) {
    return invalid("{} must be at least {} = {}; got {}", ld_name, columns_name, columns, ld);
  }
  region.row_bytes = columns * element_bytes;
  if (__builtin_mul_overflow(ld, element_bytes, &region.pitch_bytes) || !close(region)) {
    return invalid("{} with M = {} and {} = {} does not fit the address space", region.name,
                   region.rows, ld_name, ld);
  }
  return Status();
}

Status check_weight(const Problem& problem, const PackedView& weight, Device device,
                    Region (&regions)[3]) {
  if (weight.device != device) {
    return invalid("weight.device must be {}; got {}{}", to_string(device),
                   show(weight.device, weight.device <= Device::cuda),
                   device == Device::cuda ? " (to_cuda() copies a packed weight there)" : "");
  }
  if (weight.n != problem.n) {
    return invalid("weight.n must be the problem's N = {}; got {}", problem.n, weight.n);
  }
  if (weight.k != problem.k) {
    return invalid("weight.k must be the problem's K = {}; got {}", problem.k, weight.k);
  }
  if (!(weight.spec == problem.weight)) {
    return invalid("weight.spec must be the problem's ({}); got ({})", show(problem.weight),
                   show(weight.spec));
  }
  if (weight.codes == nullptr) return invalid("weight.codes must not be null");
  if (!aligned(weight.codes, kCodesAlignment)) {
    return invalid("weight.codes must be aligned to {} bytes; got address {}", kCodesAlignment,
                   fmt::ptr(weight.codes));
  }
  if (weight.scales == nullptr) return invalid("weight.scales must not be null");

  const bool byte_zeros = problem.weight.zero == ZeroKind::integer && device == Device::cpu;
  const std::size_t scales_alignment = device == Device::cuda ? kCudaScalesAlignment : 2;
  const std::size_t zeros_alignment = byte_zeros ? 1 : scales_alignment;
  if (!aligned(weight.scales, scales_alignment)) {
    return invalid("weight.scales must be aligned to {} bytes on {}; got address {}",
                   scales_alignment, to_string(device), fmt::ptr(weight.scales));
  }
  const bool has_zeros = problem.weight.zero != ZeroKind::none;
  if (has_zeros != (weight.zeros != nullptr)) {
    return invalid("weight.zeros must be {} where the zero-point kind is {}",
                   has_zeros ? "given" : "null", to_string(problem.weight.zero));
  }
  if (!aligned(weight.zeros, zeros_alignment)) {
    return invalid("weight.zeros must be aligned to {} bytes on {}; got address {}",
                   zeros_alignment, to_string(device), fmt::ptr(weight.zeros));
  }

  const std::int64_t row_bytes = layout::strip_bytes(weight.k, bits_of(weight.spec.type));
  if (weight.codes_pitch_bytes < row_bytes ||
      weight.codes_pitch_bytes % static_cast<std::int64_t>(kCodesAlignment) != 0) {
    return invalid(
        "weight.codes_pitch_bytes must be a multiple of {} and at least the {} bytes of a strip "
        "with K = {}; got {}",
        kCodesAlignment, row_bytes, weight.k, weight.codes_pitch_bytes);
  }
  const std::int64_t groups = weight.groups();
  if (weight.groups_pitch < groups) {
    return invalid("weight.groups_pitch must be at least the {} groups of K = {}; got {}", groups,
                   weight.k, weight.groups_pitch);
  }
  const std::int64_t strips = layout::num_strips(weight.n);
  const std::int64_t scale_row = layout::kStripRows * kElementBytes;
  const std::int64_t zero_row = byte_zeros ? layout::kStripRows : scale_row;
  std::int64_t scales_pitch = 0;
  regions[0] = {"weight.codes",
                reinterpret_cast<std::uintptr_t>(weight.codes),
                strips,
                row_bytes,
                weight.codes_pitch_bytes,
                0};
  if (__builtin_mul_overflow(weight.groups_pitch, scale_row, &scales_pitch)) {
    return invalid("weight.groups_pitch = {} does not fit the address space", weight.groups_pitch);
  }
  regions[1] = {"weight.scales", reinterpret_cast<std::uintptr_t>(weight.scales),
                strips,          groups * scale_row,
                scales_pitch,    0};
  regions[2] = {"weight.zeros",
                reinterpret_cast<std::uintptr_t>(weight.zeros),
                strips,
                groups * zero_row,
                weight.groups_pitch * zero_row,
                0};
  for (int i = 0; i < (has_zeros ? 3 : 2); ++i) {
    if (!close(regions[i])) {
      return invalid("{} with N = {} and a pitch of {} bytes does not fit the address space",
                     regions[i].name, weight.n, regions[i].pitch_bytes);
    }
  }
  return Status();
}

Status check_call(const Problem& problem, const RunArgs& args, std::size_t workspace_bytes,
                  Device device, std::int64_t y_element_bytes) {
  const auto address = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p); };
  const std::int64_t m = problem.m;

  Region x{"x", address(args.x), m, 0, 0, 0};
  if (Status s = check_matrix(x, args.ldx, problem.k, "ldx", "K", kElementBytes); !s) return s;
  Region weight[3];
  if (Status s = check_weight(problem, args.weight, device, weight); !s) return s;
  Region y{"y", address(args.y), m, 0, 0, 0};
  if (Status s = check_matrix(y, args.ldy, problem.n, "ldy", "N", y_element_bytes); !s) return s;

  const bool has_bias = problem.epilogue.bias;
  const bool has_residual = problem.epilogue.residual;
  Region bias{"bias", address(args.bias), 1, 0, 0, 0};
  if (has_bias) {
    if (Status s = check_matrix(bias, problem.n, problem.n, "its length", "N", kElementBytes); !s)
      return s;
  } else if (args.bias != nullptr) {
    return invalid("bias must be null where the problem's epilogue has no bias; got address {}",
                   fmt::ptr(args.bias));
  }
  Region residual{"residual", address(args.residual), m, 0, 0, 0};
  if (has_residual) {
    if (Status s = check_matrix(residual, args.ldr, problem.n, "ldr", "N", kElementBytes); !s)
      return s;
  } else if (args.residual != nullptr) {
    return invalid(
        "residual must be null where the problem's epilogue has no residual; got address {}",
        fmt::ptr(args.residual));
  }
  if (!std::isfinite(args.alpha)) return invalid("alpha must be finite; got {}", args.alpha);

  Region workspace{"workspace", address(args.workspace), 1, 0, 0, 0};
  if (workspace_bytes > 0) {
    if (args.workspace == nullptr) {
      return invalid("workspace must not be null: this plan needs {} bytes", workspace_bytes);
    }
    if (!aligned(args.workspace, kWorkspaceAlignment)) {
      return invalid("workspace must be aligned to {} bytes; got address {}", kWorkspaceAlignment,
                     fmt::ptr(args.workspace));
    }
    if (args.workspace_bytes < workspace_bytes) {
      return invalid("workspace_bytes must be at least {}, what this plan needs; got {}",
                     workspace_bytes, args.workspace_bytes);
    }
    workspace.row_bytes = workspace.pitch_bytes = static_cast<std::int64_t>(workspace_bytes);
    if (!close(workspace)) {
      return invalid("workspace of {} bytes does not fit the address space", workspace_bytes);
    }
  }

  const auto overlap = [](const Region& written, const Region& other) {
    return invalid("{} must not overlap {}; got {} at {:#x} .. {:#x} and {} at {:#x} .. {:#x}",
                   written.name, other.name, written.name, written.begin, written.end, other.name,
                   other.begin, other.end);
  };
  if (share_bytes(y, x)) return overlap(y, x);
  for (int i = 0; i < (problem.weight.zero == ZeroKind::none ? 2 : 3); ++i) {
    if (share_bytes(y, weight[i])) return overlap(y, weight[i]);
  }
  if (has_bias && share_bytes(y, bias)) return overlap(y, bias);
  if (has_residual && share_bytes(y, residual)) {
    const bool in_place = residual.begin == y.begin && residual.row_bytes == y.row_bytes &&
                          (m == 1 || residual.pitch_bytes == y.pitch_bytes);
    if (!in_place) {
      return invalid(
          "y must not overlap residual, except in place (same address, ldr = ldy); got y at {:#x} "
          "with ldy = {} and residual at {:#x} with ldr = {}",
          y.begin, args.ldy, residual.begin, args.ldr);
    }
  }
  if (workspace_bytes > 0) {
    if (share_bytes(workspace, y)) return overlap(workspace, y);
    if (share_bytes(workspace, x)) return overlap(workspace, x);
    if (has_bias && share_bytes(workspace, bias)) return overlap(workspace, bias);
    if (has_residual && share_bytes(workspace, residual)) return overlap(workspace, residual);
  }
  return Status();
}

Status check_dimension(const char* name, std::int64_t value) {
  if (value >= 1 && value <= kMaxDimension) return Status();
  return invalid("{} must be 1 .. {}; got {}", name, kMaxDimension, value);
}

}  // namespace

Status check_problem(const Problem& problem) {
  if (Status s = check_dimension("m", problem.m); !s) return s;
  if (Status s = check_dimension("n", problem.n); !s) return s;
  if (Status s = check_dimension("k", problem.k); !s) return s;
  if (problem.act != DataType::f16 && problem.act != DataType::bf16) {
    return invalid("act must be f16 or bf16; got {}", show(problem.act, known(problem.act)));
  }
  const QuantSpec& spec = problem.weight;
  if (spec.type > WeightType::int8) {
    return invalid("weight.type must be int4 or int8; got {}", show(spec.type, false));
  }
  if (spec.zero > ZeroKind::scaled) {
    return invalid("weight.zero must be none, integer or scaled; got {}", show(spec.zero, false));
  }
  if (!known_group(spec.group_size)) {
    return invalid("group_size must be 0 (per column), 16, 32, 64 or 128; got {}", spec.group_size);
  }
  if (spec.scale_type != DataType::f16 && spec.scale_type != DataType::bf16) {
    return invalid("scale_type must be f16 or bf16; got {}",
                   show(spec.scale_type, known(spec.scale_type)));
  }
  if (problem.epilogue.activation > Activation::silu) {
    return invalid("epilogue.activation must be none, relu, gelu or silu; got {}",
                   show(problem.epilogue.activation, false));
  }
  if (problem.device > Device::cuda) {
    return invalid("device must be cpu or cuda; got {}", show(problem.device, false));
  }
  if (problem.device == Device::cuda && spec.scale_type != problem.act) {
    return invalid("scale_type must be act = {} on cuda; got {}", to_string(problem.act),
                   to_string(spec.scale_type));
  }
  return Status();
}

Status check_args(const Problem& problem, const RunArgs& args, std::size_t workspace_bytes) {
  return check_call(problem, args, workspace_bytes, problem.device, kElementBytes);
}

Status check_reference_args(const Problem& problem, const RunArgs& args) {
  return check_call(problem, args, 0, Device::cpu, sizeof(double));
}

}  // namespace mixgemm
