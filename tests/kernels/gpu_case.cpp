// SPDX-License-Identifier: Apache-2.0
#include "gpu_case.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "launch/device.hpp"
#include "layout/packed.hpp"
#include "mixgemm/version.hpp"
#include "util/half.hpp"

namespace mixgemm::gpu_test {
namespace {

constexpr std::size_t kGuardElems = 2048;  // 4 KB in front and behind
constexpr std::size_t kMaxFindings = 8192;
constexpr std::uint8_t kWorkspaceGuard = 0xa5;
constexpr std::size_t kWorkspaceGuardBytes = 4096;
constexpr std::size_t kArenaBytes = std::size_t{3} << 30;
// Below this many outputs the ratio of two error norms is left to chance.
constexpr std::size_t kFewOutputs = 512;

std::size_t round_up(std::size_t value, std::size_t to) { return (value + to - 1) / to * to; }

/// SplitMix64: eight random bytes a call.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15ull + 1) {}
  std::uint64_t next() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
  }
  float uniform(float low, float high) {
    return low + (high - low) * static_cast<float>(next() >> 40) * 0x1p-24f;
  }

 private:
  std::uint64_t state_;
};

}  // namespace

const std::string& why_no_device() {
  static const std::string reason = [] {
    std::string note = "no CUDA device";
    for (const DeviceInfo& device : devices()) {
      if (device.device != Device::cuda) continue;
      if (device.usable) return std::string();
      note = device.note;
    }
    return "no usable CUDA device: " + note;
  }();
  return reason;
}

const select::DeviceFacts& device_facts() {
  const auto device = cuda::current_device();
  device.status().throw_if_error();
  return (*device)->facts;
}

void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  const std::string message = std::string(what) + ": " + cudaGetErrorString(error);
  ADD_FAILURE() << message;
  throw std::runtime_error(message);
}

// ---- summary ------------------------------------------------------------------------------------

Summary& Summary::instance() {
  static Summary summary;
  return summary;
}

void Summary::count(const std::string& mechanism, std::int64_t runs) {
  std::lock_guard lock(mutex_);
  counts_[mechanism] += runs;
}

void Summary::worst(const std::string& config, const std::string& type, double relative,
                    double to_reference, double element) {
  std::lock_guard lock(mutex_);
  const auto keep = [&](Worst& worst, double value) {
    if (value > worst.value) worst = {value, config};
  };
  keep(relative_[type], relative);
  keep(to_reference_, to_reference);
  keep(element_, element);
}

bool Summary::write(const std::string& path, const std::string& commit, int failed, int passed,
                    int skipped) const {
  std::lock_guard lock(mutex_);
  const auto shown = [](const Worst& worst) {
    return nlohmann::json{{"value", worst.value}, {"config", worst.config}};
  };
  nlohmann::ordered_json json;
  json["version"] = version();
  json["commit"] = commit;
  for (const DeviceInfo& device : devices()) {
    if (device.device != Device::cuda) continue;
    json["device"] = device.name;
    json["driver"] = device.note;
    json["sms"] = device.num_sms;
    break;
  }
  json["tests"] = {{"passed", passed}, {"failed", failed}, {"skipped", skipped}};
  int kernel_count = 0;
  for (const KernelInfo& kernel : kernels()) kernel_count += kernel.device == Device::cuda;
  json["kernels"] = kernel_count;
  std::int64_t runs = 0;
  for (const auto& [mechanism, count] : counts_) runs += count;
  json["checked_launches"] = runs;
  json["by_mechanism"] = counts_;
  for (const auto& [type, worst] : relative_) {
    json["worst_relative_error"][type] = shown(worst);
  }
  json["worst_error_to_rounded_weight_product"] = shown(to_reference_);
  json["worst_element_error_to_bound"] = shown(element_);
  std::ofstream file(path);
  file << json.dump(1) << '\n';
  return static_cast<bool>(file.flush());
}

// ---- memory -------------------------------------------------------------------------------------

bool Arena::exact = false;

Arena::Arena(std::size_t bytes) : size_(bytes) {
  if (!exact) check_cuda(cudaMalloc(reinterpret_cast<void**>(&base_), bytes), "arena");
}

Arena::~Arena() {
  reset();
  cudaFree(base_);
}

