// SPDX-License-Identifier: Apache-2.0
// Packed weights on a CUDA device.
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <memory>
#include <utility>
#include <vector>

#include "launch/device.hpp"
#include "layout/packed.hpp"
#include "mixgemm/weight.hpp"
#include "util/half.hpp"
#include "weight/checks.hpp"

namespace mixgemm {
namespace {

constexpr std::size_t kPieceAlignment = 256;

std::size_t round_up(std::size_t bytes) {
  return (bytes + kPieceAlignment - 1) / kPieceAlignment * kPieceAlignment;
}

/// One part of the weight: rows (strips) in host memory, to be copied without the gaps of a slice.
struct Piece {
  const void* source = nullptr;
  std::size_t pitch_bytes = 0;
  std::size_t row_bytes = 0;
  std::size_t rows = 0;
  std::size_t offset = 0;  // in the device allocation

  std::size_t bytes() const { return row_bytes * rows; }
};

/// Integer zeros as 16-bit floats, the form that kernels read. Every code up to 255 is exact in
/// both formats.
std::vector<std::uint16_t> zeros_as_floats(const PackedView& view, std::size_t strips,
                                           std::size_t row_elems) {
  const auto* zeros = static_cast<const std::uint8_t*>(view.zeros);
  const std::size_t pitch = static_cast<std::size_t>(view.groups_pitch) * layout::kStripRows;
  std::uint16_t table[256];
  for (int code = 0; code < 256; ++code) {
    table[code] = bits_from_f32(static_cast<float>(code), view.spec.scale_type);
  }
  std::vector<std::uint16_t> floats(strips * row_elems);
  for (std::size_t strip = 0; strip < strips; ++strip) {
    for (std::size_t i = 0; i < row_elems; ++i) {
      floats[strip * row_elems + i] = table[zeros[strip * pitch + i]];
    }
  }
  return floats;
}

Status check_source(const PackedView& view) {
  const auto refuse = [](const std::string& message) {
    return Status(StatusCode::invalid_argument, message);
  };
  if (view.device != Device::cpu) {
    return refuse(
        fmt::format("to_cuda: weight.device must be cpu; got {}", to_string(view.device)));
  }
  if (view.n < 1 || view.k < 1) {
    return refuse(fmt::format("to_cuda: weight.n and weight.k must be at least 1; got {} and {}",
                              view.n, view.k));
  }
  if (view.codes == nullptr || view.scales == nullptr) {
    return refuse("to_cuda: weight.codes and weight.scales must not be null");
  }
  if ((view.spec.zero != ZeroKind::none) != (view.zeros != nullptr)) {
    return refuse(fmt::format("to_cuda: weight.zeros must be {} where the zero-point kind is {}",
                              view.spec.zero == ZeroKind::none ? "null" : "given",
                              to_string(view.spec.zero)));
  }
  if (view.permutation != nullptr) {  // an index out of range would be read on the device
    const auto size = static_cast<std::size_t>(view.k);
    if (Status s = check_permutation({view.permutation, size}, view.k); !s) return s;
  }
  const std::int64_t strip_bytes = layout::strip_bytes(view.k, bits_of(view.spec.type));
  if (view.codes_pitch_bytes < strip_bytes) {
    return refuse(fmt::format("to_cuda: weight.codes_pitch_bytes must be at least {}; got {}",
                              strip_bytes, view.codes_pitch_bytes));
  }
  if (view.groups_pitch < view.groups()) {
    return refuse(fmt::format("to_cuda: weight.groups_pitch must be at least {}; got {}",
                              view.groups(), view.groups_pitch));
  }
  return Status();
}

}  // namespace

Result<PackedWeight> to_cuda(const PackedWeight& weight) {
  const PackedView& view = weight.view();
  if (Status s = check_source(view); !s) return s;
  if (const auto found = cuda::device_count(); found.count == 0) {
    return Status(StatusCode::unsupported, fmt::format("to_cuda: {}", found.note));
  }

  const auto strips = static_cast<std::size_t>(layout::num_strips(view.n));
  const auto group_elems = static_cast<std::size_t>(view.groups()) * layout::kStripRows;
  const auto group_pitch_bytes =
      static_cast<std::size_t>(view.groups_pitch) * layout::kStripRows * sizeof(std::uint16_t);
  Piece codes{view.codes, static_cast<std::size_t>(view.codes_pitch_bytes),
              static_cast<std::size_t>(layout::strip_bytes(view.k, bits_of(view.spec.type))),
              strips, 0};
  Piece scales{view.scales, group_pitch_bytes, group_elems * sizeof(std::uint16_t), strips,
               round_up(codes.bytes())};
  Piece zeros{nullptr, group_pitch_bytes, group_elems * sizeof(std::uint16_t), strips,
              scales.offset + round_up(scales.bytes())};
  std::vector<std::uint16_t> staged;
  if (view.spec.zero == ZeroKind::integer) {
    staged = zeros_as_floats(view, strips, group_elems);
    zeros.source = staged.data();
    zeros.pitch_bytes = zeros.row_bytes;
  } else if (view.spec.zero == ZeroKind::scaled) {
    zeros.source = view.zeros;
  }
  Piece permutation{view.permutation, 0, static_cast<std::size_t>(view.k) * sizeof(std::int32_t), 1,
                    zeros.offset};
  permutation.pitch_bytes = permutation.row_bytes;
  if (zeros.source != nullptr) permutation.offset += round_up(zeros.bytes());
  std::size_t total = permutation.offset;
  if (permutation.source != nullptr) total += round_up(permutation.bytes());

  void* memory = nullptr;
  if (cudaError_t error = cudaMalloc(&memory, total); error != cudaSuccess) {
    return cuda::cuda_error(error, fmt::format("to_cuda: allocating {} bytes", total));
  }
  // Freed wherever the last copy dies; after the runtime's own end the driver has freed it already.
  std::shared_ptr<const void> storage(
      memory, [](const void* p) { static_cast<void>(cudaFree(const_cast<void*>(p))); });
  auto* base = static_cast<std::uint8_t*>(memory);
  for (const Piece& piece : {codes, scales, zeros, permutation}) {
    if (piece.source == nullptr) continue;
    const cudaError_t error =
        cudaMemcpy2D(base + piece.offset, piece.row_bytes, piece.source, piece.pitch_bytes,
                     piece.row_bytes, piece.rows, cudaMemcpyHostToDevice);
    if (error != cudaSuccess) {
      return cuda::cuda_error(error, fmt::format("to_cuda: copying {} bytes", piece.bytes()));
    }
  }
  // A copy from pageable memory may return before its last bytes have arrived.
  if (cudaError_t error = cudaStreamSynchronize(cudaStreamLegacy); error != cudaSuccess) {
    return cuda::cuda_error(error, "to_cuda");
  }

  PackedView result = view;
  result.device = Device::cuda;
  result.codes = base;
  result.scales = reinterpret_cast<const std::uint16_t*>(base + scales.offset);
  result.zeros = zeros.source != nullptr ? base + zeros.offset : nullptr;
  if (permutation.source != nullptr) {
    result.permutation = reinterpret_cast<const std::int32_t*>(base + permutation.offset);
  }
  result.codes_pitch_bytes = static_cast<std::int64_t>(codes.row_bytes);
  result.groups_pitch = view.groups();
  return PackedWeight(result, std::move(storage));
}

}  // namespace mixgemm
