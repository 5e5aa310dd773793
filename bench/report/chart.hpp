// SPDX-License-Identifier: Apache-2.0
// Charts as inline SVG: logarithmic axes, lines, points, and a heat map. Colours are classes and
// variables of the page's style sheet, so that a chart follows light and dark.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace mixgemm::bench {

/// Text as HTML shows it.
std::string escape(const std::string& text);

/// A line or a cloud of points; `style` is a class of the page: "ours", "ideal", …
struct Series {
  std::string name;
  std::string style;
  std::vector<std::pair<double, double>> points;
  std::vector<std::string> tips;  ///< shown over a point; empty, or one for each
  bool line = true;
  bool markers = true;
};

struct ChartText {
  std::string title;
  std::string x_label, y_label;
  bool powers_of_two = true;  ///< ticks of x; else 1, 10, 100, …
  bool log_y = true;
  int width = 430, height = 270;
};

/// All values of logarithmic axes must be positive; series without points are left out. An empty
/// chart is an empty string.
std::string xy_chart(const ChartText& text, const std::vector<Series>& series);

/// One key for several charts with the same series.
std::string legend(const std::vector<std::pair<std::string, std::string>>& names_and_styles);

struct HeatMap {
  std::string title;
  std::vector<std::string> rows, columns;
  /// [row][column]; 1 is best and strongest, `faint` or more is faintest.
  std::vector<std::vector<std::optional<double>>> values;
  double faint = 1.6;
};
std::string heat_map(const HeatMap& map);

}  // namespace mixgemm::bench
