// SPDX-License-Identifier: Apache-2.0
#include "gpu/gemm_bench.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "layout/packed.hpp"
#include "util/half.hpp"

namespace mixgemm::bench {
namespace {

constexpr std::uint32_t kActivationsSeed = 5;
constexpr int kPoison = 0xff;  // a NaN in both 16-bit formats

GpuFacts current_device() {
  int ordinal = 0;
  cudaDeviceProp properties{};
  check(cudaGetDevice(&ordinal), "cudaGetDevice");
  check(cudaGetDeviceProperties(&properties, ordinal), "cudaGetDeviceProperties");
  return {properties.name, properties.multiProcessorCount};
}

std::size_t bytes16(std::int64_t rows, std::int64_t columns) {
  return 2 * static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns);
}

/// More digits than any measurement here has.
double thousandths(double value) { return std::round(value * 1e3) * 1e-3; }

template <class T>
std::vector<T> copy_to_host(const void* from, std::size_t count) {
  std::vector<T> to(count);
  check(cudaMemcpy(to.data(), from, count * sizeof(T), cudaMemcpyDeviceToHost), "copy to the host");
  return to;
}

}  // namespace

GemmBench::GemmBench(double timeout_s, bool baselines, Sink sink)
    : device_(current_device()),
      sink_(std::move(sink)),
      watchdog_(timeout_s),
      timer_(clock_),
      cublas_(baselines ? CublasLt::load() : nullptr),
      baselines_(baselines) {}

std::string GemmBench::dense_library() const {
  if (!baselines_) return "not asked for";
  return cublas_ ? cublas_->description() : "cuBLASLt not found (set MIXGEMM_CUBLASLT to its file)";
}

void GemmBench::load(const Shape& shape, const QuantSpec& spec, std::int64_t max_m) {
  const Watchdog::Watch watch = watchdog_.watch([&] {
    Measurement none;
    GemmRow row = empty_row(none);
    row.layer = shape.layer;
    row.ok = false;
    row.error = fmt::format("preparing the layer took longer than {} s", watchdog_.limit_s());
    sink_(to_json(row));
  });
  const cudaStream_t stream = timer_.stream();
  const auto same_layout = [](const QuantSpec& a, const QuantSpec& b) {
    return a.type == b.type && a.group_size == b.group_size && a.zero == b.zero;
  };
  if (shape == shape_ && same_layout(spec, spec_)) {
    weights_.remake_scales(spec, stream);
  } else {
    shape_ = {};  // stays so if this fails
    const double bytes = static_cast<double>(WeightPool::layout_of(shape, spec).stride);
    weights_.make(shape, spec, num_copies(bytes, true), stream);
  }
  shape_ = shape;
  spec_ = spec;
  max_m_ = max_m;
  dense_.clear();

  x_.reserve(bytes16(max_m, shape.k), "X");
  y_.reserve(bytes16(max_m, shape.n), "Y");
  fill_activations(x_.as<>(), max_m * shape.k, spec.scale_type, kActivationsSeed, stream);
  make_reference();
  check_reference_on_cpu();
  make_dense();
  timer_.synchronize();
}

void GemmBench::make_reference() {
  const std::size_t weights = static_cast<std::size_t>(shape_.n * shape_.k);
  const std::size_t outputs = static_cast<std::size_t>(max_m_ * shape_.n);
  weight_f64_.reserve(weights * sizeof(double), "the fp64 weight");
  reference_.reserve(outputs * sizeof(double), "the fp64 reference");
  const cudaStream_t stream = timer_.stream();
  dequantize_f64(weights_.view(0), false, weight_f64_.as<double>(), stream);
  // A row of Y doesn't depend on M, so one product serves every token count up to max_m.
  reference_product(x_.as<>(), spec_.scale_type, weight_f64_.as<double>(), reference_.as<double>(),
                    max_m_, shape_.n, shape_.k, stream);
  timer_.synchronize();
}

