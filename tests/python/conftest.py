# SPDX-License-Identifier: Apache-2.0
"""What the tests share. Run them with the built package on the path:

    PYTHONPATH=build/cpu/python python -m pytest tests/python

Tests of PyTorch, CuPy, JAX and transformers are marked with their names and skip where these aren't
installed; tests marked `gpu` skip without a usable CUDA device or in a CPU-only build.
"""

import importlib.util

import hypothesis
import numpy as np
import pytest

import mixgemm

# Fixed examples, whatever the machine: a failure here is a failure everywhere.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=40,
                                     print_blob=True)
hypothesis.settings.load_profile("fixed")

_MARKS = ("torch", "cupy", "jax", "transformers")


def has_gpu():
    from mixgemm import _core
    return _core.has_cuda and any(d["device"] == "cuda" and d["usable"] for d in mixgemm.devices())


def pytest_configure(config):
    for name in _MARKS:
        config.addinivalue_line("markers", f"{name}: needs the package {name}")
    config.addinivalue_line("markers", "gpu: needs a CUDA device that the build has kernels for")


def pytest_collection_modifyitems(items):
    missing = {name for name in _MARKS if importlib.util.find_spec(name) is None}
    gpu = has_gpu()
    for item in items:
        for name in missing:
            if item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=f"{name} is not installed"))
        if not gpu and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no usable CUDA device"))


@pytest.fixture
def rng():
    return np.random.default_rng(20)


@pytest.fixture
def packed(rng):
    """48 x 200, int4 in groups of 64 with zeros."""
    return mixgemm.quantize_packed(rng.standard_normal((48, 200), np.float32), 4, 64, "integer")
