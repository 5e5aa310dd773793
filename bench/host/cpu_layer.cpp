// SPDX-License-Identifier: Apache-2.0
#include "host/cpu_layer.hpp"

#include <fmt/format.h>

#include <array>
#include <atomic>
#include <cstring>
#include <memory>
#include <tuple>
#include <utility>

#include "host/measure.hpp"
#include "layout/packed.hpp"

namespace mixgemm::bench {
namespace {

/// Random codes with scales around 1/sqrt(K), so that outputs are around 1.
CanonicalWeight random_weight(const Shape& shape, const QuantSpec& spec) {
  CanonicalWeight weight;
  weight.n = shape.n;
  weight.k = shape.k;
  weight.spec = spec;
  const int bits = bits_of(spec.type);
  weight.codes.resize(static_cast<std::size_t>(shape.n * shape.k));
  parallel_for(shape.n, 64, 0, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin * shape.k; i < end * shape.k; ++i) {
      weight.codes[i] =
          static_cast<std::uint8_t>(random_bits(1, static_cast<std::uint64_t>(i)) >> (64 - bits));
    }
  });
  const std::int64_t count = shape.n * weight.groups();
  const double step = 1.0 / (std::sqrt(static_cast<double>(shape.k)) * (1 << (bits - 2)));
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint64_t bits64 = random_bits(2, static_cast<std::uint64_t>(i));
    const double scale = step * (0.75 + 0.5 * static_cast<double>(bits64 >> 40) * 0x1p-24);
    const int zero = implicit_zero(spec.type) + static_cast<int>(bits64 % 3) - 1;
    weight.scales.push_back(bits_from_f32(static_cast<float>(scale), spec.scale_type));
    if (spec.zero == ZeroKind::integer) weight.zeros.push_back(static_cast<std::uint8_t>(zero));
    if (spec.zero == ZeroKind::scaled) {
      weight.scaled_zeros.push_back(
          bits_from_f32(static_cast<float>(scale * zero), spec.scale_type));
    }
  }
  return weight;
}

/// Copies of a packed weight's bytes, each in memory of its own.
std::vector<PackedWeight> copies_of(const PackedWeight& weight) {
  std::vector<PackedWeight> copies = {weight};
  const PackedView& view = weight.view();
  const std::int64_t strips = layout::num_strips(view.n);
  const auto codes_bytes = static_cast<std::size_t>(strips * view.codes_pitch_bytes);
  const auto num_scales = static_cast<std::size_t>(strips * view.groups_pitch * 16);
  const std::size_t zero_bytes = view.spec.zero == ZeroKind::none      ? 0
                                 : view.spec.zero == ZeroKind::integer ? num_scales
                                                                       : 2 * num_scales;
  const int wanted = num_copies(static_cast<double>(weight.size_bytes()), false);
  while (static_cast<int>(copies.size()) < wanted) {
    // Parts begin at multiples of 64 bytes, as pack() lays them out.
    const auto align = [](std::size_t bytes) { return (bytes + 63) / 64 * 64; };
    const std::size_t total = align(codes_bytes) + align(2 * num_scales) + align(zero_bytes);
    std::shared_ptr<std::uint8_t> storage(
        static_cast<std::uint8_t*>(::operator new(total, std::align_val_t(64))),
        [](std::uint8_t* p) { ::operator delete(p, std::align_val_t(64)); });
    std::uint8_t* codes = storage.get();
    std::uint8_t* scales = codes + align(codes_bytes);
    std::uint8_t* zeros = scales + align(2 * num_scales);
    std::memcpy(codes, view.codes, codes_bytes);
    std::memcpy(scales, view.scales, 2 * num_scales);
    if (zero_bytes > 0) std::memcpy(zeros, view.zeros, zero_bytes);
    PackedView copy = view;
    copy.codes = codes;
    copy.scales = reinterpret_cast<const std::uint16_t*>(scales);
    copy.zeros = zero_bytes > 0 ? zeros : nullptr;
    copies.emplace_back(copy, storage);
  }
  return copies;
}

/// Time to read the packed codes once, cold, with the same threads: what a product can't beat.
double read_us(const std::vector<PackedWeight>& copies, int num_threads) {
  std::atomic<std::uint64_t> sink{0};
  return median_us([&](std::int64_t index) {
    const PackedView& view = copies[static_cast<std::size_t>(index) % copies.size()].view();
    const std::int64_t words = layout::num_strips(view.n) * view.codes_pitch_bytes / 8;
    const std::int64_t grain = std::max<std::int64_t>(1 << 13, words / 64);
    parallel_for(words, grain, num_threads, [&](std::int64_t begin, std::int64_t end) {
      const auto* data = reinterpret_cast<const std::uint64_t*>(view.codes);
      std::array<std::uint64_t, 8> sums{};
      for (std::int64_t i = begin; i + 8 <= end; i += 8) {
        for (int j = 0; j < 8; ++j) sums[j] += data[i + j];
      }
      std::uint64_t sum = 0;
      for (const std::uint64_t part : sums) sum += part;
      sink.fetch_add(sum, std::memory_order_relaxed);
    });
  });
}