void* Arena::allocate(std::size_t bytes) {
  if (exact) {
    void* piece = nullptr;
    check_cuda(cudaMalloc(&piece, std::max<std::size_t>(bytes, 1)), "allocation");
    pieces_.push_back(piece);
    used_ = pieces_.size();
    return piece;
  }
  const std::size_t padded = round_up(bytes, 256);
  if (used_ + padded > size_) throw std::runtime_error("the tests' arena is too small");
  used_ += padded;
  return base_ + used_ - padded;
}

void Arena::reset(std::size_t mark) {
  for (; exact && pieces_.size() > mark; pieces_.pop_back()) cudaFree(pieces_.back());
  used_ = mark;
}

Session::Session() {
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  arena = std::make_unique<Arena>(kArenaBytes);
}

Session& Session::instance() {
  static auto* session = new Session;  // the driver is gone before static destructors run
  return *session;
}

Matrix make_matrix(Arena& arena, int rows, int cols, Placement placement) {
  Matrix m;
  m.rows = rows;
  m.cols = cols;
  const auto width = static_cast<std::int64_t>(round_up(static_cast<std::size_t>(cols), 8));
  m.ld = placement == Placement::odd_ld ? (cols + 2) / 2 * 2 + 1 : width + 8;
  m.first = kGuardElems + (placement == Placement::odd_base ? 1 : 0);
  m.elems = m.first + static_cast<std::size_t>(rows) * static_cast<std::size_t>(m.ld) + kGuardElems;
  m.allocation = arena.allocate_array<std::uint16_t>(m.elems);
  return m;
}

// ---- weights ------------------------------------------------------------------------------------

CanonicalWeight random_weight(int n, int k, const QuantSpec& spec, std::uint32_t seed) {
  Random random(seed);
  CanonicalWeight w;
  w.n = n;
  w.k = k;
  w.spec = spec;
  const auto count = static_cast<std::size_t>(n) * static_cast<std::size_t>(k);
  const std::uint64_t mask = spec.type == WeightType::int4 ? 0x0f0f0f0f0f0f0f0full : ~0ull;
  w.codes.resize(round_up(count, 8));
  for (std::size_t i = 0; i < count; i += 8) {
    const std::uint64_t codes = random.next() & mask;
    std::copy_n(reinterpret_cast<const std::uint8_t*>(&codes), 8, w.codes.data() + i);
  }
  w.codes.resize(count);
  const float unit = spec.type == WeightType::int4 ? 0.02f : 0.00125f;
  const int codes = 1 << bits_of(spec.type);
  const auto groups = static_cast<std::size_t>(n) * static_cast<std::size_t>(w.groups());
  w.scales.resize(groups);
  if (spec.zero == ZeroKind::integer) w.zeros.resize(groups);
  if (spec.zero == ZeroKind::scaled) w.scaled_zeros.resize(groups);
  // Factors of scales, as powers of two: as far apart as fp16's range allows, or further.
  const bool wide = spec.scale_type == DataType::bf16;
  const float least = wide ? -30.f : -9.f, most = wide ? 14.f : 5.f;
  for (std::size_t i = 0; i < groups; ++i) {
    float scale = unit * random.uniform(0.5f, 1.5f);
    const bool wild = i / static_cast<std::size_t>(w.groups()) % 7 == 3;  // rows of any scales
    if (wild) scale *= random.next() % 16 == 0 ? 0.f : std::exp2(random.uniform(least, most));
    if (wild && random.next() % 8 == 0) scale = -scale;
    w.scales[i] = bits_from_f32(scale, spec.scale_type);
    const auto zero = static_cast<std::uint8_t>(random.next() % static_cast<unsigned>(codes));
    if (spec.zero == ZeroKind::integer) w.zeros[i] = zero;
    if (spec.zero == ZeroKind::scaled) {
      w.scaled_zeros[i] = bits_from_f32(
          scale * (static_cast<float>(zero) + random.uniform(-0.5f, 0.5f)), spec.scale_type);
    }
  }
  return w;
}

Matrix TestWeight::guarded(Arena& arena, const void* source, std::size_t row_bytes,
                           std::size_t pitch_bytes, std::size_t extra_pitch_bytes, std::size_t rows,
                           cudaStream_t stream) {
  Matrix m;
  m.rows = static_cast<int>(rows);
  m.cols = static_cast<int>(row_bytes / 2);
  Matrix original = m;
  original.allocation = static_cast<std::uint16_t*>(const_cast<void*>(source));
  original.ld = static_cast<std::int64_t>(pitch_bytes / 2);
  m.ld = static_cast<std::int64_t>((row_bytes + extra_pitch_bytes) / 2);
  m.first = kGuardElems;
  m.elems = 2 * kGuardElems + rows * static_cast<std::size_t>(m.ld);
  m.allocation = arena.allocate_array<std::uint16_t>(m.elems);
  check_cuda(cudaMemsetAsync(m.allocation, 0xff, m.elems * 2, stream), "guards");
  check_cuda(cudaMemcpy2DAsync(m.data(), static_cast<std::size_t>(m.ld) * 2, source, pitch_bytes,
                               row_bytes, rows, cudaMemcpyDeviceToDevice, stream),
             "weight");
  pieces_.push_back(m);
  originals_.push_back(original);
  return m;
}

