// SPDX-License-Identifier: Apache-2.0
// mixgemm kernels: what this build contains.
#include <fmt/format.h>

#include <memory>

#include "command.hpp"
#include "mixgemm/gemm.hpp"

namespace mixgemm::cli {
namespace {

struct KernelsOptions {
  std::string filter;
  std::string device;
  bool json = false;
};

int run_kernels(const KernelsOptions& options) {
  Json list = Json::array();
  Table table({"kernel", "device", "registers", "shared memory", "reason"});
  int num_shown = 0;
  for (const auto& kernel : kernels()) {
    if (kernel.id.find(options.filter) == std::string::npos) continue;
    if (!options.device.empty() && options.device != to_string(kernel.device)) continue;
    ++num_shown;
    list.push_back({{"id", kernel.id},
                    {"device", to_string(kernel.device)},
                    {"arch", kernel.arch},
                    {"registers", kernel.registers},
                    {"shared_bytes", kernel.shared_bytes},
                    {"reason", kernel.reason}});
    table.add({kernel.id,
               kernel.arch > 0 ? fmt::format("sm_{}", kernel.arch)
                               : std::string(to_string(kernel.device)),
               kernel.registers > 0 ? std::to_string(kernel.registers) : "-",
               kernel.shared_bytes > 0 ? fmt::format("{} B", kernel.shared_bytes) : "-",
               kernel.reason});
  }
  if (num_shown == 0) {
    throw Error(StatusCode::not_found,
                fmt::format("no kernel of this build has \"{}\" in its id{}{}", options.filter,
                            options.device.empty() ? "" : " and runs on ", options.device));
  }
  if (options.json) {
    print_json({{"kernels", list}});
  } else {
    print(table.to_string("llrrl"));
  }
  return kExitOk;
}

}  // namespace

void register_kernels(CLI::App& app, Selected& selected) {
  auto options = std::make_shared<KernelsOptions>();
  Command command(app, selected, "kernels", "List the compiled kernels and why each exists");
  command.text("--filter", options->filter, "Only ids that contain this text");
  command.choice("--device", options->device, {"cpu", "cuda"}, "Only kernels for cpu or cuda");
  command.json(options->json);
  command.runs([=] { return run_kernels(*options); });
}

}  // namespace mixgemm::cli
