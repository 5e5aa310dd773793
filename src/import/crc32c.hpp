// SPDX-License-Identifier: Apache-2.0
// CRC-32C (Castagnoli; RFC 3720 appendix B.4), the checksum of packed checkpoints. Chosen because
// x86-64 computes it with an instruction, at several bytes a clock.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mixgemm {

/// CRC of a piece that follows data whose CRC is `crc` (0 for the first piece).
std::uint32_t crc32c(std::uint32_t crc, const void* data, std::size_t bytes);

/// The path without special instructions, which crc32c() takes where the CPU has none.
std::uint32_t crc32c_portable(std::uint32_t crc, const void* data, std::size_t bytes);

}  // namespace mixgemm