TestWeight::TestWeight(Arena& arena, int n, int k, const QuantSpec& spec, std::uint32_t seed,
                       cudaStream_t stream) {
  const CanonicalWeight w = random_weight(n, k, spec, seed);
  auto packed = pack(w);
  packed.status().throw_if_error();
  packed_ = std::move(*packed);
  auto uploaded = to_cuda(packed_);
  uploaded.status().throw_if_error();
  on_device_ = std::move(*uploaded);

  // Between guards, with a gap after each strip. Guards of scales and zeros are NaN.
  view_ = on_device_.view();
  const auto strips = static_cast<std::size_t>(layout::num_strips(n));
  const auto code_bytes = static_cast<std::size_t>(layout::strip_bytes(k, bits_of(spec.type)));
  const auto group_bytes = static_cast<std::size_t>(w.groups()) * layout::kStripRows * 2;
  const auto code_pitch = static_cast<std::size_t>(view_.codes_pitch_bytes);
  const auto group_pitch = static_cast<std::size_t>(view_.groups_pitch) * layout::kStripRows * 2;
  const Matrix codes = guarded(arena, view_.codes, code_bytes, code_pitch, 512, strips, stream);
  const Matrix scales = guarded(arena, view_.scales, group_bytes, group_pitch, 32, strips, stream);
  if (view_.zeros != nullptr) {
    view_.zeros = guarded(arena, view_.zeros, group_bytes, group_pitch, 32, strips, stream).data();
  }
  view_.codes = reinterpret_cast<const std::uint8_t*>(codes.data());
  view_.codes_pitch_bytes = codes.ld * 2;
  view_.scales = scales.data();
  view_.groups_pitch = scales.ld / layout::kStripRows;

  // Dense, from the canonical form: the packed layout has no part in the reference.
  const auto upload = [&](const auto& values) {
    using Value = typename std::decay_t<decltype(values)>::value_type;
    if (values.empty()) return static_cast<Value*>(nullptr);
    auto* const target = arena.allocate_array<Value>(values.size());
    check_cuda(cudaMemcpyAsync(target, values.data(), values.size() * sizeof(Value),
                               cudaMemcpyHostToDevice, stream),
               "canonical weight");
    return target;
  };
  CanonicalOnDevice canonical;
  canonical.n = n;
  canonical.k = k;
  canonical.spec = spec;
  canonical.codes = upload(w.codes);
  canonical.scales = upload(w.scales);
  canonical.zeros = upload(w.zeros);
  canonical.scaled_zeros = upload(w.scaled_zeros);
  const auto count = static_cast<std::size_t>(n) * static_cast<std::size_t>(k);
  exact_ = arena.allocate_array<double>(count);
  rounded_ = arena.allocate_array<float>(count);
  make_dense(canonical, exact_, rounded_, stream);
  check_cuda(cudaStreamSynchronize(stream), "preparing a weight");  // the vectors die here
}

void TestWeight::check_untouched(Findings* findings, cudaStream_t stream) const {
  for (std::size_t i = 0; i < pieces_.size(); ++i) {
    check_guards(pieces_[i], findings, stream);
    check_same(pieces_[i], originals_[i], findings, stream);
  }
}

TestInputs::TestInputs(Arena& arena, const TestWeight& weight, int tokens, DataType type,
                       std::uint32_t seed, cudaStream_t stream)
    : m(tokens),
      n(static_cast<int>(weight.view().n)),
      k(static_cast<int>(weight.view().k)),
      act(type) {
  for (const Placement placement : kPlacements) {
    const auto i = static_cast<std::size_t>(placement);
    x[i] = make_matrix(arena, m, k, placement);
    fill_matrix(x[i], act, seed, -1.0f, 1.0f, stream);
    residual[i] = make_matrix(arena, m, n, placement);
    fill_matrix(residual[i], act, seed + 1, -2.0f, 2.0f, stream);
  }
  bias = make_matrix(arena, 1, n, Placement::aligned);
  fill_matrix(bias, act, seed + 2, -2.0f, 2.0f, stream);
  const auto outputs = static_cast<std::size_t>(m) * static_cast<std::size_t>(n);
  sums.exact = arena.allocate_array<double>(outputs);
  sums.rounded = arena.allocate_array<double>(outputs);
  sums.squares = arena.allocate_array<double>(outputs);
  reference_sums(x[0], act, weight.exact(), weight.rounded(), n, sums, stream);
}

