// SPDX-License-Identifier: Apache-2.0
#include "import/json_reader.hpp"

#include <nlohmann/json.hpp>

namespace mixgemm {
namespace {

using Json = nlohmann::json;

/// The library's events for a JsonHandler.
class Events final : public nlohmann::json_sax<Json> {
 public:
  explicit Events(JsonHandler& handler) : handler_(handler) {}

  bool null() override { return handler_.on_other("null"); }
  bool boolean(bool value) override { return handler_.on_other(value ? "true" : "false"); }
  bool number_integer(std::int64_t value) override {
    return handler_.on_other(std::to_string(value));
  }
  bool number_unsigned(std::uint64_t value) override { return handler_.on_unsigned(value); }
  bool number_float(double, const std::string& text) override {
    return handler_.on_other(in_quotes(text));
  }
  bool string(std::string& value) override { return handler_.on_string(value); }
  bool binary(Json::binary_t&) override { return handler_.on_other("binary data"); }
  bool start_object(std::size_t) override { return handler_.on_object(true); }
  bool key(std::string& value) override { return handler_.on_key(value); }
  bool end_object() override { return handler_.on_object(false); }
  bool start_array(std::size_t) override { return handler_.on_array(true); }
  bool end_array() override { return handler_.on_array(false); }
  bool parse_error(std::size_t position, const std::string&,
                   const Json::exception& error) override {
    std::string_view reason = error.what();  // "[json.exception.parse_error.101] parse error …"
    if (const auto at = reason.find("] "); at != reason.npos) reason.remove_prefix(at + 2);
    return handler_.reject(fmt::format("must be JSON; byte {}: {}", position, in_quotes(reason)));
  }

 private:
  JsonHandler& handler_;
};

}  // namespace

std::string parse_json(std::string_view text, JsonHandler& handler) {
  if (text.empty() || text.front() != '{') return "must begin with '{'";
  // The parser takes a NUL for the end of its input.
  if (const auto at = text.find('\0'); at != text.npos) {
    return fmt::format("must be JSON; byte {} is NUL", at);
  }
  Events events(handler);
  nlohmann::json_sax<Json>* base = &events;
  if (Json::sax_parse(text, base)) return {};
  return handler.error().empty() ? "must be JSON" : handler.error();
}

std::string to_json_string(std::string_view text) { return Json(text).dump(); }

bool is_utf8(std::string_view text) {
  // The JSON library's own check, which to_json_string() relies on.
  try {
    static_cast<void>(Json(text).dump());
    return true;
  } catch (const Json::type_error&) {
    return false;
  }
}

}  // namespace mixgemm
