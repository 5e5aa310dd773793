// SPDX-License-Identifier: Apache-2.0
// mixgemm report: a page that explains rows of `bench`.
#include "report/report.hpp"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <memory>

#include "bench_api.hpp"
#include "command.hpp"

namespace mixgemm::cli {
namespace {

struct ReportOptions {
  std::vector<std::string> files;
  std::string output = "report.html";
};

int run_report(const ReportOptions& options) {
  bench::ReportInput input;
  for (const auto& file : options.files) {
    // Caches end in .json, rows in .jsonl; what a file holds is checked by its reader.
    if (file.ends_with(".json")) {
      const auto cache = TuningCache::load(file).value();
      input.tuned.insert(input.tuned.end(), cache.entries().begin(), cache.entries().end());
    } else {
      const auto rows = bench::load_rows(file).value();
      input.rows.insert(input.rows.end(), rows.begin(), rows.end());
    }
    input.sources.push_back(file.substr(file.rfind('/') + 1));
  }
  errno = 0;
  std::ofstream page(options.output, std::ios::binary | std::ios::trunc);
  page << bench::report_html(input) << std::flush;
  if (!page) {
    throw Error(StatusCode::io_error,
                fmt::format("cannot write {}: {}", options.output, std::strerror(errno)));
  }
  print(fmt::format("{}: {} rows, {} tuned problems\n", options.output, input.rows.size(),
                    input.tuned.size()));
  return kExitOk;
}

}  // namespace

void register_report(CLI::App& app, Selected& selected) {
  auto options = std::make_shared<ReportOptions>();
  Command command(app, selected, "report",
                  "One page of charts and tables from rows of bench and from tuning caches");
  command.operands("files", options->files,
                   "Rows (.jsonl), of peers too (bench/baselines), and tuning caches (.json)");
  command.text("-o,--output", options->output, "The page");
  command.runs([=] { return run_report(*options); });
}

}  // namespace mixgemm::cli
