// SPDX-License-Identifier: Apache-2.0
// The kernels without the library: lists the registry that tools/generate_kernels.py wrote and, on
// a Hopper GPU, runs every tiled kernel in it on a small problem against a plain loop on the CPU.
// build.sh builds it with nvcc alone. A launch takes three things: tensor maps, Params, and the
// entry's host stub; this file is the shortest example of all three.
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string_view>
#include <vector>

#include "registry.hpp"

namespace {

using namespace mixgemm;

constexpr int kM = 33, kN = 272, kK = 320;  // none fills whole tiles
constexpr double kMaxRelativeError = 5e-3;  // of a bf16 output and rounded bf16 weights

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

std::uint16_t to_16bit(float value, DataType type) {
  return type == DataType::f16 ? __half_as_ushort(__float2half(value))
                               : __bfloat16_as_ushort(__float2bfloat16(value));
}
float from_16bit(std::uint16_t bits, DataType type) {
  return type == DataType::f16 ? __half2float(__ushort_as_half(bits))
                               : __bfloat162float(__ushort_as_bfloat16(bits));
}

/// Numbers that are the same everywhere: 0 .. bound - 1.
struct Random {
  std::uint64_t state = 1;
  int below(int bound) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<int>(state >> 33) % bound;
  }
};

/// A quantized weight and activations on the host, and their product.
struct Data {
  int group_size, groups;
  std::vector<std::uint8_t> codes;              // packed, strips x k-blocks x cells
  std::vector<std::uint16_t> scales, zeros, x;  // [strips][groups][16], the same, [M][K]
  std::vector<double> y;                        // [M][N]
};

Data make_data(const KernelConfig& c) {
  const int bits = bits_of(c.weight);
  const int strips = static_cast<int>(layout::num_strips(kN));
  const int k_blocks = static_cast<int>(layout::num_k_blocks(kK));
  Data d;
  d.group_size = c.quant == Quant::column ? kK : c.fine_groups ? 32 : 64;
  d.groups = (kK + d.group_size - 1) / d.group_size;
  d.codes.resize(strips * layout::strip_bytes(kK, bits));
  d.scales.resize(strips * d.groups * layout::kStripRows);
  d.zeros.resize(d.scales.size());
  d.x.resize(kM * kK);
  d.y.resize(kM * kN);
  Random random;
  for (auto& scale : d.scales) scale = to_16bit((1 + random.below(64)) / 4096.f, c.act);
  for (auto& zero : d.zeros) zero = to_16bit(random.below(1 << bits), c.act);
  for (auto& x : d.x) x = to_16bit((random.below(257) - 128) / 128.f, c.act);
  for (int n = 0; n < kN; ++n) {
    for (int k = 0; k < kK; ++k) {
      const int code = random.below(1 << bits);
      const layout::Place place =
          layout::place_of({n % layout::kStripRows, k % layout::kBlockK}, bits);
      const std::int64_t cell =
          n / layout::kStripRows * std::int64_t{k_blocks} + k / layout::kBlockK;
      d.codes[cell * layout::cell_bytes(bits) + place.word * 4 + place.bit / 8] |=
          static_cast<std::uint8_t>(code << place.bit % 8);
      const std::int64_t at = layout::scale_index(n, k / d.group_size, d.groups);
      const double zero =
          c.quant == Quant::group_zero ? from_16bit(d.zeros[at], c.act) : implicit_zero(c.weight);
      const double weight = (code - zero) * from_16bit(d.scales[at], c.act);
      for (int m = 0; m < kM; ++m) d.y[m * kN + n] += weight * from_16bit(d.x[m * kK + k], c.act);
    }
  }
  return d;
}

template <class T>
T* to_device(const std::vector<T>& host) {
  void* device = nullptr;
  check(cudaMalloc(&device, host.size() * sizeof(T)), "cudaMalloc");
  check(cudaMemcpy(device, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice), "copy");
  return static_cast<T*>(device);
}

/// A 2-D tensor map: rows of `columns` elements, pitch_bytes apart, read in boxes.
TensorMap tensor_map(CUtensorMapDataType type, const void* base, std::uint64_t columns,
                     std::uint64_t rows, std::uint64_t pitch_bytes, int box_columns, int box_rows,
                     CUtensorMapSwizzle swizzle) {
  // Asked of the driver at run time: the program links no libcuda and starts without a driver.
  static const auto encode = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000,
                                           cudaEnableDefault, &found),
          "cuTensorMapEncodeTiled");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry);
  }();
  TensorMap map;
  const cuuint64_t dims[2] = {columns, rows}, pitches[1] = {pitch_bytes};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(box_columns),
                             static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t strides[2] = {1, 1};
  const CUresult result =
      encode(reinterpret_cast<CUtensorMap*>(&map), type, 2, const_cast<void*>(base), dims, pitches,
             box, strides, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    std::fprintf(stderr, "cuTensorMapEncodeTiled: error %d\n", static_cast<int>(result));
    std::exit(1);
  }
  return map;
}

/// What the epilogue makes of a product; one of your own needs its line here.
double epilogue_of(const KernelEntry& entry, double sum) {
  if (std::string_view(entry.epilogue) == "softcap") return std::tanh(sum);  // custom_epilogue
  return sum;
}

