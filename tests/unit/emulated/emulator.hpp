// SPDX-License-Identifier: Apache-2.0
// Runs a kernel for SM80 on the CPU, one CTA at a time, each thread a fiber, so that its arithmetic
// of tiles, swizzles, fragments, rings and partial sums is tested on machines without a GPU. The
// kernel is compiled as C++: shim/ stands in for the CUDA keywords and for kernels/ptx, instruction
// by instruction.
//
// What it is strict about: a copy by cp.async lands as late as its wait allows, or as early as it
// is issued (Landing); warps run in a random order, each until it must wait; shared memory starts
// as NaN, and what lies beyond the launch's must stay so; a copy reads registered memory only; a
// CTA that waits for a flag which no earlier CTA set ends the program.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace mixgemm::emulator {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};
extern Index thread_idx, block_idx, grid_dim;

/// When copies by cp.async happen.
enum class Landing { at_once, at_the_wait };

struct Launch {
  unsigned ctas = 1;  ///< along z
  unsigned threads = 256;
  std::size_t smem_bytes = 0;
  Landing landing = Landing::at_the_wait;
  unsigned seed = 1;
};

/// Runs `kernel` in every thread of the grid, CTA after CTA. Aborts with a message on a deadlock or
/// on a broken rule. Not reentrant.
void run(const Launch& launch, const std::function<void()>& kernel);

/// Memory that copies may read until forget_memory().
void register_memory(const void* begin, std::size_t bytes);
void forget_memory();

// What the shim is made of.
void sync_cta();
void sync_warp();
/// Meets the other 31 lanes; the last one calls `act` with all lanes' arguments.
void meet_warp(void* argument, void (*act)(void* const (&arguments)[32]));
void copy_async(std::uint32_t dst, const void* src, int bytes);
void commit_copies();
void wait_copies(std::size_t pending);
[[noreturn]] void fail(const char* what);
char* shared_memory();

}  // namespace mixgemm::emulator
