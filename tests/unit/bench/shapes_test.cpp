// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>

#include "bench_api.hpp"

namespace mixgemm::bench {
namespace {

using ::testing::HasSubstr;

Result<std::vector<Shape>> load_text(const std::string& text) {
  const std::string path = ::testing::TempDir() + "mixgemm_shapes_test.json";
  std::ofstream(path) << text;
  auto shapes = load_shapes(path);
  std::remove(path.c_str());
  return shapes;
}

TEST(Shapes, BuiltInShapesAreTheFile) {
  const auto shapes = load_shapes(MIXGEMM_SOURCE_DIR "/bench/shapes.json");
  ASSERT_TRUE(shapes.ok()) << shapes.status().message();
  EXPECT_EQ(*shapes, default_shapes());
  EXPECT_EQ(default_shapes().size(), 8u);
  EXPECT_EQ(default_tokens().size(), 14u);
}

TEST(Shapes, LayerNameDefaultsToSize) {
  const auto shapes = load_text(R"({"shapes": [{"n": 17, "k": 100}]})");
  ASSERT_TRUE(shapes.ok()) << shapes.status().message();
  EXPECT_EQ(shapes->at(0), (Shape{17, 100, "17x100"}));
}

TEST(Shapes, AbsentFileIsNotFound) {
  const auto shapes = load_shapes("/nonexistent/shapes.json");
  EXPECT_EQ(shapes.status().code(), StatusCode::not_found);
  EXPECT_THAT(shapes.status().message(), HasSubstr("/nonexistent/shapes.json"));
}

TEST(Shapes, ErrorNamesEntryFieldAndValue) {
  const std::pair<const char*, const char*> cases[] = {
      {"{", "not valid JSON"},
      {"[]", "list named \"shapes\""},
      {R"({"shapes": 3})", "list named \"shapes\""},
      {R"({"shapes": []})", "is empty"},
      {R"({"shapes": [7]})", "shapes[0] must be an object"},
      {R"({"shapes": [{"n": 1, "k": 2}, {"n": 0, "k": 2}]})", "shapes[1].n must be an integer"},
      {R"({"shapes": [{"n": 1, "k": 2.5}]})", "got 2.5"},
      {R"({"shapes": [{"n": 1}]})", "shapes[0].k must be an integer"},
      {R"({"shapes": [{"n": 1, "k": 4294967296}]})", "got 4294967296"},
      {R"({"shapes": [{"n": 1, "k": 2, "layer": 5}]})", "layer must be a string; got 5"},
  };
  for (const auto& [text, message] : cases) {
    const auto shapes = load_text(text);
    EXPECT_EQ(shapes.status().code(), StatusCode::corrupt_data) << text;
    EXPECT_THAT(shapes.status().message(), HasSubstr(message)) << text;
  }
}

}  // namespace
}  // namespace mixgemm::bench
