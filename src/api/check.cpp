// SPDX-License-Identifier: Apache-2.0
#include "api/check.hpp"

#include <fmt/format.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <utility>

#include "layout/packed.hpp"
#include "weight/checks.hpp"

namespace mixgemm {
namespace {

constexpr std::int64_t kElementBytes = 2;  // of X, Y, bias and residual

/// Formats a failure into `status` and returns false. Out of line and cold, so that the good path
/// is compares alone: the checks hand booleans up, because even an ok Status has a string to
/// destroy.
template <class... Args>
[[gnu::cold, gnu::noinline]] bool refuse(Status& status, fmt::format_string<Args...> format,
                                         Args&&... args) {
  status = Status(StatusCode::invalid_argument, fmt::format(format, std::forward<Args>(args)...));
  return false;
}

bool aligned(const void* pointer, std::size_t bytes) {
  return (reinterpret_cast<std::uintptr_t>(pointer) & (bytes - 1)) == 0;  // powers of two
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
bool check_matrix(Region& region, std::int64_t ld, std::int64_t columns, const char* ld_name,
                  const char* columns_name, std::int64_t element_bytes, Status& status) {
  if (region.begin == 0) return refuse(status, "{} must not be null", region.name);
  if ((region.begin & static_cast<std::uintptr_t>(element_bytes - 1)) != 0) {
    return refuse(status, "{} must be aligned to {} bytes; got address {:#x}", region.name,
                  element_bytes, region.begin);
  }
  if (ld < columns) {
    return refuse(status, "{} must be at least {} = {}; got {}", ld_name, columns_name, columns,
                  ld);
  }
  region.row_bytes = columns * element_bytes;
  if (__builtin_mul_overflow(ld, element_bytes, &region.pitch_bytes) || !close(region)) {
    return refuse(status, "{} with M = {} and {} = {} does not fit the address space", region.name,
                  region.rows, ld_name, ld);
  }
  return true;
}

bool check_weight(const Problem& problem, const PackedView& weight, Device device,
                  Region (&regions)[3], Status& status) {
  if (weight.device != device) {
    return refuse(status, "weight.device must be {}; got {}{}", to_string(device),
                  show(weight.device, weight.device <= Device::cuda),
                  device == Device::cuda ? " (to_cuda() copies a packed weight there)" : "");
  }
  if (weight.n != problem.n) {
    return refuse(status, "weight.n must be the problem's N = {}; got {}", problem.n, weight.n);
  }
  if (weight.k != problem.k) {
    return refuse(status, "weight.k must be the problem's K = {}; got {}", problem.k, weight.k);
  }
  if (!(weight.spec == problem.weight)) {
    return refuse(status, "weight.spec must be the problem's ({}); got ({})", show(problem.weight),
                  show(weight.spec));
  }
  if (weight.codes == nullptr) return refuse(status, "weight.codes must not be null");
  if (!aligned(weight.codes, kCodesAlignment)) {
    return refuse(status, "weight.codes must be aligned to {} bytes; got address {}",
                  kCodesAlignment, fmt::ptr(weight.codes));
  }
  if (weight.scales == nullptr) return refuse(status, "weight.scales must not be null");

  const bool byte_zeros = problem.weight.zero == ZeroKind::integer && device == Device::cpu;
  const std::size_t scales_alignment = device == Device::cuda ? kCudaScalesAlignment : 2;
  const std::size_t zeros_alignment = byte_zeros ? 1 : scales_alignment;
  if (!aligned(weight.scales, scales_alignment)) {
    return refuse(status, "weight.scales must be aligned to {} bytes on {}; got address {}",
                  scales_alignment, to_string(device), fmt::ptr(weight.scales));
  }
  const bool has_zeros = problem.weight.zero != ZeroKind::none;
  if (has_zeros != (weight.zeros != nullptr)) {
    return refuse(status, "weight.zeros must be {} where the zero-point kind is {}",
                  has_zeros ? "given" : "null", to_string(problem.weight.zero));
  }
  if (!aligned(weight.zeros, zeros_alignment)) {
    return refuse(status, "weight.zeros must be aligned to {} bytes on {}; got address {}",
                  zeros_alignment, to_string(device), fmt::ptr(weight.zeros));
  }

  const std::int64_t row_bytes = layout::strip_bytes(weight.k, bits_of(weight.spec.type));
  if (weight.codes_pitch_bytes < row_bytes ||
      weight.codes_pitch_bytes % static_cast<std::int64_t>(kCodesAlignment) != 0) {
    return refuse(
        status,
        "weight.codes_pitch_bytes must be a multiple of {} and at least the {} bytes of a strip "
        "with K = {}; got {}",
        kCodesAlignment, row_bytes, weight.k, weight.codes_pitch_bytes);
  }
  const std::int64_t groups = weight.groups();
  if (weight.groups_pitch < groups) {
    return refuse(status, "weight.groups_pitch must be at least the {} groups of K = {}; got {}",
                  groups, weight.k, weight.groups_pitch);
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
    return refuse(status, "weight.groups_pitch = {} does not fit the address space",
                  weight.groups_pitch);
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
      return refuse(status, "{} with N = {} and a pitch of {} bytes does not fit the address space",
                    regions[i].name, weight.n, regions[i].pitch_bytes);
    }
  }
  return true;
}

bool check_call(const Problem& problem, const RunArgs& args, std::size_t workspace_bytes,
                Device device, std::int64_t y_element_bytes, Status& status) {
  const auto address = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p); };
  const std::int64_t m = problem.m;

