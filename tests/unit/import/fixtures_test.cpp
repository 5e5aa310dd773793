// SPDX-License-Identifier: Apache-2.0
// Checkpoints written by the formats' own published tools (fixtures/make_fixtures.py says which
// and how): the imported weights are those that the tools themselves dequantize to.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "mixgemm/import.hpp"
#include "util/half.hpp"

namespace mixgemm {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> fixtures() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(MIXGEMM_FIXTURES)) {
    if (entry.is_directory()) names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

class Fixture : public ::testing::TestWithParam<std::string> {};

TEST_P(Fixture, ImportsToWhatItsToolDequantizesTo) {
  const std::string folder = std::string(MIXGEMM_FIXTURES) + "/" + GetParam();
  const auto model = ModelCheckpoint::open(folder).value();
  const auto expected = SafetensorsFile::open(folder + "/expected/dequantized.safetensors").value();
  ASSERT_EQ(model.layers().size(), expected.tensors().size());
  EXPECT_TRUE(GetParam().starts_with(to_string(model.format())));
  for (const ImportedLayer& layer : model.layers()) {
    const CanonicalWeight weight = model.load(layer.name).value();
    const auto dense = dequantize(weight).value();
    const TensorView want = expected.find(layer.name).value();
    ASSERT_EQ(want.info.shape, (std::vector<std::int64_t>{layer.n, layer.k}));
    const auto* values = static_cast<const float*>(want.data);
    // Exact, but for a zero · scale that was rounded to fp16: half a unit in its last place.
    float largest_zero = 0.0f;
    for (const std::uint16_t zero : weight.scaled_zeros) {
      largest_zero = std::max(largest_zero, std::abs(f32_from_f16(zero)));
    }
    for (std::size_t i = 0; i < dense.size(); ++i) {
      ASSERT_NEAR(dense[i], values[i], 0x1.001p-11 * static_cast<double>(largest_zero))
          << layer.name << " element " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Tools, Fixture, ::testing::ValuesIn(fixtures()), [](const auto& info) {
  std::string name = info.param;  // letters, digits and underscores
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
}  // namespace mixgemm
