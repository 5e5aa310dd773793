// SPDX-License-Identifier: Apache-2.0
// A plan on a CUDA device: problem → kernel and launch → tensor maps and Params → launch.
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "api/check.hpp"
#include "api/plan_cache.hpp"
#include "api/plan_impl.hpp"
#include "launch/cuda_backend.hpp"
#include "launch/device.hpp"
#include "launch/driver_launch.hpp"
#include "launch/geometry.hpp"
#include "launch/tensor_maps.hpp"
#include "registry.hpp"
#include "select/config_id.hpp"
#include "select/explain.hpp"
#include "select/select.hpp"
#include "tuning/active.hpp"
#include "util/log.hpp"

namespace mixgemm::cuda {
namespace {

/// Candidates kept from a ranking: the first that the device can hold is taken.
constexpr std::size_t kKept = 6;
/// Candidates that explain() shows.
constexpr std::size_t kExplained = 12;

/// A tag that no other launch of this process has, and no poisoned or stale workspace is likely to
/// hold: kernels mark their partial sums with it. Never 0, which means "not written".
std::uint64_t next_flag_tag() {
  static std::atomic<std::uint64_t> counter = [] {
    std::random_device random;
    return std::uint64_t{random()} << 32 | random();
  }();
  const std::uint64_t tag = counter.fetch_add(1, std::memory_order_relaxed);
  return tag != 0 ? tag : counter.fetch_add(1, std::memory_order_relaxed);
}

/// Everything about one way to launch a kernel that doesn't change from call to call.
struct PreparedLaunch {
  LaunchConfig config;
  launch::Geometry geometry;
  Params params;
  DriverKernel kernel;
};
using LaunchPtr = std::shared_ptr<const PreparedLaunch>;

Result<LaunchPtr> prepare(const DeviceContext& device, const KernelEntry& entry,
                          const LaunchConfig& config, const Problem& problem) {
  const auto resident = resident_clusters(device, entry, config, problem.m);
  if (!resident) return resident.status();
  const auto made = std::make_shared<PreparedLaunch>();
  made->config = config;
  made->geometry =
      launch::geometry(entry.config, config, problem.m, problem.n, problem.k, *resident);
  if (const launch::Geometry& g = made->geometry; !g.fits()) {
    return Status(
        StatusCode::unsupported,
        fmt::format("{}: K = {}, {} x {} tiles of M = {}, N = {} and {} CTAs along z exceed "
                    "what a launch can index (K up to 2^30, 2^31 tiles, 65535 CTAs)",
                    entry.id, problem.k, g.tiles_m, g.tiles_n, problem.m, problem.n, g.grid_z));
  }
  made->params = launch::params_template(entry.config, config, problem, made->geometry);
  made->kernel = driver_kernel(entry.function);
  return LaunchPtr(made);
}

class CudaPlan final : public Plan::Impl {
 public:
  CudaPlan(const Problem& problem, const DeviceContext& device, const KernelEntry& entry,
           LaunchPtr main, LaunchPtr plain, std::string why)
      : Impl(problem, entry.id,
             select::config_id(entry.id, problem.weight.group_size, main->config),
             workspace_of(*main, plain.get())),
        device_(device),
        entry_(entry),
        main_(std::move(main)),
        plain_(std::move(plain)),
        why_(std::move(why)) {}

  std::string explain() const override {
    const launch::Geometry& g = main_->geometry;
    const select::Estimate e =
        select::estimate(entry_.config, main_->config, problem(), device_.facts);
    std::string text = fmt::format("{}, {}\n", config_id(), why_);
    text += fmt::format(
        "  {} tiles of {} x {} (N x M), {} steps of {} k; grid of {} CTAs in clusters of "
        "{}, {} threads and {} bytes of shared memory each; workspace {} bytes\n",
        g.cluster_tiles * main_->config.cluster_n * main_->config.cluster_m, entry_.config.tile_n,
        entry_.config.tile_m, g.k_tiles, entry_.config.tile_k, g.grid_ctas,
        main_->config.cluster_size(), g.threads, g.smem_bytes, workspace_bytes());
    text += fmt::format("  estimated {:.2f} us; the main loop waits for {}\n", e.total_us, e.bound);
    text += fmt::format("  in the manifest because: {}\n", entry_.reason);
    if (plain_) {
      text +=
          fmt::format("  where X or its leading dimension isn't 16-byte aligned: {}\n",
                      select::config_id(entry_.id, problem().weight.group_size, plain_->config));
    }
    const auto tuned = tuning::find(device_.identity, problem());
    const auto candidates = select::explain(problem(), kernel_registry(), kernel_index(),
                                            device_.facts, config_id(), tuned, kKept);
    return text + select::format_candidates(candidates);
  }

