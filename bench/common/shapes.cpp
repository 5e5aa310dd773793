// SPDX-License-Identifier: Apache-2.0
// Shape files, and the eight layers that every build carries inside.
#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>

#include "bench_api.hpp"
#include "shapes_embedded.hpp"

namespace mixgemm::bench {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::int64_t kMaxDim = std::numeric_limits<std::int32_t>::max();

Status corrupt(const std::string& message) { return {StatusCode::corrupt_data, message}; }

Result<std::vector<Shape>> parse_shapes(const std::string& text, const std::string& name) {
  const Json json = Json::parse(text, nullptr, false);
  if (json.is_discarded()) return corrupt(fmt::format("{}: not valid JSON", name));
  if (!json.is_object() || !json.contains("shapes") || !json["shapes"].is_array()) {
    return corrupt(fmt::format("{}: must be an object with a list named \"shapes\"", name));
  }
  std::vector<Shape> shapes;
  for (const Json& entry : json["shapes"]) {
    const std::string where = fmt::format("{}: shapes[{}]", name, shapes.size());
    if (!entry.is_object()) return corrupt(fmt::format("{} must be an object", where));
    Shape shape;
    for (const auto& [key, value] : {std::pair{"n", &shape.n}, std::pair{"k", &shape.k}}) {
      const Json field = entry.value(key, Json());
      if (!field.is_number_integer() || field.get<std::int64_t>() < 1 ||
          field.get<std::int64_t>() > kMaxDim) {
        return corrupt(fmt::format("{}.{} must be an integer from 1 to {}; got {}", where, key,
                                   kMaxDim, field.dump()));
      }
      *value = field.get<std::int64_t>();
    }
    const Json layer = entry.value("layer", Json(fmt::format("{}x{}", shape.n, shape.k)));
    if (!layer.is_string()) {
      return corrupt(fmt::format("{}.layer must be a string; got {}", where, layer.dump()));
    }
    shape.layer = layer.get<std::string>();
    shapes.push_back(std::move(shape));
  }
  if (shapes.empty()) return corrupt(fmt::format("{}: \"shapes\" is empty", name));
  return shapes;
}

}  // namespace

const std::vector<Shape>& default_shapes() {
  static const std::vector<Shape> shapes =
      parse_shapes(kShapesJson, "the built-in shapes.json").value();
  return shapes;
}

const std::vector<std::int64_t>& default_tokens() {
  static const std::vector<std::int64_t> tokens = {1,   2,   4,   8,    16,   32,   64,
                                                   128, 256, 512, 1024, 2048, 4096, 8192};
  return tokens;
}

Result<std::vector<Shape>> load_shapes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    const int error = errno;
    return Status(error == ENOENT ? StatusCode::not_found : StatusCode::io_error,
                  fmt::format("{}: {}", path, std::strerror(error)));
  }
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (file.bad()) return Status(StatusCode::io_error, fmt::format("{}: cannot be read", path));
  return parse_shapes(text, path);
}

}  // namespace mixgemm::bench
