# SPDX-License-Identifier: Apache-2.0
"""quantize, pack, unpack, slices."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import SPECS, random_weight, relative_error

import mixgemm


def same(a, b):
    assert a.codes.dtype == b.codes.dtype == np.uint8
    np.testing.assert_array_equal(a.codes, b.codes)
    np.testing.assert_array_equal(a.scales, b.scales)
    assert (a.zeros is None) == (b.zeros is None)
    if a.zeros is not None:
        np.testing.assert_array_equal(a.zeros, b.zeros)
    assert (a.bits, a.group_size, a.zero, a.scale_dtype) == (b.bits, b.group_size, b.zero,
                                                            b.scale_dtype)


@given(spec=st.sampled_from(SPECS), n=st.integers(1, 70), k=st.integers(1, 300),
       dtype=st.sampled_from(["float16", "bfloat16"]), seed=st.integers(0, 99))
def test_unpack_is_the_inverse_of_pack(spec, n, k, dtype, seed):
    q = random_weight(np.random.default_rng(seed), n, k, *spec, dtype)
    packed = mixgemm.pack(q)
    assert packed.shape == (n, k)
    assert (packed.bits, packed.group_size, packed.zero) == spec
    same(mixgemm.unpack(packed), q)


@pytest.mark.parametrize("bits,bound", [(4, 0.12), (8, 0.01)])
@pytest.mark.parametrize("zero", ["none", "integer", "scaled"])
def test_quantize_is_close_and_packs_as_in_one_pass(rng, bits, bound, zero):
    w = rng.standard_normal((33, 257), np.float32)
    q = mixgemm.quantize(w, bits, 32, zero)
    assert np.linalg.norm(q.dequantize() - w) / np.linalg.norm(w) < bound
    same(mixgemm.unpack(mixgemm.quantize_packed(w, bits, 32, zero)), q)
    assert (q.n, q.k) == (33, 257)


def test_quantize_takes_rows_of_a_wider_array_and_16_bit_types(rng):
    wide = rng.standard_normal((16, 300), np.float32)
    same(mixgemm.quantize(wide[:, :128]), mixgemm.quantize(wide[:, :128].copy()))
    half = wide.astype(np.float16)
    same(mixgemm.quantize(half), mixgemm.quantize(half.astype(np.float32)))


def test_quantize_does_not_depend_on_threads(rng):
    w = rng.standard_normal((64, 256), np.float32)
    same(mixgemm.quantize(w, num_threads=1), mixgemm.quantize(w, num_threads=3))


def test_quantize_reports_progress_to_the_end(rng):
    seen = []
    mixgemm.quantize(rng.standard_normal((256, 512), np.float32), progress=seen.append)
    assert seen[-1] == 1.0 and seen == sorted(seen)


def test_an_exception_of_the_progress_function_reaches_the_caller(rng):
    def fail(fraction):
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        mixgemm.quantize(rng.standard_normal((256, 512), np.float32), progress=fail)


def test_dequantize_is_the_formula(rng):
    q = random_weight(rng, 5, 40, 4, 16, "integer")
    group = np.arange(40) // 16
    expected = (q.codes.astype(np.float32) - q.zeros[:, group]) * q.scales[:, group]
    np.testing.assert_array_equal(q.dequantize(), expected)


def test_slices_share_memory_and_multiply_alike(rng):
    q = random_weight(rng, 64, 256, 4, 64, "integer")
    packed = mixgemm.pack(q)
    rows = mixgemm.unpack(packed.slice_n(16, 48))
    np.testing.assert_array_equal(rows.codes, q.codes[16:48])
    columns = packed.slice_k(64, 256)
    del packed  # the slice keeps the memory
    np.testing.assert_array_equal(mixgemm.unpack(columns).codes, q.codes[:, 64:])
    x = rng.standard_normal((3, 192)).astype(np.float16)
    repacked = mixgemm.pack(mixgemm.unpack(columns))
    np.testing.assert_array_equal(mixgemm.matmul(x, columns), mixgemm.matmul(x, repacked))
    with pytest.raises(mixgemm.InvalidArgumentError, match="not contiguous"):
        columns.codes


def test_parts_are_views_of_the_weight(packed):
    codes = np.from_dlpack(packed.codes)
    scales = np.from_dlpack(packed.scales)
    zeros = np.from_dlpack(packed.zeros)
    assert codes.shape == (3, 4, 512) and codes.dtype == np.uint8
    assert scales.shape == zeros.shape == (3, 4, 16)
    assert scales.dtype == np.float16 and zeros.dtype == np.uint8
    assert codes.ctypes.data == np.from_dlpack(packed.codes).ctypes.data
    assert codes.nbytes + scales.nbytes + zeros.nbytes == packed.nbytes
    assert mixgemm.pack(mixgemm.quantize(np.ones((1, 1), np.float32))).zeros is None


def test_parts_keep_the_weight_alive(rng):
    codes = np.from_dlpack(mixgemm.quantize_packed(rng.standard_normal((64, 64), np.float32)).codes)
    before = codes.copy()
    for _ in range(20):  # would reuse the memory if it had been freed
        mixgemm.quantize_packed(rng.standard_normal((64, 64), np.float32))
    np.testing.assert_array_equal(codes, before)


# ---------------------------------------------------------------- permuted columns


def permuted_pair(rng, n=48, k=200, **spec):
    """A weight in order, the same with permuted columns, and the permutation."""
    in_order = random_weight(rng, n, k, spec.get("bits", 4), spec.get("group_size", 64),
                             spec.get("zero", "integer"))
    order = rng.permutation(k).astype(np.int32)
    return in_order, dataclasses.replace(in_order, permutation=order), order


def test_permuted_columns_survive_packing_and_are_undone_by_dequantize(rng):
    in_order, permuted, order = permuted_pair(rng)
    packed = mixgemm.pack(permuted)
    again = mixgemm.unpack(packed)
    np.testing.assert_array_equal(again.permutation, order)
    np.testing.assert_array_equal(again.codes, in_order.codes)
    np.testing.assert_array_equal(again.dequantize()[:, order], in_order.dequantize())
    np.testing.assert_array_equal(np.from_dlpack(packed.permutation), order)
    np.testing.assert_array_equal(np.from_dlpack(packed.codes),
                                  np.from_dlpack(mixgemm.pack(in_order).codes))
    assert mixgemm.pack(in_order).permutation is None
    assert packed.for_gathered_x().permutation is None
    assert packed.nbytes == mixgemm.pack(in_order).nbytes + 4 * 200
    assert "permuted columns" in repr(packed)


@pytest.mark.parametrize("m", [1, 5, 70])
def test_products_with_permuted_columns(rng, m):
    in_order, permuted, order = permuted_pair(rng)
    packed = mixgemm.pack(permuted)
    x = rng.standard_normal((m, 200)).astype(np.float16)
    y = mixgemm.matmul(x, packed)
    np.testing.assert_array_equal(y, mixgemm.matmul(np.ascontiguousarray(x[:, order]),
                                                    mixgemm.pack(in_order)))
    np.testing.assert_array_equal(y, mixgemm.matmul(np.ascontiguousarray(x[:, order]),
                                                    packed.for_gathered_x()))
    np.testing.assert_array_equal(y[:, 16:32], mixgemm.matmul(x, packed.slice_n(16, 32)))
    assert relative_error(y, x.astype(np.float64) @ permuted.dequantize().T.astype(np.float64)) < 2e-3
    plan = mixgemm.plan(packed, m)
    assert plan.workspace_bytes >= 2 * m * 200 and "permuted columns" in plan.explain()


def test_permuted_columns_are_saved_and_tuned(rng, tmp_path):
    _, permuted, order = permuted_pair(rng)
    packed = mixgemm.pack(permuted)
    mixgemm.save(tmp_path / "w.safetensors", {"w": packed})
    loaded = mixgemm.load(tmp_path / "w.safetensors")["w"]
    np.testing.assert_array_equal(np.from_dlpack(loaded.permutation), order)
    x = rng.standard_normal((2, 200)).astype(np.float16)
    np.testing.assert_array_equal(mixgemm.matmul(x, loaded), mixgemm.matmul(x, packed))
    assert mixgemm.tune(packed, 2, seconds=0.05)[0]["us"] > 0
    with pytest.raises(mixgemm.UnsupportedError, match="permutation"):
        packed.slice_k(0, 64)


@pytest.mark.parametrize("order,match", [
    (np.arange(199), r"permutation must hold K = 200|shape \(200,\)"),
    (np.zeros(200, np.int32), "every index once"),
    (np.arange(1, 201), "indices in 0 .. 199"),
    (np.arange(200.0), "must hold integers"),
    (np.arange(200) + 2**40, "must hold integers"),
    (np.arange(200).reshape(2, 100), "permutation must"),
])
def test_permutations_that_are_none(rng, order, match):
    in_order, _, _ = permuted_pair(rng)
    bad = dataclasses.replace(in_order, permutation=order)
    for use in (mixgemm.pack, mixgemm.QuantizedWeight.dequantize):
        with pytest.raises(mixgemm.InvalidArgumentError, match=match):
            use(bad)
