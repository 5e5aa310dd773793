# SPDX-License-Identifier: Apache-2.0
"""Quantized weights: from dense, to the kernels' layout and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable

import numpy as np

from . import _core
from ._errors import InvalidArgumentError
from ._frameworks import is_numpy_bf16


def dtype_name(dtype: Any) -> str:
    """ "float16" for numpy.float16, torch.float16, jax.numpy.float16, "float16", "fp16" and so on."""
    if isinstance(dtype, str):
        return dtype
    name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
    return str(name).rpartition(".")[2]


def _bits_from_f32(values: np.ndarray, dtype: str, what: str) -> np.ndarray:
    """Rounds to nearest even, as uint16 bit patterns; refuses what doesn't fit."""
    values = np.ascontiguousarray(values, np.float32)
    if dtype == "float16":
        with np.errstate(over="ignore"):
            bits = values.astype(np.float16).view(np.uint16)
    else:
        wide = values.view(np.uint32)
        bits = ((wide + (0x7FFF + ((wide >> 16) & 1))) >> 16).astype(np.uint16)
        bits = np.where(np.isnan(values), np.uint16(0x7FC0), bits)
    bad = np.isfinite(values) & ~np.isfinite(_f32_from_bits(bits, dtype))
    if bad.any():
        raise InvalidArgumentError(f"{what} must fit {dtype}; got {values[bad][0]}")
    return bits


def _f32_from_bits(bits: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "float16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _int32(permutation: Any) -> np.ndarray | None:
    """Indices as int32, which no value may be changed by."""
    if permutation is None:
        return None
    given = np.asarray(permutation)
    if given.dtype.kind not in "iu" or given.size and not (-2**31 <= given.min()
                                                            and given.max() < 2**31):
        raise InvalidArgumentError("permutation must hold integers in 0 .. K - 1; got "
                                   f"{given.dtype} {given.max(initial=0) if given.size else ''}")
    return np.ascontiguousarray(given, np.int32)


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A quantized weight, independent of any kernel: codes and how to read them.

        none     w = (code - 2**(bits-1)) * scale
        integer  w = (code - zero) * scale
        scaled   w = code * scale - zero

    codes: uint8 [N, K], one code a byte, below 2**bits.
    scales: float32 [N, G], whose values are of `scale_dtype`; G = ceil(K / group_size), or 1.
    zeros: None; uint8 [N, G] codes (integer); float32 [N, G] of `scale_dtype` (scaled).
    group_size: consecutive k that share a scale, 16, 32, 64 or 128; 0: one scale per row.
    permutation: None; or int32 [K], every index once: column j of the codes belongs to input feature
        permutation[j], as where a checkpoint was quantized in activation order.

    `pack` checks it all.
    """

    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None = None
    bits: int = 4
    group_size: int = 128
    zero: str = "none"
    scale_dtype: str = "float16"
    permutation: np.ndarray | None = None

    @property
    def n(self) -> int:
        """Output features N."""
        return self.codes.shape[0]

    @property
    def k(self) -> int:
        """Input features K."""
        return self.codes.shape[1]

    def dequantize(self) -> np.ndarray:
        """The weights that the codes stand for, float32 [N, K], columns in the order of the input
        features."""
        return _core.dequantize(*self._parts())

    def _parts(self) -> tuple[Any, ...]:
        scale_dtype = dtype_name(self.scale_dtype)
        if scale_dtype not in ("float16", "bfloat16"):
            raise InvalidArgumentError(
                f'scale_dtype must be "float16" or "bfloat16"; got "{scale_dtype}"')
        scales = _bits_from_f32(np.asarray(self.scales), scale_dtype, "scales")
        zeros = self.zeros
        if self.zero == "scaled" and zeros is not None:
            zeros = _bits_from_f32(np.asarray(zeros), scale_dtype, "zeros")
        return (self.codes, scales, zeros, _int32(self.permutation), self.bits, self.group_size,
                self.zero, scale_dtype)

    @classmethod
    def _from_parts(cls, parts: tuple[Any, ...], bits: int, group_size: int, zero: str,
                    scale_dtype: str) -> QuantizedWeight:
        codes, scales, zeros, permutation = parts
        if zero == "scaled":
            zeros = _f32_from_bits(zeros, scale_dtype)
        return cls(codes, _f32_from_bits(scales, scale_dtype), zeros, bits, group_size, zero,
                   scale_dtype, permutation)


def _dense(w: Any) -> tuple[Any, bool]:
    return (w.view(np.uint16), True) if is_numpy_bf16(w) else (w, False)


def quantize(w: Any, bits: int = 4, group_size: int = 128, zero: str = "none", *,
             scale_dtype: Any = "float16", search_clip: bool = True, num_threads: int = 0,
             progress: Callable[[float], None] | None = None) -> QuantizedWeight:
    """Quantizes a dense weight by rounding to nearest.

    w: [N, K] (output features, input features) float16, bfloat16 or float32 on the CPU, rows
        contiguous; of any library that speaks DLPack.
    bits: 4 or 8.
    group_size: consecutive k that share a scale: 16, 32, 64, 128; 0: one scale per row. K need not
        be a multiple.
    zero: "none" (symmetric), "integer" or "scaled" (asymmetric).
    scale_dtype: "float16" or "bfloat16"; a product on a CUDA device needs that of its activations.
    search_clip: per group, take the clipping ratio with the least squared error.
    num_threads: 0 = all cores. The result doesn't depend on it.
    progress: called now and then with a fraction from 0 to 1.

    Raises InvalidArgumentError for weights that aren't finite (with row and column).
    """
    scale_dtype = dtype_name(scale_dtype)
    array, bf16 = _dense(w)
    parts = _core.quantize(array, bits, group_size, zero, scale_dtype, search_clip, num_threads,
                           progress, bf16)
    scale_dtype = "bfloat16" if scale_dtype.startswith("b") else "float16"
    return QuantizedWeight._from_parts(parts, bits, group_size, zero, scale_dtype)


def quantize_packed(w: Any, bits: int = 4, group_size: int = 128, zero: str = "none", *,
                    scale_dtype: Any = "float16", search_clip: bool = True, num_threads: int = 0,
                    progress: Callable[[float], None] | None = None) -> _core.PackedWeight:
    """`pack(quantize(w, ...))` in one pass that needs little memory besides its result."""
    array, bf16 = _dense(w)
    return _core.quantize_packed(array, bits, group_size, zero, dtype_name(scale_dtype),
                                 search_clip, num_threads, progress, bf16)


def pack(q: QuantizedWeight, *, num_threads: int = 0) -> _core.PackedWeight:
    """The weight in the kernels' layout, on the CPU. One layout serves every kernel and device.

    Raises InvalidArgumentError where codes, scales or zeros break a rule of QuantizedWeight.
    """
    if not isinstance(q, QuantizedWeight):
        raise TypeError(f"q must be a QuantizedWeight (see quantize); got {type(q).__name__}")
    return _core.pack(*q._parts(), num_threads)


def unpack(p: _core.PackedWeight, *, num_threads: int = 0) -> QuantizedWeight:
    """The exact inverse of `pack`: unpack(pack(q)) has q's codes, scales, zeros and permutation, bit
    for bit.

    p: on the CPU; slices too.
    """
    if not isinstance(p, _core.PackedWeight):
        raise TypeError(f"p must be a PackedWeight (see pack); got {type(p).__name__}")
    return QuantizedWeight._from_parts(_core.unpack(p, num_threads), p.bits, p.group_size, p.zero,
                                       p.scale_dtype)
