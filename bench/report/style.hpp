// SPDX-License-Identifier: Apache-2.0
// The page's style sheet: one set of variables for light, one for dark.
#pragma once

namespace mixgemm::bench {

inline constexpr char kStyle[] = R"css(
:root { color-scheme: light dark; --page: #fcfcfb; --ink: #1d1d1b; --soft: #5c5b57; --grid: #e4e3df;
  --ours: #1f66c4; --dense: #d2571d; --peer: #14875d; --ideal: #6f6e69; --floor: #a3a29c; }
@media (prefers-color-scheme: dark) {
  :root { --page: #191918; --ink: #f2f1ee; --soft: #b5b4ae; --grid: #343431;
    --ours: #6aa5f2; --dense: #f08a57; --peer: #43bd8e; --ideal: #a9a8a2; --floor: #77766f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1380px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 20px; margin: 28px 0 8px; }
h3 { font-size: 16px; margin: 24px 0 4px; } p { max-width: 860px; margin: 8px 0; }
.note { color: var(--soft); font-size: 13px; }
summary { cursor: pointer; } .section > summary h2 { display: inline; margin-right: 12px; }
.section { border-top: 1px solid var(--grid); padding-top: 14px; margin-top: 20px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(400px, 1fr)); gap: 18px; }
svg { max-width: 100%; height: auto; display: block; }
svg text { fill: var(--ink); font: 11px system-ui, "DejaVu Sans", sans-serif; }
svg .title { font-size: 13px; font-weight: 600; } svg .tick { fill: var(--soft); }
.grid { stroke: var(--grid); stroke-width: 1; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.dot { stroke: var(--page); stroke-width: 1; }
.ours { --colour: var(--ours); } .dense { --colour: var(--dense); } .peer { --colour: var(--peer); }
.ideal { --colour: var(--ideal); stroke-dasharray: 6 4; }
.floor { --colour: var(--floor); stroke-dasharray: 2 3; }
.line { stroke: var(--colour); } .dot { fill: var(--colour); } .dot.ours { stroke-dasharray: none; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 13px; color: var(--soft); }
.legend span { display: inline-flex; align-items: center; gap: 6px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: 6px; }
th { font-weight: 600; text-align: right; padding: 3px 8px; white-space: nowrap; }
td { text-align: right; padding: 3px 8px; white-space: nowrap; }
.rows td, .rows th { border-bottom: 1px solid var(--grid); }
.rows td:first-child, .rows th:first-child, td.id, .rows th:last-child { text-align: left; }
td.id, .heat th:first-child { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 12px;
  font-weight: 400; text-align: left; }
.heat td { min-width: 48px; border: 2px solid var(--page); text-align: center; }
.heat .strong, .heat .weak {
  background: color-mix(in srgb, var(--ours) var(--strength), var(--page)); }
.heat .strong { color: var(--page); }
)css";

}  // namespace mixgemm::bench