  Status run(const RunArgs& args) const override {
    // The context that the kernel was found in is of this device.
    const ContextId context = current_context();
    const bool by_driver = context != 0 && context == main_->kernel.context;
    if (!by_driver) {
      int current = -1;
      if (cudaError_t error = cudaGetDevice(&current); error != cudaSuccess) return failed(error);
      if (current != device_.ordinal) {
        return Status(StatusCode::invalid_argument,
                      fmt::format("the current device must be {}, where the plan was made; got {}",
                                  device_.ordinal, current));
      }
    }
    const Problem& problem = this->problem();
    const bool tma = launch::x_by_tma(problem.m, args.x, args.ldx);
    const PreparedLaunch* launch = main_.get();
    if (!tma && main_->config.cluster_n > 1) {
      if (!plain_) {
        return Status(
            StatusCode::unsupported,
            fmt::format("{}: cluster_n > 1 needs x and 2·ldx to be multiples of 16 bytes; "
                        "got x at {} and ldx = {}",
                        config_id(), fmt::ptr(args.x), args.ldx));
      }
      launch = plain_.get();
    }

    Params p = launch->params;
    if (entry_.config.arch == 90) {
      if (Status s = encode_maps(*launch, args, tma, p); !s) {
        return Status(s.code(), fmt::format("{}: {}", config_id(), s.message()));
      }
    }
    p.x = args.x;
    p.codes = args.weight.codes;
    p.scales = args.weight.scales;
    p.zeros = static_cast<const std::uint16_t*>(args.weight.zeros);
    p.y = args.y;
    p.bias = args.bias;
    p.residual = args.residual;
    p.workspace = args.workspace;
    p.flag_tag = launch->geometry.stream_tiles > 0 ? next_flag_tag() : 0;
    p.ldx = problem.m == 1 ? 0 : args.ldx;  // one row has no pitch, so an odd one misaligns nothing
    p.ldy = args.ldy;
    p.ldr = args.ldr;
    p.codes_pitch_bytes = args.weight.codes_pitch_bytes;
    p.groups_pitch = args.weight.groups_pitch;
    p.alpha = args.alpha;
    p.x_by_tma = tma;
    p.y_vectors = launch::rows_take_vectors(problem.m, problem.n, args.y, args.ldy);
    p.r_vectors = args.residual != nullptr &&
                  launch::rows_take_vectors(problem.m, problem.n, args.residual, args.ldr);
    // SM80 code can't wait for the kernel before it: that one's end must be the stream's business.
    p.pdl = args.pdl && entry_.config.arch == 90;
    return enqueue(*launch, p, static_cast<cudaStream_t>(args.stream), by_driver);
  }

 private:
  static std::size_t workspace_of(const PreparedLaunch& main, const PreparedLaunch* plain) {
    const std::int64_t bytes = std::max(main.geometry.workspace_bytes,
                                        plain ? plain->geometry.workspace_bytes : std::int64_t{0});
    return static_cast<std::size_t>(bytes);
  }

  Status failed(cudaError_t error) const { return cuda_error(error, config_id()); }

  Status encode_maps(const PreparedLaunch& launch, const RunArgs& args, bool tma, Params& p) const {
    const KernelConfig& c = entry_.config;
    if (select::is_tiled(c)) {  // the streaming kernel copies codes and activations by address
      if (tma) {
        const auto shape = launch::x_map(c, launch.config, problem(), args.x, args.ldx);
        if (Status s = encode(shape, p.x_map); !s) return s;
      }
      const auto shape = launch::codes_map(c, launch.config, args.weight);
      if (Status s = encode(shape, p.codes_map); !s) return s;
    }
    if (c.quant == Quant::column) return Status();
    if (Status s = encode(launch::groups_map(c, args.weight, args.weight.scales), p.scales_map);
        !s) {
      return s;
    }
    if (c.quant == Quant::group) return Status();
    return encode(launch::groups_map(c, args.weight, args.weight.zeros), p.zeros_map);
  }

