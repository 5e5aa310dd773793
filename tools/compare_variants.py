#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Two or more sweeps of bench_variants over the same problems, e.g. of the kernels before a change and after:
the best configuration of each problem in each, and geometric means for each M.

    tools/compare_variants.py before.jsonl after.jsonl [more.jsonl …]

Sweeps are comparable when they ran in turns on one GPU (docs/measurement.md). Rows that failed their check
are named and left out. Exit status: 0; 1 if a row failed or a problem is missing from a sweep; 2 for what
can't be read.
"""

import argparse
import json
import math
import pathlib
import sys


def read_best(path):
    """({problem: its fastest row that passed}, the rows that failed)."""
    best, failed = {}, []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                problem = tuple(row[key] for key in ("act", "weight", "group", "zero", "m", "layer"))
                if row["ok"] and not (row["us"] > 0 and row["ideal_us"] > 0):
                    raise TypeError("us and ideal_us must be positive")
                if not row["ok"]:
                    failed.append(row)
                elif problem not in best or row["us"] < best[problem]["us"]:
                    best[problem] = row
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(f"{path}:{number}: not a row of bench_variants ({error!r})") from None
    return best, failed


def geometric_mean(values):
    return math.exp(sum(math.log(v) for v in values) / len(values))


def configuration(row):
    """Without what all rows of a family share: sm90_f16_i4_g_t64x… → t64x…"""
    return row["config"].split("_", 4)[-1]


def compare(sweeps):
    """Lines to print, for sweeps as (name, {problem: row})."""
    (_, first), *others = sweeps
    shared = sorted(set(first).intersection(*(best for _, best in others)), key=lambda p: (p[:4], p[4], p[5]))
    lines, by_m = [], {}
    for problem in shared:
        rows = [best[problem] for _, best in sweeps]
        ratios = [row["us"] / rows[0]["us"] for row in rows]
        act, weight, group, zero, m, layer = problem
        head = f"{act} {weight} g{group} {zero} M={m} {layer}"
        cells = [f"{row['us']:.2f} us {configuration(row)}" for row in rows]
        lines.append(f"{head}: " + " | ".join(cells) + "  " + " ".join(f"{r:.3f}" for r in ratios[1:]))
        by_m.setdefault(problem[:5], []).append((ratios, [row["us"] / row["ideal_us"] for row in rows]))
    for (act, weight, group, zero, m), found in by_m.items():
        lines.append(f"{act} {weight} g{group} {zero} M={m}, {len(found)} layers:")
        for i, (name, _) in enumerate(sweeps):
            ratio = geometric_mean([ratios[i] for ratios, _ in found])
            ideal = geometric_mean([ideals[i] for _, ideals in found])
            lines.append(f"  {name}: {ratio:.3f} of the first's time, {ideal:.3f} times ideal")
    return lines


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", nargs="+", metavar="SWEEP", help="rows of bench_variants, the first to compare with")
    options = parser.parse_args(arguments)
    if len(options.sweeps) < 2:
        parser.error("two sweeps at least")
    try:
        read = [(pathlib.Path(path).stem, *read_best(path)) for path in options.sweeps]
    except (OSError, UnicodeDecodeError, ValueError) as error:
        print(f"compare_variants: {error}", file=sys.stderr)
        return 2
    sweeps = [(name, best) for name, best, _ in read]
    print("\n".join(compare(sweeps)))
    problems = set().union(*(best for _, best in sweeps))
    wrong = False
    for name, best, failed in read:
        for row in failed:
            print(f"FAILED in {name}: {row.get('config')} {row.get('layer')} M={row.get('m')}: {row.get('error')}")
        missing = len(problems) - len(best)
        if missing:
            print(f"{name} lacks {missing} problems")
        wrong = wrong or bool(failed) or missing > 0
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
