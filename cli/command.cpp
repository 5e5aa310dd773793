// SPDX-License-Identifier: Apache-2.0
#include "command.hpp"

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <map>

#include "mixgemm/gemm.hpp"
#include "mixgemm/tuning.hpp"
#include "util/half.hpp"
#include "util/join.hpp"
#include "util/parallel.hpp"

namespace mixgemm::cli {
namespace {

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

volatile std::sig_atomic_t interrupt_requested = 0;
void request_interrupt(int) { interrupt_requested = 1; }

/// Terminal columns of UTF-8 text: its bytes that begin a character.
std::size_t columns(const std::string& text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

}  // namespace

ExitCode exit_code_of(StatusCode code) {
  switch (code) {
    case StatusCode::ok: return kExitOk;
    case StatusCode::invalid_argument: return kExitUsage;
    case StatusCode::not_found: return kExitNotFound;
    case StatusCode::io_error: return kExitIo;
    case StatusCode::corrupt_data:
    case StatusCode::version_mismatch: return kExitCorrupt;
    case StatusCode::unsupported: return kExitUnsupported;
    case StatusCode::out_of_memory:
    case StatusCode::device_error:
    case StatusCode::internal: return kExitFailure;
  }
  return kExitFailure;
}

Command::Command(CLI::App& app, Selected& selected, const std::string& name,
                 const std::string& help)
    : selected_(selected), name_(name), app_(app.add_subcommand(name, help)) {}

void Command::operand(const std::string& name, std::string& target, const std::string& help) {
  app_->add_option(name, target, help)->required();
}

void Command::operands(const std::string& name, std::vector<std::string>& target,
                       const std::string& help) {
  app_->add_option(name, target, help)->required();
}

void Command::action(const std::string& name, std::string& target,
                     const std::vector<std::string>& choices, const std::string& help) {
  app_->add_option(name, target, help)->required()->check(CLI::IsMember(choices));
}

void Command::flag(const std::string& name, bool& target, const std::string& help) {
  app_->add_flag(name, target, help);
}

void Command::text(const std::string& name, std::string& target, const std::string& help,
                   Need need) {
  auto* option = app_->add_option(name, target, help);
  if (need == Need::required) option->required();
  if (!target.empty()) option->capture_default_str();
}

void Command::choice(const std::string& name, std::string& target,
                     const std::vector<std::string>& choices, const std::string& help) {
  app_->add_option(name, target, help)->check(CLI::IsMember(choices));
}

void Command::integer(const std::string& name, std::int64_t& target, std::int64_t min,
                      std::int64_t max, const std::string& help, Need need) {
  auto* option = app_->add_option(name, target, help)->check(CLI::Range(min, max));
  if (need == Need::required) {
    option->required();
  } else {
    option->capture_default_str();
  }
}

void Command::real(const std::string& name, std::optional<double>& target,
                   const std::string& help) {
  app_->add_option_function<double>(
          name, [&target](const double& value) { target = value; }, help)
      ->check(CLI::NonNegativeNumber);
}

void Command::size(const std::string& name, std::uint64_t& target, const std::string& help) {
  app_->add_option(name, target, help)->transform(CLI::AsSizeValue(true));
}

void Command::texts(const std::string& name, std::vector<std::string>& target,
                    const std::string& help) {
  app_->add_option(name, target, help)->delimiter(',');
}

void Command::integers(const std::string& name, std::vector<std::int64_t>& target, std::int64_t min,
                       std::int64_t max, const std::string& help) {
  app_->add_option(name, target, help)->delimiter(',')->check(CLI::Range(min, max));
}

void Command::json(bool& target, const std::string& help) { flag("--json", target, help); }

void Command::threads(int& target) {
  app_->add_option("--threads", target, "CPU threads; 0 = all cores")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
}

void Command::quant_spec(QuantSpec& target) {
  app_->add_option_function<std::string>(
          "--weight",
          [&target](const std::string& name) {
            target.type = name == "int8" ? WeightType::int8 : WeightType::int4;
          },
          "Width of a code: int4 or int8 [int4]")
      ->check(CLI::IsMember({"int4", "int8"}));
  app_->add_option("--group", target.group_size,
                   "Consecutive k that share a scale: 16, 32, 64, 128; 0 = one scale per column")
      ->check(CLI::IsMember({0, 16, 32, 64, 128}))
      ->capture_default_str();
  app_->add_option_function<std::string>(
          "--zero",
          [&target](const std::string& name) {
            target.zero = name == "integer"  ? ZeroKind::integer
                          : name == "scaled" ? ZeroKind::scaled
                                             : ZeroKind::none;
          },
          "Zero point: none (symmetric), integer or scaled [none]")
      ->check(CLI::IsMember({"none", "integer", "scaled"}));
}

void Command::act(std::optional<DataType>& target, const std::string& help) {
  app_->add_option_function<std::string>(
          "--act", [&target](const std::string& name) { target = parse_act(name); }, help)
      ->check(CLI::IsMember({"fp16", "f16", "bf16"}));
}

void Command::device(std::optional<Device>& target) {
  app_->add_option_function<std::string>(
          "--device",
          [&target](const std::string& name) {
            target = name == "cuda" ? Device::cuda : Device::cpu;
          },
          "Where to multiply: cpu or cuda [cuda where a GPU can run the kernels]")
      ->check(CLI::IsMember({"cpu", "cuda"}));
}

bool Command::given(const std::string& name) const { return app_->count(name) > 0; }

void Command::tuning() {
  tuning_ = std::make_shared<std::string>();
  app_->add_option("--tuning", *tuning_,
                   "Tuning caches to consult, separated by ':', or off [MIXGEMM_TUNING]");
}

void Command::runs(std::function<int()> body) {
  app_->callback([&selected = selected_, name = name_, tuning = tuning_, body = std::move(body)] {
    selected.name = name;
    selected.run = [=] {
      // A cache that can't be read has been warned of, and is no reason not to go on.
      if (tuning && !tuning->empty()) (void)set_tuning(*tuning).ok();
      return body();
    };
  });
}

void print(const std::string& text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    throw Error(StatusCode::io_error,
                fmt::format("cannot write to standard output: {}", std::strerror(errno)));
  }
}

void print_json(const Json& value) {
  // File and tensor names are bytes; what isn't UTF-8 is shown with a replacement character.
  print(value.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

std::string Table::to_string(const std::string& align) const {
  std::vector<std::size_t> widths(rows_.front().size());
  for (const auto& row : rows_) {
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], columns(row[i]));
  }
  std::string text;
  for (const auto& row : rows_) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) {
      const std::string padding(widths[i] - columns(row[i]), ' ');
      if (i > 0) line += "  ";
      line += align[std::min(i, align.size() - 1)] == 'l' ? row[i] + padding : padding + row[i];
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  return text;
}

ProgressLine::ProgressLine() : enabled_(isatty(STDERR_FILENO) == 1) {}

void ProgressLine::update(double fraction, const std::string& what) {
  if (!enabled_) return;
  std::lock_guard lock(mutex_);
  const double now = now_seconds();
  if (now - last_seconds_ < 0.05) return;
  last_seconds_ = now;
  if (start_seconds_ < 0) {
    start_seconds_ = now;
    start_fraction_ = fraction;
  }
  std::string left;
  const double elapsed = now - start_seconds_, covered = fraction - start_fraction_;
  constexpr double kMinSeconds = 3;  // before that the guess is worth nothing
  if (elapsed > kMinSeconds && covered > 0.005) {
    const int seconds = static_cast<int>(elapsed / covered * (1 - fraction) + 0.5);
    left = fmt::format("{}:{:02} left  ", seconds / 60, seconds % 60);
  }
  constexpr int kWidth = 24;
  const int full = static_cast<int>(std::clamp(fraction, 0.0, 1.0) * kWidth);
  fmt::print(stderr, "\r\033[K[{}{}] {:3.0f} %  {}{}", std::string(full, '#'),
             std::string(kWidth - full, ' '), 100.0 * fraction, left, what);
  std::fflush(stderr);
  drawn_ = true;
}

void ProgressLine::clear() {
  std::lock_guard lock(mutex_);
  if (!drawn_) return;
  fmt::print(stderr, "\r\033[K");
  std::fflush(stderr);
  drawn_ = false;
  last_seconds_ = -1.0;
}

InterruptGuard::InterruptGuard() {
  interrupt_requested = 0;
  struct sigaction action = {};
  action.sa_handler = request_interrupt;
  action.sa_flags = SA_RESETHAND | SA_RESTART;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

InterruptGuard::~InterruptGuard() {
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
}

void InterruptGuard::check() const {
  if (requested()) throw Interrupted();
}

bool InterruptGuard::requested() const { return interrupt_requested != 0; }

std::string describe(const QuantSpec& spec) {
  std::string text(to_string(spec.type));
  text += spec.group_size == 0 ? " per column" : fmt::format(" g{}", spec.group_size);
  if (spec.zero != ZeroKind::none) text += fmt::format(" {} zero", to_string(spec.zero));
  return text;
}

Json to_json(const QuantSpec& spec) {
  return {{"weight", to_string(spec.type)},
          {"group", spec.group_size},
          {"zero", to_string(spec.zero)},
          {"scale_type", to_string(spec.scale_type)}};
}

std::string act_name(DataType act) { return act == DataType::bf16 ? "bf16" : "fp16"; }

DataType parse_act(const std::string& name) {
  return name == "bf16" ? DataType::bf16 : DataType::f16;
}

std::string format_bytes(double bytes) {
  const char* units[] = {"B", "KB", "MB", "GB", "TB"};
  std::size_t unit = 0;
  while (bytes >= 1000.0 && unit + 1 < std::size(units)) {
    bytes /= 1000.0;
    ++unit;
  }
  return unit == 0 ? fmt::format("{:.0f} B", bytes) : fmt::format("{:.1f} {}", bytes, units[unit]);
}

std::string layer_of(const std::string& tensor) {
  constexpr std::string_view kSuffix = ".weight";
  if (tensor.size() > kSuffix.size() && tensor.ends_with(kSuffix)) {
    return tensor.substr(0, tensor.size() - kSuffix.size());
  }
  return tensor;
}

Result<TensorView> find_source_weight(const SafetensorsFile& source, const PackedLayerInfo& layer) {
  const TensorInfo* info = source.info(layer.name + ".weight");
  if (info == nullptr) info = source.info(layer.name);
  if (info == nullptr) {
    return Status(StatusCode::not_found,
                  fmt::format("{}: no tensor {}.weight or {} to compare with layer {}",
                              source.files().front(), layer.name, layer.name, layer.name));
  }
  if (info->shape != std::vector<std::int64_t>{layer.n, layer.k}) {
    return Status(StatusCode::invalid_argument,
                  fmt::format("tensor {} must have the layer's shape [{}, {}]; got [{}]",
                              info->name, layer.n, layer.k, joined(info->shape)));
  }
  if (!data_type_of(info->dtype)) {
    return Status(
        StatusCode::invalid_argument,
        fmt::format("tensor {} must be F16, BF16 or F32; got {}", info->name, info->dtype));
  }
  return source.find(info->name);
}

Result<PackedWeight> find_layer(const PackedCheckpoint& checkpoint, const std::string& name) {
  if (checkpoint.info(name) != nullptr) return checkpoint.find(name);
  if (checkpoint.info(layer_of(name)) != nullptr) return checkpoint.find(layer_of(name));
  const auto names = checkpoint.names();
  constexpr std::size_t kShown = 5;
  const std::vector<std::string> shown(names.begin(),
                                       names.begin() + std::min(names.size(), kShown));
  return Status(StatusCode::not_found,
                fmt::format("no packed layer {}; the file has {}: {}{}", name, names.size(),
                            joined(shown), names.size() > kShown ? ", …" : ""));
}

double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0.0, norm = 0.0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    difference += d * d;
    norm += static_cast<double>(b[i]) * static_cast<double>(b[i]);
  }
  if (difference == 0.0) return 0.0;
  return std::sqrt(difference / norm);
}

std::vector<float> to_f32(const TensorView& tensor, DataType type) {
  const std::int64_t count = tensor.info.num_elems();
  std::vector<float> values(static_cast<std::size_t>(count));
  if (type == DataType::f32) {
    std::memcpy(values.data(), tensor.data, values.size() * sizeof(float));
    return values;
  }
  const auto* bits = static_cast<const std::uint16_t*>(tensor.data);
  parallel_for(count, 1 << 16, 0, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) values[i] = f32_from_bits(bits[i], type);
  });
  return values;
}

Device device_or_default(const std::optional<Device>& asked) {
  if (asked) return *asked;
  const auto all = devices();
  const bool gpu = std::any_of(all.begin(), all.end(), [](const DeviceInfo& device) {
    return device.device == Device::cuda && device.usable;
  });
  return gpu ? Device::cuda : Device::cpu;
}

}  // namespace mixgemm::cli
