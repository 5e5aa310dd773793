# SPDX-License-Identifier: Apache-2.0
"""tune: the search runs, and its result is what plans take."""

import json
import os

import numpy as np
import pytest
from support import random_weight

import mixgemm


@pytest.fixture
def weight(rng):
    """A shape that no other test plans for: what is tuned stays tuned in this process."""
    return mixgemm.pack(random_weight(rng, 80, 336, 4, 16, "integer"))


def test_what_was_measured_is_what_is_planned(tmp_path, weight):
    path = tmp_path / "tuning.json"
    first, second = mixgemm.tune(weight, [3, 130], seconds=0.2, path=path)
    assert (first["m"], second["m"]) == (3, 130)
    assert first["us"] > 0 and first["candidates"] >= 1
    for entry in (first, second):
        assert mixgemm.plan(weight, entry["m"]).config_id == entry["config"]
    text = path.read_text()
    assert first["config"] in text and len(json.loads(text)["tables"]) == 1
    mixgemm.tune(weight, 5, seconds=0.2, path=path)  # is added
    assert sum(line.count('"m":') for line in path.read_text().splitlines()) == 3


def test_an_exception_of_the_measurement_ends_the_search(weight, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("stop here")

    monkeypatch.setattr("mixgemm._tune.matmul", fail)
    with pytest.raises(RuntimeError, match="stop here"):
        mixgemm.tune(weight, 7)


def test_bad_arguments(tmp_path, weight):
    for arguments, match in (({"m": 0}, "m must be 1"), ({"m": 2**31}, "m must be 1"),
                             ({"m": 1, "seconds": 0}, "seconds must be"),
                             ({"m": 1, "dtype": np.float32}, "dtype must be|float32"),
                             ({"m": 1, "path": tmp_path}, ".")):
        with pytest.raises((mixgemm.Error, ValueError), match=match):
            mixgemm.tune(weight, **arguments)
    with pytest.raises(TypeError, match="PackedWeight"):
        mixgemm.tune(np.zeros(3), 1)
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    with pytest.raises(mixgemm.CorruptDataError):
        mixgemm.tune(weight, 9, seconds=0.1, path=bad)
    assert bad.read_text() == "{"


@pytest.mark.gpu
@pytest.mark.torch
def test_on_the_gpu(tmp_path, rng):
    weight = mixgemm.pack(random_weight(rng, 1040, 1088, 4, 64, "none"))
    path = os.fspath(tmp_path / "tuning.json")
    for entry in mixgemm.tune(weight, [1, 48], device="cuda", seconds=1, path=path):
        assert entry["us"] > 0 and entry["config"].startswith("sm90_")
        assert mixgemm.plan(weight.to("cuda"), entry["m"]).config_id == entry["config"]
