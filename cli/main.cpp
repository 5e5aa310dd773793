// SPDX-License-Identifier: Apache-2.0
// The program `mixgemm`: parses, runs one sub-command, reports a failure as one line.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <exception>
#include <new>

#include "command.hpp"
#include "mixgemm/version.hpp"
#include "util/join.hpp"

namespace {

using namespace mixgemm;
using namespace mixgemm::cli;

int report(const std::string& command, ExitCode code, const std::string& message) {
  std::string line = message;
  for (char& c : line) {
    if (c == '\n') c = ' ';
  }
  while (line.ends_with(' ')) line.pop_back();
  fmt::print(stderr, "mixgemm{}{}: error: {}\n", command.empty() ? "" : " ", command, line);
  return code;
}

/// Checkpoints are mapped: one that somebody shortens meanwhile ends in this signal.
void report_lost_mapping(int) {
  constexpr char kMessage[] = "mixgemm: error: a file was shortened while it was read\n";
  (void)!write(STDERR_FILENO, kMessage, sizeof(kMessage) - 1);
  _exit(kExitIo);
}

}  // namespace

int main(int argc, char** argv) {
  // Past the limit on file sizes a write fails instead, and what is half-written is removed.
  std::signal(SIGXFSZ, SIG_IGN);
  std::signal(SIGBUS, report_lost_mapping);
  CLI::App app(
      "mixgemm: 16-bit activations times 4- and 8-bit weights.\n"
      "Quantizes and packs checkpoints, looks into them, multiplies with them, measures.",
      "mixgemm");
  app.set_version_flag("--version", std::string("mixgemm ") + mixgemm::version());
  app.require_subcommand(1);
  app.footer(
      "Each command has its own --help. Exit codes: 0 done, 1 failure, 2 usage, 3 not found,\n"
      "4 reading or writing, 5 corrupt file, 6 not supported here, 7 numbers differ "
      "(docs/cli.md).");
  Selected selected;
  register_info(app, selected);
  register_kernels(app, selected);
  register_quantize(app, selected);
  register_convert(app, selected);
  register_inspect(app, selected);
  register_verify(app, selected);
  register_compare(app, selected);
  register_run(app, selected);
  register_bench(app, selected);
  register_report(app, selected);
  register_tune(app, selected);
  register_tuning(app, selected);
  register_explain(app, selected);

  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands({})) names.push_back(command->get_name());
  if (argc > 1 && argv[1][0] != '-' && std::count(names.begin(), names.end(), argv[1]) == 0) {
    return report("", kExitUsage,
                  fmt::format("the command must be one of {}; got {}", joined(names), argv[1]));
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) return app.exit(error);
    const auto commands = app.get_subcommands();
    const std::string name = commands.empty() ? "" : commands.front()->get_name();
    return report(name, kExitUsage,
                  fmt::format("{} (mixgemm{}{} --help tells more)", error.what(),
                              name.empty() ? "" : " ", name));
  }
  try {
    return selected.run();
  } catch (const mixgemm::Error& error) {
    return report(selected.name, exit_code_of(error.code()), error.what());
  } catch (const Interrupted&) {
    return report(selected.name, kExitInterrupted, "interrupted");
  } catch (const std::bad_alloc&) {
    return report(selected.name, kExitFailure, "out of memory");
  } catch (const std::exception& error) {
    return report(selected.name, kExitFailure, error.what());
  }
}
