// SPDX-License-Identifier: Apache-2.0
// JSON of untrusted headers, and of ours. Reading streams: no tree is built, so a header costs no
// more memory than what its handler keeps, and nesting costs nothing before it is refused.
//
// Only json_reader.cpp sees the JSON library, whose parser takes 10 s a file to compile.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "import/errors.hpp"

namespace mixgemm {

/// A parser's events, narrowed to what our formats use: objects, arrays, strings and unsigned
/// integers. A handler overrides what it accepts and refuses the rest through reject(), which ends
/// the parse with a sentence.
class JsonHandler {
 public:
  virtual ~JsonHandler() = default;

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

  /// Ends the parse. Returns false, which is what the event that calls it returns.
  bool reject(std::string sentence) {
    error_ = std::move(sentence);
    return false;
  }

 protected:
  bool unexpected(std::string_view shown) {
    return reject(fmt::format("{}; got {}", rule(), shown));
  }

 private:
  std::string error_;
};

/// Parses all of `text`, which must be one JSON object in UTF-8. Returns what is wrong with it, or
/// an empty string.
std::string parse_json(std::string_view text, JsonHandler& handler);

/// `text` as a JSON string, quotes included. It must be UTF-8.
std::string to_json_string(std::string_view text);

/// Whether the text is well-formed UTF-8.
bool is_utf8(std::string_view text);

}  // namespace mixgemm
