# SPDX-License-Identifier: Apache-2.0
"""The op under torch.compile, in CUDA graphs, on streams and from threads."""

import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from support_torch import ZEROS, arguments, close, device, fixed_seed, make  # noqa: E402, F401

import mixgemm  # noqa: E402

pytestmark = pytest.mark.torch


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
