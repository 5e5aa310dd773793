# SPDX-License-Identifier: Apache-2.0
"""mixgemm.torch, and matmul with PyTorch tensors; each test on the CPU and on the GPU."""

import copy
import dataclasses
import gc
import io
import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from support import random_weight  # noqa: E402

import mixgemm  # noqa: E402
import mixgemm.torch as mt  # noqa: E402
from mixgemm import InvalidArgumentError  # noqa: E402

pytestmark = pytest.mark.torch
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


# ---------------------------------------------------------------- Linear


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
    layer.epilogue = epilogue
    layer._bound = None
    close(layer(x), function(plain))


def test_float32_goes_in_and_comes_out(device):
    layer = make(device)
    x = torch.randn(3, 200, device=device)
    assert torch.equal(layer(x), layer(x.half()).float())


# ---------------------------------------------------------------- state, moves, copies


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


# ---------------------------------------------------------------- permuted columns


def permuted(rng, n=70, k=200, zero="integer"):
    """A packed weight with permuted columns, and its dense form."""
    q = random_weight(rng, n, k, 4, 64, zero)
    q = dataclasses.replace(q, permutation=rng.permutation(k).astype(np.int32))
    return mixgemm.pack(q), torch.from_numpy(q.dequantize())


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


# ---------------------------------------------------------------- gradients


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


# ---------------------------------------------------------------- compile, graphs, streams


def arguments(layer, x, residual=None):
    return (x, layer.codes, layer.scales, layer.zeros, layer.bias, residual, layer.out_features,
            layer.group_size, layer.zero, "none", 1.0, False)


@pytest.mark.parametrize("zero", ZEROS)
@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(device, zero, grad):
    layer = make(device, zero=zero)
    layer.bias.requires_grad_(False)
    x = torch.randn(3, 200, dtype=torch.float16, device=device, requires_grad=grad)
    torch.library.opcheck(torch.ops.mixgemm.linear, arguments(layer, x))


def test_compile_sees_one_graph(device):
    model = torch.nn.Sequential(make(device), torch.nn.ReLU(), make(device, 40, 70))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for m in (1, 4, 9):
        x = torch.randn(2, m, 200, dtype=torch.float16, device=device)
        assert torch.equal(compiled(x), model(x))


@pytest.mark.gpu
def test_compile_with_inductor_and_graphs():
    model = torch.nn.Sequential(make("cuda"), torch.nn.ReLU(), make("cuda", 40, 70))
    for mode in ("default", "reduce-overhead"):
        compiled = torch.compile(model, fullgraph=True, mode=mode)
        for _ in range(4):
            x = torch.randn(8, 200, dtype=torch.float16, device="cuda")
            with torch.inference_mode():
                y, reference = compiled(x).clone(), model(x)
            close(y, reference.double())
        torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.parametrize("m", [1, 16, 300])
