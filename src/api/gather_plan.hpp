// SPDX-License-Identifier: Apache-2.0
// Products with permuted weights: X's columns are gathered into the workspace, then a plan for
// columns in order multiplies what was gathered.
#pragma once

#include "mixgemm/gemm.hpp"

namespace mixgemm {

/// The same problem with the weight's columns in order.
inline Problem in_order(Problem problem) {
  problem.columns = ColumnOrder::natural;
  return problem;
}

/// A plan for a legal problem whose columns are permuted. Its workspace is that of the product,
/// followed by X's columns in the weight's order.
Result<Plan> plan_with_gather(const Problem& problem, const PlanOptions& options);

}  // namespace mixgemm
