// SPDX-License-Identifier: Apache-2.0
// Any bytes as a safetensors file and as a packed checkpoint: refused, or every claimed byte can be
// read.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>

#include "mixgemm/checkpoint.hpp"

namespace {

using namespace mixgemm;

void require(bool condition) {
  if (!condition) std::abort();
}

unsigned read_all(const void* data, std::size_t bytes) {
  unsigned sum = 0;
  for (std::size_t i = 0; i < bytes; ++i) sum += static_cast<const std::uint8_t*>(data)[i];
  return sum;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const int fd = ::memfd_create("input", MFD_CLOEXEC);
  static const std::string path = "/proc/self/fd/" + std::to_string(fd);
  require(::ftruncate(fd, 0) == 0);
  require(::pwrite(fd, data, size, 0) == static_cast<ssize_t>(size));

  const auto file = SafetensorsFile::open(path);
  require(file.ok() || !file.status().message().empty());
  if (!file.ok()) return 0;
  volatile unsigned sink = 0;
  std::uint64_t total = 0;
  for (const TensorInfo& info : file->tensors()) {
    require(file->info(info.name) == &info);
    const auto tensor = file->find(info.name);
    if (!tensor.ok()) continue;
    require(tensor->bytes == info.size_bytes());
    total += tensor->bytes;
    sink = sink + read_all(tensor->data, tensor->bytes);
  }
  require(total <= size);

  const auto checkpoint = PackedCheckpoint::from(*file, {.verify_on_find = false});
  if (!checkpoint.ok()) return 0;
  for (const PackedLayerInfo& layer : checkpoint->layers()) {
    const auto weight = checkpoint->find(layer.name);
    if (!weight.ok()) continue;
    const PackedView& view = weight->view();
    const auto strips = static_cast<std::size_t>((view.n + 15) / 16);
    const auto scales = strips * static_cast<std::size_t>(view.groups_pitch) * 16;
    sink = sink + read_all(view.codes, strips * static_cast<std::size_t>(view.codes_pitch_bytes));
    sink = sink + read_all(view.scales, 2 * scales);
    if (view.spec.zero == ZeroKind::none) continue;
    sink = sink + read_all(view.zeros, view.spec.zero == ZeroKind::integer ? scales : 2 * scales);
  }
  static_cast<void>(checkpoint->verify());
  return 0;
}
