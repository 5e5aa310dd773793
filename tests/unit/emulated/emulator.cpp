// SPDX-License-Identifier: Apache-2.0
#include "emulator.hpp"

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "kernel_config.hpp"

namespace mixgemm {
// What `extern __shared__ char smem[]` inside the kernels names.
alignas(1024) char smem[kMaxSharedBytes + 4096];
}  // namespace mixgemm

namespace mixgemm::emulator {

Index thread_idx, block_idx, grid_dim;

namespace {

constexpr std::size_t kStackBytes = 256 * 1024;
constexpr unsigned char kPoison = 0xff;  // NaN as fp32, fp16 and bf16

struct Copy {
  std::uint32_t dst = 0;
  std::uint8_t bytes[16] = {};
};

/// Counts arrivals; a round is over when all have come.
struct Meeting {
  unsigned expected = 0, arrived = 0;
  std::uint64_t round = 0;
  void* arguments[32] = {};
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Index index;
  bool done = false;
  const Meeting* waits_for = nullptr;
  std::uint64_t round = 0;  // of the meeting, when the wait began
  std::vector<Copy> open;
  std::vector<std::vector<Copy>> groups;
};

ucontext_t scheduler;
std::vector<Fiber> fibers;
Fiber* current = nullptr;
Meeting cta;
std::vector<Meeting> warps;
const std::function<void()>* entry = nullptr;
Landing landing;
std::vector<std::pair<const char*, const char*>> readable;

void fiber_main() {
  (*entry)();
  current->done = true;
  swapcontext(&current->context, &scheduler);
}

void wait_for(Meeting& meeting) {
  current->waits_for = &meeting;
  current->round = meeting.round;
  swapcontext(&current->context, &scheduler);
}

void land(const Copy& copy) { std::memcpy(smem + copy.dst, copy.bytes, sizeof(copy.bytes)); }

/// Each of 32 lanes as far as its next wait; did any move?
bool run_lanes(unsigned first) {
  bool ran = false;
  for (unsigned i = first; i < first + 32; ++i) {
    Fiber& f = fibers[i];
    if (f.done || (f.waits_for != nullptr && f.waits_for->round == f.round)) continue;
    f.waits_for = nullptr;
    current = &f;
    thread_idx = f.index;
    swapcontext(&scheduler, &f.context);
    ran = true;
  }
  return ran;
}

void run_cta(const Launch& launch, std::mt19937& random) {
  std::memset(smem, kPoison, sizeof(smem));
  cta = {};
  cta.expected = launch.threads;
  warps.assign(launch.threads / 32, {});
  for (Meeting& warp : warps) warp.expected = 32;
  fibers.resize(launch.threads);
  for (unsigned i = 0; i < launch.threads; ++i) {
    Fiber& f = fibers[i];
    if (!f.stack) f.stack = std::make_unique<char[]>(kStackBytes);
    f.index = {i, 0, 0};
    f.done = false;
    f.waits_for = nullptr;
    f.open.clear();
    f.groups.clear();
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = kStackBytes;
    f.context.uc_link = nullptr;
    makecontext(&f.context, fiber_main, 0);
  }
  // A warp runs until it waits for others, which brings out a barrier that is missing.
  std::vector<unsigned> order(warps.size());
  for (unsigned i = 0; i < order.size(); ++i) order[i] = i;
  for (;;) {
    std::shuffle(order.begin(), order.end(), random);
    bool ran = false;
    for (const unsigned warp : order) {
      while (run_lanes(32 * warp)) ran = true;
    }
    if (ran) continue;
    if (std::all_of(fibers.begin(), fibers.end(), [](const Fiber& f) { return f.done; })) break;
    fail("deadlock: threads wait at different barriers");
  }
  const auto* const end = reinterpret_cast<const unsigned char*>(smem) + sizeof(smem);
  const auto* const beyond = reinterpret_cast<const unsigned char*>(smem) + launch.smem_bytes;
  if (std::any_of(beyond, end, [](unsigned char byte) { return byte != kPoison; })) {
    fail("a write beyond the launch's shared memory");
  }
}

}  // namespace

void run(const Launch& launch, const std::function<void()>& kernel) {
  std::mt19937 random(launch.seed);
  entry = &kernel;
  landing = launch.landing;
  grid_dim = {1, 1, launch.ctas};
  for (unsigned i = 0; i < launch.ctas; ++i) {
    block_idx = {0, 0, i};
    run_cta(launch, random);
  }
}

void register_memory(const void* begin, std::size_t bytes) {
  const char* const first = static_cast<const char*>(begin);
  readable.emplace_back(first, first + bytes);
}
void forget_memory() { readable.clear(); }

void sync_cta() {
  if (++cta.arrived == cta.expected) {
    cta.arrived = 0;
    ++cta.round;
    return;
  }
  wait_for(cta);
}

void meet_warp(void* argument, void (*act)(void* const (&)[32])) {
  Meeting& warp = warps[thread_idx.x / 32];
  warp.arguments[thread_idx.x % 32] = argument;
  if (++warp.arrived == warp.expected) {
    if (act != nullptr) act(warp.arguments);
    warp.arrived = 0;
    ++warp.round;
    return;
  }
  wait_for(warp);
}

void sync_warp() { meet_warp(nullptr, nullptr); }

void copy_async(std::uint32_t dst, const void* src, int bytes) {
  if (dst % 16 != 0 || reinterpret_cast<std::uintptr_t>(src) % 16 != 0) {
    fail("cp.async at an address that isn't a multiple of 16");
  }
  if (bytes < 0 || bytes > 16) fail("cp.async of less than 0 or more than 16 bytes");
  const char* const from = static_cast<const char*>(src);
  if (bytes > 0 && std::none_of(readable.begin(), readable.end(), [&](const auto& piece) {
        return from >= piece.first && from + bytes <= piece.second;
      })) {
    fail("cp.async reads memory that isn't the problem's");
  }
  Copy copy;
  copy.dst = dst;
  std::memcpy(copy.bytes, from, static_cast<std::size_t>(bytes));
  if (landing == Landing::at_once) {
    land(copy);
  } else {
    current->open.push_back(copy);
  }
}

void commit_copies() {
  current->groups.push_back(std::move(current->open));
  current->open.clear();
}

void wait_copies(std::size_t pending) {
  auto& groups = current->groups;
  while (groups.size() > pending) {
    for (const Copy& copy : groups.front()) land(copy);
    groups.erase(groups.begin());
  }
}

void fail(const char* what) {
  std::fprintf(stderr, "emulator: CTA %u, thread %u: %s\n", block_idx.z, thread_idx.x, what);
  std::abort();
}

char* shared_memory() { return smem; }

}  // namespace mixgemm::emulator
