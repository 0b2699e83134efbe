"""A folder's weights are found in whichever files, read one by one, and what is wrong with them is named."""

import json
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from lcm_jax.weights import tensor_files
from lcm_jax.weights.bijection import fill, from_torch, to_torch
from lcm_jax.weights.diffusers_names import autoencoder_names
from lcm_jax.weights.tensor_files import open_tensors

TENSORS = {
    "a.bias": np.arange(4, dtype=np.float32),
    "a.weight": np.arange(12, dtype=np.float16).reshape(4, 3),
    "b.0.weight": np.linspace(-1, 1, 5).astype(ml_dtypes.bfloat16),
    "steps": np.array(7, np.int64),
}
HALVES = (("a.weight", "steps"), ("a.bias", "b.0.weight"))
STEM = "diffusion_pytorch_model"


def save_shards(folder, save, ending, stem=STEM, variant="", tensors=TENSORS, halves=HALVES):
    """Shards and an index, named as diffusers names them."""
    home = {}
    for i, keys in enumerate(halves, 1):
        name = f"{stem}{variant}-{i:05d}-of-{len(halves):05d}.{ending}"
        save({key: tensors[key] for key in keys}, folder / name)
        home |= dict.fromkeys(keys, name)
    index = folder / f"{stem}.{ending}.index{variant}.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": home}))
    return index


def save_torch(tensors, path):
    torch = pytest.importorskip("torch")
    if any(array.dtype == ml_dtypes.bfloat16 for array in tensors.values()):
        as_torch = lambda x: torch.tensor(x.astype(np.float32)).to(torch.bfloat16)
        tensors = {k: as_torch(x) if x.dtype == ml_dtypes.bfloat16 else torch.tensor(x) for k, x in tensors.items()}
    else:
        tensors = {k: torch.tensor(x) for k, x in tensors.items()}
    torch.save(tensors, path)