/// Relative Frobenius error of up to four rows of y, spread over M, against the fp64 oracle.
Result<double> error_against_oracle(const Problem& problem, const PackedView& weight,
                                    const std::vector<std::uint16_t>& x,
                                    const std::vector<std::uint16_t>& y) {
  const std::int64_t rows = std::min<std::int64_t>(4, problem.m);
  std::vector<std::uint16_t> picked_x;
  std::vector<std::int64_t> picked;
  for (std::int64_t i = 0; i < rows; ++i) {
    picked.push_back(rows == 1 ? 0 : i * (problem.m - 1) / (rows - 1));
    picked_x.insert(picked_x.end(), x.begin() + picked.back() * problem.k,
                    x.begin() + (picked.back() + 1) * problem.k);
  }
  std::vector<double> expected(static_cast<std::size_t>(rows * problem.n));
  Problem small = problem;
  small.m = rows;
  RunArgs args;
  args.x = picked_x.data();
  args.ldx = problem.k;
  args.weight = weight;
  args.y = expected.data();
  args.ldy = problem.n;
  if (Status status = reference_gemm(small, args); !status.ok()) return status;
  double difference = 0.0, norm = 0.0;
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t n = 0; n < problem.n; ++n) {
      const double want = expected[i * problem.n + n];
      const double got = f32_from_bits(y[picked[i] * problem.n + n], problem.act);
      difference += (got - want) * (got - want);
      norm += want * want;
    }
  }
  return norm > 0.0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

}  // namespace

CpuLayer::CpuLayer(const Shape& shape, const QuantSpec& spec, int num_threads, bool baselines)
    : shape_(shape), spec_(spec), num_threads_(num_threads), baselines_(baselines) {}

Status CpuLayer::prepare() {
  const CanonicalWeight canonical = random_weight(shape_, spec_);
  auto packed = pack(canonical, num_threads_);
  if (!packed.ok()) return packed.status();
  weights_ = copies_of(*packed);
  floor_us_ = read_us(weights_, num_threads_);
  if (baselines_) blas_ = DenseBlas::find();
  if (!blas_) return {};
  auto dense = dequantize(canonical);
  if (!dense.ok()) return dense.status();
  const int copies = num_copies(4.0 * static_cast<double>(dense->size()), false);
  dense_.assign(static_cast<std::size_t>(copies - 1), *dense);
  dense_.push_back(std::move(*dense));
  return {};
}

Problem CpuLayer::problem(std::int64_t m) const {
  Problem problem;
  problem.m = m;
  problem.n = shape_.n;
  problem.k = shape_.k;
  problem.act = spec_.scale_type;
  problem.weight = spec_;
  return problem;
}

double CpuLayer::bits_per_weight() const {
  return 8.0 * static_cast<double>(weights_.front().size_bytes()) /
         (static_cast<double>(shape_.n) * static_cast<double>(shape_.k));
}

/// µs per call of ours and of the dense product, which is the faster of two routines for M = 1.
/// They take turns, so that a change of the machine's mood meets both.
template <class Ours>
std::pair<Spread, double> CpuLayer::times(std::int64_t m, const std::vector<std::uint16_t>& x,
                                          int samples, const Ours& ours) {
  Timer timer(ours);
  if (!blas_) {
    for (int turn = 0; turn < samples; ++turn) timer.sample();
    return {timer.spread_us(), -1.0};
  }
  std::vector<float> x_f32(x.size()), y(static_cast<std::size_t>(m * shape_.n));
  for (std::size_t i = 0; i < x.size(); ++i) x_f32[i] = f32_from_bits(x[i], spec_.scale_type);
  const auto weight = [&](std::int64_t index) {
    return dense_[static_cast<std::size_t>(index) % dense_.size()].data();
  };
  Timer gemm([&](std::int64_t index) {
    blas_->gemm(m, shape_.n, shape_.k, x_f32.data(), weight(index), y.data());
  });
  Timer gemv([&](std::int64_t index) {
    blas_->gemv(shape_.n, shape_.k, x_f32.data(), weight(index), y.data());
  });
  for (int turn = 0; turn < samples; ++turn) {
    gemm.sample();
    if (m == 1) gemv.sample();
    wait_until_idle();
    timer.sample();
  }
  const double blas_us = m == 1 ? std::min(gemm.median_us(), gemv.median_us()) : gemm.median_us();
  return {timer.spread_us(), blas_us};
}

Result<CpuLayer::Measured> CpuLayer::measure(std::int64_t m, const std::string& kernel,
                                             int samples) {
  const Problem problem = this->problem(m);
  PlanOptions plan_options;
  plan_options.kernel = kernel;
  plan_options.num_threads = num_threads_;
  auto decided = plan(problem, plan_options);
  if (!decided.ok()) return decided.status();
  Measured measured;
  measured.plan = *decided;
  const Plan& plan = measured.plan;

  const auto x = random_activations(m * shape_.k, problem.act, 3);
  // NaN in both formats, so that an output that nothing wrote shows.
  std::vector<std::uint16_t> y(static_cast<std::size_t>(m * shape_.n), 0x7fff);
  std::vector<std::uint8_t> workspace(plan.workspace_bytes() + 256);
  RunArgs args;
  args.x = x.data();
  args.ldx = shape_.k;
  args.y = y.data();
  args.ldy = shape_.n;
  args.weight = weights_.front().view();
  const auto address = reinterpret_cast<std::uintptr_t>(workspace.data());
  args.workspace = workspace.data() + (256 - address % 256) % 256;
  args.workspace_bytes = plan.workspace_bytes();
  if (Status status = plan.run(args); !status.ok()) return status;
  auto error = error_against_oracle(problem, args.weight, x, y);
  if (!error.ok()) return error.status();
  measured.rel_err = *error;

  const auto ours = [&](std::int64_t index) {
    args.weight = weights_[static_cast<std::size_t>(index) % weights_.size()].view();
    // The same arguments passed the checks above, so this can't fail.
    (void)plan.run(args).ok();
  };
  std::tie(measured.us, measured.blas_us) = times(m, x, samples, ours);
  return measured;
}

}  // namespace mixgemm::bench
