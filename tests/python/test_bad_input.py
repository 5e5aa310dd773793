# SPDX-License-Identifier: Apache-2.0
"""Bad input raises an exception that names the rule and the value; nothing crashes."""

import ctypes
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mixgemm
from mixgemm import InvalidArgumentError

X = np.zeros((3, 200), np.float16)


def bad(match, error=InvalidArgumentError):
    return pytest.raises(error, match=match)


@pytest.mark.parametrize("x,match", [
    (np.zeros((3, 199), np.float16), r"x must have shape \[\.\.\., K = 200\]; got \(3, 199\)"),
    (np.zeros((200, 3), np.float16), r"got \(200, 3\)"),
    (np.float16(1), r"x must have shape"),
    (np.zeros((3, 200), np.float32), "x must be float16 or bfloat16; got float32"),
    (np.zeros((3, 200), np.float64), "got float64"),
    (np.zeros((3, 200), np.int16), "got int16"),
    (np.zeros((200, 3), np.float16).T, "last axis must have unit stride"),
    (np.zeros((3, 400), np.float16)[:, ::2], "last axis must have unit stride"),
    (np.zeros((3, 200), np.float16)[::-1], "overlap or run backwards"),
    (np.broadcast_to(np.zeros(200, np.float16), (3, 200)), "overlap or run backwards"),
    (np.zeros((4, 3, 200), np.float16).transpose(1, 0, 2), "one stride from row to row"),
])
def test_x(packed, x, match):
    with bad(match):
        mixgemm.matmul(x, packed)


@pytest.mark.parametrize("x", [None, 3, "text", [1.0] * 200, object()])
def test_x_that_is_no_array(packed, x):
    with bad("x must be an array", TypeError):
        mixgemm.matmul(x, packed)


def test_arrays_of_other_kinds(packed):
    with bad("x", (TypeError, mixgemm.Error)):
        mixgemm.matmul(np.zeros((3, 200), object), packed)
    with bad("x", (TypeError, mixgemm.Error)):
        mixgemm.matmul(np.zeros((3, 200), "S2"), packed)
    with bad("x", (TypeError, mixgemm.Error)):
        mixgemm.matmul(np.zeros((3, 200), np.complex64), packed)


@pytest.mark.parametrize("weight", [None, 3, np.zeros((48, 200), np.float16)])
def test_weight_that_is_not_packed(weight):
    with bad("packed must be a PackedWeight", TypeError):
        mixgemm.matmul(X, weight)


@pytest.mark.parametrize("name,value,match", [
    ("bias", np.zeros(47, np.float16), r"bias must have shape \(48,\); got \(47,\)"),
    ("bias", np.zeros((1, 48), np.float16), "bias must have shape"),
    ("bias", np.zeros(48, np.float32), "bias must have x's dtype float16; got float32"),
    ("bias", np.zeros(96, np.float16)[::2], "bias must have unit stride"),
    ("residual", np.zeros((3, 47), np.float16), r"residual must have shape \(3, 48\)"),
    ("residual", np.zeros((48, 3), np.float16).T, "unit stride"),
    ("out", np.zeros((3, 47), np.float16), r"out must have shape \(3, 48\); got \(3, 47\)"),
    ("out", np.zeros((2, 48), np.float16), "out must have shape"),
    ("out", np.zeros((3, 48), np.float32), "out must have x's dtype"),
    ("out", np.zeros((48, 3), np.float16).T, "unit stride"),
    ("epilogue", "tanh", r'must be None, "relu", "gelu" or "silu"; got "tanh"'),
    ("alpha", float("nan"), "alpha must be finite"),
    ("kernel", "sm90_nothing", "sm90_nothing"),
    ("kernel", "cpu_f16_i8_g_simd", "does not fit the problem"),
    ("num_threads", -1, "num_threads must be"),
    ("stream", 1, "stream must be None for arrays on the CPU"),
])
def test_arguments(packed, name, value, match):
    with bad(match, (InvalidArgumentError, mixgemm.NotFoundError)):
        mixgemm.matmul(X, packed, **{name: value})


