# SPDX-License-Identifier: Apache-2.0
"""What differs between array libraries: making an array, and knowing the current CUDA stream.

Reading and writing an array's memory goes through DLPack and is the same for all.
"""

from __future__ import annotations

import functools
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Callable, Tuple

import numpy as np

from ._errors import InvalidArgumentError

_DLPACK_CUDA = (2, 13)  # device memory, managed memory

Workspace = Callable[[int], Tuple[Any, int]]


def cuda_ordinal(array: Any) -> int | None:
    """Which CUDA device an array is on; None for the CPU, and for what isn't an array."""
    device = getattr(array, "__dlpack_device__", None)
    if device is None:
        return None
    try:
        kind, ordinal = device()
    except Exception as error:
        raise TypeError(f"x can't be taken through DLPack: {error}") from error
    return ordinal if int(kind) in _DLPACK_CUDA else None


def is_numpy_bf16(array: Any) -> bool:
    """NumPy has bfloat16 through the package ml_dtypes alone, and can't export it by DLPack."""
    return isinstance(array, np.ndarray) and array.dtype.name == "bfloat16"


class NumPy:
    """NumPy, and every other library whose arrays are on the CPU: results are NumPy arrays."""

    @staticmethod
    def empty(shape: tuple[int, ...], like: Any) -> Any:
        dtype = like.dtype if isinstance(like, np.ndarray) else np.asarray(like).dtype
        return np.empty(shape, dtype)

    @staticmethod
    def finish(out: Any, ordinal: int | None, stream: int) -> Any:
        return out

    @staticmethod
    def check(name: str, array: Any) -> None:
        """Refuses what DLPack would hand over as something else."""

    @staticmethod
    def on_device(ordinal: int | None) -> AbstractContextManager[Any]:
        """Makes the arrays' device the library's current one: PyTorch exports no other's arrays."""
        return nullcontext()

    @staticmethod
    def current_stream(array: Any, ordinal: int) -> int:
        return 0  # the legacy default stream

    @staticmethod
    def workspace(array: Any, stream: int | None) -> Workspace:
        """Allocates scratch memory for work on a stream; None: the current one. The memory may be
        given out again, for the same stream, as soon as the work is enqueued."""
        def refuse(num_bytes: int) -> tuple[Any, int]:
            raise InvalidArgumentError(
                f"this product needs {num_bytes} bytes of scratch memory on the device, and "
                f"{type(array).__name__} is of no library that mixgemm knows how to ask for it; "
                "use PyTorch, CuPy or JAX arrays")
        return refuse


@functools.lru_cache(maxsize=None)
def torch_empty(device: Any) -> Callable[[Any, Any, Any], Any]:
    """empty(shape, strides, dtype) → a tensor on the device, or on the current device of its type:
    the caller looks. Without PyTorch's dispatcher where that is possible, in a third of the time."""
    torch = sys.modules["torch"]
    guards = getattr(getattr(torch._C, "_dynamo", None), "guards", None)
    short_way = getattr(guards, f"_empty_strided_{device.type}", None)
    if short_way is not None:
        return short_way
    return lambda shape, strides, dtype: torch.empty_strided(shape, strides, dtype=dtype,
                                                             device=device)


@functools.lru_cache(maxsize=None)
def torch_scratch(ordinal: int) -> Callable[[int], tuple[Any, int]]:
    """allocate(bytes) → (tensor, address) on a CUDA device, for the current stream: PyTorch's
    allocator knows it, so a captured graph keeps the memory."""
    torch = sys.modules["torch"]
    device = torch.device("cuda", ordinal)
    empty = torch_empty(device)

    def allocate(num_bytes: int) -> tuple[Any, int]:
        memory = empty((num_bytes,), (1,), torch.uint8)
        if memory.get_device() != ordinal:
            memory = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        return memory, memory.data_ptr()
    return allocate


@functools.lru_cache(maxsize=None)
def torch_memory(device: Any) -> tuple[Callable[..., Any], Callable[..., Any] | None]:
    """torch_empty, and torch_scratch or None, of a device."""
    return torch_empty(device), torch_scratch(device.index) if device.type == "cuda" else None


