# SPDX-License-Identifier: Apache-2.0
"""mixgemm for PyTorch: a drop-in `Linear`, `quantize_model`, and the custom op underneath.

    import mixgemm.torch

    mixgemm.torch.quantize_model(model, bits=4, group_size=128)   # in place, one layer at a time

On CPU and CUDA; works under `torch.compile(fullgraph=True)` and in CUDA graphs.
"""

from .._frameworks import release_scratch
from ._linear import Linear
from ._model import load_quantized, quantize_model
from ._ops import matmul

__all__ = ["Linear", "load_quantized", "matmul", "quantize_model", "release_scratch"]
