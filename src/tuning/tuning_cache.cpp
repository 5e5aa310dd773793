// SPDX-License-Identifier: Apache-2.0
#include "mixgemm/tuning.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

#include "api/check.hpp"
#include "import/output_file.hpp"
#include "mixgemm/version.hpp"
#include "util/join.hpp"

namespace mixgemm {
namespace {

using OrderedJson = nlohmann::ordered_json;

constexpr char kFormatKey[] = "mixgemm_tuning";
// A cache of every layer of a hundred models takes some MB; more is another kind of file.
constexpr std::uintmax_t kMaxFileBytes = 64 << 20;

/// What orders and identifies entries. M comes last: the tuned M of one layer lie side by side.
auto table_key(const TuningDevice& device, std::string_view library) {
  return std::tuple(device.device, std::string_view(device.name), device.arch, device.num_sms,
                    library);
}
auto layer_key(const Problem& p) {
  return std::tuple(p.act, p.weight.type, p.weight.group_size, p.weight.zero, p.batch_invariant,
                    p.n, p.k);
}
auto key(const TuningDevice& device, std::string_view library, const Problem& p) {
  return std::tuple(table_key(device, library), layer_key(p), p.m);
}
auto key(const TuningEntry& e) { return key(e.device, e.library, e.problem); }

/// Tokens of a CTA tile, from the "_t128x64x128" of a kernel id; 0 where the id has none (CPU).
std::int64_t tile_tokens(std::string_view config) {
  std::string_view kernel = config.substr(0, config.find('@'));
  for (std::size_t at = kernel.find("_t"); at != kernel.npos; at = kernel.find("_t", at + 1)) {
    int tile_n = 0, tile_m = 0;
    const char* const end = kernel.data() + kernel.size();
    const auto n = std::from_chars(kernel.data() + at + 2, end, tile_n);
    if (n.ec != std::errc() || n.ptr == end || *n.ptr != 'x') continue;
    const auto m = std::from_chars(n.ptr + 1, end, tile_m);
    if (m.ec == std::errc() && m.ptr != end && *m.ptr == 'x' && tile_m > 0) return tile_m;
  }
  return 0;
}

/// Does a configuration that was tuned for one M cut another into as many token tiles? Else it
/// leaves part of a tile idle, or begins one more, which its time says nothing about.
bool tile_fits(const TuningEntry& entry, std::int64_t m) {
  constexpr std::int64_t kMaxRatio = 2;
  const std::int64_t tuned = entry.problem.m;
  if (m > kMaxRatio * tuned || tuned > kMaxRatio * m) return false;
  const std::int64_t tile = tile_tokens(entry.config);
  return tile == 0 || (m + tile - 1) / tile == (tuned + tile - 1) / tile;
}

// ---- Reading ------------------------------------------------------------------------------------

/// Reads fields of one JSON object and remembers the first rule that one breaks.
class EntryFields {
 public:
  EntryFields(const OrderedJson& object, std::string where)
      : object_(object), where_(std::move(where)) {}

  std::string text(const char* name, bool required = true) {
    const OrderedJson* value = find(name, required);
    if (value == nullptr) return {};
    if (!value->is_string()) return fail(name, "a string", *value), std::string();
    return value->get<std::string>();
  }
  std::int64_t integer(const char* name, std::int64_t min, std::int64_t max, bool required = true) {
    const OrderedJson* value = find(name, required);
    if (value == nullptr) return min;
    if (!value->is_number_integer() || value->get<std::int64_t>() < min ||
        value->get<std::int64_t>() > max) {
      fail(name, fmt::format("an integer from {} to {}", min, max), *value);
      return min;
    }
    return value->get<std::int64_t>();
  }
  /// A finite number above 0 (or from 0 on); `absent` where there is none.
  double number(const char* name, bool zero_allowed, std::optional<double> absent = {}) {
    const OrderedJson* value = find(name, !absent);
    if (value == nullptr) return absent.value_or(0);
    const double number = value->is_number() ? value->get<double>() : -1;
    if (!std::isfinite(number) || number < 0 || (number == 0 && !zero_allowed)) {
      fail(name, zero_allowed ? "a number from 0 on" : "a number above 0", *value);
    }
    return number;
  }
  bool flag(const char* name) {
    const OrderedJson* value = find(name, false);
    if (value == nullptr) return false;
    if (!value->is_boolean()) return fail(name, "true or false", *value), false;
    return value->get<bool>();
  }
  /// The index of one of `names`.
  template <std::size_t N>
  std::size_t choice(const char* name, const std::string_view (&names)[N]) {
    const OrderedJson* value = find(name, true);
    if (value == nullptr) return 0;
    for (std::size_t i = 0; i < N; ++i) {
      if (value->is_string() && value->get_ref<const std::string&>() == names[i]) return i;
    }
    fail(name, fmt::format("one of {}", joined(names)), *value);
    return 0;
  }
  void fail(const char* name, std::string_view rule, const OrderedJson& got) {
    std::string shown = got.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
    constexpr std::size_t kShown = 80;
    if (shown.size() > kShown) shown = shown.substr(0, kShown) + "...";
    set_error(fmt::format("{}.{} must be {}; got {}", where_, name, rule, shown));
  }
  const std::string& error() const { return error_; }

