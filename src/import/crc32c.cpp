// SPDX-License-Identifier: Apache-2.0
#include "import/crc32c.hpp"

#include <array>
#include <bit>
#include <cstring>

namespace mixgemm {
namespace {

static_assert(std::endian::native == std::endian::little,
              "safetensors and packed weights are little-endian and used in place");

constexpr std::uint32_t kPolynomial = 0x82f63b78;  // 0x1edc6f41, bits reversed

using Tables = std::array<std::array<std::uint32_t, 256>, 8>;

/// tables[i][b]: contribution of byte b that still has i bytes behind it in an eight-byte step.
constexpr Tables make_tables() {
  Tables tables{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? kPolynomial : 0);
    tables[0][byte] = crc;
  }
  for (std::size_t i = 1; i < tables.size(); ++i) {
    for (std::size_t byte = 0; byte < 256; ++byte) {
      const std::uint32_t previous = tables[i - 1][byte];
      tables[i][byte] = (previous >> 8) ^ tables[0][previous & 0xff];
    }
  }
  return tables;
}

constexpr Tables kTables = make_tables();

/// crc after `count` zero bytes.
constexpr std::uint32_t append_zeros(std::uint32_t crc, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) crc = (crc >> 8) ^ kTables[0][crc & 0xff];
  return crc;
}

std::uint64_t load_u64(const std::uint8_t* p) {
  std::uint64_t value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

#if defined(__x86_64__) && defined(__GNUC__)
// The instruction takes three clocks but a new one can start every clock, so three runs of bytes
// are hashed side by side. Their remainders are joined by moving a remainder past kRun zero bytes,
// which is linear in its bits and so a XOR of four table entries.
constexpr std::size_t kRun = 1024;

using ShiftTables = std::array<std::array<std::uint32_t, 256>, 4>;

constexpr ShiftTables make_shift_tables() {
  std::array<std::uint32_t, 32> moved{};
  for (std::size_t bit = 0; bit < 32; ++bit) moved[bit] = append_zeros(1u << bit, kRun);
  ShiftTables tables{};
  for (std::size_t i = 0; i < 4; ++i) {
    for (std::size_t byte = 0; byte < 256; ++byte) {
      for (std::size_t bit = 0; bit < 8; ++bit) {
        if ((byte >> bit & 1) != 0) tables[i][byte] ^= moved[8 * i + bit];
      }
    }
  }
  return tables;
}

constexpr ShiftTables kShiftTables = make_shift_tables();

/// crc after kRun zero bytes.
std::uint32_t shift_by_run(std::uint32_t crc) {
  return kShiftTables[0][crc & 0xff] ^ kShiftTables[1][crc >> 8 & 0xff] ^
         kShiftTables[2][crc >> 16 & 0xff] ^ kShiftTables[3][crc >> 24];
}

__attribute__((target("sse4.2"))) std::uint32_t crc32c_sse42(std::uint32_t crc, const void* data,
                                                             std::size_t bytes) {
  const auto* p = static_cast<const std::uint8_t*>(data);
  std::uint64_t a = static_cast<std::uint32_t>(~crc);
  for (; bytes >= 3 * kRun; bytes -= 3 * kRun, p += 3 * kRun) {
    std::uint64_t b = 0, c = 0;
    for (std::size_t i = 0; i < kRun; i += 8) {
      a = __builtin_ia32_crc32di(a, load_u64(p + i));
      b = __builtin_ia32_crc32di(b, load_u64(p + kRun + i));
      c = __builtin_ia32_crc32di(c, load_u64(p + 2 * kRun + i));
    }
    a = shift_by_run(shift_by_run(static_cast<std::uint32_t>(a)) ^ static_cast<std::uint32_t>(b)) ^
        static_cast<std::uint32_t>(c);
  }
  for (; bytes >= 8; bytes -= 8, p += 8) a = __builtin_ia32_crc32di(a, load_u64(p));
  auto tail = static_cast<std::uint32_t>(a);
  for (; bytes > 0; --bytes, ++p) tail = __builtin_ia32_crc32qi(tail, *p);
  return ~tail;
}
#endif

}  // namespace

std::uint32_t crc32c_portable(std::uint32_t crc, const void* data, std::size_t bytes) {
  const auto* p = static_cast<const std::uint8_t*>(data);
  crc = ~crc;
  for (; bytes >= 8; bytes -= 8, p += 8) {
    const std::uint64_t word = load_u64(p) ^ crc;
    crc = 0;
    for (std::size_t i = 0; i < 8; ++i) crc ^= kTables[7 - i][word >> (8 * i) & 0xff];
  }
  for (; bytes > 0; --bytes, ++p) crc = (crc >> 8) ^ kTables[0][(crc ^ *p) & 0xff];
  return ~crc;
}

std::uint32_t crc32c(std::uint32_t crc, const void* data, std::size_t bytes) {
#if defined(__x86_64__) && defined(__GNUC__)
  static const bool has_instruction = __builtin_cpu_supports("sse4.2") != 0;
  if (has_instruction) return crc32c_sse42(crc, data, bytes);
#endif
  return crc32c_portable(crc, data, bytes);
}

}  // namespace mixgemm
