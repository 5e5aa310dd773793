// SPDX-License-Identifier: Apache-2.0
// The compiled kernels, as tools/generate_kernels.py lists them in the registry.cpp it writes. A
// kernel in this table links, because the table holds its address.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

#include "kernel_config.hpp"

namespace mixgemm {

/// One compiled kernel. The strings are static.
struct KernelEntry {
  KernelConfig config;
  const char* id;        ///< kernel_id(config, epilogue)
  const char* epilogue;  ///< name in the manifest; "standard" covers bias, activation, residual
  const char* reason;    ///< why the variant exists, in the manifest's words
  const void* function;  ///< host stub of a `void(Params)` kernel, for cudaLaunchKernelExC
};

/// Every kernel of this build, in the manifest's order within each family. Empty when the build's
/// architectures have none.
std::span<const KernelEntry> kernel_registry();

/// A kernel id without a heap: long enough for every id, comparable at compile time.
class KernelId {
 public:
  constexpr operator std::string_view() const { return view(); }
  constexpr std::string_view view() const { return {text_, size_}; }

  friend constexpr bool operator==(const KernelId& a, std::string_view b) { return a.view() == b; }

  constexpr KernelId& operator<<(std::string_view part) {
    for (const char c : part) text_[size_++] = c;
    return *this;
  }
  constexpr KernelId& operator<<(int value) {
    if (value >= 10) *this << value / 10;
    text_[size_++] = static_cast<char>('0' + value % 10);
    return *this;
  }

 private:
  static constexpr std::size_t kCapacity = 128;
  char text_[kCapacity] = {};
  std::size_t size_ = 0;
};

/// The compiled part of a configuration's name, e.g. "sm90_f16_i4_gz_t128x256x64_coop". `epilogue`
/// must be at most 48 characters.
constexpr KernelId kernel_id(const KernelConfig& c, std::string_view epilogue = "standard") {
  constexpr std::string_view kSchedules[] = {"coop", "pp", "mma", "stream", "multi"};
  constexpr std::string_view kQuants[] = {"c", "g", "gz"};
  KernelId id;
  id << "sm" << c.arch << (c.act == DataType::bf16 ? "_bf16" : "_f16")
     << (c.weight == WeightType::int4 ? "_i4_" : "_i8_") << (c.fine_groups ? "f" : "")
     << kQuants[static_cast<int>(c.quant)] << "_t" << c.tile_n << "x" << c.tile_m << "x" << c.tile_k
     << "_" << kSchedules[static_cast<int>(c.schedule)];
  if (c.consumer_warpgroups != 2) id << "_w" << c.consumer_warpgroups;
  if (c.k_teams != 1) id << "_k" << c.k_teams;
  if (c.ctas_per_sm != 1) id << "_o" << c.ctas_per_sm;
  if (epilogue != "standard") id << "_" << epilogue;
  return id;
}

}  // namespace mixgemm
