// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <new>

namespace mixgemm {

/// A copy of `bytes` bytes on a 64-byte boundary, the widest vector's. Throws std::bad_alloc.
inline std::shared_ptr<const void> aligned_copy(const void* data, std::size_t bytes) {
  constexpr std::align_val_t kAlignment{64};
  void* memory = ::operator new(bytes, kAlignment);
  std::memcpy(memory, data, bytes);
  return {memory, [](void* p) { ::operator delete(p, kAlignment); }};
}

}  // namespace mixgemm
