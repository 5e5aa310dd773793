// SPDX-License-Identifier: Apache-2.0
// Runs a kernel on the CPU, each thread a fiber, so that its arithmetic of tiles, swizzles,
// fragments, rings, barriers and partial sums is tested on machines without a GPU. The kernel is
// compiled as C++: shim/ stands in for the CUDA keywords and for kernels/ptx, instruction by
// instruction.
//
// What it is strict about:
//   copies      land as late as the wait for them allows, or as early as they are issued (Landing);
//               they read registered memory only and write within the launch's shared memory
//   mbarriers   count arrivals and bytes; nobody may arrive once too often or write over one
//   wgmma       multiplies as late as its wait allows, with what the registers hold then
//   warps       run in a random order, each until it must wait, or interrupted wherever it meets
//   memory      shared memory starts as NaN, and what lies beyond the launch's must stay so
//   PDL         the kernel before completes only when nothing else can go on; until then only
//               codes, scales and zeros may be copied
// Where all threads wait, the program ends and says who waits for what.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace mixgemm {
// What `extern __shared__ char …[]` inside the kernels names.
extern char smem[];
extern char dynamic_smem[];
}  // namespace mixgemm

namespace mixgemm::emulator {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};
extern Index thread_idx, block_idx, grid_dim;

/// When asynchronous copies happen.
enum class Landing { at_once, at_the_wait };

struct Launch {
  unsigned ctas = 1;          ///< along z; along x and y as many as a cluster has
  Index cluster = {1, 1, 1};  ///< CTAs of a cluster
  unsigned resident = 1;      ///< clusters at work at once; a new one starts when one has ended
  unsigned threads = 256;
  std::size_t smem_bytes = 0;
  char* window = smem;               ///< the array that the kernel declares …
  std::uint32_t window_address = 0;  ///< … and its shared-window address
  Landing landing = Landing::at_the_wait;
  unsigned seed = 1;
  std::string name;  ///< for messages
  /// A launch with PDL: called when all that doesn't wait for the kernel before is done.
  std::function<void()> before_completes;
};

/// Runs `kernel` in every thread of the grid. Aborts with a message on a deadlock or on a broken
/// rule. Not reentrant.
void run(const Launch& launch, const std::function<void()>& kernel);

/// What memory holds that copies may read: weights may be read before the kernel before completes.
enum class Holds { weights, activations };
/// Until forget_memory().
void register_memory(const void* begin, std::size_t bytes, Holds what = Holds::activations);
void forget_memory();

// What the shim is made of.
void sync_cta();
void sync_warp();
/// Named barrier of the CTA.
void sync_threads(int id, int threads);
void arrive_threads(int id, int threads);
/// Meets the other 31 lanes; the last one calls `act` with all lanes' arguments.
void meet_warp(void* argument, void (*act)(void* const (&arguments)[32]));
[[noreturn]] void fail(const char* what);

/// Shared memory of this CTA, or of CTA `rank` of its cluster, at a shared-window address.
char* shared_at(std::uint32_t address, std::size_t bytes);
char* shared_at(std::uint32_t address, std::size_t bytes, unsigned rank);
std::uint32_t shared_address(const char* p);

void copy_async(std::uint32_t dst, const void* src, int bytes);
void commit_copies();
void wait_copies(std::size_t pending);
/// This thread's cp.async so far count as one arrival once they have landed.
void arrive_after_copies(std::uint32_t barrier);
/// Fails unless the launch may read this now.
void check_readable(const void* from, std::size_t bytes);
/// Bytes that complete on the barrier at the same address of each CTA in the mask; 0: this one.
void copy_bulk(std::uint32_t dst, std::vector<char> bytes, std::uint32_t barrier,
               std::uint32_t cta_mask);

void init_barrier(std::uint32_t barrier, std::uint32_t arrivals);
void arrive(std::uint32_t barrier, std::uint32_t announced_bytes);
void wait_parity(std::uint32_t barrier, std::uint32_t parity);
/// An address in CTA `rank`; a barrier there; bytes of this CTA to another, where they complete on
/// a barrier.
std::uint32_t map_rank(std::uint32_t address, std::uint32_t rank);
void arrive_remote(std::uint32_t mapped);
void copy_to_cluster(std::uint32_t mapped, std::uint32_t from, std::size_t bytes,
                     std::uint32_t mapped_barrier);

Index cta_in_cluster();
Index cluster_shape();
void arrive_cluster();
void wait_cluster();

void launch_dependents();
void wait_for_before();
/// Fails in a thread that should have waited for the kernel before, and hasn't.
void use_activations();

/// A flag in global memory was set; and waiting for some flag to be.
void flag_written();
void wait_for_flag();

/// wgmma on its way: committed groups of this thread's, which wait_mmas carries out.
struct Mma {
  float* d = nullptr;
  const std::uint32_t* a = nullptr;
  std::uint64_t descriptor = 0;
  /// Multiplies for a warp; mmas[lane].
  void (*execute)(const Mma* const (&mmas)[32]) = nullptr;
};
void fence_mmas();
void issue_mma(const Mma& mma);
void commit_mmas();
void wait_mmas(std::size_t pending);

}  // namespace mixgemm::emulator