def test_cuda_graph_replays(m):
    layer = make("cuda", 256, 4096, group_size=128)
    x = torch.randn(m, 4096, dtype=torch.float16, device="cuda")
    with torch.inference_mode():
        layer(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(x)
        for _ in range(5):
            x.copy_(torch.randn_like(x))
            graph.replay()
            again = layer(x)
            torch.cuda.synchronize()
            assert torch.equal(y, again)


@pytest.mark.gpu
def test_the_current_stream_is_used():
    """On another stream than the producer's, the result would be of the old x."""
    layer = make("cuda", 256, 4096, group_size=128)
    packed = mixgemm.quantize_packed(np.eye(64, dtype=np.float32)).to("cuda")
    x = torch.zeros(64, 4096, dtype=torch.float16, device="cuda")
    small = torch.zeros(64, 64, dtype=torch.float16, device="cuda")
    source, small_source = torch.randn_like(x), torch.randn_like(small)
    reference = layer(source)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # plans, kernels and memory are there: nothing has to wait
        warm = [layer(x), mixgemm.matmul(small, packed), mixgemm.matmul(small, packed)]
        del warm
        stream.synchronize()
        torch.cuda._sleep(200_000_000)
        x.copy_(source)
        small.copy_(small_source)
        y = layer(x)
        core = mixgemm.matmul(small, packed)
    explicit = mixgemm.matmul(small, packed, stream=stream)
    assert not stream.query()  # nothing waited
    stream.synchronize()
    assert torch.equal(y, reference)
    assert torch.equal(core, explicit)
    close(core, small_source.double())


@pytest.mark.gpu
def test_threads_with_streams_of_their_own():
    layer = make("cuda", 256, 512, group_size=128)
    xs = [torch.randn(4 + i, 512, dtype=torch.float16, device="cuda") for i in range(6)]
    references = [layer(x) for x in xs]
    torch.cuda.synchronize()
    wrong = []

    def work(i):
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(50):
                if not torch.equal(layer(xs[i]), references[i]):
                    wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---------------------------------------------------------------- whole models


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(100, 64)
        self.blocks = torch.nn.ModuleList(
            torch.nn.ModuleDict({"up": torch.nn.Linear(64, 96), "down": torch.nn.Linear(96, 64)})
            for _ in range(2))
        self.attention = torch.nn.MultiheadAttention(64, 2)
        self.head = torch.nn.Linear(64, 100, bias=False)
        self.head.weight = self.embed.weight
        self.lm_head = torch.nn.Linear(64, 10)

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = x + block["down"](torch.relu(block["up"](x)))
        return self.lm_head(x)


def test_quantize_model_replaces_what_it_should(device):
    model = Tied().to(device)
    ids = torch.arange(20, device=device)
    before = model(ids)
    calls = []
    done = mt.quantize_model(model, 8, 32, progress=lambda *a: calls.append(a))
    assert done is model
    replaced = [name for name, m in model.named_modules() if isinstance(m, mt.Linear)]
    assert replaced == ["blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down"]
    assert calls == [(name, i + 1, 4) for i, name in enumerate(replaced)]
    assert model.head.weight is model.embed.weight
    with torch.no_grad():
        assert (model(ids) - before).norm() / before.norm() < 0.02
    mt.quantize_model(model, skip=(), select=lambda name, _: name == "lm_head", progress=False)
    assert isinstance(model.lm_head, mt.Linear) and model.lm_head.codes.device == device


def test_quantize_model_keeps_one_dense_layer_at_most():
    """Every dense weight is gone before the next layer is reported."""
    import weakref
    model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(4)))
    weights = [weakref.ref(layer.weight) for layer in model]
    alive = []
    mt.quantize_model(model, progress=lambda *_: alive.append(sum(w() is not None for w in weights)))
    assert alive == [3, 2, 1, 0]


def test_load_quantized(tmp_path, device):
    model = Tied().to(device)
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    packed = {name: mixgemm.quantize_packed(state.pop(name + ".weight"), 8, 32)
              for name in ("blocks.0.up", "blocks.1.down")}
    mixgemm.save(tmp_path / "m.safetensors", state | packed)
    fresh = mt.load_quantized(Tied().to(device), tmp_path / "m.safetensors", progress=False)
    ids = torch.arange(20, device=device)
    with torch.no_grad():
        assert (fresh(ids) - model(ids)).norm() / model(ids).norm() < 0.02
    assert isinstance(fresh.blocks[0]["up"], mt.Linear)
    assert type(fresh.blocks[0]["down"]) is torch.nn.Linear
    with torch.device("meta"):
        empty = Tied()
    made = mt.load_quantized(empty, tmp_path / "m.safetensors", progress=False)
    assert made.blocks[0]["up"].codes.device.type == "cpu"
    assert made.head.weight is made.embed.weight
    assert torch.equal(made(ids.cpu()), mt.load_quantized(Tied(), tmp_path / "m.safetensors")(ids.cpu()))
    for name, error, match in (("nowhere", mixgemm.NotFoundError, "no module nowhere"),
                               ("embed", InvalidArgumentError, "embed must be an nn.Linear"),
                               ("lm_head", InvalidArgumentError, "lm_head must be 96 x 64")):
        mixgemm.save(tmp_path / "bad.safetensors", {name: packed["blocks.0.up"]})
        with pytest.raises(error, match=match):
            mt.load_quantized(Tied(), tmp_path / "bad.safetensors", progress=False)


# ---------------------------------------------------------------- matmul with tensors


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


# ---------------------------------------------------------------- bad input


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


@pytest.mark.transformers
def test_a_transformers_model_generates(device):
    """The README's example, on a small model with random weights: greedy tokens of the quantized
    model are those of the dense model with the same (dequantized) weights."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(hidden_size=128, intermediate_size=192, num_hidden_layers=2,
                                      num_attention_heads=4, num_key_value_heads=2, vocab_size=99,
                                      tie_word_embeddings=False)
    dense = transformers.LlamaForCausalLM(config).eval().to(device, torch.float32)
    model = mt.quantize_model(copy.deepcopy(dense), 8, 32, progress=False)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, mt.Linear)}
    assert len(layers) == 14 and type(model.lm_head) is torch.nn.Linear
    for name, layer in layers.items():
        dense.get_submodule(name).weight.data = layer.dequantize().float()
    ids = torch.arange(1, 9, device=device)[None]
    with torch.inference_mode():
        close(model(ids).logits.half(), dense(ids).logits.double())
        tokens = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert tokens.shape[1] > ids.shape[1]
