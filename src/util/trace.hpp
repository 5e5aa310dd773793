// SPDX-License-Identifier: Apache-2.0
// Ranges that a profiler shows beside the kernels, where the build has them (-DMIXGEMM_NVTX=ON).
#pragma once

#include <string>

#if MIXGEMM_NVTX
#include <nvtx3/nvToolsExt.h>
#endif

namespace mixgemm::trace {

/// Named from construction to destruction, on this thread. Nothing in a build without NVTX.
class Range {
 public:
#if MIXGEMM_NVTX
  explicit Range(const std::string& name) { nvtxRangePushA(name.c_str()); }
  ~Range() { nvtxRangePop(); }
#else
  explicit Range(const std::string&) {}
  ~Range() {}  // so that a range isn't an unused variable
#endif
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;
};

}  // namespace mixgemm::trace
