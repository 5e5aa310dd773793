// SPDX-License-Identifier: Apache-2.0
#include "layers.hpp"

#include <fmt/format.h>

#include "command.hpp"
#include "util/join.hpp"

namespace mixgemm::cli {

std::vector<bench::Shape> select_shapes(const std::string& file,
                                        const std::vector<std::string>& layers) {
  const auto all = file.empty() ? bench::default_shapes() : bench::load_shapes(file).value();
  if (layers.empty()) return all;
  std::vector<bench::Shape> chosen;
  for (const auto& name : layers) {
    const auto before = chosen.size();
    for (const auto& shape : all) {
      if (shape.layer == name) chosen.push_back(shape);
    }
    if (chosen.size() == before) {
      std::vector<std::string> names;
      for (const auto& shape : all) names.push_back(shape.layer);
      throw Error(StatusCode::not_found,
                  fmt::format("--layer must be one of {}; got {}", joined(names), name));
    }
  }
  return chosen;
}

std::vector<DataType> parse_acts(const std::vector<std::string>& names) {
  std::vector<DataType> acts;
  for (const auto& name : names) {
    if (name != "fp16" && name != "bf16") {
      throw Error(StatusCode::invalid_argument,
                  fmt::format("--act must be fp16, bf16 or both; got {}", name));
    }
    acts.push_back(parse_act(name));
  }
  return acts;
}

}  // namespace mixgemm::cli
