# SPDX-License-Identifier: Apache-2.0
"""Reference products and random weights."""

import numpy as np

import mixgemm

SPECS = [(bits, group, zero) for bits in (4, 8) for group in (0, 16, 32, 64, 128)
         for zero in ("none", "integer", "scaled")]


def activation(name, y):
    if name == "relu":
        return np.maximum(y, 0)
    if name == "gelu":
        return 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    if name == "silu":
        return y / (1 + np.exp(-y))
    return y


def reference(x, packed, bias=None, epilogue=None, residual=None, alpha=1.0):
    """The product in fp64 from the dequantized weight."""
    w = mixgemm.unpack(packed).dequantize().astype(np.float64)
    y = alpha * (x.astype(np.float64) @ w.T)
    if bias is not None:
        y = y + bias.astype(np.float64)
    y = activation(epilogue, y)
    return y if residual is None else y + residual.astype(np.float64)


def relative_error(y, expected):
    return np.linalg.norm(y.astype(np.float64) - expected) / max(np.linalg.norm(expected), 1e-30)


def random_weight(rng, n, k, bits, group_size, zero, scale_dtype="float16"):
    """Codes, scales and zeros at random: every code occurs, which a quantizer doesn't grant."""
    groups = 1 if group_size == 0 else -(-k // group_size)
    scales = rng.uniform(0.25, 1.0, (n, groups)).astype(np.float16).astype(np.float32)
    if scale_dtype == "bfloat16":
        scales = (scales.view(np.uint32) & 0xFFFF0000).view(np.float32)
    zeros = None
    if zero == "integer":
        zeros = rng.integers(0, 2**bits, (n, groups), dtype=np.uint8)
    elif zero == "scaled":
        zeros = (scales * 2 ** (bits - 1))
    return mixgemm.QuantizedWeight(rng.integers(0, 2**bits, (n, k), dtype=np.uint8), scales, zeros,
                                   bits, group_size, zero, scale_dtype)
