// SPDX-License-Identifier: Apache-2.0
#include "api/cpu_backend.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>

#include "api/kernel_names.hpp"
#include "api/plan_cache.hpp"
#include "api/plan_impl.hpp"
#include "cpu/blas.hpp"
#include "cpu/cpu_gemm.hpp"
#include "select/explain.hpp"
#include "tuning/active.hpp"
#include "util/log.hpp"
#include "util/parallel.hpp"

namespace mixgemm::cpu_backend {
namespace {

using cpu::Method;

constexpr int kMaxThreads = 4096;  // anything above is a mistake, not a machine
constexpr Method kMethods[] = {Method::simd, Method::blas};
constexpr WeightType kWeights[] = {WeightType::int4, WeightType::int8};
constexpr DataType kActs[] = {DataType::f16, DataType::bf16};
constexpr std::string_view kQuants[] = {"c", "g", "gz"};

std::string_view quant_name(const QuantSpec& spec) {
  if (spec.zero != ZeroKind::none) return "gz";
  return spec.group_size == 0 ? "c" : "g";
}

std::string make_kernel_id(DataType act, WeightType weight, std::string_view quant, Method method) {
  return fmt::format("cpu_{}_{}_{}_{}", to_string(act), weight == WeightType::int4 ? "i4" : "i8",
                     quant, cpu::to_string(method));
}

std::string kernel_id_of(const Problem& problem, Method method) {
  return make_kernel_id(problem.act, problem.weight.type, quant_name(problem.weight), method);
}

std::string make_config_id(const std::string& kernel_id, const Problem& problem, int num_threads) {
  const int group = problem.weight.group_size;
  return group == 0 ? fmt::format("{}@t{}", kernel_id, num_threads)
                    : fmt::format("{}@g{}_t{}", kernel_id, group, num_threads);
}

std::vector<std::string> kernel_ids() {
  std::vector<std::string> ids;
  for (const KernelInfo& kernel : kernels()) ids.push_back(kernel.id);
  return ids;
}

/// Every method for a problem, `picked` among them: first what is chosen untuned, last what can't
/// run.
std::vector<PlanCandidate> list_candidates(const Problem& problem, int num_threads,
                                           const std::string& picked) {
  const auto tuned = tuning::find(tuning_device(), problem);
  const Method untuned = cpu::choose(problem);
  std::vector<PlanCandidate> candidates;
  for (const bool chosen : {true, false}) {
    for (const Method method : kMethods) {
      if ((method == untuned) != chosen) continue;
      PlanCandidate c;
      c.config = make_config_id(kernel_id_of(problem, method), problem, num_threads);
      c.picked = c.config == picked;
      if (tuned && tuned->config == c.config) c.tuned_us = tuned->us;
      if (tuned && tuned->model_config == c.config) c.tuned_us = tuned->model_us;
      if (method == Method::blas && problem.batch_invariant) {
        c.why_not = "a BLAS sums in an order that depends on M: not batch invariant";
      } else if (method == Method::blas && !cpu::blas_available()) {
        c.why_not = "it needs a BLAS: " + cpu::blas_description();
      }
      candidates.push_back(std::move(c));
    }
  }
  return candidates;
}

class CpuPlan final : public Plan::Impl {
 public:
  CpuPlan(const Problem& problem, Method method, int num_threads, std::string why)
      : Impl(problem, kernel_id_of(problem, method),
             make_config_id(kernel_id_of(problem, method), problem, num_threads),
             cpu::workspace_bytes(problem, method)),
        method_(method),
        num_threads_(num_threads),
        why_(std::move(why)) {}

  std::string explain() const override {
    const Problem& p = problem();
    return fmt::format(
               "kernel         {}\n"
               "configuration  {}\n"
               "why            {}\n"
               "problem        M={} N={} K={} act={} weight={} zero={} group_size={} scales={}\n"
               "runs on        {} threads, SIMD target {}{}\n"
               "workspace      {} bytes\n",
               kernel_id(), config_id(), why_, p.m, p.n, p.k, to_string(p.act),
               to_string(p.weight.type), to_string(p.weight.zero), p.weight.group_size,
               to_string(p.weight.scale_type), num_threads_, cpu::simd_target(),
               method_ == Method::blas ? ", BLAS " + cpu::blas_description() : "",
               workspace_bytes()) +
           select::format_candidates(list_candidates(p, num_threads_, config_id()));
  }

