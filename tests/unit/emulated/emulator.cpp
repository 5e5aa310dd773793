// SPDX-License-Identifier: Apache-2.0
#include "emulator.hpp"

#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "kernel_config.hpp"

namespace mixgemm {
alignas(1024) char smem[kMaxSharedBytes + 4096];
alignas(1024) char dynamic_smem[kMaxSharedBytes + 4096];
}  // namespace mixgemm

namespace mixgemm::emulator {

Index thread_idx, block_idx, grid_dim;

namespace {

constexpr std::size_t kWindowBytes = kMaxSharedBytes + 4096;
constexpr std::size_t kStackBytes = 256 * 1024;
constexpr unsigned char kPoison = 0xff;       // NaN as fp32, fp16 and bf16
constexpr unsigned char kBarrierByte = 0xb5;  // what the eight bytes of an mbarrier hold
constexpr std::int64_t kMaxBarrierBytes = (1 << 20) - 1;
constexpr unsigned kRankShift = 24;  // of the rank + 1 in a mapped address

/// Counts arrivals; a round is over when all have come.
struct Meeting {
  unsigned expected = 0, arrived = 0;
  std::uint64_t round = 0;
  void* arguments[32] = {};
  void (*act)(void* const (&arguments)[32]) = nullptr;
};

struct Barrier {
  unsigned expected = 0, pending = 0;
  std::int64_t bytes = 0;   // announced, not there yet; below zero: there, not yet announced
  std::uint64_t phase = 0;  // the one under way
  bool awaited = false;     // while landing
};

struct Wait {
  enum Kind : std::uint8_t { nothing, warp, named, barrier, cluster, flag, before };
  Kind kind = nothing;
  const void* what = nullptr;
  std::uint64_t value = 0;  // the round, parity or count that must change
  std::uint32_t address = 0;

  bool operator==(const Wait&) const = default;
};

struct Copy {
  std::uint32_t dst = 0;
  std::uint8_t bytes[16] = {};
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Index index;
  bool done = false;
  bool has_waited = false;  // for the kernel before
  bool mmas_fenced = false;
  std::uint64_t cluster_round = 0;  // of its last arrival at the cluster's barrier
  Wait wait;
  std::vector<Copy> open;
  std::vector<std::vector<Copy>> groups;
  std::vector<Mma> open_mmas;
  std::vector<std::vector<Mma>> mma_groups;
  std::size_t mmas_to_run = 0;  // groups
};

struct Cluster;

struct Cta {
  Cluster* cluster = nullptr;
  Index block, in_cluster;
  std::vector<char> shared;  // while another CTA's stands in the window
  std::vector<std::unique_ptr<Fiber>> fibers;
  unsigned live = 0;
  std::array<Meeting, 16> named = {};
  std::vector<Meeting> warps;
  std::map<std::uint32_t, Barrier> barriers;
  bool has_waited = false, has_triggered = false;
};

struct Cluster {
  std::vector<std::unique_ptr<Cta>> ctas;
  unsigned arrived = 0, threads = 0;
  std::uint64_t round = 0;

