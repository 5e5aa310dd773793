// SPDX-License-Identifier: Apache-2.0
// Ends the process when a kernel hangs: the thread that waits for the device can't be woken, so a
// second one reports what was running and leaves.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

namespace mixgemm::bench {

class Watchdog {
 public:
  /// Every watch may last `limit_s` seconds; 0 = forever.
  explicit Watchdog(double limit_s);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  double limit_s() const { return limit_s_; }

  /// While the returned object lives, the clock runs. When it runs out, `report` is called on the
  /// watchdog's thread, and then the process ends at once with kHangExitCode. One watch at a time.
  class [[nodiscard]] Watch {
   public:
    explicit Watch(Watchdog& dog) : dog_(dog) {}
    ~Watch() { dog_.disarm(); }
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;

   private:
    Watchdog& dog_;
  };
  Watch watch(std::function<void()> report);

 private:
  void arm(std::function<void()> report);
  void disarm();
  void loop();

  const double limit_s_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::function<void()> report_;  // empty while disarmed
  std::chrono::steady_clock::time_point deadline_;
  bool stop_ = false;
  std::thread thread_;  // last: it uses the others
};

}  // namespace mixgemm::bench
