import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tiny

from lcm_jax.weights import folder

TREE = {"a": {"kernel": np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4)}, "ids": np.arange(3)}


@pytest.mark.parametrize("dtype", folder.DTYPES)
def test_what_is_written_is_read(tmp_path, dtype):
    where = folder.write(tmp_path / "m", {"x": 1}, {"unet": TREE}, dtype)
    assert folder.describe(where) == {"x": 1}
    read = tiny.tree(where, "unet")
    assert read["a"]["kernel"].dtype == np.dtype(dtype) and read["ids"].dtype == TREE["ids"].dtype
    np.testing.assert_array_equal(read["a"]["kernel"], TREE["a"]["kernel"].astype(dtype))
    assert sorted(p.name for p in where.iterdir()) == ["model.json", "unet.safetensors"]


def test_bfloat16_widens_back():
    small = folder.cast(TREE, "bfloat16")
    assert small["a"]["kernel"].dtype == ml_dtypes.bfloat16
    np.testing.assert_allclose(folder.cast(small, "float32")["a"]["kernel"], TREE["a"]["kernel"], rtol=1 / 128)


def test_a_value_too_large_is_named():
    with pytest.raises(ValueError, match="a/kernel reaches 70000, too large for float16: take bfloat16"):
        folder.cast({"a": {"kernel": np.float32([7e4])}}, "float16")
    with pytest.raises(ValueError, match="unknown dtype 'int8'; choose one of float32, float16, bfloat16"):
        folder.cast(TREE, "int8")


def test_the_description_comes_last(tmp_path, monkeypatch):
    where = folder.write(tmp_path / "m", {"x": 1}, {"unet": TREE})

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "write_tree", full)
    with pytest.raises(OSError, match="No space left"):
        folder.write(where, {"x": 2}, {"unet": TREE})
    with pytest.raises(FileNotFoundError, match="holds no model.json"):
        folder.describe(where)


def test_a_writer_out_of_space_says_so(tmp_path, monkeypatch):
    plain = Path.open
    full = lambda *a, **kw: open("/dev/full", "wb", buffering=0) if "wb" in a else plain(*a, **kw)  # noqa: E731
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="unet.safetensors could not be written .*No space left.*make room"):
        folder.write(tmp_path / "m", {}, {"unet": TREE})


def test_broken_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="launch.export wrote"):
        folder.describe(tmp_path)
    (tmp_path / "model.json").write_text("[1]")
    with pytest.raises(ValueError, match="holds no JSON object"):
        folder.describe(tmp_path)
    (tmp_path / "model.json").write_bytes(b"\xff{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        folder.describe(tmp_path)


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    folder.write_text(path, json.dumps(1))

    def fail(*args):
        raise OSError("no")

    monkeypatch.setattr(folder.os, "replace", fail)
    with pytest.raises(OSError):
        folder.write_text(path, json.dumps(2))
    assert json.loads(path.read_text()) == 1 and list(tmp_path.iterdir()) == [path]
