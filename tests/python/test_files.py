# SPDX-License-Identifier: Apache-2.0
"""load and save."""

import numpy as np
import pytest

import mixgemm


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def test_what_is_saved_is_loaded(path, rng, packed):
    dense = rng.standard_normal((3, 5), np.float32)
    mixgemm.save(path, {"layer": packed, "norm": dense, "ids": np.arange(4)},
                 metadata={"author": "me"})
    checkpoint = mixgemm.load(path)
    assert sorted(checkpoint) == ["ids", "layer", "norm"] and len(checkpoint) == 3
    assert checkpoint.packed == ["layer"] and sorted(checkpoint.dense) == ["ids", "norm"]
    assert checkpoint.metadata["author"] == "me"
    np.testing.assert_array_equal(checkpoint["norm"].numpy(), dense)
    np.testing.assert_array_equal(checkpoint["ids"].numpy(), np.arange(4))
    a, b = mixgemm.unpack(checkpoint["layer"]), mixgemm.unpack(packed)
    np.testing.assert_array_equal(a.codes, b.codes)
    np.testing.assert_array_equal(a.scales, b.scales)
    checkpoint.verify()


def test_a_loaded_weight_outlives_its_checkpoint(path, rng, packed):
    x = rng.standard_normal((2, 200)).astype(np.float16)
    mixgemm.save(path, {"layer": packed})
    weight = mixgemm.load(path)["layer"]
    np.testing.assert_array_equal(mixgemm.matmul(x, weight), mixgemm.matmul(x, packed))


def test_a_loaded_dense_tensor_outlives_its_checkpoint_and_is_read_only(path, rng, packed):
    dense = rng.standard_normal(1000, np.float32)
    mixgemm.save(path, {"layer": packed, "dense": dense})
    tensor = mixgemm.load(path)["dense"].numpy()
    np.testing.assert_array_equal(tensor, dense)
    with pytest.raises(ValueError):
        tensor[0] = 1


def test_what_is_loaded_is_saved_again(path, tmp_path, packed, rng):
    mixgemm.save(path, {"layer": packed, "norm": rng.standard_normal(7, np.float32)})
    again = tmp_path / "again.safetensors"
    mixgemm.save(again, mixgemm.load(path))
    assert again.read_bytes() == path.read_bytes()


def test_shards(path, packed):
    mixgemm.save(path, {f"layer{i}": packed for i in range(4)}, max_shard_bytes=8000)
    assert len(list(path.parent.glob("*-of-*.safetensors"))) == 4
    assert mixgemm.load(path.parent).packed == [f"layer{i}" for i in range(4)]


def test_bfloat16_tensors_keep_their_bits(path, packed):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.arange(8).astype(ml_dtypes.bfloat16)
    mixgemm.save(path, {"layer": packed, "dense": values})
    tensor = mixgemm.load(path)["dense"]
    assert tensor.dtype == "BF16" and tensor.shape == (8,)
    np.testing.assert_array_equal(tensor.numpy(), values)


def test_names_that_are_not_there(path, packed):
    mixgemm.save(path, {"layer": packed})
    checkpoint = mixgemm.load(path)
    with pytest.raises(KeyError, match="nothing"):
        checkpoint["nothing"]
    assert "nothing" not in checkpoint
    with pytest.raises(mixgemm.NotFoundError, match="No such file"):
        mixgemm.load(path.parent / "nothing.safetensors")


def test_files_that_are_no_checkpoint(path):
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(mixgemm.CorruptDataError):
        mixgemm.load(path)


def test_a_changed_byte_is_found(path, packed):
    mixgemm.save(path, {"layer": packed})
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    with pytest.raises(mixgemm.CorruptDataError, match="layer"):
        mixgemm.load(path)["layer"]
    mixgemm.load(path, verify=False)["layer"]


def test_every_truncation_is_refused(path, packed):
    mixgemm.save(path, {"layer": packed})
    content = path.read_bytes()
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        with pytest.raises(mixgemm.Error):
            mixgemm.load(path)


def test_what_cannot_be_saved(path, packed):
    for value in ("text", object(), np.zeros(3, object)):
        with pytest.raises(mixgemm.InvalidArgumentError, match="must be a PackedWeight or an array"):
            mixgemm.save(path, {"layer": packed, "bad": value})
    with pytest.raises(mixgemm.Error, match="mixgemm"):
        mixgemm.save(path, {"layer": packed}, metadata={"mixgemm.version": "9"})
    with pytest.raises(mixgemm.Error):
        mixgemm.save(path.parent / "no" / "folder", {"layer": packed})
    assert not list(path.parent.iterdir())
