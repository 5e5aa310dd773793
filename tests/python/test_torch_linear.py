# SPDX-License-Identifier: Apache-2.0
"""mixgemm.torch.Linear: its products, shapes and permuted columns; on the CPU and on the GPU."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from support_torch import (  # noqa: E402, F401
    DTYPES, ZEROS, arguments, close, device, expected, fixed_seed, make,
    permuted)

import mixgemm  # noqa: E402
import mixgemm.torch as mt  # noqa: E402
from mixgemm import InvalidArgumentError  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("zero", ZEROS)
@pytest.mark.parametrize("bits,group", [(4, 64), (4, 0), (8, 128), (4, 32)])
def test_linear_is_its_dequantized_weight(device, dtype, zero, bits, group):
    layer = make(device, 130, 200, bits, group, zero, dtype)
    for m in (1, 5, 40):
        x = torch.randn(m, 200, dtype=dtype, device=device)
        y = layer(x)
        assert y.dtype == dtype and y.device == x.device and y.shape == (m, 130)
        close(y, expected(layer, x))
        assert torch.equal(y, layer._forward_op(x))


def test_quantization_is_close_to_the_linear(device):
    linear = torch.nn.Linear(256, 64).to(device)
    x = torch.randn(7, 256, device=device)
    y = mt.Linear.from_linear(linear, 8, 32)(x)
    assert y.dtype == torch.float32
    error = (y - linear(x)).norm() / linear(x).norm()
    assert error < 0.01


@pytest.mark.parametrize("shape", [(200,), (3, 200), (2, 3, 200), (0, 200), (2, 0, 200)])
def test_shapes(device, shape):
    layer = make(device)
    x = torch.randn(shape, dtype=torch.float16, device=device)
    y = layer(x)
    assert y.shape == (*shape[:-1], 70)
    assert torch.equal(y, layer._forward_op(x))
    assert torch.equal(y.reshape(-1, 70), layer(x.reshape(-1, 200)))


def test_inputs_that_are_not_contiguous(device):
    layer = make(device)
    wide = torch.randn(6, 5, 256, dtype=torch.float16, device=device)
    for x in (wide[..., :200], wide[::2, :, 3:203], wide.transpose(0, 1)[..., :200],
              wide[0, :, :200], wide[:, 0, 1:201], wide[:1, :1, :200].expand(4, 3, 200),
              torch.randn(200, 7, device=device).half().T):
        y = layer(x)
        assert torch.equal(y, layer(x.clone(memory_format=torch.contiguous_format)))
        assert torch.equal(y, layer._forward_op(x))


@pytest.mark.parametrize("epilogue", ["relu", "gelu", "silu"])
def test_epilogues(device, epilogue):
    layer = make(device)
    x = torch.randn(5, 200, dtype=torch.float16, device=device)
    plain = expected(layer, x)
    function = {"relu": torch.relu, "silu": torch.nn.functional.silu,
                "gelu": lambda v: torch.nn.functional.gelu(v, approximate="tanh")}[epilogue]
    layer(x)
    layer.epilogue = epilogue
    close(layer(x), function(plain))


def test_float32_goes_in_and_comes_out(device):
    layer = make(device)
    x = torch.randn(3, 200, device=device)
    assert torch.equal(layer(x), layer(x.half()).float())


@pytest.mark.parametrize("zero", ZEROS)
def test_linear_with_permuted_columns(rng, device, zero):
    packed, dense = permuted(rng, zero=zero)
    layer = mt.Linear.from_packed(packed, device=device)
    assert layer.permutation.dtype == torch.int32 and "permuted" in repr(layer)
    assert torch.equal(layer.dequantize().cpu(), dense.half())
    for m in (1, 5, 300):
        x = torch.randn(m, 200, dtype=torch.float16, device=device)
        y = layer(x)
        close(y, x.double() @ dense.double().to(device).T)
        assert torch.equal(y, layer._forward_op(x))
        wide = torch.randn(m, 333, dtype=torch.float16, device=device)
        assert torch.equal(layer(wide[:, 1:201]), layer(wide[:, 1:201].contiguous()))
    for copied in (copy.deepcopy(layer), mt.Linear(200, 70, False, group_size=64, zero=zero,
                                                   permuted=True, device=device)):
        copied.load_state_dict(layer.state_dict())
        assert torch.equal(copied(x), layer(x))
    x = x[:3].clone().requires_grad_(True)
    layer(x).backward(torch.ones(3, 70, dtype=torch.float16, device=device))
    close(x.grad, dense.double().sum(0).to(device).expand(3, -1))
    plain = mt.Linear.from_packed(packed.for_gathered_x(), device=device)
    order = layer.permutation.long()
    assert torch.equal(plain(x.detach()[:, order]), layer(x.detach()))
    torch.library.opcheck(torch.ops.mixgemm.linear,
                          (*arguments(layer, x.detach()), layer.permutation))


def test_permutations_that_the_op_refuses(rng, device):
    layer = mt.Linear.from_packed(permuted(rng)[0], device=device)
    x = torch.zeros(2, 200, dtype=torch.float16, device=device)
    good = dict(x=x, codes=layer.codes, scales=layer.scales, zeros=layer.zeros, n=70, group_size=64,
                zero="integer")
    for bad in (layer.permutation[:100], layer.permutation.long(), layer.permutation[None]):
        with pytest.raises(InvalidArgumentError, match="permutation must be int32"):
            mt.matmul(**good, permutation=bad)
    with pytest.raises(InvalidArgumentError, match="permutation must be contiguous"):
        mt.matmul(**good, permutation=torch.cat([layer.permutation] * 2)[::2])
    outside = layer.permutation.clone()
    outside[3] = 200
    if device.type == "cpu":
        with pytest.raises(InvalidArgumentError, match="indices 0 .. 199; element 3 is 200"):
            mt.matmul(**good, permutation=outside)
    else:
        assert torch.isfinite(mt.matmul(**good, permutation=outside)).all()


@pytest.mark.gpu
@pytest.mark.parametrize("m", [1, 33, 700])
def test_permuted_columns_on_the_gpu(rng, m):
    packed, dense = permuted(rng, 272, 1000)
    on_gpu = packed.to("cuda")
    assert torch.equal(torch.from_dlpack(on_gpu.permutation).cpu(),
                       torch.from_numpy(np.from_dlpack(packed.permutation)))
    x = torch.randn(m, 1000, dtype=torch.float16, device="cuda")
    y = mixgemm.matmul(x, on_gpu)
    close(y, x.double() @ dense.double().cuda().T)
    assert torch.equal(y, mixgemm.matmul(x, on_gpu, pdl=True))
    assert "permuted columns" in mixgemm.explain(on_gpu, m)
    layer = mt.Linear.from_packed(packed, device="cuda", pdl=True)
    with torch.inference_mode():
        layer(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = layer(x)
        for _ in range(3):
            x.copy_(torch.randn_like(x))
            graph.replay()
            assert torch.equal(found, layer(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_of_x(device, dtype):
    layer = make(device, dtype=dtype, zero="integer")
    x = torch.randn(3, 200, dtype=dtype, device=device, requires_grad=True)
    y = layer(x)
    assert y.requires_grad
    grad = torch.randn_like(y)
    y.backward(grad)
    close(x.grad, grad.double() @ layer.dequantize().double())
    with torch.no_grad():
        assert not layer(x).requires_grad


def test_gradients_that_are_refused(device):
    layer = make(device)
    layer.epilogue = "silu"
    x = torch.randn(3, 200, dtype=torch.float16, device=device, requires_grad=True)
    with pytest.raises(NotImplementedError, match='no gradient through the epilogue "silu"'):
        layer(x).sum().backward()