void GemmBench::check_reference_on_cpu() {
  const std::int64_t strips = layout::num_strips(shape_.n);
  const std::int64_t tokens[] = {0, max_m_ - 1};
  const PackedView weight = weights_.view(0);
  const std::int64_t groups = weight.groups();
  std::vector<std::uint16_t> x;
  for (const std::int64_t token : tokens) {
    const auto row = copy_to_host<std::uint16_t>(x_.as<std::uint16_t>() + token * shape_.k,
                                                 static_cast<std::size_t>(shape_.k));
    x.insert(x.end(), row.begin(), row.end());
  }
  for (const std::int64_t strip : {std::int64_t{0}, strips / 2, strips - 1}) {
    const std::int64_t n0 = strip * layout::kStripRows;
    const std::int64_t rows = std::min<std::int64_t>(layout::kStripRows, shape_.n - n0);
    const auto num_scales = static_cast<std::size_t>(groups * layout::kStripRows);
    const auto codes =
        copy_to_host<std::uint8_t>(weight.codes + strip * weight.codes_pitch_bytes,
                                   static_cast<std::size_t>(weight.codes_pitch_bytes));
    const std::int64_t first_scale = layout::scale_index(n0, 0, groups);
    const auto scales = copy_to_host<std::uint16_t>(weight.scales + first_scale, num_scales);
    std::vector<std::uint16_t> zeros;
    std::vector<std::uint8_t> integer_zeros;  // what ZeroKind::integer is on the CPU
    if (weight.zeros != nullptr) {
      zeros = copy_to_host<std::uint16_t>(
          static_cast<const std::uint16_t*>(weight.zeros) + first_scale, num_scales);
      for (const std::uint16_t zero : zeros) {
        integer_zeros.push_back(static_cast<std::uint8_t>(f32_from_bits(zero, spec_.scale_type)));
      }
    }

    PackedView slice = weight;
    slice.n = rows;
    slice.device = Device::cpu;
    slice.codes = codes.data();
    slice.scales = scales.data();
    if (spec_.zero == ZeroKind::integer) slice.zeros = integer_zeros.data();
    if (spec_.zero == ZeroKind::scaled) slice.zeros = zeros.data();
    Problem problem;
    problem.m = std::size(tokens);
    problem.n = rows;
    problem.k = shape_.k;
    problem.act = spec_.scale_type;
    problem.weight = spec_;
    std::vector<double> expected(std::size(tokens) * static_cast<std::size_t>(rows));
    RunArgs args;
    args.x = x.data();
    args.ldx = shape_.k;
    args.weight = slice;
    args.y = expected.data();
    args.ldy = rows;
    reference_gemm(problem, args).throw_if_error();

    for (std::size_t t = 0; t < std::size(tokens); ++t) {
      const auto actual = copy_to_host<double>(reference_.as<double>() + tokens[t] * shape_.n + n0,
                                               static_cast<std::size_t>(rows));
      for (std::size_t i = 0; i < actual.size(); ++i) {
        const double want = expected[t * static_cast<std::size_t>(rows) + i];
        constexpr double kTolerance = 1e-10;  // two orders of fp64 additions of values near 1
        if (!(std::abs(actual[i] - want) <= kTolerance * (1 + std::abs(want)))) {
          throw Error(StatusCode::internal,
                      fmt::format("the fp64 reference of {} differs from the CPU oracle at "
                                  "token {}, feature {}: {} against {}",
                                  shape_.layer, tokens[t], n0 + static_cast<std::int64_t>(i),
                                  actual[i], want));
        }
      }
    }
  }
}

void GemmBench::make_dense() {
  const cudaStream_t stream = timer_.stream();
  if (cublas_) {
    const std::size_t bytes = bytes16(shape_.n, shape_.k);
    // cuBLAS's launches don't overlap, but its copies rotate just as coldly.
    num_dense_copies_ = num_copies(static_cast<double>(bytes), false);
    dense_copies_.reserve(bytes * static_cast<std::size_t>(num_dense_copies_), "dense weights");
    dequantize_16(weights_.view(0), dense_copies_.as<std::uint16_t>(), stream);
    for (int copy = 1; copy < num_dense_copies_; ++copy) {
      check(cudaMemcpyAsync(dense_copies_.as<>() + bytes * static_cast<std::size_t>(copy),
                            dense_copies_.as<>(), bytes, cudaMemcpyDeviceToDevice, stream),
            "copy of the dense weight");
    }
    return;
  }
  const std::int64_t outputs = max_m_ * shape_.n;
  rounded_f64_.reserve(static_cast<std::size_t>(outputs) * sizeof(double), "the rounded product");
  rounded_.reserve(bytes16(max_m_, shape_.n), "the rounded product");
  dequantize_f64(weights_.view(0), true, weight_f64_.as<double>(), stream);
  reference_product(x_.as<>(), spec_.scale_type, weight_f64_.as<double>(),
                    rounded_f64_.as<double>(), max_m_, shape_.n, shape_.k, stream);
  round_to_16(rounded_f64_.as<double>(), rounded_.as<std::uint16_t>(), outputs, spec_.scale_type,
              stream);
}

