"""Networks are written one leaf at a time, under both namings, and read back by the library of the format."""

import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from lcm_jax.export.network_file import Networks, TorchTensors, shapes_of, size, write_flax, write_torch
from lcm_jax.weights.bijection import to_torch
from lcm_jax.weights.safetensors_stream import write_stream


def tree():
    rng = np.random.default_rng(0)
    layer = {"kernel": rng.normal(size=(3, 3, 2, 5)), "bias": rng.normal(size=5)}
    parts = {"conv": layer, "embed": {"embedding": rng.normal(size=(7, 4))}, "norm": {"scale": rng.normal(size=4)}}
    small = jax.tree.map(np.float32, {**parts, "dense": {"kernel": rng.normal(size=(2, 6))}})
    return {**small, "count": {"number": np.array(3, np.int32)}}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_both_namings(dtype, tmp_path):
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    small = jax.tree.map(lambda leaf: leaf.astype(kind) if leaf.dtype == np.float32 else leaf, tree())
    write_torch(tmp_path / "torch", jax.tree.map(jnp.asarray, tree()), dtype)
    wanted, found = to_torch(small), load_file(tmp_path / "torch")
    assert wanted.keys() == found.keys()
    for key, value in wanted.items():
        assert (found[key].shape, found[key].dtype) == (value.shape, value.dtype)
        assert found[key].tobytes() == value.tobytes()
    write_flax(tmp_path / "flax", tree(), dtype, {"network": "unet"})
    with safe_open(tmp_path / "flax", "numpy") as file:
        assert file.metadata() == {"network": "unet"}
        assert file.get_tensor("conv.kernel").tobytes() == small["conv"]["kernel"].tobytes()
    assert size(tree(), dtype) == sum(leaf.nbytes for leaf in jax.tree.leaves(small))


def test_tensors_are_described_without_being_made():
    def load():
        raise AssertionError("it was loaded")

    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree())
    tensors = TorchTensors(shapes, load, "float16")
    wanted = to_torch(tree())
    assert {key: tensors.shape(key) for key in tensors} == {key: value.shape for key, value in wanted.items()}
    assert tensors.dtype("conv.weight") == np.float16 and tensors.dtype("count.number") == np.int32
    assert "conv.weight" in tensors and "conv.kernel" not in tensors
    networks = Networks({"unet": shapes}, lambda name: load())
    assert list(networks) == ["unet"] and "unet" in networks and len(networks) == 1
    assert shapes_of(networks) == {"unet": shapes}
    with pytest.raises(KeyError):
        networks["vae"]


def test_no_second_copy_of_a_network_is_held(tmp_path):
    leaves = {str(i): {"kernel": np.zeros((256, 1024), np.float32)} for i in range(16)}
    tracemalloc.start()
    write_torch(tmp_path / "network", leaves, "float16")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * 2**20  # one leaf takes 1 MiB in float32, all of them 8 in float16


def test_what_is_promised_must_come(tmp_path):
    layout = {"a": jax.ShapeDtypeStruct((2,), np.float32)}
    with pytest.raises(ValueError, match=r"a came as float64 \(2,\), unlike its description"):
        write_stream(tmp_path / "m", layout, lambda key: np.zeros(2))
    with pytest.raises(ValueError, match="a is of type complex64; a safetensors file takes float64, float32"):
        write_stream(tmp_path / "m", {"a": np.zeros(2, np.complex64)}, lambda key: np.zeros(2, np.complex64))
    assert not list(tmp_path.iterdir())


def test_wide_tensors_come_first_so_that_all_are_aligned(tmp_path):
    arrays = {"a": np.zeros(3, np.uint8), "b": np.ones(2, np.float64), "c": np.ones((0, 4), np.float16)}
    arrays |= {"d": np.array(2.5, np.float32), "e": np.array([True])}
    write_stream(tmp_path / "m", arrays, arrays.__getitem__)
    found = load_file(tmp_path / "m")
    assert found.keys() == arrays.keys()
    for key, value in arrays.items():
        np.testing.assert_array_equal(found[key], value)
        assert found[key].dtype == value.dtype and found[key].shape == value.shape
