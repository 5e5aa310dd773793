// SPDX-License-Identifier: Apache-2.0
#include "select/config_id.hpp"

#include <fmt/format.h>

#include <charconv>

namespace mixgemm::select {
namespace {

/// Reads the text from the left; remembers where it stopped, for the message.
class Reader {
 public:
  explicit Reader(std::string_view text) : rest_(text) {}

  bool eat(std::string_view prefix) {
    if (!rest_.starts_with(prefix)) return false;
    rest_.remove_prefix(prefix.size());
    return true;
  }
  /// A number without sign or leading zero, as config_id() writes it.
  bool eat_number(int& value) {
    if (rest_.empty() || rest_[0] < '0' || rest_[0] > '9') return false;
    if (rest_[0] == '0' && rest_.size() > 1 && rest_[1] >= '0' && rest_[1] <= '9') return false;
    const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), value);
    if (error != std::errc()) return false;
    rest_.remove_prefix(static_cast<std::size_t>(end - rest_.data()));
    return true;
  }
  std::string_view rest() const { return rest_; }

 private:
  std::string_view rest_;
};

bool read_launch(Reader& reader, ParsedConfigId& id) {
  LaunchConfig& l = id.launch;
  if (!reader.eat("g") || !reader.eat_number(id.group_size)) return false;
  if (!reader.eat("_c") || !reader.eat_number(l.cluster_n)) return false;
  if (!reader.eat("x") || !reader.eat_number(l.cluster_m)) return false;
  if (reader.eat("x") && !reader.eat_number(l.cluster_k)) return false;
  if (!reader.eat("_s") || !reader.eat_number(l.stages)) return false;
  if (reader.eat("_streamk")) {
    l.stream_k = true;
  } else if (reader.eat("_sk") && !reader.eat_number(l.split_k)) {
    return false;
  }
  l.one_pass = reader.eat("_1p");
  if (reader.eat("_r") && !reader.eat_number(l.raster_m)) return false;
  return reader.rest().empty();
}

}  // namespace

std::string config_id(std::string_view kernel_id, int group_size, const LaunchConfig& l) {
  std::string id = fmt::format("{}@g{}_c{}x{}", kernel_id, group_size, l.cluster_n, l.cluster_m);
  if (l.cluster_k > 1) id += fmt::format("x{}", l.cluster_k);
  id += fmt::format("_s{}", l.stages);
  if (l.stream_k) {
    id += "_streamk";
  } else if (l.split_k > 1) {
    id += fmt::format("_sk{}", l.split_k);
  }
  if (l.one_pass) id += "_1p";
  if (l.raster_m != LaunchConfig{}.raster_m) id += fmt::format("_r{}", l.raster_m);
  return id;
}

Result<ParsedConfigId> parse_config_id(std::string_view text) {
  ParsedConfigId id;
  const std::size_t at = text.find('@');
  id.kernel_id = std::string(text.substr(0, at));
  if (at == std::string_view::npos) return id;
  id.has_launch = true;
  Reader reader(text.substr(at + 1));
  if (!read_launch(reader, id)) {
    return Status(
        StatusCode::invalid_argument,
        fmt::format("a configuration id must read KERNEL@g{{group}}_c{{n}}x{{m}}[x{{k}}]_s"
                    "{{stages}}[_sk{{split_k}}|_streamk][_1p][_r{{raster_m}}]; got \"{}\", "
                    "which stops making sense at \"{}\"",
                    text, reader.rest()));
  }
  return id;
}

}  // namespace mixgemm::select