const GemmBench::Floors& GemmBench::floors(const Shape& shape, WeightType weight) {
  const auto key = std::tuple(shape.n, shape.k, weight);
  const auto found = floors_.find(key);
  if (found != floors_.end()) return found->second;

  // The loaded layer's codes serve where they are those; else codes of their own, for a while.
  WeightPool own;
  const WeightPool* pool = &weights_;
  if (shape.n != shape_.n || shape.k != shape_.k || weight != spec_.type) {
    QuantSpec spec;
    spec.type = weight;
    const double bytes = static_cast<double>(WeightPool::layout_of(shape, spec).stride);
    own.make(shape, spec, num_copies(bytes, true), timer_.stream());
    pool = &own;
  }
  const Floors floors{pool->measure_floor(timer_, device_.num_sms, true),
                      pool->measure_floor(timer_, device_.num_sms, false)};
  return floors_.emplace(key, floors).first->second;
}

const GemmBench::Dense& GemmBench::dense(std::int64_t m, const Protocol& protocol) {
  // Under the same load as what stands beside it; always timed in full.
  Protocol full;
  full.load = protocol.load;
  const auto key = std::pair(m, static_cast<std::int64_t>(full.load.count()));
  const auto found = dense_.find(key);
  if (found != dense_.end()) return found->second;

  Dense dense;
  const cudaStream_t stream = timer_.stream();
  const std::int64_t outputs = m * shape_.n;
  if (cublas_) {
    const CublasLt::Product product(*cublas_, m, shape_.n, shape_.k, spec_.scale_type);
    const std::size_t bytes = bytes16(shape_.n, shape_.k);
    std::vector<GraphTimer::Launch> heuristics;
    for (std::size_t i = 0; i < product.num_heuristics(); ++i) {
      heuristics.push_back([&, i](int copy, cudaStream_t on) {
        product.run(i, x_.as<>(), dense_copies_.as<>() + bytes * static_cast<std::size_t>(copy),
                    y_.as<>(), on);
      });
    }
    const GraphTimer::Best best = timer_.best_of(heuristics, num_dense_copies_, 2, full);
    dense.us = best.timing.us.median;
    dense.launches = best.timing.launches;
    check(cudaMemsetAsync(y_.as<>(), kPoison, bytes16(m, shape_.n), stream), "poisoning Y");
    product.run(best.index, x_.as<>(), dense_copies_.as<>(), y_.as<>(), stream);
    dense.error =
        comparer_.compare(y_.as<>(), spec_.scale_type, reference_.as<double>(), outputs, stream);
  } else {
    dense.error = comparer_.compare(rounded_.as<>(), spec_.scale_type, reference_.as<double>(),
                                    outputs, stream);
  }
  return dense_.emplace(key, dense).first->second;
}

Problem GemmBench::problem(std::int64_t m) const {
  Problem problem;
  problem.m = m;
  problem.n = shape_.n;
  problem.k = shape_.k;
  problem.act = spec_.scale_type;
  problem.weight = spec_;
  problem.device = Device::cuda;
  return problem;
}

GemmRow GemmBench::empty_row(const Measurement& what) const {
  GemmRow row;
  row.gpu = device_.name;
  row.kernel = what.kernel.substr(0, what.kernel.find('@'));
  row.config = what.kernel;
  row.is_auto = what.kernel.empty();
  row.act = spec_.scale_type;
  row.spec = spec_;
  row.pdl = what.pdl;
  row.m = what.m;
  row.n = shape_.n;
  row.k = shape_.k;
  row.layer = shape_.layer;
  return row;
}

ErrorNorms GemmBench::check_output(std::int64_t m, const ErrorNorms& allowed, const char* when) {
  const ErrorNorms error = comparer_.compare(y_.as<>(), spec_.scale_type, reference_.as<double>(),
                                             m * shape_.n, timer_.stream());
  if (keeps_contract(error, allowed)) return error;
  throw Error(StatusCode::internal,
              fmt::format("wrong result {}: relative error {:.3e} (dense 16-bit product {:.3e}), "
                          "largest {:.3e} of the rms (dense {:.3e}), {} elements not finite or not "
                          "written of {}",
                          when, error.relative, allowed.relative, error.worst, allowed.worst,
                          error.bad, m * shape_.n));
}

