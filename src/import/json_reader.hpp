// SPDX-License-Identifier: Apache-2.0
// Streaming JSON for untrusted headers: no tree is built, so a header costs no more memory than
// what its handler keeps, and nesting costs nothing before it is refused.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "import/errors.hpp"

namespace mixgemm {

/// nlohmann's SAX events, narrowed to what our formats use: objects, arrays, strings and unsigned
/// integers. A handler overrides what it accepts and refuses the rest through reject(), which ends
/// the parse with a sentence.
class JsonHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  /// Why the parse ended early; empty if it didn't.
  const std::string& error() const { return error_; }

  virtual bool on_key(const std::string& key) = 0;
  virtual bool on_string(const std::string& value) { return unexpected(in_quotes(value)); }
  virtual bool on_unsigned(std::uint64_t value) { return unexpected(std::to_string(value)); }
  /// null, booleans, negative and fractional numbers, numbers beyond 64 bits.
  virtual bool on_other(const std::string& shown) { return unexpected(shown); }
  virtual bool on_object(bool begin) = 0;
  virtual bool on_array(bool begin) = 0;
  /// What the format wants where the parse stands, e.g. "dtype must be a string".
  virtual std::string rule() const = 0;

 protected:
  bool reject(std::string sentence) {
    error_ = std::move(sentence);
    return false;
  }
  bool unexpected(std::string_view shown) {
    return reject(fmt::format("{}; got {}", rule(), shown));
  }

 private:
  bool null() final { return on_other("null"); }
  bool boolean(bool value) final { return on_other(value ? "true" : "false"); }
  bool number_integer(std::int64_t value) final { return on_other(std::to_string(value)); }
  bool number_unsigned(std::uint64_t value) final { return on_unsigned(value); }
  bool number_float(double, const std::string& text) final { return on_other(in_quotes(text)); }
  bool string(std::string& value) final { return on_string(value); }
  bool binary(nlohmann::json::binary_t&) final { return unexpected("binary data"); }
  bool start_object(std::size_t) final { return on_object(true); }
  bool key(std::string& value) final { return on_key(value); }
  bool end_object() final { return on_object(false); }
  bool start_array(std::size_t) final { return on_array(true); }
  bool end_array() final { return on_array(false); }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::json::exception& error) final {
    std::string_view reason = error.what();  // "[json.exception.parse_error.101] parse error …"
    if (const auto at = reason.find("] "); at != reason.npos) reason.remove_prefix(at + 2);
    return reject(fmt::format("must be JSON; byte {}: {}", position, in_quotes(reason)));
  }

  std::string error_;
};

/// Parses all of `text`, which must be one JSON object in UTF-8. Returns what is wrong with it, or
/// an empty string.
inline std::string parse_json(std::string_view text, JsonHandler& handler) {
  if (text.empty() || text.front() != '{') return "must begin with '{'";
  // The parser takes a NUL for the end of its input.
  if (const auto at = text.find('\0'); at != text.npos) {
    return fmt::format("must be JSON; byte {} is NUL", at);
  }
  nlohmann::json::json_sax_t* events = &handler;
  if (nlohmann::json::sax_parse(text, events)) return {};
  return handler.error().empty() ? "must be JSON" : handler.error();
}

}  // namespace mixgemm
