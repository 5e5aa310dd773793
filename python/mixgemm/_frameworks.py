# SPDX-License-Identifier: Apache-2.0
"""What differs between array libraries: making an array, and knowing the current CUDA stream.

Reading and writing an array's memory goes through DLPack and is the same for all.
"""

from __future__ import annotations

import functools
import sys
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Callable, Tuple

import numpy as np

from . import _core
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
def torch_scratch(ordinal: int) -> Callable[..., Any]:
    """allocate(bytes) → (tensor, address) on a CUDA device, for the current stream: PyTorch's
    allocator knows it, so a captured graph keeps the memory. allocate(bytes, True) → the same for
    memory that stays with the stream (KeptScratch), or None where it must not."""
    torch = sys.modules["torch"]
    device = torch.device("cuda", ordinal)
    empty = torch_empty(device)

    def allocate(num_bytes: int, to_keep: bool = False) -> tuple[Any, int] | None:
        if to_keep:
            return allocate_to_keep(num_bytes)
        memory = empty((num_bytes,), (1,), torch.uint8)
        if memory.get_device() != ordinal:
            memory = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        return memory, memory.data_ptr()

    def allocate_to_keep(num_bytes: int) -> tuple[Any, int] | None:
        stream = torch.cuda.current_stream(ordinal)
        # PyTorch's own streams, numbered by it, are never destroyed. Any other one has its address
        # for a number, and could be: see KeptScratch.
        if stream.cuda_stream != 0 and stream.stream_id == stream.cuda_stream:
            return None
        # This thread's allocations may go to a pool that is somebody else's business: one of
        # torch.cuda.use_mem_pool, or that of a graph that torch.compile warms up, where memory that
        # it doesn't know of is an error. Another thread's don't.
        made: list[tuple[Any, int]] = []

        def work() -> None:
            try:
                # Not `with`, whose end would make device 0 current in the new thread, which costs
                # a process that doesn't use device 0 a context there.
                torch.cuda.set_stream(stream)
                made.append(allocate(num_bytes))
            except RuntimeError:  # no memory: then the plain way says so, or has it
                pass

        try:
            thread = threading.Thread(target=work, name="mixgemm scratch", daemon=True)
            thread.start()
        except RuntimeError:  # no thread to be had, as while the interpreter ends
            return None
        thread.join()
        return made[0] if made else None
    return allocate


# By device. A device's object stays, since bound weights know it; what it keeps may go.
_kept_scratch: dict[int, _core.KeptScratch] = {}


def release_scratch() -> None:
    """Gives the scratch memory that eager products keep back to PyTorch's allocator.

    `mixgemm.torch.Linear` and `mixgemm.matmul` with tensors keep what a product took for the
    stream's next one: at most 16 MiB a stream, for 8 streams a device. After this,
    `torch.cuda.empty_cache()` can free it. Work in flight may go on; the next product that needs
    scratch memory asks for it anew.
    """
    for kept in list(_kept_scratch.values()):
        kept.release()


@functools.lru_cache(maxsize=None)
def torch_memory(device: Any) -> tuple[Callable[..., Any], Callable[..., Any] | None,
                                       _core.KeptScratch | None]:
    """torch_empty of a device; and on CUDA devices torch_scratch and what keeps its memory."""
    if device.type != "cuda":
        return torch_empty(device), None, None
    kept = _kept_scratch.setdefault(device.index, _core.KeptScratch())
    return torch_empty(device), torch_scratch(device.index), kept


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