 private:
  const OrderedJson* find(const char* name, bool required) {
    const auto found = object_.find(name);
    if (found != object_.end()) return &*found;
    if (required) set_error(fmt::format("{} must have \"{}\"", where_, name));
    return nullptr;
  }
  void set_error(std::string error) {
    if (error_.empty()) error_ = std::move(error);
  }

  const OrderedJson& object_;
  std::string where_;
  std::string error_;
};

constexpr std::string_view kDevices[] = {"cpu", "cuda"};
constexpr std::string_view kActs[] = {"fp16", "bf16"};
constexpr std::string_view kWeights[] = {"int4", "int8"};
constexpr std::string_view kZeros[] = {"none", "integer", "scaled"};
constexpr std::int64_t kMaxInt = 0x7fffffff;

bool is_config_id(std::string_view text) {
  constexpr std::size_t kMaxChars = 256;
  return !text.empty() && text.size() <= kMaxChars &&
         std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                  c == '_' || c == '@';
         });
}

/// Fills `entry`, whose device and library are set. Returns the broken rule, or nothing.
std::string read_entry(const OrderedJson& json, const std::string& where, TuningEntry& entry) {
  if (!json.is_object()) return where + " must be an object";
  EntryFields fields(json, where);
  Problem& p = entry.problem;
  p.device = entry.device.device;
  p.act = fields.choice("act", kActs) == 1 ? DataType::bf16 : DataType::f16;
  p.weight.scale_type = p.act;
  p.weight.type = fields.choice("weight", kWeights) == 1 ? WeightType::int8 : WeightType::int4;
  p.weight.group_size = static_cast<int>(fields.integer("group", 0, 128));
  p.weight.zero = static_cast<ZeroKind>(fields.choice("zero", kZeros));
  p.n = fields.integer("n", 1, kMaxInt);
  p.k = fields.integer("k", 1, kMaxInt);
  p.m = fields.integer("m", 1, kMaxInt);
  p.batch_invariant = fields.flag("batch_invariant");
  entry.config = fields.text("config");
  entry.us = fields.number("us", false);
  entry.measured_on = fields.text("measured_on", false);
  entry.noise = fields.number("noise", true, 0.0);
  entry.model_config = fields.text("model_config", false);
  entry.model_us = fields.number("model_us", false, -1.0);
  entry.num_candidates = static_cast<int>(fields.integer("candidates", 0, kMaxInt, false));
  if (!fields.error().empty()) return fields.error();
  for (const auto& [name, id] :
       {std::pair("config", &entry.config), std::pair("model_config", &entry.model_config)}) {
    if (is_config_id(*id) || (id->empty() && id == &entry.model_config)) continue;
    fields.fail(name, "a configuration id", OrderedJson(*id));
    return fields.error();
  }
  if (Status s = check_problem(p); !s) return fmt::format("{}: {}", where, s.message());
  return {};
}

