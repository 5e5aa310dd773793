#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The README's picture: time over ideal against M, from rows of `mixgemm bench` and the peers' rows.

    tools/plot_results.py bench/results/h100/RUN.jsonl -o docs/img/results.png
    tools/plot_results.py bench/results/h100/RUN-more.jsonl --steps 64 -o docs/img/steps.png

--steps MOST draws time over floor of each layer that has a row for every M up to MOST instead: whether
time jumps where one kernel hands over to the next.

Needs matplotlib. Everything else that the rows tell is in `mixgemm report`.
"""

import argparse
import json
import math
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
COLOURS = {"fp16": "#1f66c4", "bf16": "#7a4fbf", "peer": "#14875d", "cublas": "#d2571d"}
INK, SOFT, GRID = "#1d1d1b", "#5c5b57", "#e4e3df"


def read_rows(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def geometric_mean(values):
    return math.exp(sum(math.log(v) for v in values) / len(values))


def chosen_rows(rows, act):
    """{(layer, m): row} of what plans picked, int4 g128 without zeros under PDL."""
    return {(row["layer"], row["m"]): row for row in rows
            if row.get("auto") and row.get("us") and row.get("ok", True) and row["act"] == act
            and not row.get("load_ms") and row["pdl"] and (row["weight"], row["group"], row["zero"]) == ("int4", 128, "none")
            and row.get("ideal_us")}


def best_peers(gpu):
    """{(layer, m): time ÷ ideal} of the fastest fp16 int4 g128 peer on this device. The ideal is that
    of the peers' own run: machines of one kind differ by a few per cent."""
    rows = [row for path in sorted((ROOT / "bench" / "baselines").glob("*_peers.jsonl"))
            for row in read_rows(path) if row["gpu"] in gpu]
    floors = {row["layer"]: row["us"] for row in rows if row["peer"] == "floor_pdl"}
    best = {}
    for row in rows:
        is_dense = row["peer"].startswith(("floor", "cublas"))
        if is_dense or row["act"] != "fp16" or row["group"] != 128 or row["layer"] not in floors:
            continue
        ideal = max(floors[row["layer"]], 2 * row["m"] * row["n"] * row["k"] / 800e6)
        key = (row["layer"], row["m"])
        best[key] = min(best.get(key, math.inf), row["us"] / ideal)
    return best


def curve(chosen, ratio_of):
    """[(m, geometric mean over the layers of time ÷ ideal)], where every layer has a ratio."""
    points = []
    for m in sorted({m for _, m in chosen}):
        ratios = []
        for (layer, row_m), row in chosen.items():
            if row_m != m:
                continue
            ratios.append(ratio_of(layer, m, row))
        if ratios and None not in ratios:
            points.append((m, geometric_mean(ratios)))
    return points


def curves(rows):
    """[(name, colour, points)] of everything there is to draw."""
    gpu = next(row["gpu"] for row in rows if row.get("gpu"))
    found = []
    for act in ("fp16", "bf16"):
        chosen = chosen_rows(rows, act)
        found.append((f"mixgemm {act}", COLOURS[act], curve(chosen, lambda _l, _m, row: row["us"] / row["ideal_us"])))
    fp16 = chosen_rows(rows, "fp16")
    peers = best_peers(gpu)
    found.append(("best 4-bit peer of each layer, fp16", COLOURS["peer"],
                  curve(fp16, lambda layer, m, _row: peers.get((layer, m)))))
    found.append(("cuBLAS fp16, dense weights", COLOURS["cublas"],
                  curve(fp16, lambda _l, _m, row: row["cublas_us"] / row["ideal_us"]
                        if row.get("cublas_us") else None)))
    return gpu, [entry for entry in found if entry[2]]


def steps(rows, most):
    """[(layer, colour, points)]: time ÷ floor of fp16 int4 layers measured at each M up to `most`."""
    gpu = next(row["gpu"] for row in rows if row.get("gpu"))
    by_layer = {}
    for (layer, m), row in chosen_rows(rows, "fp16").items():
        if m <= most:
            by_layer.setdefault(layer, {})[m] = row["us"] / row["floor_us"]
    whole = [(layer, sorted(points.items())) for layer, points in sorted(by_layer.items())
             if len(points) == most]
    return gpu, [(layer, colour, points)
                 for (layer, points), colour in zip(whole, COLOURS.values())]


def draw(gpu, lines, output, title, ratio, ticks):
    import matplotlib  # pylint: disable=import-outside-toplevel
    matplotlib.use("Agg")
    from matplotlib import pyplot  # pylint: disable=import-outside-toplevel

    figure, axes = pyplot.subplots(figsize=(8, 4.2), dpi=120)
    figure.patch.set_facecolor("white")
    for name, colour, points in lines:
        axes.plot([m for m, _ in points], [ratio for _, ratio in points], color=colour, linewidth=2,
                  marker="o", markersize=4, label=name)
    if ticks is None:
        ticks = sorted({m for _, _, points in lines for m, _ in points})
        axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(m) for m in ticks], fontsize=8, color=SOFT)
    axes.axhline(1, color=SOFT, linewidth=1, linestyle=(0, (5, 4)))
    axes.set_ylim(bottom=0.8)
    axes.set_xlabel("M (tokens)", color=SOFT)
    axes.set_ylabel(f"{ratio}, lower is better", color=SOFT)
    axes.set_title(f"int4 weights, groups of 128, on {gpu}: {title}", loc="left", fontsize=10,
                   color=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.tick_params(colors=SOFT, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    figure.tight_layout()
    figure.savefig(output, metadata={"Software": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", help="rows of mixgemm bench, one JSON object a line")
    parser.add_argument("-o", "--output", default=str(ROOT / "docs" / "img" / "results.png"))
    parser.add_argument("--steps", type=int, metavar="MOST", help="layers at every M up to MOST")
    parser.add_argument("--list", action="store_true", help="print the points instead of drawing")
    options = parser.parse_args()
    rows = read_rows(options.results)
    gpu, lines = steps(rows, options.steps) if options.steps else curves(rows)
    if not lines:
        sys.exit(f"{options.results}: no row of a plan's own pick" if not options.steps else
                 f"{options.results}: no layer with a row for every M up to {options.steps}")
    if options.list:
        for name, _, points in lines:
            print(name + ": " + ", ".join(f"{m}: {ratio:.2f}" for m, ratio in points))
        return
    if options.steps:
        ticks = [1, *range(8, options.steps + 1, 8)]
        draw(gpu, lines, options.output, "every M", "time ÷ streaming floor", ticks)
    else:
        draw(gpu, lines, options.output, "geometric mean over eight layers", "time ÷ ideal", None)
    print(f"{options.output}: {gpu}")


if __name__ == "__main__":
    main()
