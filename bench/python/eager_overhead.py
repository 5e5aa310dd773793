#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What one eager call of mixgemm.torch costs the host, beside the C++ call.

    bench/python/eager_overhead.py [--device cuda|cpu] [--mixgemm PROGRAM] [-o rows.jsonl]

Calls a layer in a loop without waiting for the device, some hundred calls at a time so that the
launch queue never fills. A machine's speed drifts by more than the differences looked for, so after
a second of warming up each of --rounds rounds times every function once, for every M, each round
starting with another one; the figures are medians over the rounds, of which there are fewer where
they take longer than --seconds. The rows:

    torch_linear      an fp16 nn.Linear of the same shape, for comparison
    mixgemm_linear    mixgemm.torch.Linear, the output's allocation included
    mixgemm_op        torch.ops.mixgemm.linear, through PyTorch's dispatcher
    mixgemm_matmul    mixgemm.matmul with a tensor, the output's allocation included
    matmul_out        the same with `out` given
    bound_run         the extension's own call, by address: the C++ call and the binding
    module_call       a module that does nothing, for the part of nn.Module
    allocation        torch.empty of the output
    cpp_run           Plan::run in C++, a call's share of a batch as `mixgemm bench --mode host-cost`
                      has it (--mixgemm), a mean over calls like the others: the
                      mean of a run before the rounds and one after them, which are in the row, too

M is 1, 16, and where neither plan takes scratch memory (`workspace_bytes`), the least one of some
more whose plan does. `overhead_us` is mixgemm_linear less cpp_run where that was measured, else less bound_run;
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

WARM_UP_S = 1.0
MIN_ROUNDS = 5


def batch_us(function, calls, device):
    """Per call, of one batch that finds the launch queue empty."""
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - begin) / calls * 1e6


def interleaved_us(functions, calls, rounds, seconds, device):
    """Median µs per call of each named function, and the number of rounds it is of."""
    names = list(functions)
    begin = time.perf_counter()
    while time.perf_counter() - begin < WARM_UP_S:
        for name in names:
            batch_us(functions[name], calls, device)
    times = {name: [] for name in names}
    begin = time.perf_counter()
    for turn in range(rounds):
        if turn >= MIN_ROUNDS and time.perf_counter() - begin > seconds:
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(batch_us(functions[name], calls, device))
    return {name: statistics.median(of_name) for name, of_name in times.items()}, \
        len(times[names[0]])


def cpp_run_us(program, layer, tokens):
    """run_batch_us by M, of the program's own measurement; empty where it has none."""
    try:
        done = subprocess.run([program, "bench", "--device", "cuda", "--mode", "host-cost", "--layer",
                               layer, "--m", ",".join(map(str, tokens)), "--pdl", "off", "--json"],
                              capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"eager_overhead: no C++ figure: {error!r}", file=sys.stderr)
        return {}
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    found = {row["m"]: row["run_batch_us"] for row in rows
             if row.get("run_batch_us") is not None}
    if not found:
        print(f"eager_overhead: no C++ figure: {done.stderr.strip()}", file=sys.stderr)
    return found


def calls_of(m, layer, dense, packed, device):
    """The functions to time at M tokens, by the names above."""
    n, k = dense.weight.shape
    x = torch.randn(m, k, dtype=torch.float16, device=device)
    y = layer(x)
    bound = layer._bound
    stream = _ops._raw_stream(x.device.index) if device == "cuda" else 0
    memory = torch.empty(64 << 20, dtype=torch.uint8, device=device)
    allocate = lambda size: (memory, memory.data_ptr())  # noqa: E731
    pointers = (x.data_ptr(), m, k, y.data_ptr(), 0, 1.0, stream, allocate)
    operands = (x, layer.codes, layer.scales, None, None, None, n, layer.group_size, "none",
                "none", 1.0, False)
    nothing = torch.nn.Identity()
    return {
        "torch_linear": lambda: dense(x),
        "mixgemm_linear": lambda: layer(x),
        "mixgemm_op": lambda: torch.ops.mixgemm.linear(*operands),
        "mixgemm_matmul": lambda: mixgemm.matmul(x, packed),
        "matmul_out": lambda: mixgemm.matmul(x, packed, out=y),
        "module_call": lambda: nothing(x),
        "bound_run": lambda: bound.run(*pointers),
        "allocation": lambda: torch.empty((m, n), dtype=torch.float16, device=x.device)}


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--mixgemm", help="the program, for the C++ call's figure")
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=51)
    parser.add_argument("--seconds", type=float, default=8.0, help="for all rounds together [8]")
    parser.add_argument("--commit", default="unknown", help="for the record")
    parser.add_argument("-o", "--output", type=pathlib.Path)
    args = parser.parse_args()
    device = args.device
    n, k = (4096, 4096) if device == "cuda" else (16, 64)
    dense = torch.nn.Linear(k, n, bias=False, dtype=torch.float16, device=device)
    layer = mixgemm.torch.Linear.from_linear(dense, search_clip=False)
    packed = mixgemm.quantize_packed(dense.weight.detach().cpu(), search_clip=False).to(device)
    workspace = {m: mixgemm.plan(packed, m).workspace_bytes for m in (1, 16, 24, 32, 64, 96, 128, 256)}
    tokens = [1, 16]
    if device == "cuda" and not any(workspace[m] for m in tokens):
        tokens += [m for m in workspace if workspace[m]][:1]

    def cpp_figures():
        return cpp_run_us(args.mixgemm, "llama8b.o", tokens) \
            if args.mixgemm and device == "cuda" else {}

    before = cpp_figures()
    found, rounds = interleaved_us(
        {(m, name): function for m in tokens
         for name, function in calls_of(m, layer, dense, packed, device).items()},
        args.calls, args.rounds, args.seconds, device)
    after = cpp_figures()
    rows = []
    for m in tokens:
        us = {name: value for (of_m, name), value in found.items() if of_m == m}
        cpp = [figures[m] for figures in (before, after) if m in figures]
        cpp_us = statistics.mean(cpp) if cpp else None
        least = us["bound_run"] if cpp_us is None else cpp_us
        row = {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "m": m, "n": n,
               "k": k, "workspace_bytes": workspace[m],
               **{f"{name}_us": round(value, 3) for name, value in us.items()},
               "cpp_run_us": cpp_us, "cpp_run_before_us": before.get(m),
               "cpp_run_after_us": after.get(m),
               "overhead_us": round(us["mixgemm_linear"] - least, 3),
               "matmul_overhead_us": round(us["mixgemm_matmul"] - least, 3),
               "calls": args.calls, "rounds": rounds, "commit": args.commit,
               "torch": torch.__version__, "python": sys.version.split()[0]}
        rows.append(row)
        print(json.dumps(row), flush=True)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
