#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds a benchmark run against the project's bars and against the best peers.

    tools/compare_bars.py bench/results/h100/RUN.jsonl [--json] [--strict]
    tools/compare_bars.py RUN.jsonl --peer marlin [--all]

Reads rows of `mixgemm bench` (bench/results/README.md). For every kind of run (activation, weight,
group, zero-point kind, PDL) and every M it prints the geometric mean over the layers of
time / ideal, time / floor and time / cuBLAS, the bar that applies and whether it is met; where the
file also has the plain int4 group-128 rows, the time of other formats relative to them; then every
layer that is slower than the best peer of bench/baselines at the same M. Only rows with "auto": true
count, since the bars are about what the plan picks by itself; --all takes the best row of each
problem instead. --peer NAME prints only, for each M, the geometric mean of time / that peer's time and
the layer where it is worst: what a kernel on the same instructions is held against. Standard library
only.
"""

import argparse
import json
import math
import sys
from collections import defaultdict
from pathlib import Path

BASELINES = Path(__file__).resolve().parent.parent / "bench" / "baselines"

# M: (what the time is divided by, bar for fp16, bar for bf16); int4, group 128, no zeros, PDL on.
DECODE = {m: ("floor", bar, bar) for m, bar in ((1, 1.25), (2, 1.30), (4, 1.33), (8, 1.42), (16, 1.55))}
THROUGHPUT = {
    m: ("ideal", bar, bar * 1.05)
    for m, bar in ((32, 1.60), (64, 1.75), (128, 1.40), (256, 1.22), (512, 1.12))
}
PREFILL = {m: ("cublas", 0.97, 1.03) for m in (1024, 2048, 4096, 8192)}
BARS = DECODE | THROUGHPUT | PREFILL

NO_PDL_ALLOWANCE = 0.10  # decode without PDL, against the floor without PDL
PEER_NOISE = 1.02  # M >= 32: how much slower than the best peer still counts as level
NO_PEERS = ("floor", "floor_pdl")  # rows of the baselines that no kernel made
INT8_ALLOWANCE = 1.15  # int8 against int4, from M = 256
FORMAT_ALLOWANCE = (1.05, 1.08)  # finer groups and zeros: where memory decides (x bytes), elsewhere


def geometric_mean(values):
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def read_rows(path):
    rows = []
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            sys.exit(f"{path}:{number}: not JSON: {error}")
        if isinstance(row, dict) and "layer" in row and "us" in row and "m" in row:
            rows.append(row)
    under_load = [row for row in rows if row.get("load_ms")]
    if under_load and len(under_load) < len(rows):
        print(f"{path}: {len(under_load)} rows under load left out", file=sys.stderr)
        rows = [row for row in rows if not row.get("load_ms")]
    if not rows:
        sys.exit(f"{path}: no GEMM rows")
    return rows


def read_peers(gpu):
    """(act, m, layer) -> (us, peer) of the fastest public kernel, 4-bit or dense. The 4-bit ones were
    measured with fp16 only, so a bf16 run is held against cuBLAS."""
    file = BASELINES / ("h200_peers.jsonl" if "H200" in gpu else "h100_peers.jsonl")
    best = {}
    for line in file.read_text().splitlines():
        row = json.loads(line)
        if row["peer"] in NO_PEERS:
            continue
        key = (row["act"], row["m"], row["layer"])
        if key not in best or row["us"] < best[key][0]:
            best[key] = (row["us"], row["peer"])
    return best


def compare_to_peer(rows, take_all, name):
    """[(M, number of layers, mean of time / the peer's, worst ratio, its layer and configuration)] of
    the plain int4 rows, and the problems of the peer that no row covers."""
    file = BASELINES / ("h200_peers.jsonl" if "H200" in rows[0]["gpu"] else "h100_peers.jsonl")
    peer = {}
    for line in file.read_text().splitlines():
        row = json.loads(line)
        if row["peer"] == name:
            peer[(row["act"], row["m"], row["layer"])] = row["us"]
    if not peer:
        sys.exit(f"{file}: no rows of a peer named {name!r}")
    members = defaultdict(list)
    for row in rows:
        if is_plain(kind_of(row)) and (row["act"], row["m"], row["layer"]) in peer:
            members[row["m"]].append(row)
    table, covered = [], set()
    for m, candidates in sorted(members.items()):
        chosen = pick(candidates, take_all)
        ratios_of = {layer: row["us"] / peer[(row["act"], m, layer)] for layer, row in chosen.items()}
        covered |= {(m, layer) for layer in chosen}
        if ratios_of:
            worst = max(ratios_of, key=ratios_of.get)
            table.append((m, len(chosen), geometric_mean(ratios_of.values()), ratios_of[worst], worst,
                          chosen[worst].get("config")))
    return table, sorted({(m, layer) for _, m, layer in peer} - covered)


def is_plain(kind):
    """The format of the headline bars and of the peers: int4, group 128, no zero points."""
    act, weight, group, zero, pdl = kind
    return (weight, group, zero) == ("int4", 128, "none")


def weight_bytes(row):
    """Bytes of codes, scales and zeros."""
    groups = math.ceil(row["k"] / row["group"]) if row["group"] else 1
    codes = row["n"] * row["k"] * (0.5 if row["weight"] == "int4" else 1)
    return codes + 2 * row["n"] * groups * (1 if row["zero"] == "none" else 2)


def allowed_ratio(row, plain):
    """How much slower than `plain`, the int4 group-128 row of the same problem, `row` may be; None
    where no promise is made."""
    if row["weight"] == "int8":
        return INT8_ALLOWANCE if row["m"] >= 256 else None
    memory_decides = plain["floor_us"] and plain["ideal_us"] <= plain["floor_us"]
    if memory_decides:
        return FORMAT_ALLOWANCE[0] * weight_bytes(row) / weight_bytes(plain)
    return FORMAT_ALLOWANCE[1]


def bar_for(kind, m):
    """(divisor, bar) of issue-level promises, or None where none applies."""
    act, weight, group, zero, pdl = kind
    if m not in BARS or zero != "none":
        return None
    divisor, fp16, bf16 = BARS[m]
    bar = bf16 if act == "bf16" else fp16
    if weight == "int8":  # from M = 256 int8 is held against int4's time instead
        return (divisor, bar) if pdl and m < 256 else None
    if group != 128:
        return None
    if not pdl:
        return ("floor_nopdl", bar + NO_PDL_ALLOWANCE) if m in DECODE else None
    return divisor, bar


def divisor_us(row, divisor):
    key = {"floor": "floor_us", "ideal": "ideal_us", "cublas": "cublas_us",
           "floor_nopdl": "floor_nopdl_us"}[divisor]
    return row.get(key)


def ratios(rows, divisor):
    values = [(row["us"] / divisor_us(row, divisor)) for row in rows if divisor_us(row, divisor)]
    return values if len(values) == len(rows) else []


def pick(rows, take_all):
    """One row a layer: what the plan picked, or the fastest correct one."""
    best = {}
    for row in rows:
        if not take_all and not row.get("auto"):
            continue
        if not row.get("ok", True) or not row["us"]:
            continue
        if row["layer"] not in best or row["us"] < best[row["layer"]]["us"]:
            best[row["layer"]] = row
    return best


def kind_of(row):
    return (row["act"], row["weight"], row["group"], row["zero"], bool(row["pdl"]))


def kind_name(kind):
    act, weight, group, zero, pdl = kind
    return f"{act} {weight} g{group or 'column'} zero={zero} pdl={'on' if pdl else 'off'}"


def compare_to_plain(chosen, plain):
    """Geometric means over the common layers of time / plain time, and of what is allowed."""
    pairs = [(row, plain[layer]) for layer, row in chosen.items() if layer in plain]
    allowed = [allowed_ratio(row, base) for row, base in pairs]
    if not pairs or None in allowed:
        return None
    ratio = geometric_mean([row["us"] / base["us"] for row, base in pairs])
    return {"layers": len(pairs), "ratio": ratio, "allowed": geometric_mean(allowed),
            "met": ratio <= geometric_mean(allowed)}


def compare(rows, take_all):
    """Everything the report says, as plain data."""
    groups = defaultdict(list)
    for row in rows:
        groups[(kind_of(row), row["m"])].append(row)
    peers = read_peers(rows[0]["gpu"])
    layers = {row["layer"] for row in rows}
    report = {"gpu": rows[0]["gpu"], "commits": sorted({str(row.get("commit")) for row in rows}),
              "failed_rows": [row for row in rows if not row.get("ok", True)],
              "means": [], "relative": [], "slower_than_peer": []}
    for (kind, m), members in sorted(groups.items(), key=lambda item: (item[0][0], item[0][1])):
        chosen = pick(members, take_all)
        used = list(chosen.values())
        means = {d: geometric_mean(ratios(used, d)) for d in ("ideal", "floor", "floor_nopdl", "cublas")}
        bar = None if members[0].get("load_ms") else bar_for(kind, m)
        complete = len(chosen) == len(layers)
        met = None
        if bar:
            value = means[bar[0]]
            met = value is not None and complete and value <= bar[1]
        report["means"].append({"kind": kind_name(kind), "m": m, "layers": len(used), **means,
                                "bar_on": bar[0] if bar else None, "bar": bar[1] if bar else None,
                                "met": met, "missing": sorted(layers - set(chosen))})
        if not is_plain(kind):
            relative = compare_to_plain(chosen, pick(groups.get(((kind[0], "int4", 128, "none", kind[4]), m), []),
                                                     take_all))
            if relative:
                report["relative"].append({"kind": kind_name(kind), "m": m, **relative})
            continue
        if not kind[4]:
            continue
        for layer, row in sorted(chosen.items()):
            peer = peers.get((kind[0], m, layer))
            allowed = PEER_NOISE if m >= 32 else 1.0
            if peer and row["us"] > peer[0] * allowed:
                report["slower_than_peer"].append(
                    {"kind": kind_name(kind), "m": m, "layer": layer, "us": row["us"],
                     "peer": peer[1], "peer_us": peer[0], "config": row.get("config")})
    return report


def print_report(report):
    def cell(value):
        return f"{value:7.3f}" if value is not None else "      -"

    print(f"{report['gpu']}, commit {', '.join(report['commits'])}")
    kind = None
    for mean in report["means"]:
        if mean["kind"] != kind:
            kind = mean["kind"]
            print(f"\n{kind}\n{'M':>6} {'layers':>6} {'/ideal':>7} {'/floor':>7} {'/floor*':>7} "
                  f"{'/cublas':>7}  bar")
        text = ""
        if mean["bar"] is not None:
            verdict = "met" if mean["met"] else "MISSED"
            text = f"/{mean['bar_on']} <= {mean['bar']:.3g}: {verdict}"
        if mean["missing"]:
            text += f" (no row for {', '.join(mean['missing'])})"
        print(f"{mean['m']:>6} {mean['layers']:>6} {cell(mean['ideal'])} {cell(mean['floor'])} "
              f"{cell(mean['floor_nopdl'])} {cell(mean['cublas'])}  {text}")
    print("\n/floor: with PDL; /floor*: without. Geometric means over the layers.")
    if report["relative"]:
        print("\nAgainst int4 g128 without zero points (geometric mean of times, allowed):")
    for relative in report["relative"]:
        print(f"  {relative['kind']} M={relative['m']}: {relative['ratio']:.3f}, "
              f"<= {relative['allowed']:.3f}: {'met' if relative['met'] else 'MISSED'}")
    print(f"\nSlower than the best peer: {len(report['slower_than_peer']) or 'none'}")
    for slow in report["slower_than_peer"]:
        print(f"  {slow['kind']} M={slow['m']} {slow['layer']}: {slow['us']:.2f} us against "
              f"{slow['peer_us']:.2f} ({slow['peer']}), {slow['us'] / slow['peer_us']:.2f}x, "
              f"{slow['config']}")
    print(f"Failed rows: {len(report['failed_rows']) or 'none'}")
    for row in report["failed_rows"]:
        print(f"  {row['layer']} M={row['m']} {row['act']} {row.get('config')}: {row.get('error')}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", help="rows of mixgemm bench, one JSON object a line")
    parser.add_argument("--all", action="store_true",
                        help="the fastest row of each problem, not only what the plan picked")
    parser.add_argument("--peer", metavar="NAME",
                        help="only against this peer of bench/baselines, e.g. marlin")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--strict", action="store_true",
                        help="exit with 1 unless every bar is met and no peer is faster")
    options = parser.parse_args()
    rows = read_rows(options.results)
    if options.peer:
        table, missing = compare_to_peer(rows, options.all, options.peer)
        print(f"{rows[0]['gpu']}: time / {options.peer}'s\n{'M':>6} {'layers':>6} {'mean':>7} {'worst':>7}")
        for m, layers, mean, worst, layer, config in table:
            print(f"{m:>6} {layers:>6} {mean:7.3f} {worst:7.3f}  {layer}, {config}"
                  f"{'' if mean <= 1 else '  SLOWER'}")
        print(f"Problems without a row: {len(missing) or 'none'}")
        return 1 if options.strict and (missing or any(row[2] > 1 for row in table)) else 0
    report = compare(rows, options.all)
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        print_report(report)
    missed = any(entry["met"] is False for entry in report["means"] + report["relative"])
    return 1 if options.strict and (missed or report["slower_than_peer"] or report["failed_rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
