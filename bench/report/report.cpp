// SPDX-License-Identifier: Apache-2.0
#include "report/report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <tuple>

#include "bench_api.hpp"
#include "common/fields.hpp"
#include "common/statistics.hpp"
#include "report/chart.hpp"
#include "report/style.hpp"
#include "util/join.hpp"

namespace mixgemm::bench {
namespace {

using Json = nlohmann::ordered_json;

/// A row that was measured. Times in µs; negative: not known.
struct Row {
  std::string kernel, config, layer;
  bool is_auto = false;
  std::int64_t m = 0, n = 0, k = 0;
  double us = -1, floor = -1, dense = -1, ideal = -1, tflops = -1, gbps = -1;

  double intensity() const { return tflops / gbps * 1e3; }  // flop a byte
};

/// Rows that differ in layer, M and configuration only.
struct Section {
  std::string name;  ///< e.g. "fp16 × int4 g128"
  std::string gpu;
  bool cpu = false;
  bool plain = false;  ///< int4 g128 without zeros, under PDL: what the peers were measured with
  std::string act;
  std::vector<Row> rows;

  std::vector<std::string> layers() const {
    std::vector<std::string> names;
    for (const Row& row : rows) {
      if (std::find(names.begin(), names.end(), row.layer) == names.end())
        names.push_back(row.layer);
    }
    return names;
  }
  std::set<std::int64_t> tokens() const {
    std::set<std::int64_t> all;
    for (const Row& row : rows) all.insert(row.m);
    return all;
  }
  /// What the plan picked, or where no row says so the fastest; nullptr: nothing.
  const Row* chosen(const std::string& layer, std::int64_t m) const {
    const Row* best = nullptr;
    for (const Row& row : rows) {
      if (row.layer != layer || row.m != m) continue;
      if (best == nullptr || (row.is_auto && !best->is_auto) ||
          (row.is_auto == best->is_auto && row.us < best->us)) {
        best = &row;
      }
    }
    return best;
  }
  const Row* fastest(const std::string& layer, std::int64_t m) const {
    const Row* best = nullptr;
    for (const Row& row : rows) {
      if (row.layer == layer && row.m == m && (best == nullptr || row.us < best->us)) best = &row;
    }
    return best;
  }
};

std::vector<Section> sections_of(const std::vector<Json>& rows) {
  std::vector<Section> sections;
  std::map<std::string, std::size_t> index;
  for (const Json& json : rows) {
    if (json.contains("peer") || !json.contains("layer") || number(json, "us") <= 0) continue;
    if (json.contains("ok") && !flag(json, "ok")) continue;
    const bool cpu = text(json, "device") == "cpu";
    const int group = static_cast<int>(number(json, "group"));
    std::string name =
        fmt::format("{} × {} {}", text(json, "act"), text(json, "weight"),
                    group == 0 ? std::string("per column") : fmt::format("g{}", group));
    if (text(json, "zero") != "none") name += fmt::format(", {} zeros", text(json, "zero"));
    if (!cpu && !flag(json, "pdl")) name += ", without PDL";
    const bool loaded = number(json, "load_ms") > 0;
    if (loaded) name += fmt::format(", after {:.0f} ms of load", number(json, "load_ms"));
    const std::string key = text(json, "gpu") + name;
    const auto [at, is_new] = index.emplace(key, sections.size());
    if (is_new) {
      Section section;
      section.name = name;
      section.gpu = text(json, "gpu");
      section.cpu = cpu;
      section.act = text(json, "act");
      section.plain = !cpu && !loaded && flag(json, "pdl") && text(json, "weight") == "int4" &&
                      group == 128 && text(json, "zero") == "none";
      sections.push_back(section);
    }
    Row row;
    row.kernel = text(json, "kernel");
    row.config = text(json, "config");
    row.layer = text(json, "layer");
    row.is_auto = flag(json, "auto");
    row.m = static_cast<std::int64_t>(number(json, "m"));
    row.n = static_cast<std::int64_t>(number(json, "n"));
    row.k = static_cast<std::int64_t>(number(json, "k"));
    row.us = number(json, "us");
    row.floor = number(json, "floor_us");
    row.dense = number(json, cpu ? "blas_f32_us" : "cublas_us");
    row.ideal = number(json, "ideal_us");
    row.tflops = number(json, "tflops");
    row.gbps = number(json, "gbps");
    if (row.m >= 1) sections[at->second].rows.push_back(std::move(row));
  }
  return sections;
}

/// The fastest 4-bit peer of a layer and M on the same device, with its name.
struct Peer {
  double us;
  double ideal;  ///< of the peers' own run: machines of one kind differ by a few per cent
  std::string name;
};
using Peers = std::map<std::tuple<std::string, std::int64_t>, Peer>;
Peers peers_of(const std::vector<Json>& rows, const Section& section) {
  Peers best;
  if (!section.plain) return best;
  std::map<std::string, double> floors;
  for (const Json& row : rows) {
    if (text(row, "peer") != "floor_pdl") continue;
    if (section.gpu.find(text(row, "gpu")) == section.gpu.npos) continue;
    floors[text(row, "layer")] = number(row, "us");
  }
  for (const Json& row : rows) {
    const std::string peer = text(row, "peer"), gpu = text(row, "gpu");
    if (peer.empty() || peer.starts_with("floor") || peer.starts_with("cublas")) continue;
    if (text(row, "act") != section.act || number(row, "group") != 128 || number(row, "us") <= 0) {
      continue;
    }
    if (gpu.empty() || section.gpu.find(gpu) == section.gpu.npos) continue;
    const auto key = std::tuple(text(row, "layer"), static_cast<std::int64_t>(number(row, "m")));
    const auto found = best.find(key);
    if (found == best.end() || number(row, "us") < found->second.us) {
      const auto size = [&](const char* name) {
        return static_cast<std::int64_t>(number(row, name));
      };
      const double ideal = ideal_us(size("m"), size("n"), size("k"), floors[text(row, "layer")]);
      best[key] = {number(row, "us"), ideal, peer};
    }
  }
  return best;
}

std::string dense_name(const Section& s) { return s.cpu ? "fp32 BLAS, dense" : "cuBLAS, dense"; }

/// Time over M for each layer, against what bounds it and what others take.
std::string time_charts(const Section& section, const Peers& peers) {
  std::string html = "<h3>Time over M</h3>\n";
  std::vector<std::pair<std::string, std::string>> keys = {{"mixgemm", "ours"}};
  if (!section.cpu) keys.emplace_back("ideal", "ideal");
  keys.emplace_back(section.cpu ? "reading the codes" : "streaming floor", "floor");
  keys.emplace_back(dense_name(section), "dense");
  if (!peers.empty()) keys.emplace_back("fastest 4-bit peer", "peer");
  html += legend(keys) + "<div class=\"charts\">\n";
  for (const std::string& layer : section.layers()) {
    Series ours = {"mixgemm", "ours", {}, {}, true, true};
    Series ideal = {"ideal", "ideal", {}, {}, true, false};
    Series floor = {"floor", "floor", {}, {}, true, false};
    Series dense = {dense_name(section), "dense", {}, {}, true, true};
    Series peer = {"peer", "peer", {}, {}, true, true};
    const Row* any = nullptr;
    for (const std::int64_t m : section.tokens()) {
      const Row* row = section.chosen(layer, m);
      if (row == nullptr) continue;
      any = row;
      const auto x = static_cast<double>(m);
      ours.points.emplace_back(x, row->us);
      ours.tips.push_back(
          fmt::format("M={}: {:.2f} µs{}, {}", m, row->us,
                      row->ideal > 0 ? fmt::format(", {:.2f} × ideal", row->us / row->ideal) : "",
                      row->config));
      if (row->ideal > 0) ideal.points.emplace_back(x, row->ideal);
      if (row->floor > 0) floor.points.emplace_back(x, row->floor);
      if (row->dense > 0) {
        dense.points.emplace_back(x, row->dense);
        dense.tips.push_back(fmt::format("M={}: {:.2f} µs, {}", m, row->dense, dense.name));
      }
      if (const auto found = peers.find({layer, m}); found != peers.end()) {
        peer.points.emplace_back(x, found->second.us);
        peer.tips.push_back(
            fmt::format("M={}: {:.2f} µs, {}", m, found->second.us, found->second.name));
      }
    }
    ChartText chart;
    chart.title = fmt::format("{}, {} × {}", layer, any->n, any->k);
    chart.x_label = "M (tokens)";
    chart.y_label = "µs";
    html += xy_chart(chart, {floor, ideal, dense, peer, ours});
  }
  return html + "</div>\n";
}

/// Geometric means over the layers of time ÷ ideal.
std::string ratio_chart(const Section& section, const Peers& peers) {
  Series ours = {"mixgemm", "ours", {}, {}, true, true};
  Series dense = {dense_name(section), "dense", {}, {}, true, true};
  Series peer = {"peer", "peer", {}, {}, true, true};
  for (const std::int64_t m : section.tokens()) {
    std::vector<double> a, b, c;
    for (const std::string& layer : section.layers()) {
      const Row* row = section.chosen(layer, m);
      const double base = row == nullptr ? -1 : section.cpu ? row->floor : row->ideal;
      if (base <= 0) continue;
      a.push_back(row->us / base);
      if (row->dense > 0) b.push_back(row->dense / base);
      const auto found = peers.find({layer, m});
      if (found != peers.end()) c.push_back(found->second.us / found->second.ideal);
    }
    const auto x = static_cast<double>(m);
    const auto add = [&](Series& series, const std::vector<double>& ratios) {
      if (ratios.empty()) return;
      series.points.emplace_back(x, geometric_mean(ratios));
      series.tips.push_back(fmt::format("M={}: {:.2f} ({} layers), {}", m, geometric_mean(ratios),
                                        ratios.size(), series.name));
    };
    add(ours, a), add(dense, b), add(peer, c);
  }
  ChartText chart;
  chart.title = section.cpu ? "Time ÷ reading the codes, geometric mean over the layers"
                            : "Time ÷ ideal, geometric mean over the layers (1 is perfect)";
  chart.x_label = "M (tokens)";
  chart.y_label = "ratio";
  chart.log_y = false;
  chart.width = 660;
  std::vector<std::pair<std::string, std::string>> keys = {{"mixgemm", "ours"},
                                                           {dense_name(section), "dense"}};
  if (!peer.points.empty()) keys.emplace_back("fastest 4-bit peer of each layer", "peer");
  const std::string svg = xy_chart(chart, {dense, peer, ours});
  return svg.empty() ? "" : "<h3>How far from ideal</h3>\n" + legend(keys) + svg;
}

std::string roofline(const Section& section) {
  Series ours = {"mixgemm", "ours", {}, {}, false, true};
  double bandwidth = 0, low = 1e300, high = 0;  // GB/s that reading codes alone reaches
  for (const std::string& layer : section.layers()) {
    for (const std::int64_t m : section.tokens()) {
      const Row* row = section.chosen(layer, m);
      if (row == nullptr || row->tflops <= 0 || row->gbps <= 0) continue;
      ours.points.emplace_back(row->intensity(), row->tflops);
      ours.tips.push_back(fmt::format("{} M={}: {:.1f} TFLOP/s, {:.0f} GB/s, {:.2f} µs", layer, m,
                                      row->tflops, row->gbps, row->us));
      low = std::min(low, row->intensity()), high = std::max(high, row->intensity());
      const double code_bytes = static_cast<double>(row->n) * static_cast<double>(row->k) / 2;
      if (row->floor > 0 && section.name.find("int4") != section.name.npos) {
        bandwidth = std::max(bandwidth, code_bytes / row->floor * 1e-3);
      } else if (row->floor > 0) {
        bandwidth = std::max(bandwidth, 2 * code_bytes / row->floor * 1e-3);
      }
    }
  }
  if (ours.points.empty()) return "";
  Series roof = {"roof", "ideal", {}, {}, true, false};
  const double knee = section.cpu ? high : std::min(high, kPeakTflops / bandwidth * 1e3);
  for (const double x : {low, std::max(low, knee), high}) {
    const double memory = x * bandwidth * 1e-3;
    roof.points.emplace_back(x, section.cpu ? memory : std::min(memory, kPeakTflops));
  }
  ChartText chart;
  chart.title = "Throughput over arithmetic intensity";
  chart.x_label = "flop per byte that must move";
  chart.y_label = "TFLOP/s";
  chart.powers_of_two = false;
  chart.width = 660;
  chart.height = 340;
  return "<h3>Roofline</h3>\n" +
         legend({{"a layer at one M", "ours"},
                 {section.cpu ? fmt::format("reading memory: {:.0f} GB/s", bandwidth)
                              : fmt::format("streaming floor {:.0f} GB/s, then {:.0f} TFLOP/s",
                                            bandwidth, kPeakTflops),
                  "ideal"}}) +
         xy_chart(chart, {roof, ours});
}

/// Which kernels are good where: best launch of each kernel ÷ best of all, over the layers that
/// have both. Rows of `bench --all-configs` fill it; what plans picked alone leaves it sparse.
std::string configuration_map(const Section& section) {
  std::map<std::string, std::map<std::int64_t, std::vector<double>>> ratios;
  std::map<std::tuple<std::string, std::int64_t>, std::map<std::string, double>> problems;
  for (const Row& row : section.rows) {
    double& us = problems[{row.layer, row.m}].emplace(row.kernel, row.us).first->second;
    us = std::min(us, row.us);
  }
  bool several = false;
  for (const auto& [problem, kernels] : problems) {
    const double best = section.fastest(std::get<0>(problem), std::get<1>(problem))->us;
    several = several || kernels.size() > 1;
    for (const auto& [kernel, us] : kernels)
      ratios[kernel][std::get<1>(problem)].push_back(us / best);
  }
  HeatMap map;
  map.title = several ? "Best launch of a kernel ÷ best of all, geometric mean over the layers"
                      : "Kernels that plans picked: time ÷ ideal, geometric mean over the layers";
  const auto tokens = section.tokens();
  for (const std::int64_t m : tokens) map.columns.push_back(fmt::format("{}", m));
  std::vector<std::pair<double, std::string>> order;  // by where on the M axis a kernel is best
  for (const auto& [kernel, by_m] : ratios) {
    double weight = 0, sum = 0;
    for (const auto& [m, values] : by_m) {
      const double w = 1 / std::pow(geometric_mean(values), 8) * static_cast<double>(values.size());
      weight += w, sum += w * std::log2(static_cast<double>(m));
    }
    order.emplace_back(sum / weight, kernel);
  }
  std::sort(order.begin(), order.end());
  for (const auto& [place, kernel] : order) {
    std::vector<std::optional<double>> line;
    for (const std::int64_t m : tokens) {
      const auto found = ratios[kernel].find(m);
      if (found == ratios[kernel].end()) {
        line.push_back(std::nullopt);
        continue;
      }
      if (several) {
        line.push_back(geometric_mean(found->second));
        continue;
      }
      std::vector<double> to_ideal;
      for (const Row& row : section.rows) {
        const double base = section.cpu ? row.floor : row.ideal;
        if (row.kernel == kernel && row.m == m && base > 0) to_ideal.push_back(row.us / base);
      }
      line.push_back(to_ideal.empty() ? std::nullopt : std::optional(geometric_mean(to_ideal)));
    }
    map.rows.push_back(kernel);
    map.values.push_back(std::move(line));
  }
  return "<h3>Kernel × M</h3>\n" + heat_map(map);
}

std::string winners(const Section& section) {
  std::string html =
      "<h3>What ran</h3>\n<details><summary>Every layer and M</summary><div "
      "class=\"scroll\"><table class=\"rows\"><tr><th>layer</th><th>M</th>"
      "<th>µs</th><th>TFLOP/s</th><th>GB/s</th><th>÷ ideal</th><th>÷ dense</th><th>÷ best "
      "measured</th><th>configuration</th></tr>\n";
  const auto ratio = [](double a, double b) {
    return a > 0 && b > 0 ? fmt::format("{:.2f}", a / b) : std::string("–");
  };
  for (const std::string& layer : section.layers()) {
    for (const std::int64_t m : section.tokens()) {
      const Row* row = section.chosen(layer, m);
      if (row == nullptr) continue;
      html += fmt::format(
          "<tr><td>{}</td><td>{}</td><td>{:.2f}</td><td>{:.1f}</td><td>{:.0f}</td><td>{}</td><td>{}"
          "</td><td>{}</td><td class=\"id\">{}{}</td></tr>\n",
          escape(layer), m, row->us, row->tflops, row->gbps, ratio(row->us, row->ideal),
          ratio(row->us, row->dense), ratio(row->us, section.fastest(layer, m)->us),
          escape(row->config), row->is_auto ? "" : " (fastest measured)");
    }
  }
  return html + "</table></div></details>\n";
}

/// What tuning gained over the cost model's picks: from caches, and from rows of all
/// configurations.
std::string tuned_against_model(const ReportInput& input, const std::vector<Section>& sections) {
  struct Gain {
    double m, ratio;
    std::string what, model, tuned;
  };
  std::vector<Gain> gains;
  for (const TuningEntry& e : input.tuned) {
    if (e.model_us <= 0 || e.us <= 0) continue;
    const Problem& p = e.problem;
    gains.push_back({static_cast<double>(p.m), e.model_us / e.us,
                     fmt::format("{} {} N={} K={} M={} on {}", act_name(p.act),
                                 to_string(p.weight.type), p.n, p.k, p.m, e.device.name),
                     e.model_config, e.config});
  }
  for (const Section& section : sections) {
    for (const std::string& layer : section.layers()) {
      for (const std::int64_t m : section.tokens()) {
        const Row* picked = section.chosen(layer, m);
        const Row* best = section.fastest(layer, m);
        const auto others =
            std::count_if(section.rows.begin(), section.rows.end(),
                          [&](const Row& r) { return r.layer == layer && r.m == m && !r.is_auto; });
        if (picked == nullptr || !picked->is_auto || others == 0) continue;
        gains.push_back({static_cast<double>(m), picked->us / best->us,
                         fmt::format("{} {} M={}", section.name, layer, m), picked->config,
                         best->config});
      }
    }
  }
  if (gains.empty()) {
    return "<h2>Cost model against measurement</h2>\n<p>No tuning cache was given and no row "
           "stands beside a plan's own pick: <code>mixgemm tune</code> or <code>mixgemm bench "
           "--all-configs</code> makes them.</p>\n";
  }
  std::vector<double> ratios;
  Series points = {"pick ÷ best", "ours", {}, {}, false, true};
  int within = 0;
  for (const Gain& g : gains) {
    ratios.push_back(g.ratio);
    within += g.ratio <= 1.05;
    points.points.emplace_back(g.m, g.ratio);
    points.tips.push_back(fmt::format("{}: {:.2f}, {} → {}", g.what, g.ratio, g.model, g.tuned));
  }
  std::sort(gains.begin(), gains.end(),
            [](const Gain& a, const Gain& b) { return a.ratio > b.ratio; });
  ChartText chart;
  chart.title = "Time of the model's pick ÷ time of the fastest that was measured";
  chart.x_label = "M (tokens)";
  chart.y_label = "ratio";
  chart.log_y = false;
  chart.width = 660;
  std::string html = fmt::format(
      "<h2>Cost model against measurement</h2>\n<p>{} problems: geometric mean {:.3f}, worst "
      "{:.2f}, "
      "{} of them within 5&nbsp;%.</p>\n{}<details><summary>The {} where the model errs most"
      "</summary><div class=\"scroll\"><table class=\"rows\"><tr><th>problem</th><th>ratio</th>"
      "<th>the model's pick</th><th>the fastest</th></tr>\n",
      gains.size(), geometric_mean(ratios), gains.front().ratio, within, xy_chart(chart, {points}),
      std::min<std::size_t>(gains.size(), 20));
  for (std::size_t i = 0; i < std::min<std::size_t>(gains.size(), 20); ++i) {
    const Gain& g = gains[i];
    html += fmt::format(
        "<tr><td>{}</td><td>{:.2f}</td><td class=\"id\">{}</td><td class=\"id\">{}"
        "</td></tr>\n",
        escape(g.what), g.ratio, escape(g.model), escape(g.tuned));
  }
  return html + "</table></div></details>\n";
}

}  // namespace

std::string report_html(const ReportInput& input) {
  const std::vector<Section> sections = sections_of(input.rows);
  std::set<std::string> devices, commits;
  int measured = 0, failed = 0;
  for (const Json& row : input.rows) {
    if (row.contains("peer")) continue;
    ++measured;
    if (const std::string gpu = text(row, "gpu"); !gpu.empty()) devices.insert(gpu);
    if (const std::string commit = text(row, "commit"); !commit.empty()) commits.insert(commit);
    failed += row.contains("ok") && !flag(row, "ok");
  }
  std::string html = fmt::format(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
      "content=\"width=device-width\"><title>mixgemm on {0}</title><style>{1}</style></head><body>"
      "<main>\n<h1>mixgemm on {0}</h1>\n<p class=\"note\">Commit {2}; {3} rows, {4} failed; from "
      "{5}.</p>\n",
      escape(joined(devices)), kStyle, escape(joined(commits)), measured, failed,
      escape(joined(input.sources)));
  html +=
      "<p>Times are medians of replays of a CUDA graph with cold weights; on the CPU, of repeated "
      "calls. The <b>streaming floor</b> is what the machine needs merely to read the packed "
      "codes; "
      "<b>ideal</b> is the larger of that and 2·M·N·K at 800&nbsp;TFLOP/s. Nothing can be faster "
      "than the floor. Point at a mark for its configuration.</p>\n";
  bool first = true;
  for (const Section& section : sections) {
    const Peers peers = peers_of(input.rows, section);
    html += fmt::format(
        "<details class=\"section\"{}><summary><h2>{}</h2><span class=\"note\">{}"
        "</span></summary>\n",
        first ? " open" : "", escape(section.name), escape(section.gpu));
    html += ratio_chart(section, peers) + time_charts(section, peers) + roofline(section) +
            configuration_map(section) + winners(section);
    html += "</details>\n";
    first = false;
  }
  if (sections.empty()) html += "<p>No row with a time.</p>\n";
  return html + tuned_against_model(input, sections) + "</main></body></html>\n";
}

}  // namespace mixgemm::bench
