"""Trees go to disk and come back bit for bit; damage is named."""

import ml_dtypes
import numpy as np
import pytest

from lcm_jax.weights.safetensors_file import SafetensorsFile, read_tree, write_tree

TREE = {
    "a": {"0": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3).T}},
    "b": np.ones(3, ml_dtypes.bfloat16),
    "n": np.array(7, np.int64),
}


@pytest.fixture
def path(tmp_path):
    write_tree(tmp_path / "t.safetensors", TREE, {"note": "kept"})
    return tmp_path / "t.safetensors"


def test_round_trip_keeps_bits_types_and_metadata(path):
    tree = read_tree(path)
    assert SafetensorsFile(path).metadata == {"note": "kept"}
    assert tree.keys() == TREE.keys()
    for got, want in ((tree["a"]["0"]["kernel"], TREE["a"]["0"]["kernel"]), (tree["b"], TREE["b"])):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)
    assert tree["n"] == 7 and (tree["n"].dtype, tree["n"].shape) == (np.int64, ())


def test_the_file_is_a_mapping(path):
    file = SafetensorsFile(path)
    assert list(file) == ["a.0.kernel", "b", "n"] and len(file) == 3
    assert "b" in file and "c" not in file
    assert file.shape("a.0.kernel") == (3, 2)
    with pytest.raises(KeyError, match="t.safetensors holds no tensor 'c'"):
        file["c"]


def test_no_temporary_file_is_left(path):
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_truncated_file_is_named(path):
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="t.safetensors is no complete safetensors file"):
        SafetensorsFile(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.safetensors"):
        SafetensorsFile(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("name", ["x.y", ""])
def test_names_that_would_not_come_back_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="empty or dotted"):
        write_tree(tmp_path / "t.safetensors", {"a": {name: np.ones(1)}})
    assert not list(tmp_path.iterdir())