@pytest.mark.parametrize("name", ["bias", "residual", "out"])
def test_arguments_that_are_no_arrays(packed, name):
    with bad(f"{name} must be an array", TypeError):
        mixgemm.matmul(X, packed, **{name: 3})


def test_read_only_out(packed):
    out = np.zeros((3, 48), np.float16)
    out.flags.writeable = False
    with bad("out", TypeError):
        mixgemm.matmul(X, packed, out=out)


def test_out_that_overlaps_x(rng):
    packed = mixgemm.quantize_packed(rng.standard_normal((64, 64), np.float32), 4, 64)
    memory = np.zeros((5, 64), np.float16)
    with bad("y must not overlap x"):
        mixgemm.matmul(memory[:4], packed, out=memory[1:])


class _Lies:
    """A DLPack producer that misbehaves."""

    def __init__(self, device, produce):
        self._device, self._produce = device, produce
        self.shape, self.dtype = (3, 200), np.dtype(np.float16)

    def __dlpack_device__(self):
        return self._device

    def __dlpack__(self, **_):
        return self._produce()


@pytest.mark.parametrize("device,produce", [
    ((1, 0), lambda: 3),
    ((1, 0), lambda: None),
    ((1, 0), lambda: 1 / 0),
    (3, lambda: X.__dlpack__()),
    ((1, 0), lambda: ctypes.pythonapi),
])
def test_producers_that_lie(packed, device, produce):
    with pytest.raises((TypeError, RuntimeError, mixgemm.Error)):
        mixgemm.matmul(_Lies(device, produce), packed, out=np.zeros((3, 48), np.float16))


def test_a_capsule_is_taken_once(packed):
    capsule = X.__dlpack__()
    producer = _Lies((1, 0), lambda: capsule)
    out = np.zeros((3, 48), np.float16)
    mixgemm.matmul(producer, packed, out=out)
    with pytest.raises(TypeError):
        mixgemm.matmul(producer, packed, out=out)


@pytest.mark.parametrize("arguments,match", [
    ({"bits": 5}, "bits must be 4 or 8; got 5"),
    ({"group_size": 48}, r"group_size must be 0 \(per column\), 16, 32, 64 or 128; got 48"),
    ({"group_size": -16}, "group_size must be 0"),
    ({"zero": "maybe"}, 'zero must be "none", "integer" or "scaled"; got "maybe"'),
    ({"scale_dtype": "float32"}, 'scale_dtype must be "float16" or "bfloat16"; got "float32"'),
    ({"num_threads": -2}, "num_threads"),
])
def test_quantize_arguments(arguments, match):
    with bad(match):
        mixgemm.quantize(np.zeros((16, 64), np.float32), **arguments)
    with bad(match):
        mixgemm.quantize_packed(np.zeros((16, 64), np.float32), **arguments)


@pytest.mark.parametrize("w,match", [
    (np.zeros(64, np.float32), r"w must be a matrix \[N, K\]; got shape \(64,\)"),
    (np.zeros((2, 3, 4), np.float32), "must be a matrix"),
    (np.zeros((16, 64), np.int32), "float16, bfloat16 or float32; got int32"),
    (np.zeros((64, 16), np.float32).T, "unit stride"),
    (np.zeros((0, 64), np.float32), "n must be"),
    (np.zeros((16, 0), np.float32), "k must be"),
    (np.full((16, 64), np.inf, np.float32), "finite"),
])
def test_quantize_weights(w, match):
    with bad(f"(?i){match}"):
        mixgemm.quantize(w)


def make(**changed):
    parts = {"codes": np.zeros((16, 64), np.uint8), "scales": np.ones((16, 1), np.float32),
             "zeros": None, "bits": 4, "group_size": 64, "zero": "none"}
    return mixgemm.QuantizedWeight(**(parts | changed))


