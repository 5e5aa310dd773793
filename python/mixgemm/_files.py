# SPDX-License-Identifier: Apache-2.0
"""Packed checkpoints: safetensors files with packed weights in them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from . import _core
from ._errors import InvalidArgumentError
from ._frameworks import is_numpy_bf16

# safetensors dtype → NumPy dtype. BF16 has none without the package ml_dtypes.
_NUMPY = {"BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16",
          "F16": "float16", "U32": "uint32", "I32": "int32", "F32": "float32", "U64": "uint64",
          "I64": "int64", "F64": "float64", "C64": "complex64"}
_SAFETENSORS = {numpy: name for name, numpy in _NUMPY.items()}


class DenseTensor:
    """A tensor of a checkpoint that isn't quantized, in the file's memory; read-only.

    dtype: as safetensors spells it, e.g. "BF16". shape: of ints.
    numpy(): a NumPy array over the same memory. bytes: the memory itself, uint8, for
    `torch.frombuffer` and the like.
    """

    def __init__(self, tensor: _core.DenseTensor):
        self.dtype: str = tensor.dtype
        self.shape: tuple[int, ...] = tuple(tensor.shape)
        self.bytes: np.ndarray = tensor.bytes

    def numpy(self) -> np.ndarray:
        """As a NumPy array, not copied. "BF16" needs the package ml_dtypes."""
        if self.dtype == "BF16":
            try:
                import ml_dtypes
            except ImportError:
                raise InvalidArgumentError(
                    "numpy() of a BF16 tensor needs the package ml_dtypes; .bytes has the "
                    "memory") from None
            dtype: Any = ml_dtypes.bfloat16
        elif self.dtype in _NUMPY:
            dtype = _NUMPY[self.dtype]
        else:
            raise InvalidArgumentError(f"NumPy has no dtype for {self.dtype}; .bytes has the memory")
        return self.bytes.view(dtype).reshape(self.shape)

    def __repr__(self) -> str:
        return f"<mixgemm.DenseTensor {self.dtype} {self.shape}>"


class Checkpoint(Mapping):
    """An opened packed checkpoint: names → PackedWeight or DenseTensor.

    The file is mapped: a weight is read when it is used, and its checksum checked when it is first
    asked for. `packed` and `dense` are the names of either kind; `metadata` is the file's own.
    """

    def __init__(self, path: str | os.PathLike[str], verify: bool = True):
        self._core = _core.open_checkpoint(os.fspath(path), verify)
        self.packed: list[str] = self._core.packed_names()
        self.dense: list[str] = self._core.dense_names()
        self.metadata: dict[str, str] = self._core.metadata()
        self._packed = set(self.packed)
        self._dense = set(self.dense)

    def __getitem__(self, name: str) -> _core.PackedWeight | DenseTensor:
        if name in self._packed:
            return self._core.packed(name)
        if name in self._dense:
            return DenseTensor(self._core.dense(name))
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        yield from self.packed
        yield from self.dense

    def __len__(self) -> int:
        return len(self.packed) + len(self.dense)

    def verify(self) -> None:
        """Checks every checksum and value range; raises CorruptDataError for the first failure."""
        self._core.verify()

    def __repr__(self) -> str:
        return (f"<mixgemm.Checkpoint of {len(self.packed)} packed weights and "
                f"{len(self.dense)} dense tensors>")


def load(path: str | os.PathLike[str], *, verify: bool = True) -> Checkpoint:
    """Opens a packed checkpoint, as `save`, `mixgemm quantize` and `mixgemm convert` write it.

    path: the file, an index of shards, or a directory with either.
    verify: check a weight's checksum when it is first asked for.
    """
    return Checkpoint(path, verify)


def _dense_parts(name: str, value: Any) -> tuple[str, list[int], np.ndarray]:
    if isinstance(value, DenseTensor):
        return value.dtype, list(value.shape), value.bytes
    if type(value).__module__.partition(".")[0] == "torch" and str(value.dtype) == "torch.bfloat16":
        torch_uint16 = value.detach().cpu().contiguous().view(_torch().uint16)
        dtype, array = "BF16", torch_uint16.numpy()
    elif is_numpy_bf16(value):
        dtype, array = "BF16", np.ascontiguousarray(value).view(np.uint16)
    else:
        array = np.asarray(value, order="C")
        if array.dtype.name not in _SAFETENSORS:
            raise InvalidArgumentError(f"{name} must be a PackedWeight or an array of numbers; got "
                                       f"{type(value).__name__} of {array.dtype}")
        dtype = _SAFETENSORS[array.dtype.name]
    return dtype, list(array.shape), np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _torch() -> Any:
    import torch
    return torch


def save(path: str | os.PathLike[str], tensors: Mapping[str, Any], *,
         metadata: Mapping[str, str] | None = None, max_shard_bytes: int = 0) -> None:
    """Writes a packed checkpoint. It appears whole or not at all; one that exists is replaced.

    tensors: names → PackedWeight on the CPU, DenseTensor, or a dense array on the CPU.
    metadata: of your own; keys that begin with "mixgemm." are reserved.
    max_shard_bytes: 0: one file; else files of at most so many bytes, and an index.
    """
    packed = {name: value for name, value in tensors.items()
              if isinstance(value, _core.PackedWeight)}
    dense = [(name, *_dense_parts(name, value)) for name, value in tensors.items()
             if name not in packed]
    _core.save(os.fspath(path), packed, dense, dict(metadata or {}), max_shard_bytes)