/// Relative Frobenius error of one launch: one tile a CTA, no cluster, no split.
double run(const KernelEntry& entry) {
  const KernelConfig& c = entry.config;
  const Data d = make_data(c);
  const int bits = bits_of(c.weight);
  const int strips = static_cast<int>(layout::num_strips(kN));
  const int cell_words = layout::cell_bytes(bits) / 4;
  const LaunchConfig launch{.stages = max_stages(c)};

  Params p{};
  p.x = to_device(d.x);
  p.codes = to_device(d.codes);
  p.scales = to_device(d.scales);
  p.zeros = to_device(d.zeros);
  p.y = to_device(std::vector<std::uint16_t>(kM * kN, 0xffff));  // NaN, where nothing is written
  p.codes_policy = p.x_policy = kEvictNormal;
  p.ldx = kK;
  p.ldy = p.ldr = kN;
  p.codes_pitch_bytes = layout::strip_bytes(kK, bits);
  p.groups_pitch = d.groups;
  p.m = kM;
  p.n = kN;
  p.k = kK;
  p.cluster_tiles_n = (kN + c.tile_n - 1) / c.tile_n;
  p.cluster_tiles_m = (kM + c.tile_m - 1) / c.tile_m;
  p.k_tiles = (kK + c.tile_k - 1) / c.tile_k;
  p.raster_m = launch.raster_m;
  p.cluster_n = p.cluster_m = p.cluster_k = 1;
  p.stages = launch.stages;
  p.group_shift = 30;  // per column: every k is in group 0
  if (c.quant != Quant::column) {
    p.group_shift = d.group_size == 32 ? 5 : 6;
    p.scale_box_groups = c.tile_k / d.group_size;
    p.scale_box_bytes = p.scale_box_groups * c.tile_n * 2;
  }
  p.alpha = 1.f;
  p.relu_floor = -std::numeric_limits<float>::infinity();
  p.x_by_tma = true;
  p.y_vectors = true;
  p.x_map = tensor_map(
      c.act == DataType::f16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
      p.x, kK, kM, kK * 2, 64, c.tile_m, CU_TENSOR_MAP_SWIZZLE_128B);
  const int code_words = c.tile_k / layout::kBlockK * cell_words;
  p.codes_map =
      tensor_map(CU_TENSOR_MAP_DATA_TYPE_UINT32, p.codes, layout::num_k_blocks(kK) * cell_words,
                 strips, p.codes_pitch_bytes, code_words < 256 ? code_words : 256,
                 c.tile_n / layout::kStripRows, CU_TENSOR_MAP_SWIZZLE_NONE);
  if (c.quant != Quant::column) {
    const auto groups_map = [&](const std::uint16_t* values) {
      return tensor_map(CU_TENSOR_MAP_DATA_TYPE_UINT16, values, d.groups * layout::kStripRows,
                        strips, d.groups * layout::kStripRows * 2,
                        p.scale_box_groups * layout::kStripRows, c.tile_n / layout::kStripRows,
                        CU_TENSOR_MAP_SWIZZLE_NONE);
    };
    p.scales_map = groups_map(p.scales);
    p.zeros_map = groups_map(p.zeros);
  }

  const int smem = tiled_smem_bytes(c, launch);
  check(cudaFuncSetAttribute(entry.function, cudaFuncAttributeMaxDynamicSharedMemorySize, smem),
        entry.id);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1, 1, p.cluster_tiles_n * p.cluster_tiles_m);
  config.blockDim = dim3(num_threads(c));
  config.dynamicSmemBytes = smem;
  void* arguments[] = {&p};
  check(cudaLaunchKernelExC(&config, entry.function, arguments), entry.id);
  std::vector<std::uint16_t> y(kM * kN);
  check(cudaMemcpy(y.data(), p.y, y.size() * 2, cudaMemcpyDeviceToHost), entry.id);
  for (const void* buffer :
       {p.x, static_cast<const void*>(p.codes), static_cast<const void*>(p.scales),
        static_cast<const void*>(p.zeros), static_cast<const void*>(p.y)}) {
    check(cudaFree(const_cast<void*>(buffer)), "cudaFree");
  }

  double error = 0, norm = 0;
  for (int i = 0; i < kM * kN; ++i) {
    const double expected = epilogue_of(entry, d.y[i]);
    const double difference = from_16bit(y[i], c.act) - expected;
    error += difference * difference;
    norm += expected * expected;
  }
  return std::sqrt(error / norm);
}

}  // namespace

int main() {
  const auto kernels = kernel_registry();
  for (const KernelEntry& entry : kernels) std::printf("%s: %s\n", entry.id, entry.reason);
  std::printf("%zu kernels linked\n", kernels.size());
  if (kernels.empty()) return 1;

  int devices = 0;
  int major = 0;
  if (cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0) {
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "device");
  }
  if (major != 9) {
    std::printf("no Hopper GPU: nothing run\n");
    return 0;
  }
  int wrong = 0;
  for (const KernelEntry& entry : kernels) {
    if (entry.config.schedule == Schedule::streaming) continue;  // has another launch
    const double error = run(entry);
    const bool good = error < kMaxRelativeError;  // false for NaN too
    std::printf("%s: relative error %.2e%s\n", entry.id, error, good ? "" : " WRONG");
    wrong += !good;
  }
  return wrong == 0 ? 0 : 1;
}