  bool done() const {
    return std::all_of(ctas.begin(), ctas.end(), [](const auto& cta) { return cta->live == 0; });
  }
};

/// A copy that completes on a barrier, or the copies before an arrival.
struct Flight {
  Cta* cta = nullptr;
  std::uint32_t dst = 0;
  std::vector<char> bytes;
  std::vector<Copy> copies;
  std::uint32_t barrier = 0;
};

struct Region {
  const char *begin, *end;
  Holds what;
};

ucontext_t scheduler;
const std::function<void()>* entry = nullptr;
const Launch* launch = nullptr;
std::mt19937 random_bits;
std::vector<std::unique_ptr<Fiber>> idle_fibers;
std::vector<std::unique_ptr<Cluster>> active;
std::vector<Flight> flights;
std::vector<Region> readable;
Cta* resident = nullptr;  // whose shared memory the window holds
Cta* here = nullptr;
Fiber* current = nullptr;
std::uint64_t flags_written = 0;
bool before_is_complete = true;
bool interrupts = false;

std::size_t pick_below(std::size_t count) {
  return std::uniform_int_distribution<std::size_t>(0, count - 1)(random_bits);
}

// ---- shared memory ------------------------------------------------------------------------------

char* shared_of(const Cta& cta, std::uint32_t address, std::size_t bytes) {
  if (address < launch->window_address ||
      address + bytes > launch->window_address + launch->smem_bytes) {
    fail("an access beyond the launch's shared memory");
  }
  const std::size_t at = address - launch->window_address;
  return (&cta == resident ? launch->window : const_cast<char*>(cta.shared.data())) + at;
}

void bring_in(Cta& cta) {
  if (resident == &cta) return;
  if (resident != nullptr) {
    std::memcpy(resident->shared.data(), launch->window, launch->smem_bytes);
  }
  std::memcpy(launch->window, cta.shared.data(), launch->smem_bytes);
  resident = &cta;
}

/// CTA `rank` of this one's cluster, which must still be there.
Cta& peer(unsigned rank) {
  if (rank >= here->cluster->ctas.size()) fail("there is no CTA of that rank in the cluster");
  Cta& cta = *here->cluster->ctas[rank];
  if (cta.live == 0) fail("an access to a CTA of the cluster that has ended");
  return cta;
}

// ---- barriers -----------------------------------------------------------------------------------

Barrier& barrier_at(Cta& cta, std::uint32_t address) {
  const auto found = cta.barriers.find(address);
  if (found == cta.barriers.end()) fail("an mbarrier that nobody has initialized");
  const char* const bytes = shared_of(cta, address, 8);
  if (std::any_of(bytes, bytes + 8,
                  [](char byte) { return static_cast<unsigned char>(byte) != kBarrierByte; })) {
    fail("an mbarrier was written over");
  }
  return found->second;
}

bool complete_if_due(Barrier& b) {
  if (b.pending != 0 || b.bytes != 0) return false;
  b.pending = b.expected;
  ++b.phase;
  return true;
}

bool arrive_at(Barrier& b) {
  if (b.pending == 0) fail("more arrivals than the mbarrier counts");
  --b.pending;
  return complete_if_due(b);
}

/// Carries a flight out; is a phase complete?
bool land(const Flight& flight) {
  Barrier& b = barrier_at(*flight.cta, flight.barrier);
  if (!flight.bytes.empty()) {
    std::memcpy(shared_of(*flight.cta, flight.dst, flight.bytes.size()), flight.bytes.data(),
                flight.bytes.size());
    b.bytes -= static_cast<std::int64_t>(flight.bytes.size());
    if (b.bytes < -kMaxBarrierBytes) fail("an mbarrier counts more bytes than it can");
    return complete_if_due(b);
  }
  for (const Copy& copy : flight.copies) {
    std::memcpy(shared_of(*flight.cta, copy.dst, sizeof(copy.bytes)), copy.bytes,
                sizeof(copy.bytes));
  }
  return arrive_at(b);
}

void take_off(Flight flight) {
  if (launch->landing == Landing::at_once) {
    land(flight);
  } else {
    flights.push_back(std::move(flight));
  }
}

/// Lands copies, one by one in any order, until a phase that somebody waits for is complete.
bool land_some() {
  for (auto& cluster : active) {
    for (auto& cta : cluster->ctas) {
      for (auto& [address, b] : cta->barriers) b.awaited = false;
      for (auto& fiber : cta->fibers) {
        if (fiber->wait.kind != Wait::barrier) continue;
        cta->barriers.at(fiber->wait.address).awaited = true;
      }
    }
  }
  std::vector<std::size_t> awaited;
  for (std::size_t i = 0; i < flights.size(); ++i) {
    if (barrier_at(*flights[i].cta, flights[i].barrier).awaited) awaited.push_back(i);
  }
  std::shuffle(awaited.begin(), awaited.end(), random_bits);
  std::vector<bool> landed(flights.size());
  bool complete = false;
  for (std::size_t i = 0; i < awaited.size() && !complete; ++i) {
    complete = land(flights[awaited[i]]);
    landed[awaited[i]] = true;
  }
  std::size_t kept = 0;
  for (std::size_t i = 0; i < flights.size(); ++i) {
    if (landed[i]) continue;
    if (kept != i) flights[kept] = std::move(flights[i]);
    ++kept;
  }
  flights.resize(kept);
  return complete;
}

// ---- fibers -------------------------------------------------------------------------------------

void wait_for(const Wait& wait) {
  current->wait = wait;
  swapcontext(&current->context, &scheduler);
}

void wait_for(Wait::Kind kind, const Meeting& meeting, int id) {
  wait_for({kind, &meeting, meeting.round, static_cast<std::uint32_t>(id)});
}

bool is_over(const Wait& wait) {
  switch (wait.kind) {
    case Wait::nothing: return true;
    case Wait::warp:
    case Wait::named: return static_cast<const Meeting*>(wait.what)->round != wait.value;
    case Wait::barrier: return (static_cast<const Barrier*>(wait.what)->phase & 1u) != wait.value;
    case Wait::cluster: return static_cast<const Cluster*>(wait.what)->round != wait.value;
    case Wait::flag: return flags_written != wait.value;
    case Wait::before: return before_is_complete;
  }
  return true;
}

void end_thread() {
  if (!current->open_mmas.empty() || !current->mma_groups.empty()) {
    fail("a thread ends while its MMAs are on their way");
  }
  current->done = true;
  if (--here->live > 0) return;
  if (std::any_of(flights.begin(), flights.end(),
                  [](const Flight& flight) { return flight.cta == here; })) {
    fail("a CTA ends while copies into its shared memory are on their way");
  }
  if (launch->before_completes && !here->has_waited) {
    fail("a CTA ends without having waited for the kernel before");
  }
  if (launch->before_completes && !here->has_triggered) {
    fail("a CTA ends without having let the next kernel start");
  }
}

/// ThreadSanitizer counts calls and returns, and this doesn't return.
[[gnu::no_sanitize_thread]] void fiber_main() {
  (*entry)();
  end_thread();
  swapcontext(&current->context, &scheduler);
}

/// Each of 32 lanes as far as its next wait; did any move?
bool run_lanes(Cta& cta, unsigned first) {
  bool ran = false;
  for (unsigned i = first; i < first + 32; ++i) {
    Fiber& f = *cta.fibers[i];
    if (f.done || !is_over(f.wait)) continue;
    bring_in(cta);
    f.wait = {};
    here = &cta;
    current = &f;
    thread_idx = f.index;
    block_idx = cta.block;
    swapcontext(&scheduler, &f.context);
    ran = true;
  }
  return ran;
}

/// A warp until it waits for others, which brings out a barrier that is missing, or, in launches
/// that interrupt, at times only until its lanes meet, which brings out what comes too early.
bool run_warp(Cta& cta, unsigned warp) {
  bool ran = false;
  while (run_lanes(cta, 32 * warp)) {
    ran = true;
    if (interrupts && pick_below(4) == 0) break;
  }
  return ran;
}

/// All warps once in a random order: CTA after CTA, each as far as it gets, or all mixed.
bool run_warps() {
  std::vector<std::pair<Cta*, unsigned>> order;
  for (auto& cluster : active) {
    for (auto& cta : cluster->ctas) {
      for (unsigned warp = 0; warp < cta->warps.size(); ++warp) order.emplace_back(cta.get(), warp);
    }
  }
  std::shuffle(order.begin(), order.end(), random_bits);
  bool ran = false;
  if (pick_below(4) == 0) {
    for (const auto& [cta, warp] : order) ran |= run_warp(*cta, warp);
    return ran;
  }
  std::vector<Cta*> ctas;
  for (const auto& [cta, warp] : order) {
    if (std::find(ctas.begin(), ctas.end(), cta) == ctas.end()) ctas.push_back(cta);
  }
  for (Cta* const cta : ctas) {
    for (bool moved = true; moved;) {
      moved = false;
      for (const auto& [owner, warp] : order) {
        if (owner == cta) moved |= run_warp(*cta, warp);
      }
      ran |= moved;
    }
  }
  return ran;
}

/// Apart from variables that getcontext, which may return twice, would be said to clobber.
[[gnu::noinline]] void make_context(ucontext_t& context, char* stack) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, fiber_main, 0);
}

