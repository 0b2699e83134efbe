"""The wheel: lcm_jax only, with its data and its licences, importable without the checkout."""

import configparser
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def setup_cfg():
    parser = configparser.RawConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy of the tracked kinds of files, so that the checkout stays clean."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    skip = shutil.ignore_patterns("__pycache__", ".*", "runs", "build", "*.egg-info", "venv*")
    for name in ("lcm_jax", "launch", "configs", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=skip)
    for name in ("setup.cfg", "pyproject.toml", "LICENSE", "NOTICE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source / name)
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"lcm_jax", f"lcm_jax-{setup_cfg()['metadata']['version']}.dist-info"}
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "lcm_jax").rglob("*.py")}
    assert sources <= set(names)


def test_the_wheel_carries_data_licence_and_attribution(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assets = {
        str(p.relative_to(ROOT))
        for p in (ROOT / "lcm_jax" / "assets").rglob("*")
        if p.is_file() and not any(part.startswith(".") for part in p.parts)
    }
    assert assets <= set(names)
    assert any(name.endswith("LICENSE") for name in names) and any(name.endswith("NOTICE") for name in names)


def test_the_installed_package_is_whole_without_the_checkout(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import importlib, pkgutil, sys\n"
        "sys.modules['torch'] = sys.modules['tensorflow'] = None\n"  # as where they are not installed
        "import lcm_jax\n"
        "for m in pkgutil.walk_packages(lcm_jax.__path__, 'lcm_jax.'):\n"
        "    importlib.import_module(m.name)\n"
        "stray = {'launch', 'configs', 'tests'} & sys.modules.keys()\n"
        "print(lcm_jax.__file__, lcm_jax.__version__, sorted(stray))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "JAX_PLATFORMS": "cpu", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    where, version, stray = done.stdout.split(maxsplit=2)
    assert where.startswith(str(tmp_path)) and version == setup_cfg()["metadata"]["version"]
    assert stray.strip() == "[]"


def test_pyproject_holds_only_the_build_and_ruff():
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert table.keys() == {"build-system", "tool"} and table["tool"].keys() == {"ruff"}


def test_the_core_needs_neither_torch_nor_tensorflow():
    required = setup_cfg()["options"]["install_requires"].split()
    assert not [name for name in required if name.startswith(("torch", "tensorflow", "diffusers"))]
    assert {"jax>=0.10.2", "flax>=0.12", "optax>=0.2.8", "orbax-checkpoint"} <= set(required)
    extras = setup_cfg()["options.extras_require"]
    assert {"cuda", "tpu", "torch", "hub", "tfds", "parquet", "gcs", "s3", "data", "test"} == set(extras)
    assert set(extras["data"].split()) <= set(extras["test"].split())


def test_the_notice_names_the_twemoji_licence():
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    assert "CC-BY 4.0" in notice and "Twitter, Inc and other contributors" in notice and "jdecked" in notice
