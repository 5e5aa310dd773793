// SPDX-License-Identifier: Apache-2.0
// mixgemm explain: what a plan picks, among which candidates, and why the other kernels are out.
#include <fmt/format.h>

#include <memory>
#include <optional>

#include "command.hpp"
#include "mixgemm/gemm.hpp"
#include "mixgemm/tuning.hpp"
#include "select/explain.hpp"

namespace mixgemm::cli {
namespace {

struct ExplainOptions {
  Problem problem;
  std::optional<Device> device;
  std::optional<DataType> act;
  bool all = false;
  bool json = false;
};

int run_explain(ExplainOptions options) {
  Problem& problem = options.problem;
  problem.act = options.act.value_or(DataType::f16);
  problem.weight.scale_type = problem.act;
  problem.device = device_or_default(options.device);
  const Plan chosen = plan(problem).value();
  constexpr std::size_t kSome = 12, kAll = 4096;
  const auto candidates = plan_candidates(problem, options.all ? kAll : kSome).value();
  if (!options.json) {
    print(chosen.explain());
    if (options.all) print("all of them:\n" + select::format_candidates(candidates));
    return kExitOk;
  }
  const auto time = [](double us) { return us >= 0 ? Json(us) : Json(); };
  Json list = Json::array();
  for (const PlanCandidate& c : candidates) {
    Json row = {{"config", c.config}};
    if (c.why_not.empty()) {
      row.update({{"estimated_us", time(c.estimated_us)},
                  {"tuned_us", time(c.tuned_us)},
                  {"picked", c.picked},
                  {"breakdown", c.breakdown}});
    } else {
      row["why_not"] = c.why_not;
    }
    list.push_back(row);
  }
  Json report = {{"m", problem.m},
                 {"n", problem.n},
                 {"k", problem.k},
                 {"act", act_name(problem.act)},
                 {"device", to_string(problem.device)}};
  report.update(to_json(problem.weight));
  report.update({{"kernel", chosen.kernel_id()},
                 {"config", chosen.config_id()},
                 {"workspace_bytes", chosen.workspace_bytes()},
                 {"explain", chosen.explain()},
                 {"candidates", list}});
  print_json(report);
  return kExitOk;
}

}  // namespace

void register_explain(CLI::App& app, Selected& selected) {
  auto options = std::make_shared<ExplainOptions>();
  constexpr std::int64_t kMost = 2147483647;
  Command command(app, selected, "explain",
                  "Say which kernel a problem gets, among which candidates, and why");
  command.integer("--m", options->problem.m, 1, kMost, "Tokens", Command::Need::required);
  command.integer("--n", options->problem.n, 1, kMost, "Output features", Command::Need::required);
  command.integer("--k", options->problem.k, 1, kMost, "Reduction", Command::Need::required);
  command.act(options->act, "Format of X and Y: fp16 or bf16 [fp16]");
  command.quant_spec(options->problem.weight);
  command.device(options->device);
  command.flag("--batch-invariant", options->problem.batch_invariant,
               "A row of X must give the same bits of Y for every M");
  command.flag("--all", options->all, "Every candidate, not only the best");
  command.tuning();
  command.json(options->json);
  command.runs([=] { return run_explain(*options); });
}

}  // namespace mixgemm::cli
