# SPDX-License-Identifier: Apache-2.0
"""Measuring which configuration of which kernel is the fastest for a weight."""

from __future__ import annotations

import os
import statistics
import time
from typing import Any, Callable, Iterable

import numpy as np

from . import _core
from ._errors import InvalidArgumentError, UnsupportedError
from ._gemm import _need_packed, matmul
from ._weights import dtype_name

Measure = Callable[[str, float], "tuple[float, float]"]

_COLD_BYTES = 400 << 20  # of weights in turn, so that none is found in a GPU's L2 again
_MOST_COPIES = 64


def _summary(times_us: list[float]) -> tuple[float, float]:
    median = statistics.median(times_us)
    return median, (max(times_us) - min(times_us)) / median


def _cpu_measure(packed: _core.PackedWeight, m: int, dtype: str, invariant: bool) -> Measure:
    x = np.random.default_rng(1).standard_normal((m, packed.k)).astype(np.float16)
    if dtype == "bfloat16":
        import ml_dtypes
        x = x.astype(ml_dtypes.bfloat16)
    out = np.empty((m, packed.n), x.dtype)

    def measure(config: str, effort: float) -> tuple[float, float]:
        times = []
        for _ in range(1 + max(3, round(9 * effort))):
            begin = time.perf_counter()
            matmul(x, packed, out=out, kernel=config, batch_invariant=invariant)
            times.append((time.perf_counter() - begin) * 1e6)
        return _summary(times[1:])
    return measure


def _cuda_measure(packed: _core.PackedWeight, device: str, m: int, dtype: str,
                  invariant: bool) -> tuple[_core.PackedWeight, Measure]:
    """Launches one after the other in a CUDA graph, over copies of the weight in turn."""
    try:
        import torch
    except ImportError:
        raise UnsupportedError("tune on a CUDA device needs PyTorch, for its graphs and events; "
                               "`mixgemm tune` does without") from None
    count = min(_MOST_COPIES, max(4, -(-_COLD_BYTES // packed.nbytes)))
    copies = [packed.to(device) for _ in range(count)]
    place = torch.device(copies[0].device)
    x = torch.randn(m, packed.k, device=place).to(getattr(torch, dtype))
    out = x.new_empty((m, packed.n))

    def launch(config: str, launches: int) -> None:
        for i in range(launches):
            matmul(x, copies[i % count], out=out, kernel=config, batch_invariant=invariant, pdl=True)

    def measure(config: str, effort: float) -> tuple[float, float]:
        with torch.cuda.device(place), torch.inference_mode():
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                launch(config, 2)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, stream=side):
                    launch(config, count)
                times = []
                for _ in range(2 + max(2, round(7 * effort))):
                    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                    begin.record()
                    graph.replay()
                    end.record()
                    end.synchronize()
                    times.append(begin.elapsed_time(end) * 1e3 / count)
        return _summary(times[2:])
    return copies[0], measure


def tune(packed: _core.PackedWeight, m: int | Iterable[int], dtype: Any = None, *,
         device: Any = "cpu", seconds: float = 2.5, batch_invariant: bool = False,
         path: str | os.PathLike[str] | None = None) -> list[dict[str, Any]]:
    """Measures which configuration multiplies M = m rows by a weight of this shape and format the
    fastest. `plan` and `matmul` take it from then on, in this process; with `path`, in others too.

    packed: on the CPU; for a CUDA `device` it is copied there, often enough that each launch reads it
        from memory. m: one number of rows, or several. dtype: of x; None: the weight's scale_dtype.
    seconds: about how long to search for each m.
    path: a tuning cache to add the results to, e.g. for MIXGEMM_TUNING; None: no file.

    Returns a dict for each m: m, config and us (the fastest, µs), noise ((largest - smallest) / median
    of its repeats), model_config and model_us (what an untuned plan picks), candidates (configurations
    timed). On a CUDA device it needs PyTorch. Whole models: `mixgemm tune`.
    """
    _need_packed(packed)
    if packed.device != "cpu":
        raise InvalidArgumentError("tune needs the packed weight on the CPU, and copies it to "
                                   f"`device`; got one on {packed.device}")
    if not seconds > 0:
        raise InvalidArgumentError(f"seconds must be more than 0; got {seconds}")
    packed = packed.for_gathered_x()  # what is tuned is the product, not the gather before it
    dtype = packed.scale_dtype if dtype is None else dtype_name(dtype)
    rows = [m] if isinstance(m, int) else list(m)
    for one in rows:
        if not 1 <= one < 2**31:
            raise InvalidArgumentError(f"m must be 1 .. {2**31 - 1}; got {one}")
    results = []
    for one in rows:
        if str(device) == "cpu":
            weight, measure = packed, _cpu_measure(packed, one, dtype, batch_invariant)
        else:
            weight, measure = _cuda_measure(packed, str(device), one, dtype, batch_invariant)
        results.append(_core.tune(weight, one, dtype, batch_invariant, seconds, measure,
                                  "" if path is None else os.fspath(path)))
    return results
