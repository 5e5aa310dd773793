// SPDX-License-Identifier: Apache-2.0
#include "common/watchdog.hpp"

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "bench_api.hpp"

namespace mixgemm::bench {

Watchdog::Watchdog(double limit_s) : limit_s_(limit_s) {
  if (limit_s_ > 0) thread_ = std::thread([this] { loop(); });
}

Watchdog::~Watchdog() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

Watchdog::Watch Watchdog::watch(std::function<void()> report) {
  arm(std::move(report));
  return Watch(*this);
}

void Watchdog::arm(std::function<void()> report) {
  {
    const std::lock_guard lock(mutex_);
    report_ = std::move(report);
    deadline_ = std::chrono::steady_clock::now() +
                std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                    std::chrono::duration<double>(limit_s_));
  }
  changed_.notify_one();
}

void Watchdog::disarm() {
  const std::lock_guard lock(mutex_);
  report_ = nullptr;
}

void Watchdog::loop() {
  std::unique_lock lock(mutex_);
  while (!stop_) {
    if (!report_) {
      changed_.wait(lock);
    } else if (std::chrono::steady_clock::now() < deadline_) {
      changed_.wait_until(lock, deadline_);
    } else {
      report_();
      std::fflush(nullptr);
      // No destructors: they would wait for the device.
      std::_Exit(kHangExitCode);
    }
  }
}

}  // namespace mixgemm::bench