  Status run(const RunArgs& args) const override {
    return cpu::gemm(problem(), args, method_, num_threads_);
  }

 private:
  Method method_;
  int num_threads_;
  std::string why_;
};

/// What the run-time part of a configuration id fixes.
struct ConfigPart {
  std::optional<int> group_size;
  std::optional<int> num_threads;
};

/// "g128_t2", "t2", "g128": each part at most once; nothing for any other text.
std::optional<ConfigPart> parse_config_part(std::string_view text) {
  ConfigPart part;
  while (true) {
    const std::string_view token = text.substr(0, text.find('_'));
    std::optional<int>* field = token.starts_with('g')   ? &part.group_size
                                : token.starts_with('t') ? &part.num_threads
                                                         : nullptr;
    if (field == nullptr || field->has_value()) return std::nullopt;
    int value = 0;
    const char* end = token.data() + token.size();
    const auto [rest, error] = std::from_chars(token.data() + 1, end, value);
    if (error != std::errc() || rest != end || value < 1) return std::nullopt;
    *field = value;
    if (token.size() == text.size()) return part;
    text.remove_prefix(token.size() + 1);
  }
}

Status invalid(std::string message) {
  return Status(StatusCode::invalid_argument, std::move(message));
}

/// A plan for the kernel or configuration that the caller named.
Result<Plan> named_plan(const Problem& problem, const std::string& name, int num_threads) {
  const std::size_t at = name.find('@');
  const std::string id = name.substr(0, at);

  const std::vector<std::string> ids = kernel_ids();
  if (std::find(ids.begin(), ids.end(), id) == ids.end()) return kernel_not_found(name, ids);
  std::optional<Method> method;
  for (const Method candidate : kMethods) {
    if (kernel_id_of(problem, candidate) == id) method = candidate;
  }
  if (!method) {
    return invalid(fmt::format("kernel {} does not fit the problem, whose kernels are {} and {}",
                               id, kernel_id_of(problem, kMethods[0]),
                               kernel_id_of(problem, kMethods[1])));
  }

  if (at != std::string::npos) {
    const std::optional<ConfigPart> part = parse_config_part(std::string_view(name).substr(at + 1));
    if (!part) {
      return invalid(fmt::format(
          "the configuration after @ must be like g128_t2 (group size, threads); got \"{}\"",
          name));
    }
    if (part->group_size && *part->group_size != problem.weight.group_size) {
      return invalid(fmt::format("configuration {} is for group_size {}; the problem has {}", name,
                                 *part->group_size, problem.weight.group_size));
    }
    if (part->num_threads) {
      if (*part->num_threads > kMaxThreads) {
        return invalid(fmt::format("configuration {} asks for {} threads; at most {}", name,
                                   *part->num_threads, kMaxThreads));
      }
      num_threads = *part->num_threads;
    }
  }
  if (*method == Method::blas && problem.batch_invariant) {
    return invalid(fmt::format(
        "kernel {} is not batch invariant (a BLAS sums in an order that depends on M); {} is", id,
        kernel_id_of(problem, Method::simd)));
  }
  if (*method == Method::blas && !cpu::blas_available()) {
    return Status(StatusCode::unsupported,
                  fmt::format("kernel {} needs a BLAS: {}", id, cpu::blas_description()));
  }
  return Plan(std::make_shared<CpuPlan>(problem, *method, num_threads, "the caller named it"));
}

/// The method that a tuning cache names for the problem, with its time. Nothing where none does, or
/// one that was measured with another number of threads or can't run here.
std::optional<std::pair<Method, std::string>> tuned_method(const Problem& problem,
                                                           int num_threads) {
  const auto tuned = tuning::lookup(tuning_device(), problem);
  if (!tuned) return std::nullopt;
  for (const Method method : kMethods) {
    if (make_config_id(kernel_id_of(problem, method), problem, num_threads) != tuned->config) {
      continue;
    }
    const bool runs = method == Method::simd || (cpu::blas_available() && !problem.batch_invariant);
    if (runs) {
      return std::pair(method,
                       fmt::format("tuned: {:.1f} us measured at M = {}", tuned->us, tuned->m));
    }
  }
  log::info("tuned configuration not used: {} isn't one of M={} N={} K={} with {} threads here",
            tuned->config, problem.m, problem.n, problem.k, num_threads);
  return std::nullopt;
}

/// What Linux reports of the first processor, such as its "model name"; empty where it doesn't.
std::string processor_field(std::string_view name) {
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    const std::size_t colon = line.find(": ");
    if (line.starts_with(name) && colon != std::string::npos) return line.substr(colon + 2);
  }
  return {};
}

std::string processor_name() {
  const std::string name = processor_field("model name");
  return name.empty() ? "CPU" : name;
}

}  // namespace