class Torch(NumPy):
    @staticmethod
    def empty(shape: tuple[int, ...], like: Any) -> Any:
        return like.new_empty(shape)

    @staticmethod
    def check(name: str, array: Any) -> None:
        if array.is_neg():
            raise InvalidArgumentError(f"{name} must not be a view that stands for its memory "
                                       "negated; call resolve_neg()")

    @staticmethod
    def on_device(ordinal: int | None) -> AbstractContextManager[Any]:
        return nullcontext() if ordinal is None else sys.modules["torch"].cuda.device(ordinal)

    @staticmethod
    def current_stream(array: Any, ordinal: int) -> int:
        return sys.modules["torch"].cuda.current_stream(ordinal).cuda_stream

    @staticmethod
    def workspace(array: Any, stream: int | None) -> Workspace:
        torch = sys.modules["torch"]

        def allocate(num_bytes: int) -> tuple[Any, int]:
            with (nullcontext() if stream is None
                  else torch.cuda.stream(torch.cuda.ExternalStream(stream, array.device))):
                return torch_scratch(array.get_device())(num_bytes)
        return allocate


class CuPy(NumPy):
    @staticmethod
    def empty(shape: tuple[int, ...], like: Any) -> Any:
        with like.device:
            return sys.modules["cupy"].empty(shape, like.dtype)

    @staticmethod
    def current_stream(array: Any, ordinal: int) -> int:
        with array.device:
            return sys.modules["cupy"].cuda.get_current_stream().ptr

    @staticmethod
    def workspace(array: Any, stream: int | None) -> Workspace:
        cupy = sys.modules["cupy"]

        def allocate(num_bytes: int) -> tuple[Any, int]:
            with array.device, (nullcontext() if stream is None
                                else cupy.cuda.ExternalStream(stream)):
                memory = cupy.empty(num_bytes, "uint8")
            return memory, memory.data.ptr
        return allocate


class Jax(NumPy):
    """JAX arrays don't change once seen, so a result is written before anyone sees it; and JAX shows
    no stream, so on a GPU the product is waited for."""

    @staticmethod
    def empty(shape: tuple[int, ...], like: Any) -> Any:
        jax = sys.modules["jax"]
        with jax.default_device(next(iter(like.devices()))):
            out = jax.numpy.zeros(shape, like.dtype)
        return _Writable(out.block_until_ready())

    @staticmethod
    def finish(out: Any, ordinal: int | None, stream: int) -> Any:
        if ordinal is not None:
            from . import _core
            _core.synchronize(ordinal, stream)
        return out.array

    @staticmethod
    def workspace(array: Any, stream: int | None) -> Workspace:
        kept = []  # as long as the function, until the product has been waited for

        def allocate(num_bytes: int) -> tuple[Any, int]:
            jax = sys.modules["jax"]
            with jax.default_device(next(iter(array.devices()))):
                memory = jax.numpy.zeros(num_bytes, "uint8").block_until_ready()
            kept.append(memory)
            return memory, memory.unsafe_buffer_pointer()
        return allocate


class _Writable:
    """A JAX array of ours that nobody has seen yet, offered without the read-only flag."""

    def __init__(self, array: Any):
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()

    def __dlpack__(self, *, stream: int | None = None, max_version: Any = None) -> Any:
        return self.array.__dlpack__(stream=stream)  # the protocol before it had the flag


@functools.lru_cache(maxsize=64)
def _framework_of_type(kind: type, has_torch: bool) -> type[NumPy]:
    root = kind.__module__.partition(".")[0]
    if root == "torch" or (has_torch and issubclass(kind, sys.modules["torch"].Tensor)):
        return Torch
    if root == "cupy":
        return CuPy
    if root in ("jax", "jaxlib"):
        return Jax
    return NumPy


def framework_of(array: Any) -> type[NumPy]:
    """The library that an array belongs to, by its type's module; NumPy for any other."""
    return _framework_of_type(type(array), "torch" in sys.modules)


def stream_handle(stream: Any, ordinal: int) -> int:
    """The cudaStream_t of a stream object of PyTorch, CuPy, cuda.core or Numba, or an address.

    Raises InvalidArgumentError where the object says that it is of another device.
    """
    for attribute in ("device_index", "device_id"):
        index = getattr(stream, attribute, None)
        if isinstance(index, int) and index >= 0 and index != ordinal:
            raise InvalidArgumentError(f"stream must be of the arrays' device cuda:{ordinal}; "
                                       f"got one of cuda:{index}")
    if hasattr(stream, "__cuda_stream__"):
        protocol = stream.__cuda_stream__
        return int((protocol() if callable(protocol) else protocol)[1])
    for attribute in ("cuda_stream", "ptr", "handle"):
        if hasattr(stream, attribute):
            handle = getattr(stream, attribute)
            return int(getattr(handle, "value", handle) or 0)
    if isinstance(stream, int) and not isinstance(stream, bool) and stream >= 0:
        return stream
    raise TypeError("stream must be None, a CUDA stream of PyTorch, CuPy or cuda.core, or the "
                    f"address of one; got {type(stream).__name__}")