Problem problem_for(const PackedView& weight, int m, DataType act, const Epilogue& epilogue) {
  Problem p;
  p.m = m;
  p.n = weight.n;
  p.k = weight.k;
  p.act = act;
  p.weight = weight.spec;
  p.epilogue = epilogue;
  p.device = Device::cuda;
  return p;
}

// ---- runner -------------------------------------------------------------------------------------

Runner::Runner(Arena& arena, cudaStream_t stream, std::size_t max_y_elems,
               std::size_t max_workspace)
    : stream_(stream), max_y_elems_(max_y_elems), max_workspace_(max_workspace) {
  y_ = arena.allocate_array<std::uint16_t>(max_y_elems);
  y2_ = arena.allocate_array<std::uint16_t>(max_y_elems);
  workspace_ = arena.allocate_array<std::uint8_t>(max_workspace + 2 * kWorkspaceGuardBytes);
  findings_ = arena.allocate_array<Findings>(kMaxFindings);
  check_cuda(cudaMemsetAsync(findings_, 0, kMaxFindings * sizeof(Findings), stream_), "findings");
}

Findings* Runner::next(Pending pending) {
  if (pending_.size() == kMaxFindings) collect();
  pending_.push_back(std::move(pending));
  return findings_ + pending_.size() - 1;
}

Findings* Runner::extra(const std::string& name) { return next({name, "", "", false, 0}); }

Matrix Runner::y_matrix(std::uint16_t* allocation, int m, int n, Placement placement) const {
  Matrix y;
  y.rows = m;
  y.cols = n;
  y.ld = placement == Placement::odd_ld
             ? (n + 2) / 2 * 2 + 1
             : static_cast<std::int64_t>(round_up(static_cast<std::size_t>(n), 8)) + 8;
  y.first = kGuardElems + (placement == Placement::odd_base ? 1 : 0);
  y.elems = y.first + static_cast<std::size_t>(m) * static_cast<std::size_t>(y.ld) + kGuardElems;
  y.allocation = allocation;
  if (y.elems > max_y_elems_) throw std::runtime_error("the tests' output buffer is too small");
  return y;
}

