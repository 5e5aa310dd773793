// SPDX-License-Identifier: Apache-2.0
// Spelling of every enumerator, and the version string.
#include "mixgemm/status.hpp"
#include "mixgemm/types.hpp"
#include "mixgemm/version.hpp"

namespace mixgemm {

std::string_view to_string(DataType type) {
  switch (type) {
    case DataType::f16: return "f16";
    case DataType::bf16: return "bf16";
    case DataType::f32: return "f32";
  }
  return "?";
}

std::string_view to_string(WeightType type) {
  switch (type) {
    case WeightType::int4: return "int4";
    case WeightType::int8: return "int8";
  }
  return "?";
}

std::string_view to_string(ZeroKind kind) {
  switch (kind) {
    case ZeroKind::none: return "none";
    case ZeroKind::integer: return "integer";
    case ZeroKind::scaled: return "scaled";
  }
  return "?";
}

std::string_view to_string(Activation activation) {
  switch (activation) {
    case Activation::none: return "none";
    case Activation::relu: return "relu";
    case Activation::gelu: return "gelu";
    case Activation::silu: return "silu";
  }
  return "?";
}

std::string_view to_string(Device device) {
  switch (device) {
    case Device::cpu: return "cpu";
    case Device::cuda: return "cuda";
  }
  return "?";
}

std::string_view to_string(StatusCode code) {
  switch (code) {
    case StatusCode::ok: return "ok";
    case StatusCode::invalid_argument: return "invalid_argument";
    case StatusCode::unsupported: return "unsupported";
    case StatusCode::not_found: return "not_found";
    case StatusCode::io_error: return "io_error";
    case StatusCode::corrupt_data: return "corrupt_data";
    case StatusCode::version_mismatch: return "version_mismatch";
    case StatusCode::out_of_memory: return "out_of_memory";
    case StatusCode::device_error: return "device_error";
    case StatusCode::internal: return "internal";
  }
  return "?";
}

const char* version() { return MIXGEMM_VERSION_STRING; }

}  // namespace mixgemm