void start_fiber(Cta& cta, unsigned index) {
  std::unique_ptr<Fiber> f;
  if (idle_fibers.empty()) {
    f = std::make_unique<Fiber>();
    f->stack = std::make_unique_for_overwrite<char[]>(kStackBytes);
  } else {
    f = std::move(idle_fibers.back());
    idle_fibers.pop_back();
  }
  f->index = {index, 0, 0};
  f->done = f->has_waited = f->mmas_fenced = false;
  f->wait = {};
  f->open.clear();
  f->groups.clear();
  make_context(f->context, f->stack.get());
  cta.fibers.push_back(std::move(f));
}

void start_cluster(unsigned number) {
  auto cluster = std::make_unique<Cluster>();
  const Index shape = launch->cluster;
  cluster->threads = shape.x * shape.y * shape.z * launch->threads;
  for (unsigned z = 0; z < shape.z; ++z) {
    for (unsigned y = 0; y < shape.y; ++y) {
      for (unsigned x = 0; x < shape.x; ++x) {
        auto cta = std::make_unique<Cta>();
        cta->cluster = cluster.get();
        cta->in_cluster = {x, y, z};
        cta->block = {x, y, number * shape.z + z};
        cta->shared.assign(launch->smem_bytes, static_cast<char>(kPoison));
        cta->live = launch->threads;
        cta->warps.resize(launch->threads / 32);
        for (Meeting& warp : cta->warps) warp.expected = 32;
        for (unsigned i = 0; i < launch->threads; ++i) start_fiber(*cta, i);
        cluster->ctas.push_back(std::move(cta));
      }
    }
  }
  active.push_back(std::move(cluster));
}

