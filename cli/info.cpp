// SPDX-License-Identifier: Apache-2.0
// mixgemm info: version, build, devices.
#include <fmt/format.h>

#include "command.hpp"
#include "mixgemm/gemm.hpp"
#include "mixgemm/tuning.hpp"
#include "mixgemm/version.hpp"

namespace mixgemm::cli {
namespace {

#if defined(MIXGEMM_HAS_CUDA)
constexpr bool kHasCuda = true;
#else
constexpr bool kHasCuda = false;
#endif

Json tuning_json() {
  Json list = Json::array();
  for (const auto& source : tuning_sources()) {
    list.push_back({{"name", source.name}, {"entries", source.num_entries}, {"note", source.note}});
  }
  return list;
}

/// ", 1980 MHz, 85.9 GB at 3352 GB/s", as far as it is known.
std::string rates(const DeviceInfo& device) {
  std::string text;
  if (device.clock_mhz > 0) text += fmt::format(", {:.0f} MHz", device.clock_mhz);
  if (device.memory_bytes > 0) {
    text += ", " + format_bytes(static_cast<double>(device.memory_bytes));
    if (device.memory_gbps > 0) text += fmt::format(" at {:.0f} GB/s", device.memory_gbps);
  }
  return text;
}

int run_info(bool json) {
  const auto all = devices();
  if (json) {
    Json list = Json::array();
    for (const auto& device : all) {
      list.push_back({{"device", to_string(device.device)},
                      {"name", device.name},
                      {"arch", device.arch},
                      {"num_sms", device.num_sms},
                      {"clock_mhz", device.clock_mhz},
                      {"memory_bytes", device.memory_bytes},
                      {"memory_gbps", device.memory_gbps},
                      {"usable", device.usable},
                      {"note", device.note}});
    }
    print_json({{"version", version()},
                {"packed_format_version", kPackedFormatVersion},
                {"cuda_kernels", kHasCuda},
                {"num_kernels", kernels().size()},
                {"devices", list},
                {"tuning", tuning_json()}});
    return kExitOk;
  }
  std::string text = fmt::format("mixgemm {}, packed format version {}, {} kernels ({})\n",
                                 version(), kPackedFormatVersion, kernels().size(),
                                 kHasCuda ? "CPU and CUDA" : "built for the CPU only");
  for (const auto& device : all) {
    text += fmt::format("{}: {}, {} {}{}{}{}{}\n", to_string(device.device), device.name,
                        device.num_sms, device.device == Device::cpu ? "cores" : "SMs",
                        device.arch > 0 ? fmt::format(", sm_{}", device.arch) : "", rates(device),
                        device.usable ? "" : ", not usable",
                        device.note.empty() ? "" : "; " + device.note);
  }
  for (const auto& source : tuning_sources()) {
    text += fmt::format("tuning: {}: {} entries{}{}\n", source.name, source.num_entries,
                        source.note.empty() ? "" : ", ", source.note);
  }
  print(text);
  return kExitOk;
}

}  // namespace

void register_info(CLI::App& app, Selected& selected) {
  auto json = std::make_shared<bool>(false);
  Command command(app, selected, "info",
                  "Version, build, devices found here, tuning caches in use");
  command.tuning();
  command.json(*json);
  command.runs([=] { return run_info(*json); });
}

}  // namespace mixgemm::cli