void Runner::run(const TestWeight& weight, const TestInputs& in, const std::string& kernel,
                 const TestRun& run, bool batch_invariant) {
  Problem problem = problem_for(weight.view(), in.m, in.act, run.epilogue);
  problem.batch_invariant = batch_invariant;
  PlanOptions options;
  options.kernel = kernel;
  const auto made = plan(problem, options);
  const std::string shape = " m " + std::to_string(in.m) + " n " + std::to_string(in.n) + " k " +
                            std::to_string(in.k) + " zero " +
                            std::string(to_string(problem.weight.zero));
  if (!made) {
    ADD_FAILURE() << kernel << shape << ": " << made.status().message();
    return;
  }
  const std::size_t workspace_bytes = made->workspace_bytes();
  if (workspace_bytes > max_workspace_) {
    throw std::runtime_error("the tests' workspace is too small");
  }
  const Matrix& x = in.x[static_cast<std::size_t>(run.x)];
  const Matrix& residual = in.residual[static_cast<std::size_t>(run.residual)];
  const Matrix y = y_matrix(y_, in.m, in.n, run.y);
  Matrix y2 = y;
  y2.allocation = y2_;

  RunArgs args;
  args.x = x.data();
  args.ldx = x.ld;
  args.weight = weight.view();
  args.y = y.data();
  args.ldy = y.ld;
  if (run.epilogue.bias) args.bias = in.bias.data();
  if (run.epilogue.residual) {
    args.residual = residual.data();
    args.ldr = residual.ld;
  }
  args.alpha = run.alpha;
  args.stream = stream_;
  args.pdl = run.pdl;
  std::uint8_t* const workspace = workspace_ + kWorkspaceGuardBytes;
  if (workspace_bytes > 0) {
    args.workspace = workspace;
    args.workspace_bytes = workspace_bytes;
    check_cuda(cudaMemsetAsync(workspace_, kWorkspaceGuard,
                               workspace_bytes + 2 * kWorkspaceGuardBytes, stream_),
               "poisoning the workspace");
  }
  check_cuda(cudaMemsetAsync(y.allocation, 0xff, y.elems * 2, stream_), "poisoning Y");
  const std::string name = made->config_id() + shape + " x " +
                           std::to_string(static_cast<int>(run.x)) + " y " +
                           std::to_string(static_cast<int>(run.y));
  Findings* const findings =
      next({name, made->config_id(), std::string(to_string(in.act)), true,
            static_cast<std::size_t>(in.m) * static_cast<std::size_t>(in.n)});
  if (const Status status = made->run(args); !status) {
    ADD_FAILURE() << name << ": " << status.message();
    return;
  }
  Summary::instance().count(run.mechanism);
  CheckedEpilogue epilogue;
  epilogue.alpha = run.alpha;
  epilogue.activation = run.epilogue.activation;
  if (run.epilogue.bias) epilogue.bias = in.bias.data();
  if (run.epilogue.residual) {
    epilogue.residual = residual.data();
    epilogue.ldr = residual.ld;
  }
  check_output(y, in.act, in.sums, in.k, epilogue, findings, stream_);
  if (run.repeat) {  // on the workspace as the first launch left it
    check_cuda(cudaMemsetAsync(y2.allocation, 0xff, y2.elems * 2, stream_), "poisoning Y");
    args.y = y2.data();
    if (const Status status = made->run(args); !status) {
      ADD_FAILURE() << name << ", again: " << status.message();
      return;
    }
    check_same(y, y2, findings, stream_);
    check_guards(y2, findings, stream_);
    Summary::instance().count("repeated launches");
  }
  if (workspace_bytes > 0) {
    check_bytes(workspace_, kWorkspaceGuardBytes, kWorkspaceGuard, findings, stream_);
    check_bytes(workspace + workspace_bytes, kWorkspaceGuardBytes, kWorkspaceGuard, findings,
                stream_);
  }
}

void expect_contract(const Findings& found, std::size_t outputs, const std::string& name) {
  const double error = std::sqrt(found.error2);
  const double reference = std::sqrt(found.reference_error2);
  const double norm = std::sqrt(found.norm2);
  double limit = 1.05 * reference + 1e-5 * norm;
  if (outputs < kFewOutputs) limit += std::sqrt(found.slack2);
  EXPECT_EQ(found.nans, 0u) << name << ": outputs that are NaN or were never written, of "
                            << outputs;
  EXPECT_EQ(found.strays, 0u) << name << ": guard elements that changed";
  EXPECT_EQ(found.differing, 0u) << name << ": elements that differ from run to run";
  EXPECT_LE(error, limit) << name << ": relative error " << error / norm << ", of the product of "
                          << "rounded weights " << reference / norm;
  EXPECT_LE(found.worst_ratio, 1.0f) << name << ": an element is off by more than its bound";
}

void Runner::collect() {
  check_cuda(cudaStreamSynchronize(stream_), "a launch before this");
  std::vector<Findings> found(pending_.size());
  check_cuda(
      cudaMemcpy(found.data(), findings_, found.size() * sizeof(Findings), cudaMemcpyDeviceToHost),
      "findings");
  int reported = 0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    const Pending& p = pending_[i];
    const Findings& f = found[i];
    if (!p.compared) {
      EXPECT_EQ(f.strays + f.nans + f.differing, 0u) << p.name;
      continue;
    }
    const bool failed_before = testing::Test::HasFailure();
    expect_contract(f, p.outputs, p.name);
    if (f.norm2 > 0) {
      const double norm = std::sqrt(f.norm2);
      const double limit = 1.05 * std::sqrt(f.reference_error2) + 1e-5 * norm;
      Summary::instance().worst(p.config, p.type, std::sqrt(f.error2) / norm,
                                p.outputs < kFewOutputs ? 0 : std::sqrt(f.error2) / limit * 1.05,
                                f.worst_ratio);
    }
    if (!failed_before && testing::Test::HasFailure() && ++reported > 20) break;
  }
  pending_.clear();
  check_cuda(cudaMemsetAsync(findings_, 0, kMaxFindings * sizeof(Findings), stream_), "findings");
}

}  // namespace mixgemm::gpu_test