Result<Plan> plan(const Problem& problem, const PlanOptions& options) {
  if (options.num_threads < 0 || options.num_threads > kMaxThreads) {
    return invalid(fmt::format("num_threads must be 0 (all cores) .. {}; got {}", kMaxThreads,
                               options.num_threads));
  }
  const bool by_name = !options.kernel.empty();
  // A BLAS is known by its address, and may change with MIXGEMM_BLAS while the process runs.
  const auto blas = reinterpret_cast<std::uintptr_t>(&cpu::blas());
  const std::uint64_t depends_on = blas ^ std::uint64_t{tuning::generation()} << 48;
  const PlanKey key(problem, options.num_threads, depends_on);
  if (!by_name) {
    if (auto known = PlanCache::find(key)) return Plan(std::move(known));
  }
  // Resolved here, so that the configuration id says what will run.
  const int num_threads = options.num_threads > 0 ? options.num_threads : default_num_threads();
  if (by_name) return named_plan(problem, options.kernel, num_threads);
  Method method = cpu::choose(problem);
  std::string why;
  if (auto tuned = tuned_method(problem, num_threads)) {
    std::tie(method, why) = std::move(*tuned);
  } else {
    why = cpu::explain_choice(problem);
  }
  auto made = std::make_shared<CpuPlan>(problem, method, num_threads, std::move(why));
  log::info("plan M={} N={} K={}: {}", problem.m, problem.n, problem.k, made->config_id());
  return Plan(PlanCache::insert(key, std::move(made)));
}

Result<std::vector<PlanCandidate>> plan_candidates(const Problem& problem) {
  const auto picked = mixgemm::plan(problem);
  if (!picked) return picked.status();
  return list_candidates(problem, default_num_threads(), picked->config_id());
}

const TuningDevice& tuning_device() {
  static const TuningDevice device = {Device::cpu, processor_name(), 0, default_num_threads()};
  return device;
}

std::vector<KernelInfo> kernels() {
  std::vector<KernelInfo> list;
  for (const Method method : kMethods) {
    for (const DataType act : kActs) {
      for (const WeightType weight : kWeights) {
        for (const std::string_view quant : kQuants) {
          KernelInfo info;
          info.id = make_kernel_id(act, weight, quant, method);
          info.device = Device::cpu;
          info.reason = method == Method::simd
                            ? "small M: codes are multiplied straight from the packed bytes"
                            : "large M: dequantized panels feed the BLAS found at run time";
          list.push_back(std::move(info));
        }
      }
    }
  }
  return list;
}

DeviceInfo device() {
  DeviceInfo info;
  info.device = Device::cpu;
  info.name = processor_name();
  info.num_sms = default_num_threads();
  info.clock_mhz = std::strtod(processor_field("cpu MHz").c_str(), nullptr);
  info.memory_bytes = static_cast<std::int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGE_SIZE);
  info.note = fmt::format("SIMD target {}; BLAS: {}", cpu::simd_target(), cpu::blas_description());
  return info;
}

}  // namespace mixgemm::cpu_backend
