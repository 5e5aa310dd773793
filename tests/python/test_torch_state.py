# SPDX-License-Identifier: Apache-2.0
"""mixgemm.torch.Linear: state_dict, moves, dtypes, copies, pickles."""

import copy
import gc
import io

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from support_torch import ZEROS, close, device, expected, fixed_seed, make  # noqa: E402, F401

import mixgemm  # noqa: E402
import mixgemm.torch as mt  # noqa: E402
from mixgemm import InvalidArgumentError  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("zero", ZEROS)
def test_state_dict_round_trip(device, zero):
    layer = make(device, zero=zero)
    x = torch.randn(3, 200, dtype=torch.float16, device=device)
    y = layer(x)
    for assign in (False, True):
        empty = mt.Linear(200, 70, group_size=64, zero=zero, device=device)
        assert not torch.equal(empty(x), y)
        empty.load_state_dict(layer.state_dict(), assign=assign)
        assert torch.equal(empty(x), y)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    moved = mt.Linear(200, 70, group_size=64, zero=zero)  # a state from the GPU into a CPU layer
    moved.load_state_dict(torch.load(buffer, map_location="cpu", weights_only=True))
    assert torch.equal(moved.codes, layer.codes.cpu())
    close(moved(x.cpu()), y.double().cpu())


@pytest.mark.parametrize("zero", ZEROS)
def test_copies_and_pickles(device, zero):
    layer = make(device, zero=zero)
    x = torch.randn(3, 200, dtype=torch.float16, device=device)
    y = layer(x)  # binds
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(layer), torch.load(buffer, weights_only=False)):
        assert torch.equal(other(x), y)
        assert other.codes.data_ptr() != layer.codes.data_ptr()
        other.codes.zero_()
    assert torch.equal(layer(x), y)


@pytest.mark.gpu
@pytest.mark.parametrize("zero", ZEROS)
def test_moves_between_devices(zero):
    layer = make("cpu", zero=zero)
    x = torch.randn(3, 200, dtype=torch.float16)
    codes, zeros = layer.codes.clone(), None if layer.zeros is None else layer.zeros.clone()
    y = layer(x)
    layer.cuda()
    close(layer(x.cuda()), y.double().cuda())
    layer.cpu()
    assert torch.equal(layer.codes, codes)
    if zeros is not None:
        assert layer.zeros.dtype == zeros.dtype and torch.equal(layer.zeros, zeros)
    assert torch.equal(layer(x), y)


def test_dtype_conversions(device):
    layer = make(device, zero="integer")
    layer.float()
    assert layer.dtype == torch.float16 and layer.codes.dtype == torch.uint8
    layer.bfloat16()
    assert layer.dtype == layer.bias.dtype == torch.bfloat16
    x = torch.randn(3, 200, dtype=torch.bfloat16, device=device)
    close(layer(x), expected(layer, x))
    layer.to(torch.float16)
    assert layer.dtype == torch.float16
    close(layer(x.half()), expected(layer, x.half()))


def test_scales_that_overflow_are_refused(device):
    layer = make(device, dtype=torch.bfloat16)
    layer.scales.fill_(1e9)
    with pytest.raises(InvalidArgumentError, match="scales must fit"):
        layer.half()
    assert layer.dtype == torch.bfloat16


def test_buffers_changed_under_the_layer_are_seen(device):
    layer, other = make(device), make(device)
    x = torch.randn(3, 200, dtype=torch.float16, device=device)
    layer(x)
    layer.codes = other.codes.clone()
    layer.scales.data = other.scales.clone()
    layer.bias = None
    gc.collect()
    assert torch.equal(layer(x), make_like(other, None)(x))
    layer.codes = torch.zeros(1, dtype=torch.uint8, device=device)
    with pytest.raises(InvalidArgumentError, match="codes must be"):
        layer(x)


def make_like(layer, bias):
    made = copy.deepcopy(layer)
    made.bias = bias
    return made


def test_from_packed_and_back(rng, device):
    packed = mixgemm.quantize_packed(rng.standard_normal((48, 200), np.float32), 4, 64, "integer")
    layer = mt.Linear.from_packed(packed, device=device)
    np.testing.assert_array_equal(layer.dequantize().cpu().numpy(),
                                  mixgemm.unpack(packed).dequantize().astype(np.float16))
    x = torch.randn(3, 200, dtype=torch.float16)
    close(layer(x.to(device)), mixgemm.matmul(x, packed).double().to(device))
    assert layer.extra_repr().startswith("in_features=200, out_features=48, bias=False, bits=4")
