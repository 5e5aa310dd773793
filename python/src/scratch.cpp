// SPDX-License-Identifier: Apache-2.0
#include "scratch.hpp"

#include <algorithm>
#include <bit>
#include <utility>

#include "bindings.hpp"

namespace mixgemm::python {

KeptScratch::Block KeptScratch::take(void* stream, std::size_t bytes, nb::handle allocate) {
  if (bytes > kMaxBytes) return {};
  ++num_products_;
  if (Slot* slot = find(stream); slot != nullptr) {
    slot->last_use = num_products_;
    if (slot->taken) return {};
    if (slot->block.bytes >= bytes) {
      slot->taken = true;
      return std::exchange(slot->block, {});
    }
  } else if (!has_room()) {
    return {};
  }
  Block made;
  made.bytes = std::bit_ceil(std::max(bytes, kMinBytes));
  const nb::object answer = allocate(made.bytes, true);
  if (answer.is_none()) return {};
  made.memory = answer[0];
  made.data = reinterpret_cast<void*>(nb::cast<std::uintptr_t>(answer[1]));
  // Other threads ran meanwhile, so the slots may be others. Where there is no room for the block
  // now, it is dropped when it is given back.
  Block dropped;
  Slot* slot = find(stream);
  if (slot == nullptr) slot = make_room(stream, dropped);
  if (slot != nullptr && !slot->taken) {
    slot->taken = true;
    dropped = std::exchange(slot->block, {});
  }
  return made;
}

void KeptScratch::give_back(void* stream, Block block) noexcept {
  Slot* slot = find(stream);
  if (slot == nullptr || !slot->taken) return;
  slot->taken = false;
  slot->block = std::move(block);
}

void KeptScratch::release() {
  // Taken out first: the end of a framework's array may run Python code that comes back here.
  const std::vector<Slot> dropped = std::exchange(slots_, {});
}

KeptScratch::Slot* KeptScratch::find(void* stream) {
  for (Slot& slot : slots_) {
    if (slot.stream == stream) return &slot;
  }
  return nullptr;
}

/// Whether a new stream may have a slot.
bool KeptScratch::has_room() const {
  return slots_.size() < kMaxStreams || std::any_of(slots_.begin(), slots_.end(), [&](auto& slot) {
           return !slot.taken && num_products_ - slot.last_use > kIdleProducts;
         });
}

/// A slot for a new stream, or nullptr. `dropped`: the block of the stream whose slot it was.
KeptScratch::Slot* KeptScratch::make_room(void* stream, Block& dropped) {
  if (!has_room()) return nullptr;
  if (slots_.size() < kMaxStreams) {
    slots_.push_back({stream, num_products_, false, {}});
    return &slots_.back();
  }
  // There is one that isn't taken and has been idle, so the first of this order is such a one.
  Slot& oldest = *std::min_element(slots_.begin(), slots_.end(), [](auto& a, auto& b) {
    return std::pair(a.taken, a.last_use) < std::pair(b.taken, b.last_use);
  });
  dropped = std::exchange(oldest.block, {});
  oldest.stream = stream;
  oldest.last_use = num_products_;
  return &oldest;
}

void bind_scratch(nb::module_& m) {
  // Products take and give back without Python; these are for the tests.
  nb::class_<KeptScratch>(m, "KeptScratch")
      .def(nb::init<>())
      .def(
          "take",
          [](KeptScratch& kept, std::uintptr_t stream, std::size_t bytes,
             nb::handle allocate) -> nb::object {
            KeptScratch::Block block = kept.take(reinterpret_cast<void*>(stream), bytes, allocate);
            if (block.data == nullptr) return nb::none();
            return nb::make_tuple(std::move(block.memory),
                                  reinterpret_cast<std::uintptr_t>(block.data), block.bytes);
          },
          nb::arg("stream"), nb::arg("bytes"), nb::arg("allocate"))
      .def(
          "give_back",
          [](KeptScratch& kept, std::uintptr_t stream, nb::tuple block) {
            kept.give_back(
                reinterpret_cast<void*>(stream),
                {nb::object(block[0]), reinterpret_cast<void*>(nb::cast<std::uintptr_t>(block[1])),
                 nb::cast<std::size_t>(block[2])});
          },
          nb::arg("stream"), nb::arg("block"))
      .def("release", &KeptScratch::release)
      .def_prop_ro("num_streams", &KeptScratch::num_streams)
      .def_ro_static("max_streams", &KeptScratch::kMaxStreams)
      .def_ro_static("min_bytes", &KeptScratch::kMinBytes)
      .def_ro_static("max_bytes", &KeptScratch::kMaxBytes)
      .def_ro_static("idle_products", &KeptScratch::kIdleProducts);
}

}  // namespace mixgemm::python
