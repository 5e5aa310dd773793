// SPDX-License-Identifier: Apache-2.0
// Error policy: a function that can fail returns Status or Result<T>. Nothing in the library
// throws, except Status::throw_if_error() and Result<T>::value(), which the caller opts into, and
// std::bad_alloc. A message always names the rule that was broken and the offending value.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "mixgemm/export.hpp"

namespace mixgemm {

/// The values are part of the C ABI (mixgemm_status_t): never renumber.
enum class StatusCode : int {
  ok = 0,
  invalid_argument = 1,  ///< a value breaks a documented rule
  unsupported = 2,       ///< legal, but this build or this machine can't do it
  not_found = 3,         ///< no such file, tensor, layer, kernel
  io_error = 4,          ///< the operating system refused to read or write
  corrupt_data = 5,      ///< a file contradicts itself, or isn't what it was taken for
  version_mismatch = 6,  ///< written by a format version this library does not read
  out_of_memory = 7,
  device_error = 8,  ///< CUDA reported an error
  internal = 9,      ///< a bug in mixgemm
};

MIXGEMM_API std::string_view to_string(StatusCode code);

/// Thrown by Status::throw_if_error() and Result<T>::value().
class Error : public std::runtime_error {
 public:
  Error(StatusCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  StatusCode code() const noexcept { return code_; }

 private:
  StatusCode code_;
};

/// Success, or a code and a sentence.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const noexcept { return code_ == StatusCode::ok; }
  explicit operator bool() const noexcept { return ok(); }
  StatusCode code() const noexcept { return code_; }
  const std::string& message() const noexcept { return message_; }
  void throw_if_error() const {
    if (!ok()) throw Error(code_, message_);
  }

 private:
  StatusCode code_ = StatusCode::ok;
  std::string message_;
};

/// A value, or the Status that says why there is none.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::move(value)) {}         // NOLINT(google-explicit-constructor)
  Result(Status status) : state_(std::move(status)) {}  // NOLINT(google-explicit-constructor)

  bool ok() const noexcept { return state_.index() == 0; }
  explicit operator bool() const noexcept { return ok(); }

  /// The failure, or an ok Status.
  Status status() const { return ok() ? Status() : std::get<1>(state_); }

  /// The value; throws Error when there is none.
  T& value() & {
    status().throw_if_error();
    return std::get<0>(state_);
  }
  const T& value() const& {
    status().throw_if_error();
    return std::get<0>(state_);
  }
  /// By value, so that `for (const auto& part : make().value())` outlives the Result.
  T value() && {
    status().throw_if_error();
    return std::get<0>(std::move(state_));
  }

  /// Unchecked access, for after ok() was asked.
  T& operator*() & { return std::get<0>(state_); }
  const T& operator*() const& { return std::get<0>(state_); }
  T operator*() && { return std::get<0>(std::move(state_)); }
  T* operator->() { return &std::get<0>(state_); }
  const T* operator->() const { return &std::get<0>(state_); }

 private:
  std::variant<T, Status> state_;
};

}  // namespace mixgemm
