"""Commands that score models of noise levels, with a small Inception: published tables, search of noise levels."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from lcm_jax.assess import inception_weights
from lcm_jax.models.inception import InceptionConfig, inception
from lcm_jax.source import open_model
from lcm_jax.weights import folder

ROOT = Path(__file__).parents[2]
CONFIG = "configs/evaluation_unconditional.py"
CLUSTER = ("-m", "launch.local_cluster", "--processes", "2", "--devices", "1", "--", sys.executable)


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """A narrow Inception of random weights in a folder, as --features takes it."""
    config, rng = InceptionConfig(size=75, narrow=16), np.random.default_rng(0)

    def draw(leaf):  # kernels that keep the size of what they see; variances and gains about one
        if len(leaf.shape) > 1:
            return (rng.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))).astype(np.float32)
        return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)

    params = jax.tree.map(draw, inception(config).abstract())
    said = {"kind": inception_weights.KIND, "config": dataclasses.asdict(config)}
    said["hash"] = inception_weights.hash_of(config, params)
    return f"inception={folder.write(tmp_path_factory.mktemp('inception'), said, {inception_weights.NAME: params})}"


@pytest.fixture
def model(tmp_path):
    spec = tiny.noise_spec()
    return folder.write(tmp_path / "model", spec.to_json(), tiny.noise_weights(spec), "float32")


def command(cache, *arguments):
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "LCM_JAX_CACHE": str(cache)}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def test_a_table_is_the_same_of_one_process_and_of_two(model, features, latents32, tmp_path):
    asked = ["launch.score", "--config", CONFIG, "--model", model, "--data", latents32, f"--config.features={features}"]
    asked = [*map(str, asked), "--config.samples=11", "--config.manifold=9", "--config.batch=3"]
    found, kept = [], []
    for name, before in (("one", ("-m",)), ("two", (*CLUSTER, "-m"))):
        done = command(tmp_path / name, *before, *asked, "--out", str(tmp_path / f"{name}_scores"))
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("FD-Inception") == 1 and "11 generated pictures, " in done.stdout
        found.append([json.loads((tmp_path / f"{name}_scores" / f"consistency-{n}.json").read_text()) for n in (1, 2)])
        files = sorted((tmp_path / name / "statistics").iterdir())
        kept.append({key: value for path in files for key, value in np.load(path).items() if key != "about"})
    for alone, together in zip(*found, strict=True):
        assert alone["n"] == together["n"] == 11 and alone["judged"] == together["judged"]
        assert alone["frechet"]["value"] == pytest.approx(together["frechet"]["value"], rel=1e-2)
        assert alone["frechet"]["value"] > 1e-3 and alone["frechet"]["real"] > 12
    assert set(kept[0]) == set(kept[1]) == {"mu", "scatter", "sigma", "features"}
    for name in kept[0]:
        np.testing.assert_allclose(kept[0][name], kept[1][name], rtol=1e-3, atol=1e-5)


def test_what_does_not_go_together_is_one_line(model, first, tmp_path):
    base = ["-m", "launch.score", "--config", CONFIG, "--out", str(tmp_path / "out"), "--real", str(tmp_path)]
    for more, message in (
        (["--model", str(model), "--prompts", "p.txt"], "draws from noise alone: leave --prompts out"),
        (["--model", str(first.student)], "this model draws by captions: give --prompts FILE"),
        (["--model", str(model), "--folder", "f"], "--folder says which pictures of --data are meant"),
        (["--model", str(model), "--tag", "t"], "--tag says which pictures of --data are meant"),
        (["--model", str(model), "--data", "d"], "data"),
    ):
        done = command(tmp_path, *base, *more)
        assert done.returncode == 1 and message in done.stderr, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_noise_levels_are_sought_by_recall_and_kept(model, features, latents32, tmp_path):
    asked = ["-m", "launch.evaluate", "--model", model, "--data", latents32, "--features", features, "--limit", "8"]
    done = command(tmp_path, *map(str, asked), "--out", str(tmp_path), "--search_sigmas=2", "--search_score=recall")
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((tmp_path / "sigmas.json").read_text())
    best = max(one["recall"] for one in record["tried"] if len(one["sigmas"]) == 2)
    assert record["score"] == "recall" and record["recall"][1] == best and "kid" not in record
    assert "; recall " in done.stdout and f"kept in {model}" in done.stdout
    spec = open_model(model).spec
    sought = {"score": "recall", "features": "Inception", "n": 8, "seed": 0, "values": record["recall"]}
    assert [list(levels) for levels in spec.sigmas] == record["best"] and spec.about["noise levels sought by"] == sought
    done = command(tmp_path, *map(str, asked), "--out", str(tmp_path), "--search_score=recall")
    assert done.returncode == 1 and "--search_score is what --search_sigmas N seeks the best of" in done.stderr
