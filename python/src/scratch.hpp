// SPDX-License-Identifier: Apache-2.0
// Scratch memory that stays with a stream from one eager product to the next: asking a framework
// for it each time costs the host as much as the launch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "array.hpp"

namespace mixgemm::python {

/// The blocks of one device's streams.
///
/// A block is a framework's memory, allocated with its stream current. Launches on a stream run in
/// order, so the next product may have the block while this one's kernels still wait. A block that
/// is dropped goes back to an allocator that gives it out to the same stream alone, so dropping one
/// with work in flight is safe, too. Two things would break this, and are excluded:
///   - Two threads' products on one stream at a time. A product may be two launches (columns are
///     gathered first), and the other's may come in between. So a block that is taken is one
///     product's alone until all is enqueued; who finds it taken asks the framework.
///   - A stream that is destroyed with work in flight, and another one that gets its address and
///     doesn't wait for that work. So `allocate` refuses a stream that isn't the framework's own:
///     those live as long as the process.
/// Nor is a block for launches that are captured into a graph (Workspace looks): replays would
/// write it when it has long been dropped, or while a product of its stream uses it.
///
/// All under the GIL, which the extension keeps on in a free-threaded Python.
class KeptScratch {
 public:
  static constexpr std::size_t kMaxStreams = 8;
  /// Sizes are powers of two between these, so that a stream's block grows four times at most.
  /// A product that takes more has the device busy for longer than asking takes.
  static constexpr std::size_t kMinBytes = std::size_t{1} << 20;
  static constexpr std::size_t kMaxBytes = std::size_t{16} << 20;
  /// With kMaxStreams blocks, the least recently used one makes room for another stream's once the
  /// device has seen so many products without its stream. Sooner, streams in turn would each time
  /// pay for a new block, which costs more than memory that isn't kept.
  static constexpr std::uint64_t kIdleProducts = 1000;

  struct Block {
    nb::object memory;
    void* data = nullptr;  // null: no block
    std::size_t bytes = 0;
  };

  /// A block of at least so many bytes for the stream, the framework's current one, until
  /// `give_back`. None where the stream's block is taken, and where memory is not to be kept.
  /// allocate(bytes, True) → (whatever keeps the memory alive, its address), or None.
  Block take(void* stream, std::size_t bytes, nb::handle allocate);
  /// After the last launch that uses the block is enqueued.
  void give_back(void* stream, Block block) noexcept;
  /// Drops all blocks; one that is taken, when it is given back.
  void release();

  std::size_t num_streams() const { return slots_.size(); }

 private:
  struct Slot {
    void* stream;
    std::uint64_t last_use;
    bool taken;  // somebody has the block, so it isn't here
    Block block;
  };

  Slot* find(void* stream);
  bool has_room() const;
  Slot* make_room(void* stream, Block& dropped);

  std::vector<Slot> slots_;
  std::uint64_t num_products_ = 0;
};

}  // namespace mixgemm::python
