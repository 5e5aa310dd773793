// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "mixgemm/weight.hpp"
#include "util/half.hpp"
#include "util/parallel.hpp"

namespace mixgemm {
namespace {

// Weights a thread takes at a time, at least.
constexpr std::int64_t kDequantizeGrainElems = 1 << 16;

}  // namespace

Result<std::vector<float>> dequantize(const CanonicalWeight& weight) {
  if (Status status = validate(weight); !status.ok()) return status;
  const QuantSpec& spec = weight.spec;
  const std::int64_t groups = weight.groups();
  const std::int64_t length = spec.group_size == 0 ? weight.k : spec.group_size;
  const std::vector<std::int32_t>& permutation = weight.permutation;
  std::vector<float> dense(weight.n * weight.k);
  parallel_for(weight.n, std::max<std::int64_t>(1, kDequantizeGrainElems / weight.k), 0,
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t at = begin * groups; at < end * groups; ++at) {
                   const double scale = f32_from_bits(weight.scales[at], spec.scale_type);
                   // w = q·s − shift, which is (q − z)·s for shift = z·s: q·s, z·s and their
                   // difference have at most 20 significant bits, so a double holds them exactly.
                   double shift = implicit_zero(spec.type) * scale;
                   if (spec.zero == ZeroKind::integer) shift = weight.zeros[at] * scale;
                   if (spec.zero == ZeroKind::scaled) {
                     shift = f32_from_bits(weight.scaled_zeros[at], spec.scale_type);
                   }
                   const std::int64_t row = at / groups;
                   const std::int64_t k_begin = at % groups * length;
                   const std::int64_t k_end = std::min(weight.k, k_begin + length);
                   for (std::int64_t k = k_begin; k < k_end; ++k) {
                     const std::int64_t feature = permutation.empty() ? k : permutation[k];
                     dense[row * weight.k + feature] =
                         static_cast<float>(weight.codes[row * weight.k + k] * scale - shift);
                   }
                 }
               });
  return dense;
}

}  // namespace mixgemm
