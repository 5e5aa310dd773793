# SPDX-License-Identifier: Apache-2.0
"""What the tests of mixgemm.torch share. Import it after pytest.importorskip("torch")."""

import dataclasses

import numpy as np
import pytest
import torch
from support import random_weight

import mixgemm
import mixgemm.torch as mt

DTYPES = [torch.float16, torch.bfloat16]
ZEROS = ["none", "integer", "scaled"]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return torch.device(request.param, 0) if request.param == "cuda" else torch.device("cpu")


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(5)


def make(device="cpu", n=70, k=200, bits=4, group_size=64, zero="none", dtype=torch.float16,
         bias=True, **more):
    linear = torch.nn.Linear(k, n, bias)
    return mt.Linear.from_linear(linear, bits, group_size, zero, dtype=dtype, **more).to(device)


def expected(layer, x):
    y = x.double() @ layer.dequantize().double().T
    return y if layer.bias is None else y + layer.bias.double()


def close(y, reference):
    bound = 3e-3 if y.dtype is torch.float16 else 2e-2
    error = (y.double() - reference).norm() / reference.norm().clamp_min(1e-30)
    assert error < bound, error.item()


def permuted(rng, n=70, k=200, zero="integer"):
    """A packed weight with permuted columns, and its dense form."""
    q = random_weight(rng, n, k, 4, 64, zero)
    q = dataclasses.replace(q, permutation=rng.permutation(k).astype(np.int32))
    return mixgemm.pack(q), torch.from_numpy(q.dequantize())


def arguments(layer, x, residual=None):
    return (x, layer.codes, layer.scales, layer.zeros, layer.bias, residual, layer.out_features,
            layer.group_size, layer.zero, "none", 1.0, False)
