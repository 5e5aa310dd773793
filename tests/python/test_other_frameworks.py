# SPDX-License-Identifier: Apache-2.0
"""matmul with JAX and CuPy arrays."""

import numpy as np
import pytest

import mixgemm


@pytest.mark.jax
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_jax_arrays_give_jax_arrays(rng, packed, dtype):
    jax = pytest.importorskip("jax")
    with jax.default_device(jax.devices("cpu")[0]):
        x = jax.numpy.asarray(rng.standard_normal((2, 3, 200)), dtype)
        y = mixgemm.matmul(x, packed)
        assert isinstance(y, jax.Array) and y.dtype == dtype and y.shape == (2, 3, 48)
        expected = np.asarray(x, np.float32) @ mixgemm.unpack(packed).dequantize().T
        bound = 2e-3 if dtype == "float16" else 1e-2
        assert np.linalg.norm(np.asarray(y, np.float32) - expected) < bound * np.linalg.norm(expected)
        assert (np.asarray(mixgemm.matmul(x, packed)) == np.asarray(y)).all()
        w = jax.numpy.asarray(rng.standard_normal((32, 64)), "float32")
        np.testing.assert_array_equal(mixgemm.quantize(w).codes,
                                      mixgemm.quantize(np.asarray(w)).codes)


@pytest.mark.jax
def test_a_jax_array_is_not_written(packed):
    jax = pytest.importorskip("jax")
    with jax.default_device(jax.devices("cpu")[0]):
        out = jax.numpy.zeros((3, 48), "float16")
        with pytest.raises(TypeError, match="out"):
            mixgemm.matmul(jax.numpy.ones((3, 200), "float16"), packed, out=out)
        assert (np.asarray(out) == 0).all()


@pytest.mark.gpu
@pytest.mark.jax
def test_jax_on_the_gpu(rng, packed):
    jax = pytest.importorskip("jax")
    devices = [d for d in jax.devices() if d.platform == "gpu"]
    if not devices:
        pytest.skip("JAX sees no GPU")
    x = rng.standard_normal((5, 200)).astype(np.float16)
    y = mixgemm.matmul(jax.device_put(x, devices[0]), packed.to("cuda"))
    expected = mixgemm.matmul(x, packed).astype(np.float32)
    assert np.linalg.norm(np.asarray(y, np.float32) - expected) < 2e-3 * np.linalg.norm(expected)


@pytest.mark.gpu
@pytest.mark.cupy
def test_cupy_on_its_current_stream(rng, packed):
    cupy = pytest.importorskip("cupy")
    on_gpu = packed.to("cuda")
    x = rng.standard_normal((5, 200)).astype(np.float16)
    expected = mixgemm.matmul(x, packed).astype(np.float32)
    for stream in (cupy.cuda.Stream.null, cupy.cuda.Stream(non_blocking=True)):
        with stream:
            y = mixgemm.matmul(cupy.asarray(x), on_gpu)
            assert isinstance(y, cupy.ndarray) and y.dtype == np.float16
            found = y.get(stream=stream).astype(np.float32)
        assert np.linalg.norm(found - expected) < 2e-3 * np.linalg.norm(expected)
    y = mixgemm.matmul(cupy.asarray(x), on_gpu, stream=cupy.cuda.Stream.null)
    assert np.linalg.norm(y.get().astype(np.float32) - expected) < 2e-3 * np.linalg.norm(expected)
