// SPDX-License-Identifier: Apache-2.0
#include "gpu/weight_pool.hpp"

#include <fmt/format.h>

#include "gpu/data.hpp"
#include "layout/packed.hpp"

namespace mixgemm::bench {
namespace {

constexpr std::uint32_t kCodesSeed = 11;
constexpr std::uint32_t kScalesSeed = 23;

constexpr std::size_t align256(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

WeightPool::Layout WeightPool::layout_of(const Shape& shape, const QuantSpec& spec) {
  Layout at;
  const std::int64_t strips = layout::num_strips(shape.n);
  at.codes_bytes =
      static_cast<std::size_t>(strips * layout::strip_bytes(shape.k, bits_of(spec.type)));
  at.num_scales = strips * layout::kStripRows * num_groups(shape.k, spec.group_size);
  const std::size_t scale_bytes = align256(2 * static_cast<std::size_t>(at.num_scales));
  at.scales = align256(at.codes_bytes);
  at.zeros = spec.zero == ZeroKind::none ? 0 : at.scales + scale_bytes;
  at.stride = (at.zeros == 0 ? at.scales : at.zeros) + scale_bytes;
  return at;
}

void WeightPool::make(const Shape& shape, const QuantSpec& spec, int copies, cudaStream_t stream) {
  shape_ = shape;
  copies_ = copies;
  layout_ = layout_of(shape, spec);
  memory_.reserve(layout_.stride * static_cast<std::size_t>(copies),
                  fmt::format("{} copies of {}", copies, shape.layer));
  for (int copy = 0; copy < copies; ++copy) {
    fill_random_bits(memory_.as<>() + layout_.stride * static_cast<std::size_t>(copy),
                     layout_.codes_bytes, kCodesSeed, stream);
  }
  remake_scales(spec, stream);
}

void WeightPool::remake_scales(const QuantSpec& spec, cudaStream_t stream) {
  spec_ = spec;
  const float scale = typical_scale(spec.type, shape_.k);
  for (int copy = 0; copy < copies_; ++copy) {
    std::byte* start = memory_.as<>() + layout_.stride * static_cast<std::size_t>(copy);
    auto* scales = reinterpret_cast<std::uint16_t*>(start + layout_.scales);
    auto* zeros =
        layout_.zeros == 0 ? nullptr : reinterpret_cast<std::uint16_t*>(start + layout_.zeros);
    fill_scales_and_zeros(scales, zeros, layout_.num_scales, spec, scale, kScalesSeed, stream);
  }
}

void WeightPool::copy(const PackedView& weight, int copies, cudaStream_t stream) {
  shape_ = {weight.n, weight.k, "a layer"};
  spec_ = weight.spec;
  copies_ = copies;
  layout_ = layout_of(shape_, spec_);
  memory_.reserve(layout_.stride * static_cast<std::size_t>(copies),
                  fmt::format("{} copies of a layer", copies));
  const std::size_t scale_bytes = 2 * static_cast<std::size_t>(layout_.num_scales);
  for (int copy = 0; copy < copies; ++copy) {
    std::byte* start = memory_.as<>() + layout_.stride * static_cast<std::size_t>(copy);
    const auto fill = [&](std::size_t offset, const void* from, std::size_t bytes) {
      check(cudaMemcpyAsync(start + offset, from, bytes, cudaMemcpyDeviceToDevice, stream),
            "copy of a packed weight");
    };
    fill(0, weight.codes, layout_.codes_bytes);
    fill(layout_.scales, weight.scales, scale_bytes);
    if (layout_.zeros != 0) fill(layout_.zeros, weight.zeros, scale_bytes);
  }
}

PackedView WeightPool::view(int copy) const {
  const std::byte* start = memory_.as<>() + layout_.stride * static_cast<std::size_t>(copy);
  PackedView view;
  view.n = shape_.n;
  view.k = shape_.k;
  view.spec = spec_;
  view.device = Device::cuda;
  view.codes = reinterpret_cast<const std::uint8_t*>(start);
  view.scales = reinterpret_cast<const std::uint16_t*>(start + layout_.scales);
  view.zeros = layout_.zeros == 0 ? nullptr : start + layout_.zeros;
  view.codes_pitch_bytes = layout::strip_bytes(shape_.k, bits_of(spec_.type));
  view.groups_pitch = view.groups();
  return view;
}

Floor WeightPool::measure_floor(const GraphTimer& timer, int num_sms, bool pdl) const {
  return bench::measure_floor(timer, memory_.as<std::uint8_t>(), layout_.codes_bytes,
                              layout_.stride, copies_, num_sms, pdl);
}

}  // namespace mixgemm::bench
