# SPDX-License-Identifier: Apache-2.0
"""Products, and how they run."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _core
from ._errors import InvalidArgumentError
from ._frameworks import (Jax, Torch, cuda_ordinal, framework_of, is_numpy_bf16, stream_handle,
                          torch_memory)
from ._weights import dtype_name

_DEFAULTS = _core.Options("", 0, True, False)


def _need_packed(packed: Any) -> None:
    if not isinstance(packed, _core.PackedWeight):
        raise TypeError(f"packed must be a PackedWeight (see pack); got {type(packed).__name__}")


def matmul(x: Any, packed: _core.PackedWeight, bias: Any = None, epilogue: str | None = None,
           out: Any = None, stream: Any = None, *, residual: Any = None, alpha: float = 1.0,
           kernel: str = "", num_threads: int = 0, deterministic: bool = True,
           batch_invariant: bool = False, pdl: bool = False) -> Any:
    """y = activation(alpha * (x @ dequant(packed).T) + bias) + residual, with fp32 sums.

    x: [..., K] float16 or bfloat16, rows contiguous, where `packed` is. NumPy (bfloat16 by
        ml_dtypes), PyTorch, CuPy, JAX, or anything that speaks DLPack; never copied.
    packed: N x K. On a CUDA device its scale_dtype must be x's dtype.
    bias: [N]; residual: [..., N]; of x's dtype, on x's device.
    epilogue: the activation: None, "relu", "gelu" (tanh) or "silu".
    out: [..., N] of x's dtype, written in place and returned; may be the residual. None: a new
        array of x's library.
    stream: on a CUDA device, where the work is enqueued: a stream object or a cudaStream_t. None: the
        current stream of x's library (PyTorch, CuPy), else the legacy default stream.
    kernel: a kernel or configuration id, see `kernels()` and `Plan.config_id`. Empty: the plan picks.
    num_threads: on the CPU; 0 = all cores.
    batch_invariant: a row of x gives the same bits of y for any number of rows.
    pdl: the caller's promise that no kernel still in flight writes the packed weight, so that it may
        be read before the kernel before has ended.

    Returns y [..., N]. On the CPU it is complete; on a CUDA device it is enqueued, as every operation
    on the stream is (with JAX arrays it is complete). Other threads run meanwhile. An empty x gives
    an empty y.
    """
    _need_packed(packed)
    framework = framework_of(x)
    options = _DEFAULTS
    if kernel or num_threads or batch_invariant or not deterministic:
        options = _core.Options(kernel, num_threads, deterministic, batch_invariant)
    if framework is Torch and stream is None:
        y = _core.matmul_here(x, packed, out, bias, residual, epilogue or "none", alpha, options,
                              pdl, torch_memory)
        if y is not None:
            return y
    for name, array in (("x", x), ("bias", bias), ("residual", residual), ("out", out)):
        if array is not None:
            framework_of(array).check(name, array)
    shape = getattr(x, "shape", None)
    if shape is None:
        raise TypeError(f"x must be an array; got {type(x).__name__}")
    ordinal = cuda_ordinal(x)
    handle = 0
    if ordinal is not None:
        handle = (framework.current_stream(x, ordinal) if stream is None
                  else stream_handle(stream, ordinal))
    elif stream is not None:
        raise InvalidArgumentError("stream must be None for arrays on the CPU, where a product is "
                                   f"complete when matmul returns; got {stream!r}")
    made = out is None
    if made:
        if len(shape) == 0:
            raise InvalidArgumentError(f"x must have shape [..., K = {packed.k}]; got ()")
        out = framework.empty((*shape[:-1], packed.n), x)
    elif framework_of(out) is Jax:
        raise TypeError("out can't be a JAX array, which doesn't change once it is made")
    bf16 = is_numpy_bf16(x)
    arrays = [x, out, bias, residual]
    if bf16:
        arrays = [a.view(np.uint16) if is_numpy_bf16(a) else a for a in arrays]
    workspace = framework.workspace(x, None if stream is None else handle)
    with framework.on_device(ordinal):
        _core.matmul(arrays[0], packed, *arrays[1:], epilogue or "none", alpha, handle,
                     workspace, options, pdl, bf16)
    return framework.finish(out, ordinal, handle) if made else out


def plan(packed: _core.PackedWeight, m: int, dtype: Any = None, bias: bool = False,
         epilogue: str | None = None, *, residual: bool = False, kernel: str = "",
         num_threads: int = 0, deterministic: bool = True,
         batch_invariant: bool = False) -> _core.Plan:
    """How `matmul` would multiply M = m rows of x by `packed`: kernel, configuration, scratch memory.

    dtype: of x, "float16" or "bfloat16"; None: the weight's scale_dtype.
    bias, residual: whether there is one. The other arguments as for `matmul`.
    """
    _need_packed(packed)
    dtype = packed.scale_dtype if dtype is None else dtype_name(dtype)
    return _core.plan(packed, m, dtype, bias, residual, epilogue or "none",
                      _core.Options(kernel, num_threads, deterministic, batch_invariant))


def explain(packed: _core.PackedWeight, m: int, dtype: Any = None, **options: Any) -> str:
    """Which kernel `matmul` would take for M = m rows, and why: a few lines for a person.

    Arguments as for `plan`.
    """
    return plan(packed, m, dtype, **options).explain()


def kernels() -> list[dict[str, Any]]:
    """The kernels of this build: id, device, arch (compute capability x 10), registers (per thread, 0
    where unknown), shared_bytes, reason."""
    return _core.kernels()


def devices() -> list[dict[str, Any]]:
    """The CPU, then the CUDA devices: device, name, arch (compute capability x 10), num_sms (or
    cores), usable, note. Never fails: a missing driver is a note."""
    return _core.devices()


def version() -> str:
    """The library's version."""
    return _core.version
