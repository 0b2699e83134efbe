"""PyTorch's two file layouts are read without PyTorch, and the pickle gets nowhere."""

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest

from lcm_jax.weights.fetch import MOBILENET, fetch
from lcm_jax.weights.torch_pickle import read_torch


class _Global:
    """Pickles as a bare reference to module.name."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class _Call:
    """Pickles as function(*args)."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


class _Storage:
    def __init__(self, kind, key, data):
        self.kind, self.key, self.data = kind, key, data


class _Writer(pickle._Pickler):
    """A pickler that writes the names PyTorch writes, though no such module is importable here."""

    def __init__(self, file, legacy):
        super().__init__(file, protocol=2)
        self.legacy = legacy

    def persistent_id(self, obj):
        if isinstance(obj, _Storage):
            view = (None,) if self.legacy else ()
            return ("storage", _Global("torch", obj.kind), obj.key, "cpu", len(obj.data), *view)

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, _Global):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, _Call):
            self.save(obj.function)
            self.save(obj.args)
            self.write(pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)


def tensor(storage, offset, shape, stride):
    rebuild = _Global("torch._utils", "_rebuild_tensor_v2")
    return _Call(rebuild, storage, offset, shape, stride, False, OrderedDict())


def dumps(obj, legacy=False):
    file = io.BytesIO()
    _Writer(file, legacy).dump(obj)
    return file.getvalue()


def write(path, obj, storages, layout):
    if layout == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("net/data.pkl", dumps(obj))
            archive.writestr("net/byteorder", "little")
            for s in storages:
                archive.writestr(f"net/data/{s.key}", s.data.tobytes())
        return
    head = [dumps(0x1950A86A20F9469CFC6C), dumps(1001), dumps({"little_endian": True})]
    tail = [struct.pack("<q", len(s.data)) + s.data.tobytes() for s in storages]
    path.write_bytes(b"".join([*head, dumps(obj, True), dumps([s.key for s in storages]), *tail]))


@pytest.fixture(params=["zip", "stream"])
def layout(request):
    return request.param


def test_tensors_views_and_types(tmp_path, layout):
    f = _Storage("FloatStorage", "10", np.arange(12, dtype=np.float32))
    h = _Storage("BFloat16Storage", "11", np.ones(2, ml_dtypes.bfloat16))
    n = _Storage("LongStorage", "12", np.array([5], np.int64))
    tree = {
        "state": OrderedDict(
            whole=tensor(f, 0, (3, 4), (4, 1)),
            turned=tensor(f, 1, (2, 3), (1, 4)),
            half=tensor(h, 0, (2,), (1,)),
            count=tensor(n, 0, (), ()),
            empty=tensor(f, 0, (0, 4), (4, 1)),
        ),
        "epoch": 3,
        "list": [tensor(f, 11, (1,), (1,))],
    }
    write(tmp_path / "t.pth", tree, [f, h, n], layout)
    got = read_torch(tmp_path / "t.pth")
    state = got["state"]
    np.testing.assert_array_equal(state["whole"], f.data.reshape(3, 4))
    np.testing.assert_array_equal(state["turned"], f.data.reshape(3, 4)[:, 1:3].T)
    assert state["half"].dtype == ml_dtypes.bfloat16 and state["count"] == 5 and state["count"].shape == ()
    assert state["empty"].shape == (0, 4) and got["epoch"] == 3 and got["list"][0] == 11


def test_a_pickle_that_wants_more_is_refused_by_name(tmp_path, layout):
    mark = tmp_path / "ran"
    write(tmp_path / "t.pth", {"x": _Call(_Global("os", "mkdir"), str(mark))}, [], layout)
    with pytest.raises(ValueError, match=r"t\.pth .*asks for os\.mkdir"):
        read_torch(tmp_path / "t.pth")
    assert not mark.exists()


@pytest.mark.parametrize(
    "name", ["builtins.eval", "torch.load", "torch._utils._rebuild_tensor", "posix.system"]
)
def test_near_misses_are_refused_too(tmp_path, name):
    write(tmp_path / "t.pth", _Global(*name.rsplit(".", 1)), [], "zip")
    with pytest.raises(ValueError, match=name):
        read_torch(tmp_path / "t.pth")


@pytest.mark.parametrize(
    "offset, shape, stride",
    [(0, (5,), (1,)), (3, (2,), (1,)), (0, (2,), (9,)), (-1, (1,), (1,)), (0, (99,), (0,))],
)
def test_a_tensor_may_not_leave_its_storage(tmp_path, layout, offset, shape, stride):
    s = _Storage("FloatStorage", "0", np.zeros(4, np.float32))
    write(tmp_path / "t.pth", {"x": tensor(s, offset, shape, stride)}, [s], layout)
    with pytest.raises(ValueError, match="storage of 4 numbers|has strides"):
        read_torch(tmp_path / "t.pth")


def test_truncation_is_an_error_at_any_length(tmp_path, layout):
    s = _Storage("FloatStorage", "0", np.zeros(64, np.float32))
    path = tmp_path / "t.pth"
    write(path, {"x": tensor(s, 0, (64,), (1,))}, [s], layout)
    whole = path.read_bytes()
    for length in (0, 1, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"t\.pth was not read"):
            read_torch(path)


def test_other_files_are_errors(tmp_path):
    (tmp_path / "t.pth").write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(ValueError, match="neither the zip nor the stream layout"):
        read_torch(tmp_path / "t.pth")
    with pytest.raises(FileNotFoundError):
        read_torch(tmp_path / "absent.pth")
    with zipfile.ZipFile(tmp_path / "z.pth", "w") as archive:
        archive.writestr("readme", "no tensors")
    with pytest.raises(ValueError, match="holds no data.pkl"):
        read_torch(tmp_path / "z.pth")


def test_a_published_file():
    (path,) = fetch(MOBILENET).iterdir()
    tensors = read_torch(path)
    assert len(tensors) == 314
    assert tensors["features.0.0.weight"].shape == (32, 3, 3, 3)
    assert tensors["features.0.1.num_batches_tracked"].shape == ()
    numbers = sum(t.nbytes for t in tensors.values())
    assert 0.98 < numbers / os.path.getsize(path) < 1  # nothing of weight was left unread