  Status enqueue(const PreparedLaunch& launch, Params& params, cudaStream_t stream,
                 bool by_driver) const {
    cudaLaunchAttribute attrs[2];
    unsigned num_attrs = 0;
    if (launch.config.cluster_size() > 1) {
      attrs[num_attrs].id = cudaLaunchAttributeClusterDimension;
      attrs[num_attrs].val.clusterDim.x = static_cast<unsigned>(launch.config.cluster_n);
      attrs[num_attrs].val.clusterDim.y = static_cast<unsigned>(launch.config.cluster_m);
      attrs[num_attrs].val.clusterDim.z = static_cast<unsigned>(launch.config.cluster_k);
      ++num_attrs;
    }
    if (params.pdl) {
      attrs[num_attrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attrs[num_attrs].val.programmaticStreamSerializationAllowed = 1;
      ++num_attrs;
    }
    cudaLaunchConfig_t config = {};
    // A CTA's place in its cluster is its place in the grid's x and y; clusters count along z.
    config.gridDim = dim3(static_cast<unsigned>(launch.config.cluster_n),
                          static_cast<unsigned>(launch.config.cluster_m),
                          static_cast<unsigned>(launch.geometry.grid_z));
    config.blockDim = dim3(static_cast<unsigned>(launch.geometry.threads));
    config.dynamicSmemBytes = static_cast<std::size_t>(launch.geometry.smem_bytes);
    config.stream = stream;
    config.attrs = attrs;
    config.numAttrs = num_attrs;
    void* kernel_args[] = {&params};
    if (by_driver && launch_by_driver(launch.kernel, config, kernel_args)) return Status();
    const cudaError_t error = cudaLaunchKernelExC(&config, entry_.function, kernel_args);
    return error == cudaSuccess ? Status() : failed(error);
  }

  const DeviceContext& device_;
  const KernelEntry& entry_;
  const LaunchPtr main_;
  const LaunchPtr plain_;  // without multicast of X, for an X that TMA can't read
  const std::string why_;
};

using ImplPtr = std::shared_ptr<const Plan::Impl>;

Result<ImplPtr> make_plan(const Problem& problem, const DeviceContext& device,
                          const KernelEntry& entry, const LaunchConfig& config,
                          bool may_change_launch, std::string why) {
  auto main = prepare(device, entry, config, problem);
  if (!main) return main.status();
  LaunchPtr plain;
  if (may_change_launch && config.cluster_n > 1) {
    LaunchConfig alone = config;
    alone.cluster_n = 1;
    auto prepared = prepare(device, entry, alone, problem);
    if (!prepared) return prepared.status();
    plain = std::move(*prepared);
  }
  return ImplPtr(std::make_shared<CudaPlan>(problem, device, entry, std::move(*main),
                                            std::move(plain), std::move(why)));
}

/// The first of the ranked candidates that the device can hold.
Result<ImplPtr> plan_best(const Problem& problem, const DeviceContext& device,
                          std::span<const select::Candidate> ranked, const std::string& what,
                          const std::string& why) {
  Status last(StatusCode::unsupported, fmt::format("no launch of {} suits the problem", what));
  for (const select::Candidate& c : ranked) {
    auto made = make_plan(problem, device, *c.entry, c.launch, true, why);
    if (made) return made;
    last = made.status();
  }
  return last;
}

/// `name`: a kernel id, or a configuration id. may_change_launch: whether an X that TMA can't read
/// may be served by another launch than the one named.
Result<ImplPtr> plan_by_id(const Problem& problem, const DeviceContext& device,
                           const std::string& name, bool may_change_launch,
                           const std::string& why) {
  const auto id = select::parse_config_id(name);
  if (!id) return id.status();
  const KernelEntry* entry = kernel_index().find(id->kernel_id);
  if (entry == nullptr) {
    return Status(
        StatusCode::not_found,
        fmt::format("no kernel \"{}\" in this build's registry of {} (mixgemm kernels lists "
                    "them); -DMIXGEMM_VARIANTS=all builds every variant of the manifest",
                    id->kernel_id, kernel_registry().size()));
  }
  const auto unfit = [&](const char* rule) {
    return Status(StatusCode::invalid_argument, fmt::format("{}: {}", name, rule));
  };
  if (!select::runs_on(entry->config.arch, device.arch)) {
    return Status(StatusCode::unsupported,
                  fmt::format("{} needs compute capability {}.{}{}; device {} has {}.{}", entry->id,
                              entry->config.arch / 10, entry->config.arch % 10,
                              entry->config.arch == 80 ? " or newer" : "", device.ordinal,
                              device.arch / 10, device.arch % 10));
  }
  if (const char* rule = select::why_unfit(entry->config, problem)) return unfit(rule);
  if (!id->has_launch) {
    const auto ranked = select::rank(problem, {&entry, 1}, device.facts, kKept);
    return plan_best(problem, device, ranked, entry->id, why);
  }
  if (id->group_size != problem.weight.group_size) {
    return Status(StatusCode::invalid_argument,
                  fmt::format("{}: the group size of the configuration must be the problem's {}; "
                              "got {}",
                              name, problem.weight.group_size, id->group_size));
  }
  if (const char* rule =
          select::why_unfit(entry->config, id->launch, problem, device.facts, true)) {
    return unfit(rule);
  }
  return make_plan(problem, device, *entry, id->launch, may_change_launch, why);
}

/// The model's ranking, made when it is asked for: a tuned problem doesn't need it.
class Ranking {
 public:
  Ranking(const Problem& problem, std::span<const KernelEntry* const> kernels,
          const select::DeviceFacts& device)
      : problem_(problem), kernels_(kernels), device_(device) {}
  const std::vector<select::Candidate>& get() const {
    if (!ranked_) ranked_ = select::rank(problem_, kernels_, device_, kKept);
    return *ranked_;
  }

