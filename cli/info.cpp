// SPDX-License-Identifier: Apache-2.0
// mixgemm info: version, build, devices.
#include <fmt/format.h>

#include "command.hpp"
#include "mixgemm/gemm.hpp"
#include "mixgemm/version.hpp"

namespace mixgemm::cli {
namespace {

#if defined(MIXGEMM_HAS_CUDA)
constexpr bool kHasCuda = true;
#else
constexpr bool kHasCuda = false;
#endif

int run_info(bool json) {
  const auto all = devices();
  if (json) {
    Json list = Json::array();
    for (const auto& device : all) {
      list.push_back({{"device", to_string(device.device)},
                      {"name", device.name},
                      {"arch", device.arch},
                      {"num_sms", device.num_sms},
                      {"usable", device.usable},
                      {"note", device.note}});
    }
    print_json({{"version", version()},
                {"packed_format_version", kPackedFormatVersion},
                {"cuda_kernels", kHasCuda},
                {"num_kernels", kernels().size()},
                {"devices", list}});
    return kExitOk;
  }
  std::string text = fmt::format("mixgemm {}, packed format version {}, {} kernels ({})\n",
                                 version(), kPackedFormatVersion, kernels().size(),
                                 kHasCuda ? "CPU and CUDA" : "built for the CPU only");
  for (const auto& device : all) {
    text += fmt::format("{}: {}, {} {}{}{}{}\n", to_string(device.device), device.name,
                        device.num_sms, device.device == Device::cpu ? "cores" : "SMs",
                        device.arch > 0 ? fmt::format(", sm_{}", device.arch) : "",
                        device.usable ? "" : ", not usable",
                        device.note.empty() ? "" : "; " + device.note);
  }
  print(text);
  return kExitOk;
}

}  // namespace

void register_info(CLI::App& app, Selected& selected) {
  auto json = std::make_shared<bool>(false);
  Command command(app, selected, "info", "Version, build, and the devices found here");
  command.tuning();
  command.json(*json);
  command.runs([=] { return run_info(*json); });
}

}  // namespace mixgemm::cli
