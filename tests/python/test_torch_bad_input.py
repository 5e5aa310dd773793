# SPDX-License-Identifier: Apache-2.0
"""What mixgemm.torch refuses, and with which words."""

import pytest

torch = pytest.importorskip("torch")

from support_torch import arguments, device, fixed_seed, make  # noqa: E402, F401

import mixgemm.torch as mt  # noqa: E402
from mixgemm import InvalidArgumentError  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("x,match", [
    (torch.zeros(3, 199, dtype=torch.float16), r"must have shape \[\.\.\., 200\]"),
    (torch.tensor(1.0, dtype=torch.float16), "must have shape"),
    (torch.zeros(3, 200, dtype=torch.bfloat16), "dtype of the weight's scales, torch.float16"),
    (torch.zeros(3, 200, dtype=torch.float64), "got torch.float64"),
    (torch.zeros(3, 200, dtype=torch.int32), "got torch.int32"),
])
def test_bad_inputs_of_linear(device, x, match):
    with pytest.raises(InvalidArgumentError, match=match):
        make(device)(x.to(device))


def test_bad_arguments_of_linear():
    for arguments, match in (({"bits": 3}, "bits must be 4 or 8"), ({"zero": "x"}, "zero must be"),
                             ({"group_size": 7}, "group_size must be 0"),
                             ({"dtype": torch.float32}, "dtype must be torch.float16"),
                             ({"in_features": 0}, "must be at least 1")):
        with pytest.raises(InvalidArgumentError, match=match):
            mt.Linear(**({"in_features": 64, "out_features": 16} | arguments))
    with pytest.raises(InvalidArgumentError, match="meta"):
        mt.Linear.from_linear(torch.nn.Linear(8, 8, device="meta"))
    with pytest.raises(InvalidArgumentError, match="finite"):
        bad = torch.nn.Linear(64, 16)
        bad.weight.data[3, 5] = float("nan")
        mt.Linear.from_linear(bad)
    with pytest.raises(TypeError, match="torch.nn.Module"):
        mt.quantize_model(3)
    with pytest.raises(InvalidArgumentError, match="Linear.from_linear"):
        mt.quantize_model(torch.nn.Linear(8, 8))


def test_bad_arguments_of_the_op(device):
    layer = make(device, zero="scaled")
    x = torch.zeros(3, 200, dtype=torch.float16, device=device)
    good = dict(x=x, codes=layer.codes, scales=layer.scales, zeros=layer.zeros, n=70, group_size=64,
                zero="scaled")
    mt.matmul(**good)
    for change, match in (
            ({"codes": layer.codes[:, :3]}, "blocks of 64"),
            ({"codes": layer.codes[:4]}, "strips"),
            ({"codes": layer.codes.float()}, "codes must be uint8"),
            ({"codes": layer.codes.transpose(0, 1).contiguous().transpose(0, 1)}, "contiguous"),
            ({"scales": layer.scales[:, :2]}, "zeros must be|scales must have"),
            ({"scales": layer.scales.float()}, "scales must be float16"),
            ({"zeros": None}, "zeros must be given"),
            ({"zeros": layer.zeros.float()}, "zeros must be"),
            ({"zero": "none"}, "zeros must be None"),
            ({"zero": "other"}, "zero must be"),
            ({"group_size": 128}, "scales must have"),
            ({"group_size": 48}, "group_size|scales must have"),
            ({"group_size": -1}, "group_size"),
            ({"n": 0}, "strips"), ({"n": 200}, "strips"), ({"n": -5}, "strips"),
            ({"bias": torch.zeros(3, dtype=torch.float16, device=device)}, "bias must have shape"),
            ({"bias": torch.zeros(70, device=device)}, "bias must have x's dtype"),
            ({"residual": torch.zeros(2, 70, dtype=torch.float16, device=device)}, "residual must"),
            ({"epilogue": "tanh"}, "epilogue must be"),
            ({"alpha": float("inf")}, "alpha must be finite")):
        with pytest.raises(InvalidArgumentError, match=match):
            mt.matmul(**(good | change))