GemmBench::Json GemmBench::measure(const Measurement& what) {
  GemmRow row = empty_row(what);
  Timing timing;
  ErrorNorms error;
  const Dense* dense_product = nullptr;
  const Floors* floor = nullptr;

  const auto finished = [&] {
    Json json = to_json(row);
    if (timing.launches > 0) {
      json["us_min"] = thousandths(timing.us.min);
      json["us_max"] = thousandths(timing.us.max);
      json["launches"] = timing.launches;
      if (what.protocol.load.count() > 0) json["load_ms"] = what.protocol.load.count();
      json["copies"] = weights_.copies();
      json["working_set_mb"] = std::round(static_cast<double>(weights_.copy_bytes()) * 1e-6 *
                                          static_cast<double>(weights_.copies()));
    }
    if (floor != nullptr) {
      json["floor_nopdl_us"] = thousandths(floor->without_pdl.us);
      json["floor_ring"] = to_string(floor->with_pdl.ring);
    }
    if (dense_product != nullptr) {
      json["worst_err"] = error.worst;
      json["worst_err_dense"] = dense_product->error.worst;
      if (dense_product->launches > 0) json["cublas_launches"] = dense_product->launches;
      if (!cublas_) json["rel_err_rounded"] = dense_product->error.relative;
    }
    return json;
  };
  const Watchdog::Watch watch = watchdog_.watch([&] {
    // The waiting thread stands still, so the row can be read from this one.
    row.ok = false;
    row.error = fmt::format("hangs: no answer after {} s", watchdog_.limit_s());
    sink_(finished());
  });

  try {
    if (what.floor) {
      floor = &floors(shape_, spec_.type);
      row.floor_us = floor->with_pdl.us;
      row.ideal_us = ideal_us(what.m, shape_.n, shape_.k, row.floor_us);
    }
    dense_product = &dense(what.m, what.protocol);
    row.cublas_us = dense_product->us;
    if (cublas_) row.rel_err_cublas = dense_product->error.relative;

    const Plan chosen = plan(problem(what.m), {.kernel = what.kernel}).value();
    row.kernel = chosen.kernel_id();
    row.config = chosen.config_id();
    const cudaStream_t stream = timer_.stream();
    if (chosen.workspace_bytes() > 0) {
      workspace_.reserve(chosen.workspace_bytes(), "workspace");
      check(cudaMemsetAsync(workspace_.as<>(), kWorkspacePoison, chosen.workspace_bytes(), stream),
            "poisoning the workspace");
    }
    RunArgs args;
    args.x = x_.as<>();
    args.ldx = shape_.k;
    args.y = y_.as<>();
    args.ldy = shape_.n;
    args.workspace = chosen.workspace_bytes() > 0 ? workspace_.as<>() : nullptr;
    args.workspace_bytes = chosen.workspace_bytes();
    const auto run = [&](int copy, cudaStream_t on, bool pdl) {
      args.weight = weights_.view(copy);
      args.stream = on;
      args.pdl = pdl;
      chosen.run(args).throw_if_error();
    };
    const auto poison = [&] {
      check(cudaMemsetAsync(y_.as<>(), kPoison, bytes16(what.m, shape_.n), stream), "poisoning Y");
    };

    poison();
    run(0, stream, false);
    error = check_output(what.m, dense_product->error, "before timing");
    row.rel_err = error.relative;
    poison();
    timing = timer_.time([&](int copy, cudaStream_t on) { run(copy, on, what.pdl); },
                         weights_.copies(), what.protocol);
    // All copies hold the same numbers, so what the overlapping launches left must be right too.
    check_output(what.m, dense_product->error, "after the timed launches");
    row.us = timing.us.median;
    row.clock_mhz = timing.clock_mhz;
  } catch (const Error& failure) {
    row.ok = false;
    row.error = failure.what();
    row.us = -1;
    if (const cudaError_t lost = cudaDeviceSynchronize(); lost != cudaSuccess) {
      sink_(finished());
      throw Error(StatusCode::device_error,
                  fmt::format("the device is lost after {} (M={}, {}): {}", row.config, row.m,
                              row.layer, cudaGetErrorString(lost)));
    }
    cudaGetLastError();  // not sticky: forget it, so that the next launch isn't blamed
  }
  return finished();
}

}  // namespace mixgemm::bench
