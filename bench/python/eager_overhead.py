#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What one eager call of mixgemm.torch costs the host, beside the C++ call.

    bench/python/eager_overhead.py [--device cuda|cpu] [--mixgemm PROGRAM] [-o rows.jsonl]

Calls a layer in a loop without waiting for the device, some hundred calls at a time so that the
launch queue never fills, and takes the median over --rounds rounds of the time per call. The rows:

    torch_linear      an fp16 nn.Linear of the same shape, for comparison
    mixgemm_linear    mixgemm.torch.Linear, the output's allocation included
    mixgemm_op        torch.ops.mixgemm.linear, through PyTorch's dispatcher
    mixgemm_matmul    mixgemm.matmul with a tensor, the output's allocation included
    matmul_out        the same with `out` given
    bound_run         the extension's own call, by address: the C++ call and the binding
    module_call       a module that does nothing, for the part of nn.Module
    allocation        torch.empty of the output
    cpp_run           Plan::run in C++, as `mixgemm bench --mode host-cost` has it (--mixgemm)

`overhead_us` is mixgemm_linear less cpp_run where that was measured, else less bound_run;
`matmul_overhead_us` is the same of mixgemm_matmul.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

import torch

import mixgemm
import mixgemm.torch
from mixgemm.torch import _ops


def per_call_us(function, calls, rounds, device):
    times = []
    for _ in range(rounds + 2):
        if device == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(calls):
            function()
        times.append((time.perf_counter() - begin) / calls * 1e6)
    return statistics.median(times[2:])


def cpp_run_us(program):
    """run_us of the first row of the program's own measurement, or None."""
    try:
        done = subprocess.run([program, "bench", "--device", "cuda", "--mode", "host-cost", "--layer",
                               "llama8b.o", "--m", "1", "--pdl", "off", "--json"],
                              capture_output=True, text=True, timeout=20)
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        return next(row["run_us"] for row in rows if row.get("run_us") is not None)
    except (OSError, subprocess.TimeoutExpired, StopIteration) as error:
        print(f"eager_overhead: no C++ figure: {error!r}", file=sys.stderr)
        return None


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--mixgemm", help="the program, for the C++ call's figure")
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=51)
    parser.add_argument("--commit", default="unknown", help="for the record")
    parser.add_argument("-o", "--output", type=pathlib.Path)
    args = parser.parse_args()
    device = args.device
    n, k = (4096, 4096) if device == "cuda" else (16, 64)
    dense = torch.nn.Linear(k, n, bias=False, dtype=torch.float16, device=device)
    layer = mixgemm.torch.Linear.from_linear(dense, search_clip=False)
    packed = mixgemm.quantize_packed(dense.weight.detach().cpu(), search_clip=False).to(device)
    nothing = torch.nn.Identity()
    cpp_us = cpp_run_us(args.mixgemm) if args.mixgemm and device == "cuda" else None
    rows = []
    for m in (1, 16):
        x = torch.randn(m, k, dtype=torch.float16, device=device)
        y = layer(x)
        bound = layer._bound
        stream = _ops._raw_stream(x.device.index) if device == "cuda" else 0
        memory = torch.empty(64 << 20, dtype=torch.uint8, device=device)
        allocate = lambda size: (memory, memory.data_ptr())  # noqa: E731
        pointers = (x.data_ptr(), m, k, y.data_ptr(), 0, 1.0, stream, allocate)
        operands = (x, layer.codes, layer.scales, None, None, None, n, layer.group_size, "none",
                    "none", 1.0, False)
        found = {name: per_call_us(function, args.calls, args.rounds, device) for name, function in (
            ("torch_linear", lambda: dense(x)),
            ("mixgemm_linear", lambda: layer(x)),
            ("mixgemm_op", lambda: torch.ops.mixgemm.linear(*operands)),
            ("mixgemm_matmul", lambda: mixgemm.matmul(x, packed)),
            ("matmul_out", lambda: mixgemm.matmul(x, packed, out=y)),
            ("module_call", lambda: nothing(x)),
            ("bound_run", lambda: bound.run(*pointers)),
            ("allocation", lambda: torch.empty((m, n), dtype=torch.float16, device=x.device)))}
        row = {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "m": m, "n": n,
               "k": k, **{f"{name}_us": round(us, 3) for name, us in found.items()},
               "cpp_run_us": cpp_us,
               "overhead_us": round(found["mixgemm_linear"] - (cpp_us or found["bound_run"]), 3),
               "matmul_overhead_us": round(
                   found["mixgemm_matmul"] - (cpp_us or found["bound_run"]), 3),
               "commit": args.commit, "torch": torch.__version__,
               "python": sys.version.split()[0]}
        rows.append(row)
        print(json.dumps(row), flush=True)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
