# SPDX-License-Identifier: Apache-2.0
"""Eager calls of a Linear go around nn.Module.__call__ and the dispatcher: whoever watches modules or
operations must still see them, and nothing may be multiplied from memory that is gone."""

import gc
import subprocess
import sys
import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from support_torch import close, device, expected, fixed_seed, make  # noqa: E402, F401
from torch.autograd import forward_ad  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

import mixgemm  # noqa: E402
import mixgemm.torch as mt  # noqa: E402
from mixgemm import _core  # noqa: E402
from mixgemm.torch import _linear  # noqa: E402

pytestmark = pytest.mark.torch
has_table = hasattr(torch.Tensor, "__dlpack_c_exchange_api__")
needs_table = pytest.mark.skipif(not has_table, reason="PyTorch without DLPack's exchange table")


class Ops(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def half(device, *shape):
    return torch.randn(*shape, dtype=torch.float16, device=device)


@needs_table
def test_the_short_way_is_taken(device):
    layer = make(device)
    x = half(device, 3, 200)
    y = layer(x)  # binds
    short = _linear._calls.call(layer, (x,), {})
    assert type(short) is torch.Tensor and torch.equal(short, y)
    assert torch.equal(_linear._calls.forward(layer, x), y)
    for other in (x.float(), x.bfloat16(), x[:, :100], x.double(), torch.nn.Parameter(x), None, 3):
        assert _linear._calls.call(layer, (other,), {}) is None
    assert _linear._calls.call(layer, (), {}) is None
    assert _linear._calls.call(layer, (x, x), {}) is None
    assert _linear._calls.call(layer, (x,), {"input": x}) is None


@pytest.mark.parametrize("shape", [(200,), (1, 200), (7, 200), (2, 3, 200), (1, 1, 200), (0, 200),
                                   (2, 0, 200), (7, 200)])
def test_the_ways_agree(device, shape, monkeypatch):
    layer = make(device, zero="integer")
    x = half(device, *shape)
    y = layer(x)
    assert y.shape == (*shape[:-1], 70) and y.is_contiguous() and not y.requires_grad
    assert torch.equal(layer(x), y) and torch.equal(layer(input=x), y)
    assert torch.equal(layer.forward(x), y) and torch.equal(layer._forward_op(x), y)
    monkeypatch.setattr(_linear, "_calls", Without(_linear._calls))
    assert torch.equal(layer(x), y) and torch.equal(layer.forward(x), y)


class Without:
    """As where PyTorch has no exchange table."""

    def __init__(self, calls):
        self.is_plain = calls.is_plain

    def call(self, *_):
        return None

    forward = call


def test_hooks_are_called(device):
    layer = make(device)
    x = half(device, 3, 200)
    y = layer(x)
    seen = []
    hooks = [layer.register_forward_pre_hook(lambda m, a: seen.append("pre")),
             layer.register_forward_hook(lambda m, a, out: out + 1),
             torch.nn.modules.module.register_module_forward_hook(
                 lambda m, a, out: seen.append("global"))]
    assert torch.equal(layer(x), y + 1) and seen == ["pre", "global"]
    for hook in hooks:
        hook.remove()
    assert torch.equal(layer(x), y) and seen == ["pre", "global"]
    layer.register_full_backward_hook(lambda m, gi, go: seen.append("backward"))
    layer(x.requires_grad_(True)).sum().backward()
    assert seen[2:] == ["backward"]


def test_overridden_forwards_are_called(device):
    class Twice(mt.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    layer, x = make(device), half(device, 3, 200)
    y = layer(x)
    twice = Twice(200, 70, group_size=64, device=device)
    twice.load_state_dict(layer.state_dict())
    assert torch.equal(twice(x), 2 * y) and torch.equal(twice(x), 2 * y)
    given = layer.forward
    layer.forward = lambda input: given(input) + 1  # as accelerate's hooks do
    assert torch.equal(layer(x), y + 1)


def test_modes_see_the_op(device):
    layer, x = make(device), half(device, 3, 200)
    y = layer(x)
    with Ops() as ops:
        assert torch.equal(layer(x), y)
    assert "mixgemm.linear.default" in ops.names
    with Functions() as functions:
        layer(x)
    assert any("mixgemm" in name for name in functions.names)


@pytest.mark.filterwarnings("ignore")
def test_tracers_record_the_op():
    layer, x = make(), half("cpu", 3, 200)
    layer(x)
    traced = torch.jit.trace(layer, x)
    assert torch.equal(traced(2 * x), layer(2 * x))
    exported = torch.export.export(torch.nn.Sequential(layer), (x,))
    assert torch.equal(exported.module()(2 * x), layer(2 * x))
    layer.compile(fullgraph=True, backend="aot_eager")
    assert torch.equal(layer(x), traced(x))


def test_transforms(device):
    layer, x = make(device), half(device, 3, 200)
    y = layer(x)
    assert torch.equal(torch.func.vmap(layer)(x[:, None]), y[:, None])
    for derive in (lambda: torch.func.jvp(layer, (x,), (x,)), lambda: dual(layer, x)):
        with pytest.raises(NotImplementedError, match="no forward-mode gradient"):
            derive()
    with forward_ad.dual_level():
        assert torch.equal(layer(x), y)  # no tangent: nothing to refuse


def dual(layer, x):
    with forward_ad.dual_level():
        return layer(forward_ad.make_dual(x, x))


def test_negated_views(device):
    layer = make(device)
    layer(half(device, 3, 200))
    x = half(device, 3, 200)._neg_view()
    assert x.is_neg()
    close(layer(x), expected(layer, x.resolve_neg()))
    packed = mixgemm.quantize_packed(np.eye(200, dtype=np.float32), 8, 0).to(str(device))
    with pytest.raises(mixgemm.InvalidArgumentError, match=r"x must not be .* resolve_neg"):
        mixgemm.matmul(x, packed)
    for name in ("bias", "residual", "out"):
        operand = (half(device, 200) if name == "bias" else half(device, 3, 200))._neg_view()
        with pytest.raises(mixgemm.InvalidArgumentError, match=f"{name} must not be .* resolve_neg"):
            mixgemm.matmul(x.resolve_neg(), packed, **{name: operand})


@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize("name", ["codes", "scales", "zeros", "bias", "permutation"])
def test_replaced_memory_is_seen(device, name, short, monkeypatch):
    if not short:
        monkeypatch.setattr(_linear, "_calls", Without(_linear._calls))
    layer = make(device, zero="scaled")
    layer.register_buffer("permutation", torch.randperm(200, dtype=torch.int32, device=device))
    layer._bound = None
    x = half(device, 3, 200)
    layer(x)
    for replace in (lambda new: setattr(getattr(layer, name), "data", new),
                    lambda new: setattr(layer, name, new)):
        old = getattr(layer, name)
        replace(old.flip(0).contiguous())
        del old
        gc.collect()
        assert torch.equal(layer(x), layer._forward_op(x))
    with pytest.raises(mixgemm.Error):
        setattr(layer, name, getattr(layer, name)[:1])  # the same address, another shape
        layer(x)


@pytest.mark.parametrize("short", [True, False])
def test_a_bias_that_comes_and_goes_is_seen(device, short, monkeypatch):
    if not short:
        monkeypatch.setattr(_linear, "_calls", Without(_linear._calls))
    layer, x = make(device), half(device, 3, 200)
    bias, y = layer.bias, layer(x)
    layer.bias = None
    close(layer(x), expected(layer, x))
    layer.bias = bias
    assert torch.equal(layer(x), y)


def test_settings_take_effect(device):
    layer, x = make(device), half(device, 3, 200)
    y = layer(x)
    layer.epilogue = "relu"
    assert torch.equal(layer(x), torch.relu(y))
    layer.epilogue, layer.pdl = None, True
    assert torch.equal(layer(x), y)
    layer.epilogue = "tanh"
    with pytest.raises(mixgemm.InvalidArgumentError, match="epilogue must be"):
        layer(x)


def test_threads_with_different_shapes(device):
    layer = make(device)
    xs = [half(device, m, 200) for m in (1, 2, 3, 5)]
    references = [layer(x) for x in xs]
    wrong = []

    def work(i):
        for _ in range(200):
            y = layer(xs[i])
            if y.shape != references[i].shape or not torch.equal(y, references[i]):
                wrong.append(i)
            if i == 0:
                layer.pdl = not layer.pdl  # binds anew under the others

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(xs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("shape", [(1, 200), (2, 3, 200), (200,), (0, 200)])
def test_matmul_ways_agree(device, shape, monkeypatch):
    packed = mixgemm.quantize_packed(torch.randn(48, 200), 4, 64, "integer").to(str(device))
    x, bias = half(device, *shape), half(device, 48)
    residual = half(device, *shape[:-1], 48)
    y = mixgemm.matmul(x, packed, bias, "silu", residual=residual, alpha=0.5)
    out = torch.empty_like(y)
    assert mixgemm.matmul(x, packed, bias, "silu", out, residual=residual, alpha=0.5) is out
    assert torch.equal(out, y) and type(y) is torch.Tensor and y.shape == (*shape[:-1], 48)
    wide = half(device, 5, 333)[:, 7:207]
    rows = mixgemm.matmul(wide, packed)

    class Core:
        def __getattr__(self, name):
            return (lambda *_: None) if name == "matmul_here" else getattr(_core, name)

    monkeypatch.setattr("mixgemm._gemm._core", Core())
    assert torch.equal(mixgemm.matmul(x, packed, bias, "silu", residual=residual, alpha=0.5), y)
    assert torch.equal(mixgemm.matmul(wide, packed), rows)


@pytest.mark.parametrize("change,match", [
    ({"x": lambda: torch.zeros(3, 199).half()}, r"x must have shape \[\.\.\., K = 200\]; got \(3, 199\)"),
    ({"x": lambda: torch.tensor(1.0).half()}, r"x must have shape"),
    ({"x": lambda: torch.zeros(3, 200)}, "x must be float16 or bfloat16; got float32"),
    ({"x": lambda: torch.zeros(3, 200, dtype=torch.complex64)}, "got"),
    ({"x": lambda: torch.zeros(200, 3).half().T}, "unit stride"),
    ({"x": lambda: torch.zeros(200).half().expand(3, 200)}, "overlap or run backwards"),
    ({"bias": lambda: torch.zeros(47).half()}, r"bias must have shape \(48,\)"),
    ({"bias": lambda: torch.zeros(48)}, "bias must have x's dtype"),
    ({"bias": lambda: torch.zeros(96).half()[::2]}, "bias must have unit stride"),
    ({"residual": lambda: torch.zeros(3, 47).half()}, "residual must have shape"),
    ({"out": lambda: torch.zeros(2, 48).half()}, "out must have shape"),
    ({"out": lambda: torch.zeros(3, 48).bfloat16()}, "out must have x's dtype"),
    ({"epilogue": "tanh"}, "epilogue must be None"),
    ({"alpha": float("nan")}, "alpha must be finite"),
    ({"kernel": "nothing"}, "nothing"),
])
def test_matmul_refuses_tensors_with_the_same_words(packed, device, change, match):
    given = {"x": torch.zeros(3, 200, device=device).half()}
    for name, value in change.items():
        with torch.device(device):  # moving a view would make it contiguous
            given[name] = value() if callable(value) else value
    with pytest.raises(mixgemm.Error, match=match):
        mixgemm.matmul(given.pop("x"), packed.to(str(device)), **given)


def test_operands_that_require_grad_are_refused(packed):
    x = torch.zeros(3, 200).half()
    for name, operand in (("bias", torch.zeros(48).half()), ("residual", torch.zeros(3, 48).half()),
                          ("out", torch.zeros(3, 48).half())):
        with pytest.raises(TypeError, match=f"{name} can't be taken through DLPack.*grad"):
            mixgemm.matmul(x, packed, **{name: operand.requires_grad_(True)})


def test_nothing_is_left_at_exit():
    """Objects of the extension that outlive the interpreter are held in a cycle that nobody breaks."""
    code = ("import torch, mixgemm.torch as mt; mt._ops._core.set_leak_warnings(True); l = mt.Linear.from_linear(torch.nn.Linear(64, 16));"
            "x = torch.zeros(2, 64).half(); l(x); l(x)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "leaked" not in done.stderr, done.stderr
