// SPDX-License-Identifier: Apache-2.0
// parallel_for over a pool of threads that lives as long as the process.
#pragma once

#include <cstdint>
#include <functional>

namespace mixgemm {

/// Threads that num_threads = 0 stands for: the cores this process may run on.
int default_num_threads();

/// Calls body(begin, end) over disjoint chunks that cover [0, count), each at most `grain` long, on
/// up to num_threads threads (0 = all cores), the caller's included; returns when all are done.
/// Chunks are handed out dynamically, so results must not depend on who computes what. Calls from
/// several threads, and from inside a body, are safe (a nested one runs inline).
void parallel_for(std::int64_t count, std::int64_t grain, int num_threads,
                  const std::function<void(std::int64_t begin, std::int64_t end)>& body);

}  // namespace mixgemm