bool retire_clusters() {
  const std::size_t before = active.size();
  for (std::size_t i = 0; i < active.size();) {
    if (!active[i]->done()) {
      ++i;
      continue;
    }
    for (auto& cta : active[i]->ctas) {
      if (resident == cta.get()) resident = nullptr;
      for (auto& fiber : cta->fibers) idle_fibers.push_back(std::move(fiber));
    }
    active.erase(active.begin() + static_cast<std::ptrdiff_t>(i));
  }
  return active.size() < before;
}

// ---- what went wrong ----------------------------------------------------------------------------

void print(const Wait& wait) {
  switch (wait.kind) {
    case Wait::nothing: std::fprintf(stderr, "nothing"); break;
    case Wait::warp: std::fprintf(stderr, "the other lanes"); break;
    case Wait::named: {
      const auto& meeting = *static_cast<const Meeting*>(wait.what);
      std::fprintf(stderr, "barrier %u, at which %u of %u threads are", wait.address,
                   meeting.arrived, meeting.expected);
      break;
    }
    case Wait::barrier: {
      const auto& b = *static_cast<const Barrier*>(wait.what);
      std::fprintf(
          stderr, "mbarrier 0x%x, parity %u: phase %llu lacks %u of %u arrivals and %lld bytes",
          wait.address, static_cast<unsigned>(wait.value), static_cast<unsigned long long>(b.phase),
          b.pending, b.expected, static_cast<long long>(b.bytes));
      break;
    }
    case Wait::cluster: {
      const auto& cluster = *static_cast<const Cluster*>(wait.what);
      std::fprintf(stderr, "the cluster's barrier, at which %u of %u threads are", cluster.arrived,
                   cluster.threads);
      break;
    }
    case Wait::flag: std::fprintf(stderr, "a flag in the workspace"); break;
    case Wait::before: std::fprintf(stderr, "the kernel before"); break;
  }
}

