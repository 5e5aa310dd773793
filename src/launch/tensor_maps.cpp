// SPDX-License-Identifier: Apache-2.0
#include "launch/tensor_maps.hpp"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <array>
#include <atomic>
#include <cstring>

#include "launch/device.hpp"

namespace mixgemm::cuda {
namespace {

using launch::TensorMapShape;
using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

std::atomic<EncodeTiled> g_encode_tiled{nullptr};

CUtensorMapDataType driver_type(TensorMapShape::Element element) {
  switch (element) {
    case TensorMapShape::Element::u16: return CU_TENSOR_MAP_DATA_TYPE_UINT16;
    case TensorMapShape::Element::u32: return CU_TENSOR_MAP_DATA_TYPE_UINT32;
    case TensorMapShape::Element::f16: return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    case TensorMapShape::Element::bf16: return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  }
  return CU_TENSOR_MAP_DATA_TYPE_UINT16;
}

std::uint64_t hash(const TensorMapShape& s) {
  std::uint64_t h = s.address;
  for (const std::uint64_t part :
       {s.dims[0], s.dims[1], s.pitch_bytes,
        std::uint64_t{s.box[0]} << 32 | s.box[1] << 8 | static_cast<std::uint32_t>(s.element) << 1 |
            s.swizzle_128b}) {
    h = (h ^ part) * 0x9e3779b97f4a7c15ull;
    h ^= h >> 29;
  }
  return h;
}

/// One remembered map. The spin lock is held for one comparison and one copy of 128 bytes.
struct Slot {
  std::atomic_flag lock = ATOMIC_FLAG_INIT;
  bool used = false;
  TensorMapShape shape;
  TensorMap map;

  void acquire() {
    while (lock.test_and_set(std::memory_order_acquire)) {
    }
  }
  void release() { lock.clear(std::memory_order_release); }
};

// Direct-mapped: a collision costs one encoding. Static memory that is touched only where used.
constexpr std::size_t kSlots = 4096;
std::array<Slot, kSlots> g_slots;

}  // namespace

Status load_tensor_map_encoder() {
  if (g_encode_tiled.load(std::memory_order_acquire) != nullptr) return Status();
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry,
                                                             12000, cudaEnableDefault, &found);
  if (error != cudaSuccess) return cuda_error(error, "looking up cuTensorMapEncodeTiled");
  if (found != cudaDriverEntryPointSuccess || entry == nullptr) {
    return Status(
        StatusCode::unsupported,
        "the CUDA driver has no cuTensorMapEncodeTiled; it must be of CUDA 12.0 or newer");
  }
  g_encode_tiled.store(reinterpret_cast<EncodeTiled>(entry), std::memory_order_release);
  return Status();
}

Status encode(const TensorMapShape& s, TensorMap& out) {
  Slot& slot = g_slots[hash(s) % kSlots];
  slot.acquire();
  const bool hit = slot.used && slot.shape == s;
  if (hit) out = slot.map;
  slot.release();
  if (hit) return Status();

  static_assert(sizeof(TensorMap) == sizeof(CUtensorMap));
  CUtensorMap map;
  const cuuint64_t dims[2] = {s.dims[0], s.dims[1]};
  const cuuint64_t pitches[1] = {s.pitch_bytes};
  const cuuint32_t box[2] = {s.box[0], s.box[1]};
  const cuuint32_t unit_strides[2] = {1, 1};
  const auto call = [&] {
    return g_encode_tiled.load(std::memory_order_acquire)(
        &map, driver_type(s.element), 2, reinterpret_cast<void*>(s.address), dims, pitches, box,
        unit_strides, CU_TENSOR_MAP_INTERLEAVE_NONE,
        s.swizzle_128b != 0 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  };
  CUresult result = call();
  if (result == CUDA_ERROR_INVALID_CONTEXT) {
    // A driver call needs the thread's context, which the first runtime call that touches the
    // device binds. A thread that only ever runs plans has made none.
    if (cudaError_t error = cudaFree(nullptr); error == cudaSuccess) result = call();
  }
  if (result != CUDA_SUCCESS) {
    return Status(
        StatusCode::device_error,
        fmt::format("cuTensorMapEncodeTiled refused a map of {} x {} elements, pitch {} bytes, box "
                    "{} x {}: error {}",
                    s.dims[1], s.dims[0], s.pitch_bytes, s.box[1], s.box[0],
                    static_cast<int>(result)));
  }
  std::memcpy(&out, &map, sizeof(out));
  slot.acquire();
  slot.used = true;
  slot.shape = s;
  slot.map = out;
  slot.release();
  return Status();
}

}  // namespace mixgemm::cuda