  Region x{"x", address(args.x), m, 0, 0, 0};
  if (!check_matrix(x, args.ldx, problem.k, "ldx", "K", kElementBytes, status)) return false;
  Region weight[3];
  if (!check_weight(problem, args.weight, device, weight, status)) return false;
  Region y{"y", address(args.y), m, 0, 0, 0};
  if (!check_matrix(y, args.ldy, problem.n, "ldy", "N", y_element_bytes, status)) return false;

  const bool has_bias = problem.epilogue.bias;
  const bool has_residual = problem.epilogue.residual;
  Region bias{"bias", address(args.bias), 1, 0, 0, 0};
  if (has_bias) {
    if (!check_matrix(bias, problem.n, problem.n, "its length", "N", kElementBytes, status))
      return false;
  } else if (args.bias != nullptr) {
    return refuse(status,
                  "bias must be null where the problem's epilogue has no bias; got address {}",
                  fmt::ptr(args.bias));
  }
  Region residual{"residual", address(args.residual), m, 0, 0, 0};
  if (has_residual) {
    if (!check_matrix(residual, args.ldr, problem.n, "ldr", "N", kElementBytes, status))
      return false;
  } else if (args.residual != nullptr) {
    return refuse(
        status,
        "residual must be null where the problem's epilogue has no residual; got address {}",
        fmt::ptr(args.residual));
  }
  if (!std::isfinite(args.alpha)) return refuse(status, "alpha must be finite; got {}", args.alpha);

  Region workspace{"workspace", address(args.workspace), 1, 0, 0, 0};
  if (workspace_bytes > 0) {
    if (args.workspace == nullptr) {
      return refuse(status, "workspace must not be null: this plan needs {} bytes",
                    workspace_bytes);
    }
    if (!aligned(args.workspace, kWorkspaceAlignment)) {
      return refuse(status, "workspace must be aligned to {} bytes; got address {}",
                    kWorkspaceAlignment, fmt::ptr(args.workspace));
    }
    if (args.workspace_bytes < workspace_bytes) {
      return refuse(status, "workspace_bytes must be at least {}, what this plan needs; got {}",
                    workspace_bytes, args.workspace_bytes);
    }
    workspace.row_bytes = workspace.pitch_bytes = static_cast<std::int64_t>(workspace_bytes);
    if (!close(workspace)) {
      return refuse(status, "workspace of {} bytes does not fit the address space",
                    workspace_bytes);
    }
  }