[[noreturn]] void deadlock() {
  std::fprintf(stderr, "emulator: deadlock in %s\n", launch->name.c_str());
  for (const auto& cluster : active) {
    for (const auto& cta : cluster->ctas) {
      for (std::size_t first = 0, end = 0; first < cta->fibers.size(); first = end) {
        const Fiber& f = *cta->fibers[first];
        while (end < cta->fibers.size() && cta->fibers[end]->wait == f.wait &&
               cta->fibers[end]->done == f.done) {
          ++end;
        }
        if (f.done) continue;
        std::fprintf(stderr, "  CTA (%u, %u, %u), threads %zu to %zu wait for ", cta->block.x,
                     cta->block.y, cta->block.z, first, end - 1);
        print(f.wait);
        std::fprintf(stderr, "\n");
      }
    }
  }
  std::abort();
}

void check_beyond() {
  const auto* const begin = reinterpret_cast<const unsigned char*>(launch->window);
  if (std::any_of(begin + launch->smem_bytes, begin + kWindowBytes,
                  [](unsigned char byte) { return byte != kPoison; })) {
    fail("a write beyond the launch's shared memory");
  }
}

}  // namespace

void run(const Launch& what, const std::function<void()>& kernel) {
  random_bits.seed(what.seed);
  launch = &what;
  entry = &kernel;
  grid_dim = {what.cluster.x, what.cluster.y, what.ctas};
  before_is_complete = !what.before_completes;
  interrupts = pick_below(2) == 0;
  flags_written = 0;
  resident = nullptr;
  std::memset(what.window, kPoison, kWindowBytes);
  const unsigned clusters = what.ctas / what.cluster.z;
  for (unsigned next = 0;;) {
    while (active.size() < what.resident && next < clusters) start_cluster(next++);
    if (active.empty()) break;
    const bool ran = run_warps();
    if (retire_clusters()) {
      check_beyond();
      continue;
    }
    if (ran || land_some()) continue;
    if (before_is_complete) deadlock();
    before_is_complete = true;
    what.before_completes();
  }
  check_beyond();
  launch = nullptr;
}

void register_memory(const void* begin, std::size_t bytes, Holds what) {
  const char* const first = static_cast<const char*>(begin);
  readable.push_back({first, first + bytes, what});
}
void forget_memory() { readable.clear(); }

void check_readable(const void* from, std::size_t bytes) {
  const char* const first = static_cast<const char*>(from);
  const auto region = std::find_if(readable.begin(), readable.end(), [&](const Region& piece) {
    return first >= piece.begin && first + bytes <= piece.end;
  });
  if (region == readable.end()) fail("a copy reads memory that isn't the problem's");
  if (launch->before_completes && region->what == Holds::activations && !current->has_waited) {
    fail("a copy reads activations, and its thread hasn't waited for the kernel before");
  }
}

/// Whether this thread is the last.
bool arrive_named(Meeting& meeting, unsigned expected) {
  if (meeting.arrived > 0 && meeting.expected != expected) {
    fail("threads disagree on how many meet at a barrier");
  }
  meeting.expected = expected;
  if (++meeting.arrived != expected) return false;
  meeting.arrived = 0;
  ++meeting.round;
  return true;
}
void sync_threads(int id, int threads) {
  Meeting& meeting = here->named.at(static_cast<std::size_t>(id));
  if (!arrive_named(meeting, static_cast<unsigned>(threads))) wait_for(Wait::named, meeting, id);
}
void arrive_threads(int id, int threads) {
  arrive_named(here->named.at(static_cast<std::size_t>(id)), static_cast<unsigned>(threads));
}

void sync_cta() { sync_threads(0, static_cast<int>(launch->threads)); }

void meet_warp(void* argument, void (*act)(void* const (&)[32])) {
  Meeting& warp = here->warps[thread_idx.x / 32];
  if (warp.arrived > 0 && warp.act != act) fail("the lanes of a warp meet at two instructions");
  warp.act = act;
  warp.arguments[thread_idx.x % 32] = argument;
  if (++warp.arrived == warp.expected) {
    if (act != nullptr) act(warp.arguments);
    warp.arrived = 0;
    ++warp.round;
    return;
  }
  wait_for(Wait::warp, warp, 0);
}

