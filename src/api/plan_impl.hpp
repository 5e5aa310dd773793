// SPDX-License-Identifier: Apache-2.0
// What a backend implements: one decision, ready to run.
#pragma once

#include <cstddef>
#include <string>
#include <utility>

#include "mixgemm/gemm.hpp"

namespace mixgemm {

/// A backend's working part of a Plan. Immutable after construction: run() is called from several
/// threads at once on one object.
class Plan::Impl {
 public:
  Impl(const Problem& problem, std::string kernel_id, std::string config_id,
       std::size_t workspace_bytes)
      : problem_(problem),
        kernel_id_(std::move(kernel_id)),
        config_id_(std::move(config_id)),
        workspace_bytes_(workspace_bytes) {}
  virtual ~Impl() = default;
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  const Problem& problem() const noexcept { return problem_; }
  const std::string& kernel_id() const noexcept { return kernel_id_; }
  const std::string& config_id() const noexcept { return config_id_; }
  std::size_t workspace_bytes() const noexcept { return workspace_bytes_; }

  /// Which kernel and why, a few lines, each ending with a newline.
  virtual std::string explain() const = 0;

  /// Multiplies (CPU) or enqueues (CUDA). Plan::run has already applied check_args() to these very
  /// arguments (api/check.hpp), so an implementation checks only what its own kernel adds.
  virtual Status run(const RunArgs& args) const = 0;

 private:
  Problem problem_;
  std::string kernel_id_;
  std::string config_id_;
  std::size_t workspace_bytes_;
};

}  // namespace mixgemm
