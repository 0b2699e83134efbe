"""One place for all that a machine keeps: weights, copies, compiled functions."""

from pathlib import Path

import pytest

from launch import entry
from lcm_jax import cache
from lcm_jax.data import store


@pytest.mark.parametrize(
    "told, where",
    [
        ({}, "home/.cache/lcm_jax"),
        ({"XDG_CACHE_HOME": "xdg"}, "xdg/lcm_jax"),
        ({"XDG_CACHE_HOME": "xdg", "LCM_JAX_CACHE": "own"}, "own"),
        ({"LCM_JAX_CACHE": "~/own"}, "home/own"),
    ],
)
def test_everything_kept_lies_in_the_folder_that_is_named(told, where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(Path("home")))
    for name in ("XDG_CACHE_HOME", "LCM_JAX_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert cache.folder() == Path(where)
    assert entry.compiled() == Path(where) / "compiled"
    assert store.cache_folder("runs", "gs://bucket/run").parent == Path(where) / "runs"