void sync_warp() { meet_warp(nullptr, nullptr); }

void fail(const char* what) {
  std::fprintf(stderr, "emulator: CTA (%u, %u, %u), thread %u: %s\n  in %s\n", block_idx.x,
               block_idx.y, block_idx.z, thread_idx.x, what,
               launch != nullptr ? launch->name.c_str() : "no launch");
  std::abort();
}

char* shared_at(std::uint32_t address, std::size_t bytes) {
  if (address % bytes != 0) fail("an access at an address that isn't a multiple of its size");
  return shared_of(*here, address, bytes);
}
char* shared_at(std::uint32_t address, std::size_t bytes, unsigned rank) {
  if (address % bytes != 0) fail("an access at an address that isn't a multiple of its size");
  return shared_of(peer(rank), address, bytes);
}
std::uint32_t shared_address(const char* p) {
  return static_cast<std::uint32_t>(p - launch->window) + launch->window_address;
}

void copy_async(std::uint32_t dst, const void* src, int bytes) {
  if (dst % 16 != 0 || reinterpret_cast<std::uintptr_t>(src) % 16 != 0) {
    fail("cp.async at an address that isn't a multiple of 16");
  }
  if (bytes < 0 || bytes > 16) fail("cp.async of less than 0 or more than 16 bytes");
  if (bytes > 0) check_readable(src, static_cast<std::size_t>(bytes));
  Copy copy;
  copy.dst = dst;
  std::memcpy(copy.bytes, src, static_cast<std::size_t>(bytes));
  char* const to = shared_of(*here, dst, sizeof(copy.bytes));
  if (launch->landing == Landing::at_once) {
    std::memcpy(to, copy.bytes, sizeof(copy.bytes));
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
    for (const Copy& copy : groups.front()) {
      std::memcpy(shared_of(*here, copy.dst, sizeof(copy.bytes)), copy.bytes, sizeof(copy.bytes));
    }
    groups.erase(groups.begin());
  }
}

void arrive_after_copies(std::uint32_t barrier) {
  Flight flight;
  flight.cta = here;
  flight.copies = std::move(current->open);
  flight.barrier = barrier;
  current->open.clear();
  take_off(std::move(flight));
}

void copy_bulk(std::uint32_t dst, std::vector<char> bytes, std::uint32_t barrier,
               std::uint32_t cta_mask) {
  const auto send = [&](Cta& cta) {
    Flight flight;
    flight.cta = &cta;
    flight.dst = dst;
    flight.bytes = bytes;
    flight.barrier = barrier;
    shared_of(cta, dst, bytes.size());
    barrier_at(cta, barrier);
    take_off(std::move(flight));
  };
  if (cta_mask == 0) return send(*here);
  for (unsigned rank = 0; rank < 16; ++rank) {
    if ((cta_mask >> rank & 1u) != 0) send(peer(rank));
  }
}

void init_barrier(std::uint32_t barrier, std::uint32_t arrivals) {
  if (barrier % 8 != 0) fail("an mbarrier at an address that isn't a multiple of 8");
  std::memset(shared_of(*here, barrier, 8), kBarrierByte, 8);
  Barrier b;
  b.expected = b.pending = arrivals;
  if (!here->barriers.emplace(barrier, b).second) fail("an mbarrier is initialized twice");
}

void arrive(std::uint32_t barrier, std::uint32_t announced_bytes) {
  Barrier& b = barrier_at(*here, barrier);
  b.bytes += announced_bytes;
  if (b.bytes > kMaxBarrierBytes) fail("an mbarrier counts more bytes than it can");
  arrive_at(b);
}

void wait_parity(std::uint32_t barrier, std::uint32_t parity) {
  const Wait wait{Wait::barrier, &barrier_at(*here, barrier), parity, barrier};
  if (!is_over(wait)) wait_for(wait);
}

