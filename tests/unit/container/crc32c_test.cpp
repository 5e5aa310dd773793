// SPDX-License-Identifier: Apache-2.0
#include "import/crc32c.hpp"

#include <gtest/gtest.h>

#include <random>
#include <string_view>
#include <vector>

namespace mixgemm {
namespace {

std::uint32_t crc_of(std::string_view text) { return crc32c(0, text.data(), text.size()); }

// The vectors of RFC 3720, appendix B.4, and the catalogue's check value.
TEST(Crc32c, PublishedVectors) {
  EXPECT_EQ(crc_of(""), 0u);
  EXPECT_EQ(crc_of("123456789"), 0xe3069283u);
  EXPECT_EQ(crc_of(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(crc_of(std::string(32, '\xff')), 0x62a8ab43u);
  std::string rising(32, '\0');
  for (int i = 0; i < 32; ++i) rising[static_cast<std::size_t>(i)] = static_cast<char>(i);
  EXPECT_EQ(crc_of(rising), 0x46dd794eu);
}

// Lengths around the three interleaved runs, at every alignment, whole and in two pieces: the
// instruction's path must agree with the table's.
TEST(Crc32c, PathsAndPiecesAgree) {
  constexpr std::uint32_t kSeed = 20240601;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  std::mt19937 random(kSeed);
  std::vector<std::uint8_t> bytes(20000);
  for (auto& byte : bytes) byte = static_cast<std::uint8_t>(random());
  for (const std::size_t length :
       {0, 1, 7, 8, 9, 3071, 3072, 3073, 6143, 6144, 6151, 9216, 19000}) {
    for (std::size_t offset = 0; offset < 9; ++offset) {
      const std::uint8_t* p = bytes.data() + offset;
      const std::uint32_t whole = crc32c(0, p, length);
      EXPECT_EQ(whole, crc32c_portable(0, p, length)) << length << " at " << offset;
      const std::size_t cut = length == 0 ? 0 : random() % length;
      EXPECT_EQ(whole, crc32c(crc32c(0, p, cut), p + cut, length - cut)) << length << " " << cut;
    }
  }
}

TEST(Crc32c, EveryBitMatters) {
  std::vector<std::uint8_t> bytes(4000, 0x5a);
  const std::uint32_t before = crc32c(0, bytes.data(), bytes.size());
  for (std::size_t bit = 0; bit < 8 * bytes.size(); bit += 61) {
    bytes[bit / 8] ^= static_cast<std::uint8_t>(1u << (bit % 8));
    EXPECT_NE(crc32c(0, bytes.data(), bytes.size()), before) << bit;
    bytes[bit / 8] ^= static_cast<std::uint8_t>(1u << (bit % 8));
  }
}

}  // namespace
}  // namespace mixgemm
