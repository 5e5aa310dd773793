# SPDX-License-Identifier: Apache-2.0
"""mixgemm.matmul with PyTorch tensors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from support_torch import DTYPES, ZEROS, close, device, fixed_seed, make  # noqa: E402, F401

import mixgemm  # noqa: E402
import mixgemm.torch as mt  # noqa: E402
from mixgemm import InvalidArgumentError  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("dtype", DTYPES)
def test_matmul_takes_and_gives_tensors(rng, device, dtype):
    name = str(dtype).partition(".")[2]
    packed = mixgemm.quantize_packed(torch.randn(48, 200, dtype=dtype), 4, 64, "scaled",
                                     scale_dtype=dtype).to(device)
    assert packed.scale_dtype == name
    x = torch.randn(2, 3, 200, dtype=dtype, device=device)
    bias = torch.randn(48, dtype=dtype, device=device)
    residual = torch.randn(2, 3, 48, dtype=dtype, device=device)
    out = torch.empty_like(residual)
    y = mixgemm.matmul(x, packed, bias, residual=residual, out=out)
    assert y is out
    assert torch.equal(y, mixgemm.matmul(x, packed, bias, residual=residual))
    plan = mixgemm.plan(packed, 6, dtype, bias=True, residual=True)
    assert plan.kernel_id.startswith("sm90_" if device.type == "cuda" else "cpu_")


def test_packed_parts_are_tensors(rng):
    packed = mixgemm.quantize_packed(rng.standard_normal((48, 200), np.float32),
                                     scale_dtype=torch.bfloat16)
    assert torch.from_dlpack(packed.scales).dtype == torch.bfloat16
    assert torch.from_dlpack(packed.codes).shape == (3, 4, 512)


@given(sizes=st.lists(st.integers(0, 4), max_size=3), last=st.sampled_from([1, 23, 24, 25]),
       strides=st.lists(st.sampled_from([0, 1, 2, 23, 24, 25, 48, 72, 96, 120]), min_size=3,
                        max_size=3), last_stride=st.sampled_from([1, 1, 1, 0, 2]),
       offset=st.integers(0, 3), dtype=st.sampled_from([*DTYPES, torch.float32, torch.int16]))
def test_any_view_gives_the_product_or_an_exception(sizes, last, strides, last_stride,
                                                          offset, dtype):
    """Views with every kind of strides, against the same values in a contiguous tensor."""
    q = mixgemm.quantize(np.eye(16, 24, dtype=np.float32), 8, 0, scale_dtype="bfloat16")
    packed = mixgemm.pack(q)
    layer = mt.Linear.from_packed(packed)
    memory = torch.arange(1500).remainder(251).to(dtype)
    x = torch.as_strided(memory, (*sizes, last), [*strides[:len(sizes)], last_stride],
                         offset)
    try:
        y = mixgemm.matmul(x, packed)
    except mixgemm.Error:
        y = None
        assert last != 24 or dtype not in DTYPES or x.numel() and not x.is_contiguous()
    if y is not None:
        assert torch.equal(y, mixgemm.matmul(x.contiguous(), packed))
        np.testing.assert_allclose(y.float(), x.float()[..., :16] * q.scales.max() * 127,
                                   rtol=0.02)
    try:
        z = layer(x)
    except mixgemm.Error:
        assert last != 24 or dtype not in (torch.bfloat16, torch.float32)
    else:
        assert torch.equal(z, layer(x.clone(memory_format=torch.contiguous_format)))
        assert y is None or dtype is not torch.bfloat16 or torch.equal(z, y)


def test_matmul_writes_through_to_numpy_memory(rng, packed):
    memory = np.zeros((3, 48), np.float16)
    x = torch.randn(3, 200, dtype=torch.float16)
    mixgemm.matmul(x, packed, out=torch.from_numpy(memory))
    np.testing.assert_array_equal(memory, mixgemm.matmul(x.numpy(), packed))


def test_tensors_that_cannot_be_taken(packed):
    x = torch.zeros(3, 200, dtype=torch.float16)
    with pytest.raises(TypeError, match="x can't be taken through DLPack.*grad"):
        mixgemm.matmul(x.requires_grad_(True), packed)
    with pytest.raises((TypeError, mixgemm.Error)):
        mixgemm.matmul(torch.zeros(3, 200, dtype=torch.float16, device="meta"), packed)
    with pytest.raises((TypeError, mixgemm.Error)):
        mixgemm.matmul(torch.zeros(3, 200, dtype=torch.float16).to_sparse(), packed)


@pytest.mark.gpu
def test_mixed_devices_are_refused(packed):
    cpu = torch.zeros(3, 200, dtype=torch.float16)
    gpu = cpu.cuda()
    with pytest.raises(InvalidArgumentError, match="on cpu; got cuda:0"):
        mixgemm.matmul(gpu, packed)
    with pytest.raises(InvalidArgumentError, match="on cuda:0; got cpu"):
        mixgemm.matmul(cpu, packed.to("cuda"))
    with pytest.raises(InvalidArgumentError, match="out must be where x is"):
        mixgemm.matmul(gpu, packed.to("cuda"), out=torch.zeros(3, 48, dtype=torch.float16))
    with pytest.raises(InvalidArgumentError, match="bias must be where x is"):
        mixgemm.matmul(gpu, packed.to("cuda"), torch.zeros(48, dtype=torch.float16))
    with pytest.raises(InvalidArgumentError, match="stream must be None"):
        mixgemm.matmul(cpu, packed, stream=torch.cuda.current_stream())
    with pytest.raises(TypeError, match="stream must be"):
        mixgemm.matmul(gpu, packed.to("cuda"), stream="default")
    with pytest.raises(InvalidArgumentError, match="needs a packed weight on the CPU"):
        mixgemm.unpack(packed.to("cuda"))
    with pytest.raises(InvalidArgumentError, match="packed weights on the CPU"):
        mixgemm.save("never.safetensors", {"layer": packed.to("cuda")})
    with pytest.raises(InvalidArgumentError, match="device must be cuda:0"):
        packed.to("cuda:99")
    layer = make("cuda")
    with pytest.raises(InvalidArgumentError, match="must be where x is"):
        layer(cpu)
    with pytest.raises(InvalidArgumentError, match="must be where x is"):
        make("cpu")(gpu)


@pytest.mark.gpu
def test_gpu_and_cpu_agree(rng):
    for bits in (4, 8):
        for zero in ZEROS:
            packed = mixgemm.quantize_packed(rng.standard_normal((272, 520), np.float32), bits, 64,
                                             zero)
            on_gpu = packed.to("cuda")
            assert on_gpu.device == "cuda:0" and on_gpu.to("cuda") is on_gpu
            for m in (1, 17, 200):
                x = torch.randn(m, 520, dtype=torch.float16)
                close(mixgemm.matmul(x.cuda(), on_gpu).cpu(), mixgemm.matmul(x, packed).double())


@pytest.mark.gpu
def test_a_freed_weight_stays_until_its_product_is_done(rng):
    packed = mixgemm.quantize_packed(rng.standard_normal((256, 512), np.float32)).to("cuda")
    x = torch.randn(64, 512, dtype=torch.float16, device="cuda")
    reference = mixgemm.matmul(x, packed)
    torch.cuda.synchronize()
    torch.cuda._sleep(20_000_000)
    y = mixgemm.matmul(x, packed)
    del packed  # cudaFree waits for the device
    assert torch.equal(y, reference)
