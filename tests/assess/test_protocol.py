"""Tables at published size, in miniature: what is drawn, kept, taken up again and refused."""

import json

import numpy as np
import pytest
import tiny
from PIL import Image

from configs import evaluation_paper
from lcm_jax import captions
from lcm_jax.assess import feature_networks, protocol
from lcm_jax.evaluate.features import FeatureNet
from lcm_jax.pipeline import Pipeline

PROMPTS = ["a red disc", "a blue bar", "a green dot", "a white ring", "a red wave"]


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    pool = lambda x: np.asarray(x, np.float32).reshape(-1, 4, 4, 4, 4, 3).mean((2, 4)).reshape(len(x), 48)[:, :3] / 255
    monkeypatch.setitem(captions.ENCODERS, "minilm", tiny.FakeCaptions)
    monkeypatch.setitem(feature_networks.NETWORKS, "pooled", lambda weights: FeatureNet("Pooled", "1", pool))
    monkeypatch.setenv("LCM_JAX_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def pipes():
    found = {}
    for who, role in (("student", "consistency"), ("teacher", "diffusion")):
        spec = tiny.spec(role)
        found[who] = Pipeline(spec, tiny.weights(spec))
    return found


@pytest.fixture
def real(tmp_path):
    folder = tmp_path / "real" / "deep"
    folder.mkdir(parents=True)
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return protocol.real_pictures(tmp_path / "real", tiny.SIZE)


def config(**changes):
    c = evaluation_paper.get_config()
    c.features, c.prompts, c.samples, c.w = "pooled", 4, 2, 2.0
    c.student = dict(steps=(1, 2))
    c.teacher = dict(samplers=("ddim",), steps=(2,), w=2.0)
    return {**c.to_dict(), **changes}


def test_rows_are_scored_kept_and_taken_up_again(pipes, real, tmp_path, monkeypatch):
    monkeypatch.setattr(protocol, "AT_ONCE", 3)
    out = tmp_path / "scores"
    found = protocol.run(config(), pipes, PROMPTS, real, out, progress=False)["rows"]
    assert [(r["row"]["who"], r["row"]["steps"], r["n"]) for r in found] == [
        ("student", 1, 8), ("student", 2, 8), ("teacher", 2, 8),
    ]  # fmt: skip
    assert found[2]["evaluations"] == 4 and all(r["frechet"]["value"] > 0 for r in found)
    assert found[0]["frechet"]["real"] == 12 and "FID" not in found[0]["frechet"]["name"]
    assert len((out / "table.md").read_text().splitlines()) == 5
    drawn = []
    planted = lambda self, *given, **more: drawn.append(more) or np.zeros((6, 16, 16, 3), np.uint8)
    monkeypatch.setattr(Pipeline, "__call__", planted)
    assert protocol.run(config(), pipes, PROMPTS, real, out, progress=False)["rows"] == found and not drawn
    kept = json.loads((out / "student-lcm-2.json").read_text())
    (out / "student-lcm-2.json").write_text(json.dumps({**kept, "seed": 9}))
    with pytest.raises(ValueError, match="one caption a picture"):  # drawn anew: the planted pictures are too many
        protocol.run(config(), pipes, PROMPTS, real, out, progress=False)
    assert {kw["steps"] for kw in drawn} == {2}


def test_more_pictures_of_a_prompt_differ_and_a_student_may_stand_alone(pipes, real, tmp_path):
    row = protocol.Row("student", "lcm", 1, 2.0)
    sets = list(protocol.pictures(pipes["student"], row, PROMPTS[:1], [0], 2, 0, int))
    assert np.abs(sets[0][0].astype(int) - sets[0][1]).max() > 1
    assert [row.who for row in protocol.rows(config(), teacher=False)] == ["student", "student"]


def test_bad_input_is_named_before_anything_is_drawn(pipes, real, tmp_path):
    for changes, message in (
        ({"prompts": 6}, "config.prompts is 6, 5 were given"),
        ({"student": {"steps": (51,)}}, "LCM sampling takes 1 to 50 steps, got 51"),
        ({"features": "dino"}, "unknown feature network 'dino'"),
        ({"smaples": 3}, "config has no key 'smaples'; did you mean 'samples'"),
    ):
        with pytest.raises(ValueError, match=message):
            protocol.run(config(**changes), pipes, PROMPTS, real, tmp_path / "x", progress=False)
    with pytest.raises(FileNotFoundError, match="of real pictures"):
        protocol.real_pictures(tmp_path / "none", 16)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no pictures"):
        protocol.real_pictures(tmp_path / "empty", 16)