 private:
  const Problem& problem_;
  std::span<const KernelEntry* const> kernels_;
  const select::DeviceFacts& device_;
  mutable std::optional<std::vector<select::Candidate>> ranked_;
};

/// The configuration that a tuning cache names for the problem, or nullptr: none does, or it names
/// one that this build, this device or this M can't take, or one of another M that the model
/// doubts, all of which leaves the choice to the model.
ImplPtr plan_tuned(const Problem& problem, const DeviceContext& device, const Ranking& ranking) {
  const auto tuned = tuning::lookup(device.identity, problem);
  if (!tuned) return nullptr;
  if (tuned->m != problem.m && !ranking.get().empty()) {
    const auto id = select::parse_config_id(tuned->config);
    const KernelEntry* entry = id ? kernel_index().find(id->kernel_id) : nullptr;
    if (entry != nullptr && id->has_launch &&
        !select::holds_here(entry->config, id->launch, problem, device.facts,
                            ranking.get().front())) {
      log::info("tuned configuration of M = {} not used at M = {}: {}", tuned->m, problem.m,
                tuned->config);
      return nullptr;
    }
  }
  auto made = plan_by_id(problem, device, tuned->config, true,
                         fmt::format("tuned: {:.2f} us measured at M = {}", tuned->us, tuned->m));
  if (made) return std::move(*made);
  log::info("tuned configuration not used: {}", made.status().message());
  return nullptr;
}

}  // namespace

Result<Plan> plan(const Problem& problem, const PlanOptions& options) {
  if (Status s = check_problem(problem); !s) return s;
  const bool by_name = !options.kernel.empty();
  const std::uint32_t tuning = tuning::generation();
  int ordinal = -1;
  if (!by_name && cudaGetDevice(&ordinal) == cudaSuccess) {
    if (auto known = PlanCache::find(PlanKey(problem, ordinal, tuning))) return Plan(known);
  }

  const auto device = current_device();
  if (!device) return device.status();
  if ((*device)->arch == 90) {
    if (Status s = load_tensor_map_encoder(); !s) return s;
  }
  if (by_name) {
    auto made = plan_by_id(problem, **device, options.kernel, false, "asked for by name");
    if (!made) return made.status();
    return Plan(std::move(*made));
  }
  const auto kernels = kernel_index().kernels(problem, (*device)->arch);
  if (kernels.empty()) {
    return Status(
        StatusCode::unsupported,
        fmt::format("this build has no kernel for {}; -DMIXGEMM_VARIANTS=all builds every "
                    "variant of the manifest",
                    select::describe(select::family_of(problem))));
  }
  const Ranking ranking(problem, kernels, (*device)->facts);
  ImplPtr best = plan_tuned(problem, **device, ranking);
  if (best == nullptr) {
    auto made =
        plan_best(problem, **device, ranking.get(), "any kernel", "first by the cost model");
    if (!made) return made.status();
    best = std::move(*made);
  }
  log::info("plan M={} N={} K={}: {}", problem.m, problem.n, problem.k, best->config_id());
  return Plan(PlanCache::insert(PlanKey(problem, (*device)->ordinal, tuning), std::move(best)));
}

Result<std::vector<PlanCandidate>> plan_candidates(const Problem& problem, std::size_t limit) {
  const auto picked = mixgemm::plan(problem);
  if (!picked) return picked.status();
  const auto device = current_device();
  if (!device) return device.status();
  return select::explain(problem, kernel_registry(), kernel_index(), (*device)->facts,
                         picked->config_id(), tuning::find((*device)->identity, problem), limit);
}

Result<TuningDevice> tuning_device() {
  const auto device = current_device();
  if (!device) return device.status();
  return (*device)->identity;
}

std::vector<KernelInfo> kernels() {
  std::vector<KernelInfo> list;
  const auto device = current_device();
  for (const KernelEntry& entry : kernel_registry()) {
    KernelInfo info;
    info.id = entry.id;
    info.device = Device::cuda;
    info.arch = entry.config.arch;
    info.reason = entry.reason;
    LaunchConfig l;
    l.stages = select::deepest_ring(entry.config, entry.config.tile_m);
    info.shared_bytes =
        static_cast<std::size_t>(launch::smem_bytes(entry.config, l, entry.config.tile_m));
    // Not of a kernel that is only there as PTX: the driver would compile it to answer.
    if (device && (*device)->arch / 10 == entry.config.arch / 10) {
      cudaFuncAttributes attributes = {};
      if (cudaFuncGetAttributes(&attributes, entry.function) == cudaSuccess) {
        info.registers = attributes.numRegs;
      } else {
        cudaGetLastError();
      }
    }
    list.push_back(std::move(info));
  }
  return list;
}

std::vector<DeviceInfo> devices() {
  const DeviceCount found = device_count();
  DeviceInfo info;
  info.device = Device::cuda;
  if (found.count == 0) {
    info.name = "CUDA";
    info.usable = false;
    info.note = found.note;
    return {info};
  }
  std::vector<DeviceInfo> list;
  int driver = 0;
  cudaDriverGetVersion(&driver);
  for (int ordinal = 0; ordinal < found.count; ++ordinal) {
    cudaDeviceProp properties;
    if (cudaError_t error = cudaGetDeviceProperties(&properties, ordinal); error != cudaSuccess) {
      info.name = fmt::format("CUDA device {}", ordinal);
      info.usable = false;
      info.note = cuda_error(error, "asking for its properties").message();
    } else {
      info.name = properties.name;
      info.arch = properties.major * 10 + properties.minor;
      info.num_sms = properties.multiProcessorCount;
      info.memory_bytes = static_cast<std::int64_t>(properties.totalGlobalMem);
      int khz = 0, memory_khz = 0;
      cudaDeviceGetAttribute(&khz, cudaDevAttrClockRate, ordinal);
      cudaDeviceGetAttribute(&memory_khz, cudaDevAttrMemoryClockRate, ordinal);
      info.clock_mhz = khz * 1e-3;
      info.memory_gbps =
          2e-6 * memory_khz * properties.memoryBusWidth / 8;  // two transfers a clock
      const char* reason = why_no_kernels(info.arch);
      info.usable = reason == nullptr;
      info.note = reason != nullptr
                      ? reason
                      : fmt::format("driver of CUDA {}.{}", driver / 1000, driver % 1000 / 10);
    }
    list.push_back(info);
  }
  return list;
}

}  // namespace mixgemm::cuda
