// SPDX-License-Identifier: Apache-2.0
#include "util/parallel.hpp"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace mixgemm {
namespace {

/// One parallel_for in progress. Workers take chunks until none is left.
struct Job {
  std::int64_t count = 0;
  std::int64_t grain = 1;
  const std::function<void(std::int64_t, std::int64_t)>* body = nullptr;
  std::atomic<std::int64_t> next{0};
  int wanted = 0;   // helpers that may still join; guarded by the pool's mutex
  int running = 0;  // helpers inside; guarded by the pool's mutex

  void work() {
    for (;;) {
      const std::int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= count) return;
      (*body)(begin, std::min(count, begin + grain));
    }
  }
};

thread_local bool inside_job = false;

class Pool {
 public:
  static Pool& instance() {
    static Pool pool;
    return pool;
  }

  void run(Job& job, int helpers) {
    {
      std::lock_guard lock(mutex_);
      while (static_cast<int>(threads_.size()) < helpers) threads_.emplace_back([this] { loop(); });
      job.wanted = helpers;
      jobs_.push_back(&job);
    }
    wake_.notify_all();
    inside_job = true;
    job.work();
    inside_job = false;
    std::unique_lock lock(mutex_);
    job.wanted = 0;
    std::erase(jobs_, &job);
    done_.wait(lock, [&] { return job.running == 0; });
  }

 private:
  Pool() = default;
  ~Pool() {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread.join();
  }

  Job* open_job() {
    const auto it = std::find_if(jobs_.begin(), jobs_.end(), [](Job* j) { return j->wanted > 0; });
    return it == jobs_.end() ? nullptr : *it;
  }

  void loop() {
    inside_job = true;
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return stop_ || open_job() != nullptr; });
      if (stop_) return;
      Job* job = open_job();
      --job->wanted;
      ++job->running;
      lock.unlock();
      job->work();
      lock.lock();
      if (--job->running == 0) done_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> threads_;
  std::vector<Job*> jobs_;
  bool stop_ = false;
};

}  // namespace

int default_num_threads() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

void parallel_for(std::int64_t count, std::int64_t grain, int num_threads,
                  const std::function<void(std::int64_t, std::int64_t)>& body) {
  if (count <= 0) return;
  grain = std::max<std::int64_t>(1, grain);
  const std::int64_t chunks = (count + grain - 1) / grain;
  if (num_threads <= 0) num_threads = default_num_threads();
  const int helpers = static_cast<int>(std::min<std::int64_t>(num_threads, chunks)) - 1;
  Job job;
  job.count = count;
  job.grain = grain;
  job.body = &body;
  if (helpers <= 0 || inside_job) {
    job.work();
    return;
  }
  Pool::instance().run(job, helpers);
}

}  // namespace mixgemm