  const auto overlap = [&status](const Region& written, const Region& other) {
    return refuse(status,
                  "{} must not overlap {}; got {} at {:#x} .. {:#x} and {} at {:#x} .. {:#x}",
                  written.name, other.name, written.name, written.begin, written.end, other.name,
                  other.begin, other.end);
  };
  if (share_bytes(y, x)) return overlap(y, x);
  for (int i = 0; i < (problem.weight.zero == ZeroKind::none ? 2 : 3); ++i) {
    if (share_bytes(y, weight[i])) return overlap(y, weight[i]);
  }
  Region permutation{
      "weight.permutation", address(args.weight.permutation), 1, 4 * problem.k, 4 * problem.k, 0};
  if (args.weight.permutation != nullptr) {
    if (!close(permutation)) {
      return refuse(status, "weight.permutation with K = {} does not fit the address space",
                    problem.k);
    }
    if (share_bytes(y, permutation)) return overlap(y, permutation);
  }
  if (has_bias && share_bytes(y, bias)) return overlap(y, bias);
  if (has_residual && share_bytes(y, residual)) {
    const bool in_place = residual.begin == y.begin && residual.row_bytes == y.row_bytes &&
                          (m == 1 || residual.pitch_bytes == y.pitch_bytes);
    if (!in_place) {
      return refuse(
          status,
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
  return true;
}

/// The permutation must be there exactly where the problem says so; a plan doesn't drop it.
bool check_permutation(const Problem& problem, const PackedView& weight, Status& status) {
  const bool permuted = problem.columns == ColumnOrder::permuted;
  if (permuted != (weight.permutation != nullptr)) {
    if (permuted) {
      return refuse(status,
                    "weight.permutation must be given where the problem's columns are "
                    "permuted; got null");
    }
    return refuse(status,
                  "weight.permutation must be null where the problem's columns are natural: those "
                  "of this weight (K = {}) are permuted; plan with columns = permuted, or put X in "
                  "their order with gather_columns() and pass weight.for_gathered_x()",
                  weight.k);
  }
  const std::size_t alignment =
      problem.device == Device::cuda ? kCudaPermutationAlignment : sizeof(std::int32_t);
  if (!aligned(weight.permutation, alignment)) {
    return refuse(status, "weight.permutation must be aligned to {} bytes on {}; got address {}",
                  alignment, to_string(problem.device), fmt::ptr(weight.permutation));
  }
  return true;
}

bool check_dimension(const char* name, std::int64_t value, Status& status) {
  if (value >= 1 && value <= kMaxDimension) return true;
  return refuse(status, "{} must be 1 .. {}; got {}", name, kMaxDimension, value);
}

bool check_fields(const Problem& problem, Status& status) {
  if (!check_dimension("m", problem.m, status)) return false;
  if (!check_dimension("n", problem.n, status)) return false;
  if (!check_dimension("k", problem.k, status)) return false;
  if (problem.act != DataType::f16 && problem.act != DataType::bf16) {
    return refuse(status, "act must be f16 or bf16; got {}", show(problem.act, known(problem.act)));
  }
  const QuantSpec& spec = problem.weight;
  if (spec.type > WeightType::int8) {
    return refuse(status, "weight.type must be int4 or int8; got {}", show(spec.type, false));
  }
  if (spec.zero > ZeroKind::scaled) {
    return refuse(status, "weight.zero must be none, integer or scaled; got {}",
                  show(spec.zero, false));
  }
  if (!known_group(spec.group_size)) {
    return refuse(status, "group_size must be 0 (per column), 16, 32, 64 or 128; got {}",
                  spec.group_size);
  }
  if (spec.scale_type != DataType::f16 && spec.scale_type != DataType::bf16) {
    return refuse(status, "scale_type must be f16 or bf16; got {}",
                  show(spec.scale_type, known(spec.scale_type)));
  }
  if (problem.epilogue.activation > Activation::silu) {
    return refuse(status, "epilogue.activation must be none, relu, gelu or silu; got {}",
                  show(problem.epilogue.activation, false));
  }
  if (problem.device > Device::cuda) {
    return refuse(status, "device must be cpu or cuda; got {}", show(problem.device, false));
  }
  if (problem.columns > ColumnOrder::permuted) {
    return refuse(status, "columns must be natural or permuted; got the unknown value {}",
                  static_cast<int>(problem.columns));
  }
  if (problem.device == Device::cuda && spec.scale_type != problem.act) {
    return refuse(status, "scale_type must be act = {} on cuda; got {}", to_string(problem.act),
                  to_string(spec.scale_type));
  }
  return true;
}

}  // namespace

Status check_problem(const Problem& problem) {
  Status status;
  check_fields(problem, status);
  return status;
}

Status check_args(const Problem& problem, const RunArgs& args, std::size_t workspace_bytes) {
  Status status;
  if (check_permutation(problem, args.weight, status)) {
    check_call(problem, args, workspace_bytes, problem.device, kElementBytes, status);
  }
  return status;
}

Status check_reference_args(const Problem& problem, const RunArgs& args) {
  Status status;
  check_call(problem, args, 0, Device::cpu, sizeof(double), status);
  return status;
}

}  // namespace mixgemm
