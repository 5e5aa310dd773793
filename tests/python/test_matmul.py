# SPDX-License-Identifier: Apache-2.0
"""matmul, plan and explain on the CPU, with NumPy."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import SPECS, random_weight, reference, relative_error

import mixgemm


@given(spec=st.sampled_from(SPECS), m=st.integers(1, 20), n=st.integers(1, 50),
       k=st.integers(1, 200), epilogue=st.sampled_from([None, "relu", "gelu", "silu"]),
       with_bias=st.booleans(), with_residual=st.booleans(), seed=st.integers(0, 99))
def test_product_is_the_reference(spec, m, n, k, epilogue, with_bias, with_residual, seed):
    rng = np.random.default_rng(seed)
    packed = mixgemm.pack(random_weight(rng, n, k, *spec))
    x = (rng.standard_normal((m, k)) / 64).astype(np.float16)
    bias = rng.standard_normal(n).astype(np.float16) if with_bias else None
    residual = rng.standard_normal((m, n)).astype(np.float16) if with_residual else None
    y = mixgemm.matmul(x, packed, bias, epilogue, residual=residual, alpha=0.5)
    assert y.shape == (m, n) and y.dtype == np.float16
    assert relative_error(y, reference(x, packed, bias, epilogue, residual, 0.5)) < 2e-3


@pytest.mark.parametrize("shape", [(200,), (1, 200), (2, 3, 200), (2, 1, 3, 200)])
def test_leading_axes_are_rows(rng, packed, shape):
    x = rng.standard_normal(shape).astype(np.float16)
    y = mixgemm.matmul(x, packed)
    assert y.shape == (*shape[:-1], 48)
    np.testing.assert_array_equal(y.reshape(-1, 48), mixgemm.matmul(x.reshape(-1, 200), packed))


@pytest.mark.parametrize("shape", [(0, 200), (2, 0, 200)])
def test_an_empty_batch_gives_an_empty_result(packed, shape):
    assert mixgemm.matmul(np.zeros(shape, np.float16), packed).shape == (*shape[:-1], 48)


def test_rows_of_a_wider_array_are_read_and_written_in_place(rng, packed):
    wide_x = rng.standard_normal((4, 2, 256)).astype(np.float16)
    wide_y = np.full((4, 2, 64), 7, np.float16)
    out = wide_y[..., :48]
    assert mixgemm.matmul(wide_x[..., :200], packed, out=out) is out
    np.testing.assert_array_equal(out, mixgemm.matmul(wide_x[..., :200].copy(), packed))
    assert (wide_y[..., 48:] == 7).all()


def test_out_may_be_the_residual(rng, packed):
    x = rng.standard_normal((3, 200)).astype(np.float16)
    residual = rng.standard_normal((3, 48)).astype(np.float16)
    expected = mixgemm.matmul(x, packed, residual=residual)
    assert mixgemm.matmul(x, packed, residual=residual, out=residual) is residual
    np.testing.assert_array_equal(residual, expected)


def test_read_only_inputs_are_taken(rng, packed):
    x = rng.standard_normal((3, 200)).astype(np.float16)
    expected = mixgemm.matmul(x, packed)
    x.flags.writeable = False
    np.testing.assert_array_equal(mixgemm.matmul(x, packed), expected)


def test_bfloat16_of_ml_dtypes(rng, packed):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = rng.standard_normal((3, 200)).astype(ml_dtypes.bfloat16)
    bias = rng.standard_normal(48).astype(ml_dtypes.bfloat16)
    y = mixgemm.matmul(x, packed, bias)
    assert y.dtype == ml_dtypes.bfloat16
    assert relative_error(y.astype(np.float32),
                          reference(x.astype(np.float32), packed, bias.astype(np.float32))) < 1e-2
    with pytest.raises(mixgemm.InvalidArgumentError, match="bias must have x's dtype"):
        mixgemm.matmul(x, packed, bias.astype(np.float16))
    w = rng.standard_normal((8, 64)).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(mixgemm.quantize(w).codes,
                                  mixgemm.quantize(w.astype(np.float32)).codes)


def test_batch_invariance_is_passed_on(rng, packed):
    x = rng.standard_normal((200, 200)).astype(np.float16)
    many = mixgemm.matmul(x, packed, batch_invariant=True)
    one = mixgemm.matmul(x[7], packed, batch_invariant=True)
    np.testing.assert_array_equal(many[7], one)


def test_plan_tells_what_matmul_runs(rng, packed):
    plan = mixgemm.plan(packed, 3, bias=True)
    assert plan.kernel_id.startswith("cpu_f16_i4_gz_") and plan.config_id.startswith(plan.kernel_id)
    assert plan.device == "cpu" and plan.workspace_bytes >= 0
    assert plan.config_id in plan.explain()
    assert mixgemm.explain(packed, 3) == mixgemm.plan(packed, 3).explain()
    x = rng.standard_normal((3, 200)).astype(np.float16)
    np.testing.assert_array_equal(mixgemm.matmul(x, packed, kernel=mixgemm.plan(packed, 3).config_id),
                                  mixgemm.matmul(x, packed))
    assert mixgemm.plan(packed, 3, np.float16).config_id == mixgemm.plan(packed, 3).config_id
    assert "bf16" in mixgemm.plan(packed, 3, "bfloat16").kernel_id


def test_the_lists():
    assert mixgemm.devices()[0]["device"] == "cpu"
    assert any(k["id"] == "cpu_f16_i4_g_simd" for k in mixgemm.kernels())
    assert mixgemm.version() == mixgemm.__version__


def test_threads_share_a_weight(rng, packed):
    xs = [rng.standard_normal((5, 200)).astype(np.float16) for _ in range(8)]
    expected = [mixgemm.matmul(x, packed) for x in xs]
    wrong = []

    def work(i):
        for _ in range(30):
            if not np.array_equal(mixgemm.matmul(xs[i], packed), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_other_threads_run_during_a_product(rng):
    """Without the GIL released, the counting thread would stand still during the long product."""
    packed = mixgemm.pack(random_weight(rng, 2048, 2048, 4, 128, "none"))
    x = rng.standard_normal((512, 2048)).astype(np.float16)
    counts, done = [0], threading.Event()

    def count():
        while not done.is_set():
            counts[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    before = counts[0]
    mixgemm.matmul(x, packed)
    counted = counts[0] - before
    done.set()
    thread.join()
    assert counted > 100