std::string read_table(const OrderedJson& json, const std::string& where, TuningCache& cache) {
  if (!json.is_object()) return where + " must be an object";
  EntryFields fields(json, where);
  TuningEntry entry;
  entry.library = fields.text("library");
  const OrderedJson none = OrderedJson::object();
  const OrderedJson& device = json.contains("device") ? json["device"] : none;
  if (!device.is_object()) return where + ".device must be an object";
  EntryFields device_fields(device, where + ".device");
  entry.device.device = device_fields.choice("kind", kDevices) == 1 ? Device::cuda : Device::cpu;
  entry.device.name = device_fields.text("name");
  entry.device.arch = static_cast<int>(device_fields.integer("arch", 0, 10000));
  entry.device.num_sms = static_cast<int>(device_fields.integer("num_sms", 1, 1 << 20));
  for (const EntryFields* read : {&fields, &device_fields}) {
    if (!read->error().empty()) return read->error();
  }
  if (!json.contains("entries") || !json["entries"].is_array()) {
    return where + " must have a list \"entries\"";
  }
  std::size_t index = 0;
  for (const OrderedJson& row : json["entries"]) {
    TuningEntry read = entry;
    const std::string error = read_entry(row, fmt::format("{}.entries[{}]", where, index++), read);
    if (!error.empty()) return error;
    cache.add(std::move(read));
  }
  return {};
}

// ---- Writing ------------------------------------------------------------------------------------

double rounded(double value, double unit) { return std::round(value / unit) * unit; }

/// The shortest text that reads back as the value, to the thousandth of a microsecond.
OrderedJson microseconds(double us) { return std::stod(fmt::format("{:.6g}", rounded(us, 1e-3))); }

std::string text_of(const OrderedJson& json) {
  return json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
}

OrderedJson entry_json(const TuningEntry& e) {
  const Problem& p = e.problem;
  OrderedJson json = {{"act", kActs[p.act == DataType::bf16]},
                      {"weight", to_string(p.weight.type)},
                      {"group", p.weight.group_size},
                      {"zero", to_string(p.weight.zero)},
                      {"n", p.n},
                      {"k", p.k},
                      {"m", p.m}};
  if (p.batch_invariant) json["batch_invariant"] = true;
  json["config"] = e.config;
  json["us"] = microseconds(e.us);
  if (!e.measured_on.empty()) json["measured_on"] = e.measured_on;
  json["noise"] = std::stod(fmt::format("{:.2g}", e.noise));
  if (!e.model_config.empty()) json["model_config"] = e.model_config;
  if (e.model_us > 0) json["model_us"] = microseconds(e.model_us);
  if (e.num_candidates > 0) json["candidates"] = e.num_candidates;
  return json;
}

}  // namespace

Result<TuningCache> TuningCache::parse(std::string_view text, const std::string& name) {
  const auto corrupt = [&](std::string_view rule) {
    return Status(StatusCode::corrupt_data, fmt::format("tuning cache {}: {}", name, rule));
  };
  const OrderedJson json = OrderedJson::parse(text, nullptr, false);
  if (json.is_discarded()) return corrupt("must be JSON");
  if (!json.is_object() || !json.contains(kFormatKey)) {
    return corrupt(fmt::format("must be an object with \"{}\"", kFormatKey));
  }
  const OrderedJson& version = json[kFormatKey];
  if (!version.is_number_integer()) {
    return corrupt(
        fmt::format("{} must be a format version; got {}", kFormatKey, text_of(version)));
  }
  if (version.get<std::int64_t>() != kTuningFormatVersion) {
    return Status(StatusCode::version_mismatch,
                  fmt::format("tuning cache {}: its format version must be {}; got {}", name,
                              kTuningFormatVersion, text_of(version)));
  }
  if (!json.contains("tables") || !json["tables"].is_array()) {
    return corrupt("must have a list \"tables\"");
  }
  TuningCache cache;
  std::size_t index = 0;
  for (const OrderedJson& table : json["tables"]) {
    const std::string error = read_table(table, fmt::format("tables[{}]", index++), cache);
    if (!error.empty()) return corrupt(error);
  }
  return cache;
}

Result<TuningCache> TuningCache::load(const std::string& path) {
  std::error_code error;
  const std::uintmax_t bytes = std::filesystem::file_size(path, error);
  if (error) {
    return Status(error == std::errc::no_such_file_or_directory ? StatusCode::not_found
                                                                : StatusCode::io_error,
                  fmt::format("tuning cache {}: {}", path, error.message()));
  }
  if (bytes > kMaxFileBytes) {
    return Status(StatusCode::corrupt_data,
                  fmt::format("tuning cache {}: must have at most {} bytes; got {}", path,
                              kMaxFileBytes, bytes));
  }
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!file.is_open() || file.bad()) {
    return Status(StatusCode::io_error,
                  fmt::format("tuning cache {}: {}", path,
                              errno != 0 ? std::strerror(errno) : "cannot be read"));
  }
  return parse(text, path);
}