LAYOUTS = {
    "whole": lambda f: save_file(TENSORS, f / f"{STEM}.safetensors"),
    "shards": lambda f: save_shards(f, save_file, "safetensors"),
    "pickle": lambda f: save_torch(TENSORS, f / f"{STEM}.bin"),
    "pickled shards": lambda f: save_shards(f, save_torch, "bin"),
    "variant": lambda f: save_file(TENSORS, f / f"{STEM}.fp16.safetensors"),
    "variant shards": lambda f: save_shards(f, save_file, "safetensors", variant=".fp16"),
    "variant pickle": lambda f: save_torch(TENSORS, f / f"{STEM}.fp16.bin"),
    "variant pickled shards": lambda f: save_shards(f, save_torch, "bin", variant=".fp16"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_mapping(layout, tmp_path):
    LAYOUTS[layout](tmp_path)
    tensors = open_tensors(tmp_path, variant="fp16" if "variant" in layout else None)
    assert set(tensors) == set(TENSORS) and len(tensors) == len(list(tensors)) == len(TENSORS)
    for key, array in TENSORS.items():
        assert tensors.shape(key) == array.shape
        assert tensors[key].dtype == array.dtype
        np.testing.assert_array_equal(tensors[key], array)
    assert "c" not in tensors
    with pytest.raises(KeyError, match="no tensor 'c'"):
        tensors["c"]


def test_transformers_names_its_files_otherwise(tmp_path):
    save_torch(TENSORS, tmp_path / "pytorch_model.bin")
    assert set(open_tensors(tmp_path, "model")) == set(TENSORS)
    save_file({"a": np.ones(2)}, tmp_path / "model.safetensors")
    assert set(open_tensors(tmp_path, "model")) == {"a"}  # safetensors come first


def test_a_variant_takes_no_other(tmp_path):
    LAYOUTS["variant"](tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        open_tensors(tmp_path)
    message = str(caught.value)
    for name in (f"{STEM}.safetensors", f"{STEM}.safetensors.index.json", f"{STEM}.bin", f"{STEM}.bin.index.json"):
        assert name in message
    assert f"but {STEM}.fp16.safetensors" in message and "\n" not in message
    with pytest.raises(FileNotFoundError, match=f"none of {STEM}.bf16.safetensors"):
        open_tensors(tmp_path, variant="bf16")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .*/unet, where"):
        open_tensors(tmp_path / "unet")
    with pytest.raises(FileNotFoundError, match="but nothing: download them; .* by --variant fp16"):
        open_tensors(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    LAYOUTS["shards"](tmp_path)
    (tmp_path / f"{STEM}-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=f"index.json names {STEM}-00002-of-00002.safetensors, missing"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("ending, save", [("safetensors", save_file), ("bin", save_torch)])
def test_a_promise_that_a_shard_does_not_keep_is_named(tmp_path, ending, save):
    save_shards(tmp_path, save, ending)
    save({"steps": TENSORS["steps"]}, tmp_path / f"{STEM}-00001-of-00002.{ending}")
    with pytest.raises(ValueError, match=rf"lack: a.weight \({STEM}-00001-of-00002.{ending}\)"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("layout", ["whole", "shards", "pickle", "pickled shards"])
def test_a_truncated_file_is_named(layout, tmp_path):
    LAYOUTS[layout](tmp_path)
    path = next(path for path in sorted(tmp_path.iterdir()) if path.suffix != ".json")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=path.name):
        open_tensors(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": [1]}'])
def test_an_index_that_is_none_is_named(text, tmp_path):
    LAYOUTS["shards"](tmp_path).write_text(text)
    with pytest.raises(ValueError, match="safetensors.index.json is no index of shards"):
        open_tensors(tmp_path)


def test_a_shard_elsewhere_is_refused(tmp_path):
    index = LAYOUTS["shards"](tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(ValueError, match="'../x.safetensors', no plain file name"):
        open_tensors(tmp_path)


def test_a_pickle_of_more_than_tensors_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"state_dict": {"a": torch.ones(2)}}, tmp_path / f"{STEM}.bin")
    with pytest.raises(ValueError, match="holds more than a dict of tensors"):
        open_tensors(tmp_path)


ABSTRACT = {
    "a": {"kernel": jax.ShapeDtypeStruct((3, 4), jnp.float32), "bias": jax.ShapeDtypeStruct((4,), jnp.float32)},
    "b": {"0": {"scale": jax.ShapeDtypeStruct((5,), jnp.float32)}},
}


@pytest.mark.parametrize("layout", ["whole", "shards", "pickled shards"])
def test_a_tree_is_filled_onto_devices(layout, tmp_path):
    LAYOUTS[layout](tmp_path)
    device, paths = jax.devices()[1], []

    def place(path, array):
        assert isinstance(array, np.ndarray) and array.flags.c_contiguous
        paths.append(path)
        return jax.device_put(array, device)

    tree = fill(open_tensors(tmp_path), ABSTRACT, place, ("steps",))
    assert sorted(paths) == [("a", "bias"), ("a", "kernel"), ("b", "0", "scale")]
    assert jax.tree.structure(tree) == jax.tree.structure(ABSTRACT)
    assert {x.devices().pop() for x in jax.tree.leaves(tree)} == {device}
    assert {x.dtype for x in jax.tree.leaves(tree)} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(tree["a"]["kernel"], TENSORS["a.weight"].T)
    np.testing.assert_array_equal(tree["b"]["0"]["scale"], TENSORS["b.0.weight"].astype(np.float32))


def test_a_number_stays_a_number():
    abstract = {"scale": jax.ShapeDtypeStruct((), jnp.float32)}
    tree = from_torch({"weight": np.array(2.0)}, abstract)
    assert tree["scale"].shape == () and tree["scale"].dtype == np.float32
    assert to_torch(tree)["weight"].shape == ()


def test_everything_that_does_not_fit_is_named_before_any_tensor_is_read(tmp_path):
    wrong = {key: TENSORS[key] for key in ("a.weight", "steps")} | {"b.0.weight": np.ones(6), "c": np.ones(1)}

    class Unread(tensor_files.SafetensorsFile):
        def __getitem__(self, key):
            raise AssertionError("read")

    save_file(wrong, tmp_path / "x.safetensors")
    with pytest.raises(ValueError) as caught:
        fill(Unread(tmp_path / "x.safetensors"), ABSTRACT, lambda path, array: array, ("steps",))
    message = str(caught.value)
    assert "1 missing: a.bias" in message and "1 unexpected: c" in message
    assert "1 of another shape: b.0.weight ((6,) here as scale, network wants (5,))" in message


SIDE, COUNT = 512, 24  # a megabyte each
LARGE = {f"l{i:02d}.weight": np.full((SIDE, SIDE), i, np.float32) for i in range(COUNT)}
LARGE_ABSTRACT = {key[:3]: {"kernel": jax.ShapeDtypeStruct((SIDE, SIDE), jnp.float32)} for key in LARGE}
MEGABYTE = 2**20


def peak(run):
    """The most memory in use at once, in bytes."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_host_holds_one_tensor_and_its_new_layout(tmp_path):
    save_file(LARGE, tmp_path / f"{STEM}.safetensors")
    sums = {}
    summed = lambda path, array: sums.setdefault(path, float(array[0, 0]))
    one_by_one = peak(lambda: fill(open_tensors(tmp_path), LARGE_ABSTRACT, summed))
    at_once = peak(lambda: from_torch(open_tensors(tmp_path), LARGE_ABSTRACT))
    assert sums == {(key[:3], "kernel"): float(array[0, 0]) for key, array in LARGE.items()}
    assert at_once > COUNT * MEGABYTE  # the measure sees what it should
    assert one_by_one < 2.5 * MEGABYTE


def test_of_pickled_shards_one_is_held_and_each_read_twice(tmp_path, monkeypatch):
    halves = [tuple(LARGE)[i : i + 4] for i in range(0, COUNT, 4)]
    save_shards(tmp_path, save_torch, "bin", tensors=LARGE, halves=halves)
    read, reads = tensor_files.read_torch, []
    monkeypatch.setattr(tensor_files, "read_torch", lambda path: (reads.append(path.name), read(path))[1])
    most = peak(lambda: fill(open_tensors(tmp_path), LARGE_ABSTRACT, lambda path, array: 0))
    assert sorted(reads) == sorted(2 * [f"{STEM}-{i:05d}-of-00006.bin" for i in range(1, 7)])
    assert most < 8 * MEGABYTE  # of 24


def test_old_names_of_the_autoencoders_attention_are_known():
    stored = ["query", "key", "value", "proj_attn"]
    keys = [f"encoder.mid_block.attentions.0.{name}.weight" for name in stored]
    rename = autoencoder_names(keys)
    ours = ["to_q", "to_k", "to_v", "to_out.0"]
    assert [rename(f"encoder.mid_block.attentions.0.{name}.weight") for name in ours] == keys
    for untouched in ("encoder.mid_block.attentions.0.group_norm.bias", "decoder.conv_in.weight"):
        assert rename(untouched) == untouched
    today = autoencoder_names(["encoder.mid_block.attentions.0.to_q.weight"])
    assert today("encoder.mid_block.attentions.0.to_q.weight") == "encoder.mid_block.attentions.0.to_q.weight"
