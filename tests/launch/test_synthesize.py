"""Latents that a teacher draws of captions alone: what is stored, that it is trained on, and every wrong request."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_sd

from lcm_jax import build, run_folder, synthesizing
from lcm_jax.data import manifest
from lcm_jax.data.latent_rows import LatentRows
from lcm_jax.image_keys import image_keys
from lcm_jax.pipeline import Pipeline

CAPTIONS = ["a red disc", "a blue bar", "a green dot", "a white ring", "a red wave"]


def drawn(model, out, captions=CAPTIONS, **more):
    return synthesizing.synthesize(model, captions, out, batch_size=4, shard_size=3, progress=False, **more)


@pytest.fixture(scope="module")
def teacher(data, first):
    """The tiny teacher as a model of the autoencoder that encoded the pictures."""
    folder = tiny.model_folder(data.root / "drawing_teacher", tiny.spec("diffusion"), seed=1)
    (folder / "autoencoder.safetensors").write_bytes((data.autoencoder / "autoencoder.safetensors").read_bytes())
    return folder


@pytest.fixture(scope="module")
def made(teacher, data):
    out = data.root / "synthesized"
    return out, drawn(teacher, out, steps=4, w=1.5, n=2, seed=3)


def latents(out):
    """Means by key."""
    rows = LatentRows([out])
    found = rows.batch(np.arange(len(rows)))
    assert found["std"].max() < 1e-6
    return {rows.names[i].key: mean for i, mean in zip(found["index"], found["mean"], strict=True)}


@pytest.mark.parametrize("w", [1.5, 0.0])
def test_the_latents_are_those_of_the_models_own_sampler(teacher, tmp_path, w):
    drawn(teacher, tmp_path / "out", steps=4, w=w, n=2, seed=3)
    pipe = Pipeline.load(teacher)
    rows = [row for row in manifest.rows(tmp_path / "out") if row.caption == CAPTIONS[1]]
    assert len(rows) == 2 and rows[0].key != rows[1].key
    setting = pipe.setting("dpmpp_2m", 4)
    told = {k: jnp.repeat(v, 2, 0) for k, v in pipe.encode([CAPTIONS[1]]).items()}
    empty = {k: jnp.broadcast_to(v, told[k].shape) for k, v in pipe.uncond.items()}
    noise = pipe.noise(setting, image_keys([row.key for row in rows], 1, 3))
    z = pipe.latents(setting, pipe.params["unet"], told, empty, jnp.full(2, w, jnp.float32), noise)
    stored = latents(tmp_path / "out")
    expected = np.asarray(z) / pipe.spec.autoencoder.scale
    np.testing.assert_allclose(np.stack([stored[row.key] for row in rows]), expected, rtol=2e-3, atol=2e-3)  # float16


def test_what_is_said_of_them(made, teacher):
    out, said = made
    assert said.counts == {"train": 10} and said == manifest.read(out)
    how = {"sampler": "dpmpp_2m", "steps": 4, "w": 1.5, "seed": 3}
    assert said.dataset == {"drawn_by": str(teacher), "attribution": "", **how}
    assert len(said.shards) == 4 and {row.split for row in manifest.rows(out)} == {"train"}


def test_a_picture_depends_on_its_caption_alone(made, teacher, tmp_path):
    drawn(teacher, tmp_path / "few", CAPTIONS[3:], steps=4, w=1.5, n=1, seed=3)
    few, all_of_them = latents(tmp_path / "few"), latents(made[0])
    assert len(few) == 2
    for key, mean in few.items():
        np.testing.assert_allclose(mean, all_of_them[key], atol=1e-3)


def test_it_goes_on_where_it_stopped_and_not_with_other_settings(made, teacher):
    out, said = made
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / said.shards[1]["file"]).unlink()
    drawn(teacher, out, steps=4, w=1.5, n=2, seed=3)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    with pytest.raises(ValueError, match="was made with other drawn.w;"):
        drawn(teacher, out, steps=4, w=2.5, n=2, seed=3)


def test_a_student_learns_from_pictures_and_drawn_ones(made, teacher, data, tmp_path):
    model = {"teacher": str(teacher), "w_width": tiny.W_WIDTH}
    objective = {"name": "lcd", "w_min": 0.0, "w_max": 4.0, "w_width": tiny.W_WIDTH}
    config = tiny.config(objective, model, data.latents, steps=1)
    both = [shutil.copytree(folder, tmp_path / name) for folder, name in ((data.latents, "read"), (made[0], "drawn"))]
    owed = [dataclasses.replace(manifest.read(f), dataset={"attribution": f"by {i}"}) for i, f in enumerate(both)]
    config["data"]["folder"] = [str(f) for f in both]
    for folder, said in zip(both, owed, strict=True):
        manifest.write(folder, said)
    run = build.run(config)
    assert run.spec.about["attribution"] == ["by 0", "by 1"]  # every folder's, not the first one's alone
    assert int(run_folder.train(run, tmp_path / "trained", progress=False).step) == 1
    labels = LatentRows(both).batch(np.arange(34))["label"]
    assert labels[:24].max() == 3 and labels[24:].tolist() == [4] * 10  # the drawn ones have none
    turned = LatentRows(both[::-1])
    assert turned.classes == data.manifest.classes
    assert turned.batch(np.arange(34))["label"].tolist() == [*labels[24:], *labels[:24]]


def test_sdxls_states_and_size_ids(tmp_path):
    teacher = tiny_sd.model_folder(tmp_path / "teacher", tiny_sd.spec("sdxl"))
    said = drawn(teacher, tmp_path / "out", steps=2, size=32, tokens=True)
    assert said.size_ids and set(said.shapes) == {"mean", "context", "pooled", "tokens", "time_ids"}
    rows = LatentRows([tmp_path / "out"])
    assert rows.batch(np.arange(2))["time_ids"].tolist() == [[32, 32, 0, 0, 32, 32]] * 2
    said = drawn(teacher, tmp_path / "tokens", steps=2, states=False)
    assert set(said.shapes) == {"mean", "tokens", "time_ids"}


def test_captions_of_a_reader(data):
    options = {"folder": str(data.pictures), "heldout": 0.5}
    found = synthesizing.captions_of("image_folder", options)
    assert 0 < len(found) < 24 and all(caption.startswith("a ") for caption in found)
    mixed = synthesizing.captions_of("image_folder", options, 20)
    assert len(mixed) == 20 and not set(mixed) & set(found)
    assert mixed != synthesizing.captions_of("image_folder", options, 20, seed=1)


def test_wrong_requests(teacher, first, tmp_path):
    for more, message in (
        ({"steps": 900}, "allows 1 to 500 steps"),
        ({"sampler": "lcm"}, "not sampled with 'lcm'"),
        ({"w": float("nan")}, "w must be a finite number"),
        ({"size": 20}, "no multiple of 8"),
        ({"n": 0}, "at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            drawn(teacher, tmp_path / "out", **more)
    with pytest.raises(ValueError, match="is a consistency model: have the pictures drawn by its teacher"):
        drawn(first.student, tmp_path / "out")
    with pytest.raises(ValueError, match="batch_size 0"):
        synthesizing.synthesize(teacher, CAPTIONS, tmp_path / "out", batch_size=0)
    assert not (tmp_path / "out").exists()


NOTED = """
import sys, types
import lcm_jax
from lcm_jax import synthesizing
made = types.SimpleNamespace(counts={"train": COUNT}, latent_shape=(2, 2, 4))
synthesizing.synthesize = lambda *args, **named: made
from launch import entry, synthesize
entry.run(synthesize.main)
"""


@pytest.mark.parametrize(
    "lines, count, said",
    [
        (["a cat", "a dog", "a cat", "a cat ", "a fox", "a dog"], 6,
         ["6 pictures of 3 captions, latents 2x2x4", "repeated captions, each drawn as one: 2",
          "such as: 'a cat', 'a dog', 'a fox'"]),
        (["a cat"], 1, ["1 picture of 1 caption, latents 2x2x4", "such as: 'a cat'"]),
    ],
)  # fmt: skip
def test_repeated_captions_count_once(tmp_path, lines, count, said):
    (tmp_path / "prompts.txt").write_text("\n".join(lines))
    flags = [f"--prompts={tmp_path / 'prompts.txt'}", f"--out={tmp_path / 'out'}"]
    command = [sys.executable, "-c", NOTED.replace("COUNT", str(count)), *flags]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=env, capture_output=True, text=True)
    assert done.stdout.replace(f"{tmp_path / 'out'}: ", "").splitlines() == said, done.stderr


def test_no_folder_of_other_files_is_drawn_into(teacher, tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(ValueError, match="holds 'thesis.tex', which is of no latent data set"):
        drawn(teacher, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_is_not_finite_is_named(teacher, tmp_path):
    pipe = Pipeline.load(teacher)
    spec = dataclasses.replace(pipe.spec, autoencoder=dataclasses.replace(pipe.spec.autoencoder, scale=1e-30))
    broken = tiny.model_folder(tmp_path / "broken", spec)
    with pytest.raises(ValueError, match="mean is not finite as float16"):
        drawn(broken, tmp_path / "out", steps=2)
    assert not (tmp_path / "out" / manifest.FILE).exists()