std::string TuningCache::to_json() const {
  std::string text = fmt::format("{{\"{}\": {}, \"tables\": [", kFormatKey, kTuningFormatVersion);
  const TuningEntry* last = nullptr;
  for (const TuningEntry& e : entries_) {
    if (last == nullptr ||
        table_key(last->device, last->library) != table_key(e.device, e.library)) {
      const OrderedJson device = {{"kind", to_string(e.device.device)},
                                  {"name", e.device.name},
                                  {"arch", e.device.arch},
                                  {"num_sms", e.device.num_sms}};
      text += fmt::format("{}\n{{\"device\": {}, \"library\": {}, \"entries\": [",
                          last == nullptr ? "" : "\n]},", text_of(device),
                          text_of(OrderedJson(e.library)));
      last = nullptr;
    }
    text += fmt::format("{}\n{}", last == nullptr ? "" : ",", text_of(entry_json(e)));
    last = &e;
  }
  text += last == nullptr ? "\n]}\n" : "\n]}\n]}\n";
  return text;
}

Status TuningCache::save(const std::string& path) const {
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  std::error_code error;
  if (!folder.empty()) std::filesystem::create_directories(folder, error);
  auto file = OutputFile::create(path);
  if (!file) return file.status();
  const std::string text = to_json();
  if (Status s = file->write_at(0, text.data(), text.size()); !s) return s;
  if (Status s = file->flush(); !s) return s;
  return file->publish();
}

void TuningCache::add(TuningEntry entry) {
  const auto at =
      std::lower_bound(entries_.begin(), entries_.end(), entry,
                       [](const TuningEntry& a, const TuningEntry& b) { return key(a) < key(b); });
  if (at != entries_.end() && key(*at) == key(entry)) {
    *at = std::move(entry);
  } else {
    entries_.insert(at, std::move(entry));
  }
}

void TuningCache::merge(const TuningCache& other) {
  for (const TuningEntry& entry : other.entries_) add(entry);
}

const TuningEntry* TuningCache::find(const TuningDevice& device, std::string_view library,
                                     const Problem& problem) const {
  const auto wanted = key(device, library, problem);
  const auto at =
      std::lower_bound(entries_.begin(), entries_.end(), wanted,
                       [](const TuningEntry& a, const decltype(wanted)& b) { return key(a) < b; });
  return at != entries_.end() && key(*at) == wanted ? &*at : nullptr;
}

const TuningEntry* TuningCache::lookup(const TuningDevice& device, const Problem& problem) const {
  // The tuned M of this layer are neighbours of where this one's would stand.
  const auto wanted = key(device, version(), problem);
  const auto above =
      std::lower_bound(entries_.begin(), entries_.end(), wanted,
                       [](const TuningEntry& a, const decltype(wanted)& b) { return key(a) < b; });
  const auto fits = [&](const TuningEntry& e) {
    return table_key(e.device, e.library) == table_key(device, version()) &&
           layer_key(e.problem) == layer_key(problem) && tile_fits(e, problem.m);
  };
  const TuningEntry* larger = above != entries_.end() && fits(*above) ? &*above : nullptr;
  if (larger != nullptr && larger->problem.m == problem.m) return larger;
  const TuningEntry* smaller =
      above != entries_.begin() && fits(*(above - 1)) ? &*(above - 1) : nullptr;
  if (larger == nullptr || smaller == nullptr) return larger != nullptr ? larger : smaller;
  // The nearer by ratio: m / smaller < larger / m.
  return problem.m * problem.m < smaller->problem.m * larger->problem.m ? smaller : larger;
}

bool tuning_is_current(std::string_view library) {
  const auto series = [](std::string_view text) {
    const std::size_t minor = text.find('.');
    return minor == text.npos ? text : text.substr(0, text.find('.', minor + 1));
  };
  return series(library) == series(version());
}

std::string default_tuning_path() {
  const char* folder = std::getenv("XDG_CACHE_HOME");
  if (folder != nullptr && *folder != '\0') return fmt::format("{}/mixgemm/tuning.json", folder);
  const char* home = std::getenv("HOME");
  if (home == nullptr || *home == '\0') return {};
  return fmt::format("{}/.cache/mixgemm/tuning.json", home);
}

}  // namespace mixgemm
