// SPDX-License-Identifier: Apache-2.0
#include "launch/device.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <utility>

#include "launch/geometry.hpp"

namespace mixgemm::cuda {
namespace {

constexpr int kMaxDevices = 64;
// Of the data sheet's boost clock and bandwidth, what a long GEMM keeps (H100: 1755 of 1980 MHz,
// 3.1 of 3.35 TB/s).
constexpr double kSustainedClock = 0.886;
constexpr double kSustainedBandwidth = 0.925;

int attribute(cudaDeviceAttr attr, int device) {
  int value = 0;
  return cudaDeviceGetAttribute(&value, attr, device) == cudaSuccess ? value : 0;
}

/// Lets a kernel use all the shared memory of an SM, once per device and kernel: the attribute
/// outlives the call, and setting it again would cost a driver call per plan.
Status allow_shared_memory(int device, const KernelEntry& entry, int bytes) {
  static std::mutex mutex;
  static std::map<std::pair<int, const void*>, bool> done;
  std::lock_guard lock(mutex);
  bool& is_done = done[{device, entry.function}];
  if (is_done) return Status();
  cudaError_t error =
      cudaFuncSetAttribute(entry.function, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return cuda_error(error, entry.id);
  is_done = true;
  return Status();
}

/// CTAs of a kernel that knows no clusters, on all SMs.
Result<int> ask_resident_ctas(const KernelEntry& entry, const launch::Geometry& g, int num_sms) {
  int per_sm = 0;
  const cudaError_t error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(
      &per_sm, entry.function, g.threads, static_cast<std::size_t>(g.smem_bytes));
  if (error != cudaSuccess) return cuda_error(error, entry.id);
  if (per_sm < 1) {
    return Status(StatusCode::unsupported,
                  fmt::format("{}: the device can't hold a CTA of {} threads with {} bytes of "
                              "shared memory",
                              entry.id, g.threads, g.smem_bytes));
  }
  return per_sm * num_sms;
}

Result<int> ask_resident_clusters(const KernelEntry& entry, const LaunchConfig& l, std::int64_t m,
                                  int num_sms) {
  const int size = l.cluster_size();
  const launch::Geometry g = launch::geometry(entry.config, l, m, 1, 1, 1);
  if (entry.config.arch == 80) return ask_resident_ctas(entry, g, num_sms);
  cudaLaunchAttribute attr[1];
  attr[0].id = cudaLaunchAttributeClusterDimension;
  attr[0].val.clusterDim.x = static_cast<unsigned>(l.cluster_n);
  attr[0].val.clusterDim.y = static_cast<unsigned>(l.cluster_m);
  attr[0].val.clusterDim.z = static_cast<unsigned>(l.cluster_k);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(l.cluster_n), static_cast<unsigned>(l.cluster_m),
                        static_cast<unsigned>(num_sms / size * l.cluster_k));
  config.blockDim = dim3(static_cast<unsigned>(g.threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(g.smem_bytes);
  config.attrs = attr;
  config.numAttrs = 1;
  int clusters = 0;
  const cudaError_t error = cudaOccupancyMaxActiveClusters(&clusters, entry.function, &config);
  if (error != cudaSuccess) return cuda_error(error, entry.id);
  if (clusters < 1) {
    return Status(StatusCode::unsupported,
                  fmt::format("{}: the device can't hold a cluster of {} CTAs with {} bytes of "
                              "shared memory each",
                              entry.id, size, config.dynamicSmemBytes));
  }
  return clusters;
}

std::string device_name(int device) {
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) return "CUDA device";
  return properties.name;
}

select::DeviceFacts ask_facts(int device) {
  select::DeviceFacts facts;
  facts.arch = 10 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
               attribute(cudaDevAttrComputeCapabilityMinor, device);
  facts.num_sms = std::max(1, attribute(cudaDevAttrMultiProcessorCount, device));
  facts.l2_bytes = attribute(cudaDevAttrL2CacheSize, device);
  facts.shared.per_cta = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  facts.shared.per_sm = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  if (const int khz = attribute(cudaDevAttrClockRate, device); khz > 0) {
    facts.clock_mhz = khz * 1e-3 * kSustainedClock;
  }
  const double memory_khz = attribute(cudaDevAttrMemoryClockRate, device);
  const double bus_bits = attribute(cudaDevAttrGlobalMemoryBusWidth, device);
  if (memory_khz > 0 && bus_bits > 0) {  // two transfers a clock
    facts.dram_bytes_per_us = memory_khz * 1e-3 * 2 * bus_bits / 8 * kSustainedBandwidth;
  }
  // Whole clusters must fit a GPC, and GPCs differ in size: asked of one kernel for each occupancy.
  for (int per_sm = 1; per_sm <= 2; ++per_sm) {
    const auto registry = kernel_registry();
    const auto it = std::find_if(registry.begin(), registry.end(), [&](const KernelEntry& e) {
      return facts.arch == 90 && e.config.arch == 90 && e.config.ctas_per_sm == per_sm &&
             (e.config.schedule == Schedule::cooperative ||
              e.config.schedule == Schedule::pingpong);
    });
    for (int size = 1; size <= select::kMaxClusterSize; ++size) {
      int clusters = facts.arch == 90 || size == 1 ? per_sm * facts.num_sms / size : 0;
      if (it != registry.end() && allow_shared_memory(device, *it, facts.shared.per_cta)) {
        LaunchConfig l;
        l.cluster_k = size;
        l.stages = max_stages(it->config);
        const auto asked = ask_resident_clusters(*it, l, 1, facts.num_sms);
        clusters = asked ? *asked : 0;
      }
      facts
          .resident_clusters[static_cast<std::size_t>(per_sm - 1)][static_cast<std::size_t>(size)] =
          clusters;
    }
  }
  return facts;
}

}  // namespace

Status cuda_error(cudaError_t error, std::string_view what) {
  cudaGetLastError();
  const StatusCode code =
      error == cudaErrorMemoryAllocation ? StatusCode::out_of_memory : StatusCode::device_error;
  return Status(code, fmt::format("{}: CUDA error {} ({}): {}", what, static_cast<int>(error),
                                  cudaGetErrorName(error), cudaGetErrorString(error)));
}

DeviceCount device_count() {
  DeviceCount result;
  const cudaError_t error = cudaGetDeviceCount(&result.count);
  if (error == cudaSuccess && result.count > 0) return result;
  cudaGetLastError();
  result.count = 0;
  switch (error) {
    case cudaSuccess:
    case cudaErrorNoDevice: result.note = "no CUDA device"; break;
    case cudaErrorInsufficientDriver: {
      int version = 0;
      const bool has_driver = cudaDriverGetVersion(&version) == cudaSuccess && version > 0;
      cudaGetLastError();
      result.note =
          has_driver ? "the CUDA driver is older than this build's runtime" : "no CUDA driver";
      break;
    }
    default: result.note = cudaGetErrorString(error);
  }
  return result;
}

const char* why_no_kernels(int arch) {
  if (arch < 80) return "kernels need compute capability 8.0 (Ampere) or newer";
  const auto registry = kernel_registry();
  const bool any = std::any_of(registry.begin(), registry.end(), [&](const KernelEntry& e) {
    return select::runs_on(e.config.arch, arch);
  });
  if (any) return nullptr;
  return arch == 90 ? "this build has no kernel for compute capability 9.0"
                    : "this build's kernels need compute capability 9.0 (Hopper); "
                      "CMAKE_CUDA_ARCHITECTURES=\"80;90a\" adds those for 8.0 and newer";
}

const select::KernelIndex& kernel_index() {
  static const select::KernelIndex index(kernel_registry());
  return index;
}

Result<const DeviceContext*> current_device() {
  // Contexts are made once and never moved, so a reader needs the lock only to find one.
  static std::mutex mutex;
  static std::array<std::unique_ptr<const DeviceContext>, kMaxDevices> contexts;
  const DeviceCount found = device_count();
  if (found.count == 0) return Status(StatusCode::unsupported, found.note);
  int device = 0;
  if (cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) {
    return cuda_error(error, "asking for the current device");
  }
  if (device >= kMaxDevices) {
    return Status(StatusCode::unsupported,
                  fmt::format("device ordinals go up to {}; got {}", kMaxDevices - 1, device));
  }
  std::lock_guard lock(mutex);
  auto& slot = contexts[static_cast<std::size_t>(device)];
  if (slot == nullptr) {
    const int arch = 10 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
                     attribute(cudaDevAttrComputeCapabilityMinor, device);
    if (const char* reason = why_no_kernels(arch)) {
      return Status(StatusCode::unsupported,
                    fmt::format("{}; device {} has {}.{}", reason, device, arch / 10, arch % 10));
    }
    auto context = std::make_unique<DeviceContext>();
    context->ordinal = device;
    context->arch = arch;
    context->facts = ask_facts(device);
    context->identity = {Device::cuda, device_name(device), arch, context->facts.num_sms};
    slot = std::move(context);
  }
  return static_cast<const DeviceContext*>(slot.get());
}

Result<int> resident_clusters(const DeviceContext& device, const KernelEntry& entry,
                              const LaunchConfig& l, std::int64_t m) {
  static std::mutex mutex;
  static std::map<std::tuple<int, const void*, int, std::int64_t>, int> known;
  const std::tuple key{device.ordinal, entry.function, l.cluster_size(),
                       launch::smem_bytes(entry.config, l, m)};
  {
    std::lock_guard lock(mutex);
    if (const auto it = known.find(key); it != known.end()) return it->second;
  }
  if (Status s = allow_shared_memory(device.ordinal, entry, device.facts.shared.per_cta); !s) {
    return s;
  }
  const auto asked = ask_resident_clusters(entry, l, m, device.facts.num_sms);
  if (!asked) return asked;
  int clusters = *asked;
  const KernelConfig& c = entry.config;
  if (c.schedule == Schedule::streaming || c.schedule == Schedule::multistage) {
    // A streaming kernel's rings leave room for the next launch's, which is not to be filled with
    // this launch's CTAs. More CTAs of a multistage kernel than its name says would only split K in
    // more pieces; those of four warps come in twos.
    const int per_sm =
        c.schedule == Schedule::multistage && c.consumer_warpgroups == 1 ? 2 : c.ctas_per_sm;
    clusters = std::min(clusters, std::max(1, device.facts.resident(per_sm, l.cluster_size())));
  }
  std::lock_guard lock(mutex);
  known[key] = clusters;
  return clusters;
}

}  // namespace mixgemm::cuda
