# SPDX-License-Identifier: Apache-2.0
"""Eager products keep their scratch memory with their stream; graphs, compiled code and memory pools
of others have no part in it. The weights have permuted columns: then every plan takes scratch memory,
and is two launches that both use it."""

import threading

import pytest

torch = pytest.importorskip("torch")

from support_torch import arguments, close, fixed_seed, permuted  # noqa: E402, F401

import mixgemm  # noqa: E402
import mixgemm.torch as mt  # noqa: E402
from mixgemm import _frameworks  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.skipif(
    not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"),
    reason="PyTorch without DLPack's exchange table")]
MIB = 1 << 20
N, K = 256, 2048


@pytest.fixture(autouse=True)
def nothing_kept():
    mt.release_scratch()
    yield
    mt.release_scratch()


@pytest.fixture
def layer(rng):
    return layer_of(rng)


def layer_of(rng, n=N, k=K, device="cuda"):
    """Called once: a layer's first call binds its buffers and goes the op's way, which keeps
    nothing."""
    layer = mt.Linear.from_packed(permuted(rng, n, k)[0], device=device)
    layer(tokens(1, k, device))
    return layer


def tokens(m, k=K, device="cuda"):
    return torch.randn(m, k, dtype=torch.float16, device=device)


def allocations():
    return torch.cuda.memory_stats()["allocation.all.allocated"]


def num_streams(ordinal=0):
    return _frameworks._kept_scratch[ordinal].num_streams


def test_release_where_nothing_is_kept():
    assert mt.release_scratch() is None
    layer = mt.Linear.from_linear(torch.nn.Linear(64, 16))
    x = torch.randn(3, 64).half()
    y = layer(x)
    mt.release_scratch()
    assert torch.equal(layer(x), y)


@pytest.mark.gpu
def test_the_next_product_asks_for_its_output_alone(rng, layer):
    packed, x = permuted(rng, N, K)[0].to("cuda"), tokens(16)
    out = torch.empty(16, N, dtype=torch.float16, device="cuda")
    operands = (*arguments(layer, x), layer.permutation)
    for product, asked in ((lambda: layer(x), 1), (lambda: mixgemm.matmul(x, packed), 1),
                           (lambda: mixgemm.matmul(x, packed, out=out), 0),
                           (lambda: torch.ops.mixgemm.linear(*operands), 2)):
        first = product().clone()
        before = allocations()
        ys = [product() for _ in range(5)]
        assert allocations() - before == 5 * asked
        assert all(torch.equal(y, first) for y in ys)
    assert num_streams() == 1


@pytest.mark.gpu
def test_release_gives_it_back(layer):
    x = tokens(16)
    y = layer(x)
    held = torch.cuda.memory_allocated()
    mt.release_scratch()
    assert held - torch.cuda.memory_allocated() == MIB and num_streams() == 0
    torch.cuda.empty_cache()
    assert torch.equal(layer(x), y)


@pytest.mark.gpu
def test_growth(layer):
    """Up to what is kept, and beyond; small products then find the large block."""
    small = tokens(1)
    y = layer(small)
    for m in (16, 300, 1000, 2000, 4000, 9000, 16):
        x = tokens(m)
        close(layer(x), x.double() @ layer.dequantize().double().T)
        assert torch.equal(layer(small), y)
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    mt.release_scratch()
    assert MIB < held - torch.cuda.memory_allocated() < 17 * MIB  # with what a split leaves over


