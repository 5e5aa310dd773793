// SPDX-License-Identifier: Apache-2.0
#include "report/chart.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace mixgemm::bench {
namespace {

/// 0.05, 1.5, 20, 300, 4k: short enough for a tick.
std::string tick_label(double value) {
  if (value >= 10000) return fmt::format("{:.0f}k", value / 1000);
  return fmt::format("{:.4g}", value);
}

/// Positions of values along one axis of a chart.
class Axis {
 public:
  Axis(double low, double high, bool log, double from, double to)
      : log_(log), low_(at(low)), high_(at(high)), from_(from), to_(to) {
    if (high_ - low_ < 1e-9) high_ = low_ + 1;
  }
  double operator()(double value) const {
    return from_ + (at(value) - low_) / (high_ - low_) * (to_ - from_);
  }

 private:
  double at(double value) const { return log_ ? std::log2(value) : value; }
  bool log_;
  double low_, high_, from_, to_;
};

std::vector<double> ticks(double low, double high, bool log, bool powers_of_two) {
  std::vector<double> values;
  if (!log) {
    const double raw = (high - low) / 5;
    const double decade = std::pow(10, std::floor(std::log10(raw)));
    double step = decade;
    for (const double nice : {2.0, 5.0, 10.0}) {
      if (step < raw) step = nice * decade;
    }
    for (double v = std::ceil(low / step) * step; v <= high * 1.0001; v += step)
      values.push_back(v);
    return values;
  }
  if (powers_of_two) {
    const int first = static_cast<int>(std::lround(std::log2(low)));
    const int last = static_cast<int>(std::lround(std::log2(high)));
    const int step = last - first > 8 ? 2 : 1;
    for (int e = first; e <= last; e += step) values.push_back(std::exp2(e));
    return values;
  }
  const bool fine = std::log10(high / low) < 2.5;
  for (double decade = std::pow(10, std::floor(std::log10(low))); decade <= high; decade *= 10) {
    for (const double factor : {1.0, 2.0, 5.0}) {
      const double v = decade * factor;
      if (v >= low * 0.999 && v <= high * 1.001 && (fine || factor == 1.0)) values.push_back(v);
    }
  }
  return values;
}

}  // namespace

std::string escape(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      case '\'': out += "&#39;"; break;
      default: out += c;
    }
  }
  return out;
}

std::string xy_chart(const ChartText& text, const std::vector<Series>& series) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  double x_low = kInfinity, x_high = 0, y_low = kInfinity, y_high = 0;
  for (const Series& s : series) {
    for (const auto& [x, y] : s.points) {
      x_low = std::min(x_low, x), x_high = std::max(x_high, x);
      y_low = std::min(y_low, y), y_high = std::max(y_high, y);
    }
  }
  if (!(x_low < kInfinity)) return "";
  if (text.log_y) {
    y_low /= 1.25, y_high *= 1.25;
  } else {
    y_low = std::min(y_low, 1.0), y_high *= 1.05;
  }
  constexpr double kLeft = 54, kRight = 12, kTop = 26, kBottom = 38;
  const Axis x(x_low, x_high, true, kLeft, text.width - kRight);
  const Axis y(y_low, y_high, text.log_y, text.height - kBottom, kTop);

  std::string svg = fmt::format(
      "<svg viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" role=\"img\" aria-label=\"{2}\">"
      "<text class=\"title\" x=\"0\" y=\"14\">{2}</text>",
      text.width, text.height, escape(text.title));
  for (const double v : ticks(y_low, y_high, text.log_y, false)) {
    svg += fmt::format(
        "<line class=\"grid\" x1=\"{0:.1f}\" x2=\"{1:.1f}\" y1=\"{2:.1f}\" y2=\"{2:.1f}\"/>"
        "<text class=\"tick\" text-anchor=\"end\" x=\"{3:.1f}\" y=\"{4:.1f}\">{5}</text>",
        kLeft, text.width - kRight, y(v), kLeft - 5, y(v) + 3.5, tick_label(v));
  }
  for (const double v : ticks(x_low, x_high, true, text.powers_of_two)) {
    svg += fmt::format(
        "<text class=\"tick\" text-anchor=\"middle\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>", x(v),
        text.height - kBottom + 14, tick_label(v));
  }
  svg += fmt::format(
      "<text class=\"tick\" text-anchor=\"middle\" x=\"{:.1f}\" y=\"{}\">{}</text>"
      "<text class=\"tick\" text-anchor=\"middle\" transform=\"translate(10 {:.1f}) "
      "rotate(-90)\">{}</text>",
      (kLeft + text.width - kRight) / 2, text.height - 6, escape(text.x_label),
      (kTop + text.height - kBottom) / 2, escape(text.y_label));
  for (const Series& s : series) {
    if (s.points.empty()) continue;
    if (s.line) {
      std::string path;
      for (const auto& [px, py] : s.points) {
        path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", x(px), y(py));
      }
      svg += fmt::format("<path class=\"line {}\" d=\"{}\"/>", s.style, path);
    }
    if (!s.markers) continue;
    for (std::size_t i = 0; i < s.points.size(); ++i) {
      const std::string tip = s.tips.empty() ? fmt::format("{}: {:.4g}, {:.4g}", s.name,
                                                           s.points[i].first, s.points[i].second)
                                             : s.tips[i];
      svg += fmt::format(
          "<circle class=\"dot {}\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{}\"><title>{}</title>"
          "</circle>",
          s.style, x(s.points[i].first), y(s.points[i].second), s.line ? "3" : "4", escape(tip));
    }
  }
  return svg + "</svg>\n";
}

std::string legend(const std::vector<std::pair<std::string, std::string>>& names_and_styles) {
  std::string html = "<p class=\"legend\">";
  for (const auto& [name, style] : names_and_styles) {
    html += fmt::format(
        "<span><svg width=\"26\" height=\"10\" aria-hidden=\"true\"><path class=\"line {0}\" "
        "d=\"M1 5H25\"/></svg>{1}</span>",
        style, escape(name));
  }
  return html + "</p>\n";
}

std::string heat_map(const HeatMap& map) {
  if (map.rows.empty() || map.columns.empty()) return "";
  std::string html = fmt::format(
      "<div class=\"scroll\"><table class=\"heat\"><caption>{}</caption>"
      "<tr><th></th>",
      escape(map.title));
  for (const std::string& column : map.columns) html += "<th>" + escape(column) + "</th>";
  html += "</tr>\n";
  for (std::size_t r = 0; r < map.rows.size(); ++r) {
    html += "<tr><th>" + escape(map.rows[r]) + "</th>";
    for (const auto& value : map.values[r]) {
      if (!value) {
        html += "<td></td>";
        continue;
      }
      const double strength = std::clamp((map.faint - *value) / (map.faint - 1), 0.0, 1.0);
      html += fmt::format("<td class=\"{}\" style=\"--strength:{:.0f}%\">{:.2f}</td>",
                          strength > 0.55 ? "strong" : "weak", 4 + 88 * strength, *value);
    }
    html += "</tr>\n";
  }
  return html + "</table></div>\n";
}

}  // namespace mixgemm::bench
