// SPDX-License-Identifier: Apache-2.0
// Timing and random data for measurements on the CPU.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <ctime>
#include <thread>
#include <utility>
#include <vector>

#include "common/statistics.hpp"
#include "mixgemm/types.hpp"
#include "util/half.hpp"
#include "util/parallel.hpp"

namespace mixgemm::bench {

inline double now_us() {
  return std::chrono::duration<double, std::micro>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

/// CPU time of all threads of this process.
inline double process_cpu_us() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return 1e6 * static_cast<double>(time.tv_sec) + 1e-3 * static_cast<double>(time.tv_nsec);
}

/// Returns when no thread of this process computes, after half a second at the latest. A BLAS's
/// threads spin for 30 to 100 ms after a call, on the cores that the next contestant needs.
inline void wait_until_idle() {
  for (int i = 0; i < 50; ++i) {
    const double begin = process_cpu_us();
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    if (process_cpu_us() - begin < 500.0) return;
  }
}

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : 0.5 * (values[middle - 1] + values[middle]);
}

/// Microseconds per call from samples of as many calls as fill 20 ms. The call gets a running
/// number to rotate its buffers by; the rotation goes on from one sample to the next.
template <class Call>
class Timer {
 public:
  explicit Timer(Call call) : call_(std::move(call)) {}

  void sample() {
    if (num_calls_ == 0) {
      call_(index_++);
      const double start = now_us();
      call_(index_++);
      const double once = std::max(0.5, now_us() - start);
      num_calls_ = static_cast<std::int64_t>(std::clamp(20000.0 / once, 1.0, 100000.0));
    }
    const double start = now_us();
    for (std::int64_t i = 0; i < num_calls_; ++i) call_(index_++);
    samples_.push_back((now_us() - start) / static_cast<double>(num_calls_));
  }
  double median_us() const { return median(samples_); }
  Spread spread_us() const { return spread_of(samples_); }

 private:
  Call call_;
  std::int64_t index_ = 0;
  std::int64_t num_calls_ = 0;
  std::vector<double> samples_;
};

/// The median of 7 samples.
template <class Call>
double median_us(Call call) {
  Timer timer(std::move(call));
  for (int i = 0; i < 7; ++i) timer.sample();
  return timer.median_us();
}

/// A 64-bit hash of (seed, index): random access, so that any number of threads fills a buffer with
/// the same values.
constexpr std::uint64_t random_bits(std::uint64_t seed, std::uint64_t index) {
  std::uint64_t z = seed * 0x9e3779b97f4a7c15u + (index + 1) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

/// A sample of the standard normal distribution, by Box and Muller.
inline float random_normal(std::uint64_t seed, std::uint64_t index) {
  const std::uint64_t bits = random_bits(seed, index);
  const double u = (static_cast<double>(bits >> 40) + 1.0) * 0x1p-24;
  const double v = static_cast<double>(bits & 0xffffffu) * 0x1p-24;
  return static_cast<float>(std::sqrt(-2.0 * std::log(u)) * std::cos(6.283185307179586 * v));
}

/// `count` standard normal values in a 16-bit format.
inline std::vector<std::uint16_t> random_activations(std::int64_t count, DataType act,
                                                     std::uint64_t seed) {
  std::vector<std::uint16_t> values(static_cast<std::size_t>(count));
  parallel_for(count, 1 << 14, 0, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      values[i] = bits_from_f32(random_normal(seed, static_cast<std::uint64_t>(i)), act);
    }
  });
  return values;
}

}  // namespace mixgemm::bench