@pytest.mark.parametrize("changed,match", [
    ({"codes": np.full((16, 64), 16, np.uint8)}, "code"),
    ({"codes": np.zeros((16, 64), np.int8)}, "codes must be uint8; got int8"),
    ({"codes": np.zeros(64, np.uint8)}, "codes must be a matrix"),
    ({"codes": np.zeros((0, 64), np.uint8), "scales": np.ones((0, 1), np.float32)}, "N"),
    ({"scales": np.ones((16, 2), np.float32)}, r"scales must have shape \(16, 1\)"),
    ({"scales": np.full((16, 1), np.nan, np.float32)}, "finite"),
    ({"scales": np.full((16, 1), 1e9, np.float32)}, "scales must fit float16; got 1000000000"),
    ({"zeros": np.zeros((16, 1), np.uint8)}, "zeros must be None"),
    ({"zero": "integer"}, "zeros must be given"),
    ({"zero": "integer", "zeros": np.zeros((16, 1), np.float32)}, "zeros must be uint8"),
    ({"zero": "integer", "zeros": np.full((16, 1), 99, np.uint8)}, "zero"),
    ({"bits": 3}, "bits must be 4 or 8"),
    ({"group_size": 7}, "group_size must be"),
    ({"scale_dtype": "int8"}, "scale_dtype must be"),
])
def test_pack(changed, match):
    with bad(f"(?i){match}"):
        mixgemm.pack(make(**changed))


def test_pack_and_unpack_of_other_things():
    with bad("q must be a QuantizedWeight", TypeError):
        mixgemm.pack(np.zeros((16, 64)))
    with bad("p must be a PackedWeight", TypeError):
        mixgemm.unpack(make())


@pytest.mark.parametrize("m", [0, -1, 2**31])
def test_plan_rows(packed, m):
    with bad("m must be 1"):
        mixgemm.plan(packed, m)


def test_plan_dtype(packed):
    with bad('dtype must be "float16" or "bfloat16"; got "float32"'):
        mixgemm.plan(packed, 1, np.float32)


@pytest.mark.parametrize("begin,end", [(1, 48), (0, 17), (16, 16), (-16, 48), (0, 64)])
def test_slice_n(packed, begin, end):
    with bad("slice_n"):
        packed.slice_n(begin, end)


@pytest.mark.parametrize("device", ["mps", "cuda:x", "cuda:", "cuda:-1", "cuda:99999", "", 3, None])
def test_to_of_no_device(packed, device):
    with bad(r"to\(\) copies a packed weight"):
        packed.to(device)


def test_to_cuda_without_cuda_says_so(packed):
    from conftest import has_gpu
    if has_gpu():
        pytest.skip("there is one")
    with bad("CUDA|device|driver", mixgemm.UnsupportedError):
        packed.to("cuda")
    assert packed.to("cpu") is packed


def test_exceptions_are_the_standard_ones_too():
    with pytest.raises(ValueError) as caught:
        mixgemm.quantize(np.zeros((16, 64), np.float32), bits=5)
    assert isinstance(caught.value, mixgemm.Error) and caught.value.code == "invalid_argument"
    assert issubclass(mixgemm.UnsupportedError, NotImplementedError)
    assert issubclass(mixgemm.NotFoundError, LookupError)
    assert issubclass(mixgemm.IoError, OSError)
    assert issubclass(mixgemm.OutOfMemoryError, MemoryError)


def test_objects_that_cannot_be_made_or_pickled(packed):
    with pytest.raises(TypeError):
        mixgemm.PackedWeight()
    with pytest.raises(TypeError):
        pickle.dumps(packed)
    with pytest.raises(AttributeError):
        packed.n = 3


@given(shape=st.lists(st.integers(0, 5), max_size=4), last=st.sampled_from([0, 1, 199, 200, 201]),
       dtype=st.sampled_from(["float16", "float32", "int8", "bool", "uint16"]),
       step=st.sampled_from([1, 2, -1]), transpose=st.booleans())
def test_any_array_gives_a_product_or_an_exception(shape, last, dtype, step, transpose):
    packed = mixgemm.pack(make(codes=np.zeros((16, 200), np.uint8),
                               scales=np.ones((16, 4), np.float32)))
    x = np.ones((*shape, last), dtype)[..., ::step]
    if transpose:
        x = x.T
    try:
        y = mixgemm.matmul(x, packed)
    except (mixgemm.Error, TypeError):
        return
    assert x.dtype == np.float16 and x.shape[-1] == 200
    assert y.shape == (*x.shape[:-1], 16)