@pytest.mark.gpu
@pytest.mark.parametrize("change", ["grow", "release"])
@pytest.mark.parametrize("product", ["layer", "matmul"])
def test_a_captured_graph_has_memory_of_its_own(rng, layer, change, product):
    """Captured on the very stream that keeps a block, which goes before the graph is replayed."""
    packed, x = permuted(rng, N, K)[0].to("cuda"), tokens(16)
    call = layer if product == "layer" else lambda x: mixgemm.matmul(x, packed)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call(x)
        assert num_streams() == 1
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            before = allocations()
            y = call(x)
            asked = allocations() - before
        assert asked == 2
        if change == "grow":
            call(tokens(1000))
        else:
            mt.release_scratch()
        stream.synchronize()
        torch.cuda.empty_cache()
        junk = [torch.full((MIB // 4,), float("nan"), device="cuda") for _ in range(32)]
        for _ in range(5):
            x.copy_(torch.randn_like(x))
            graph.replay()
            assert torch.equal(y, call(x))
        assert all(bool(torch.isnan(block).all()) for block in junk)
        before = allocations()
        call(x)
        assert allocations() - before == 1  # eager calls keep on keeping


@pytest.mark.gpu
def test_a_graph_is_replayed_among_eager_calls(rng, layer):
    other, x = layer_of(rng), tokens(16)
    reference, others = layer(x), other(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = layer(x)
    streams = [torch.cuda.Stream() for _ in range(2)]
    for _ in range(50):
        y.zero_()
        torch.cuda.synchronize()
        with torch.cuda.stream(streams[0]):
            graph.replay()
        with torch.cuda.stream(streams[1]):
            eager = [other(x) for _ in range(3)]
        torch.cuda.synchronize()
        assert torch.equal(y, reference) and all(torch.equal(e, others) for e in eager)


@pytest.mark.gpu
def test_streams_at_the_same_time(rng):
    layers = [layer_of(rng, n, k) for n, k in ((256, 2048), (512, 1024), (128, 4096), (64, 8192))]
    xs = [tokens(16, layer.in_features) for layer in layers]
    references = [layer(x) for layer, x in zip(layers, xs)]
    streams = [torch.cuda.Stream() for _ in layers]
    torch.cuda.synchronize()
    for _ in range(30):
        gate = torch.cuda.Event()
        torch.cuda._sleep(500_000)
        gate.record()
        ys = []
        for layer, x, stream in zip(layers, xs, streams):
            with torch.cuda.stream(stream):
                stream.wait_event(gate)
                ys.append([layer(x) for _ in range(4)])
        torch.cuda.synchronize()
        for of_layer, reference in zip(ys, references):
            assert all(torch.equal(y, reference) for y in of_layer)
    assert num_streams() == 1 + len(streams)


@pytest.mark.gpu
def test_more_streams_than_blocks_are_kept(layer):
    x = tokens(16)
    reference = layer(x)
    streams = [torch.cuda.Stream() for _ in range(20)]
    torch.cuda.synchronize()
    ys = []
    for _ in range(3):
        for stream in streams:
            with torch.cuda.stream(stream):
                ys.append(layer(x))
    torch.cuda.synchronize()
    assert all(torch.equal(y, reference) for y in ys) and num_streams() == 8


@pytest.mark.gpu
def test_threads_on_one_stream(rng):
    """Another thread's launches come between the gather and the product of this one's."""
    layers = [layer_of(rng) for _ in range(4)]
    xs = [tokens(m) for m in (1, 3, 16, 40)]
    references = [layer(x) for layer, x in zip(layers, xs)]
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    wrong = []

    def work(i):
        with torch.cuda.stream(stream):
            for _ in range(10):
                ys = [layers[i](xs[i]) for _ in range(50)]
                if not all(torch.equal(y, references[i]) for y in ys):
                    wrong.append(i)
                if i == 0:
                    mt.release_scratch()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(layers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.gpu
def test_nothing_is_kept_for_external_streams(layer):
    x = tokens(16)
    reference = layer(x)
    mt.release_scratch()
    owner = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.ExternalStream(owner.cuda_stream)):
        before = allocations()
        ys = [layer(x) for _ in range(3)]
        assert allocations() - before == 6 and num_streams() == 0
    torch.cuda.synchronize()
    assert all(torch.equal(y, reference) for y in ys)


@pytest.mark.gpu
def test_nothing_is_kept_from_a_memory_pool(layer):
    x = tokens(16)
    reference = layer(x)
    mt.release_scratch()
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        y = layer(x)
    assert num_streams() == 1 and torch.equal(y, reference)
    live = [block["size"] for segment in pool.snapshot() for block in segment["blocks"]
            if block["state"] == "active_allocated"]
    assert live == [y.numel() * 2]
    del y


@pytest.mark.gpu
def test_compiled_graphs_around_an_eager_product(rng):
    """torch.compile warms its graphs up in a pool of theirs, where it must know all memory."""
    packed = permuted(rng, N, K)[0].to("cuda")

    @torch.library.custom_op("mixgemm_tests::product", mutates_args=())
    def product(x: torch.Tensor) -> torch.Tensor:
        return mixgemm.matmul(x, packed)

    @product.register_fake
    def _(x):
        return x.new_empty((*x.shape[:-1], N))

    compiled = torch.compile(lambda x: product(2 * x) + 1, fullgraph=True, mode="reduce-overhead")
    with torch.inference_mode():
        for _ in range(5):
            x = tokens(16)
            y = compiled(x).clone()
            close(y, (mixgemm.matmul(2 * x, packed) + 1).double())
    torch._dynamo.reset()


@pytest.mark.gpu
def test_another_device_than_the_current_one(rng):
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    layers = [layer_of(rng, device=f"cuda:{i}") for i in range(2)]
    xs = [tokens(16, device=f"cuda:{i}") for i in range(2)]
    for _ in range(3):
        for layer, x in zip(layers, xs):
            close(layer(x), x.double() @ layer.dequantize().double().T)
    assert num_streams(0) == num_streams(1) == 1 and torch.cuda.current_device() == 0