std::uint32_t map_rank(std::uint32_t address, std::uint32_t rank) {
  return address | (rank + 1) << kRankShift;
}

namespace {

struct Mapped {
  std::uint32_t address;
  unsigned rank;
};

Mapped unmapped(std::uint32_t mapped) {
  if (mapped >> kRankShift == 0) fail("an address that mapa hasn't made");
  return {mapped & ((1u << kRankShift) - 1), (mapped >> kRankShift) - 1};
}

}  // namespace

void arrive_remote(std::uint32_t mapped) {
  const Mapped at = unmapped(mapped);
  arrive_at(barrier_at(peer(at.rank), at.address));
}

void copy_to_cluster(std::uint32_t mapped, std::uint32_t from, std::size_t bytes,
                     std::uint32_t mapped_barrier) {
  const Mapped at = unmapped(mapped), barrier = unmapped(mapped_barrier);
  if (at.rank != barrier.rank) fail("bytes to one CTA, counted by another");
  if (at.address % 16 != 0 || from % 16 != 0 || bytes % 16 != 0 || bytes == 0) {
    fail("a bulk copy of what isn't a multiple of 16 bytes");
  }
  const char* const source = shared_of(*here, from, bytes);
  copy_bulk(at.address, std::vector<char>(source, source + bytes), barrier.address, 1u << at.rank);
}

Index cta_in_cluster() { return here->in_cluster; }
Index cluster_shape() { return launch->cluster; }

void arrive_cluster() {
  Cluster& cluster = *here->cluster;
  current->cluster_round = cluster.round;
  if (++cluster.arrived == cluster.threads) {
    cluster.arrived = 0;
    ++cluster.round;
  }
}
void wait_cluster() {
  const Wait wait{Wait::cluster, here->cluster, current->cluster_round, 0};
  if (!is_over(wait)) wait_for(wait);
}

void launch_dependents() { here->has_triggered = true; }
void wait_for_before() {
  current->has_waited = here->has_waited = true;
  if (!before_is_complete) wait_for({Wait::before, nullptr, 0, 0});
}

void use_activations() {
  if (launch->before_completes && !current->has_waited) {
    fail("a thread multiplies activations without having waited for the kernel before");
  }
}

void flag_written() { ++flags_written; }
void wait_for_flag() { wait_for({Wait::flag, nullptr, flags_written, 0}); }

void fence_mmas() { current->mmas_fenced = true; }
void issue_mma(const Mma& mma) {
  if (!current->mmas_fenced) fail("wgmma without a fence after what was written before");
  use_activations();
  current->open_mmas.push_back(mma);
}
void commit_mmas() {
  current->mmas_fenced = false;
  current->mma_groups.push_back(std::move(current->open_mmas));
  current->open_mmas.clear();
}
void wait_mmas(std::size_t pending) {
  const std::size_t groups = current->mma_groups.size();
  current->mmas_to_run = groups > pending ? groups - pending : 0;
  meet_warp(current, [](void* const(&lanes)[32]) {
    const auto fiber = [&](int lane) -> Fiber& { return *static_cast<Fiber*>(lanes[lane]); };
    const std::size_t to_run = fiber(0).mmas_to_run;
    for (std::size_t group = 0; group < to_run; ++group) {
      const std::size_t count = fiber(0).mma_groups.at(group).size();
      for (std::size_t i = 0; i < count; ++i) {
        const Mma* mmas[32];
        for (int lane = 0; lane < 32; ++lane) {
          if (fiber(lane).mmas_to_run != to_run ||
              fiber(lane).mma_groups.at(group).size() != count) {
            fail("the lanes of a warp have issued different MMAs");
          }
          mmas[lane] = &fiber(lane).mma_groups[group][i];
        }
        mmas[0]->execute(mmas);
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      auto& done = fiber(lane).mma_groups;
      done.erase(done.begin(), done.begin() + static_cast<std::ptrdiff_t>(to_run));
    }
  });
}

}  // namespace mixgemm::emulator
