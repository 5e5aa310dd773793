# SPDX-License-Identifier: Apache-2.0
"""Multiplies 16-bit activations by 4- and 8-bit weights: y = epilogue(x @ dequant(w).T).

    import mixgemm

    packed = mixgemm.pack(mixgemm.quantize(w, bits=4, group_size=128))   # w: [N, K]
    y = mixgemm.matmul(x, packed)                                         # x: [..., K] → [..., N]

Arrays of NumPy, PyTorch, CuPy and JAX go in and come out without copies. `packed.to("cuda")` moves a
weight to a GPU. `mixgemm.torch` has a drop-in `Linear` and `quantize_model` for PyTorch.
"""

from ._core import PackedWeight, Plan
from ._errors import (CorruptDataError, DeviceError, Error, InternalError, InvalidArgumentError,
                      IoError, NotFoundError, OutOfMemoryError, UnsupportedError,
                      VersionMismatchError)
from ._files import Checkpoint, DenseTensor, load, save
from ._gemm import devices, explain, kernels, matmul, plan, version
from ._tune import tune
from ._weights import QuantizedWeight, pack, quantize, quantize_packed, unpack

__version__ = version()

__all__ = [
    "Checkpoint", "CorruptDataError", "DenseTensor", "DeviceError", "Error", "InternalError",
    "InvalidArgumentError", "IoError", "NotFoundError", "OutOfMemoryError", "PackedWeight", "Plan",
    "QuantizedWeight", "UnsupportedError", "VersionMismatchError", "devices", "explain", "kernels",
    "load", "matmul", "pack", "plan", "quantize", "quantize_packed", "save", "tune", "unpack", "version",
]
