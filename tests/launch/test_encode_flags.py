"""The flags of launch.encode: what reaches the encoding, and the check of each reader's data."""

import io
import json
import os
import subprocess
import sys
import tarfile
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from lcm_jax import encoding
from lcm_jax.data import manifest, shards
from lcm_jax.drawers import Drawers

ROOT = Path(__file__).parents[2]
# In a process of its own, since commands define the same flags; what it calls is replaced by a note of the call.
NOTED = """
import json, sys, types
def encode(*args, **named):
    told = {"counts": {"train": 3}, "latent_shape": (2, 2, 4), "scale": 1.0}
    made = types.SimpleNamespace(**told, skipped=SKIPPED, classes=CLASSES)
    print(json.dumps([args, named]))
    return made
encoding = types.ModuleType("lcm_jax.encoding")
encoding.encode = encode
sys.modules["lcm_jax.encoding"] = encoding
import lcm_jax
lcm_jax.encoding = encoding
from launch import encode as command, entry
entry.run(command.main)
"""


def python(*arguments):
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True)


def noted(*flags, skipped=0, classes=()):
    done = python("-c", NOTED.replace("SKIPPED", str(skipped)).replace("CLASSES", str(classes)), *flags)
    assert done.returncode == 0, done.stderr
    call, *said = done.stdout.splitlines()
    return json.loads(call), said


def test_only_what_was_given_is_passed_on():
    (args, named), said = noted("--folder=f", "--out=o", "--model=m")
    assert args == ["m", "image_folder", {"folder": "f"}, "o", 32, 1024, False, False] and named == {"shortened": 0}
    assert said == ["o: 3 train; latents 2x2x4, measured scale 1.0000"]


def test_every_flag_of_storing():
    (args, named), said = noted(
        "--reader=webdataset", "--folder=f", "--options=tag=t", "--out=o", "--model=m", "--text=none", "--size_ids",
        "--crop=random", "--flip=0.5", "--seed=7", "--broken=skip", "--threads=16", "--size=64", "--variant=fp16",
        "--kind=v", "--empty_caption=zeros", skipped=2, classes=("cat", "dog"),
    )  # fmt: skip
    assert args == ["m", "webdataset", {"tag": "t", "folder": "f"}, "o", 32, 1024, True, False]
    assert named == {"shortened": 0, "states": False, "crop": "random", "flip": 0.5, "seed": 7, "size_ids": True,
                     "broken": "skip", "threads": 16, "size": 64, "variant": "fp16", "kind": "v",
                     "empty_caption": "zeros"}  # fmt: skip
    left_out = "left out: 2 pictures or damaged files; o/skipped.jsonl says which and why"
    assert said[1:] == ["2 classes: cat, dog", left_out]


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--crop=middle", "should be one of <center|random>"),
        ("--flip=1.5", "flag --flip=1.5"),
        ("--broken=ignore", "should be one of <stop|skip>"),
        ("--text=clip", "should be one of <states|none>"),
        ("--threads=0", "flag --threads=0"),
    ],
)
def test_wrong_values_are_one_line(flag, message):
    done = python("-m", "launch.encode", "--folder=f", "--out=o", flag)
    assert done.returncode == 1 and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and done.stderr.startswith("error: ")


def test_the_settings_reach_the_latents(data, tmp_path):
    options = {"folder": str(data.pictures)}
    settings = {"crop": "random", "flip": 0.5, "seed": 7, "size_ids": True, "broken": "skip", "threads": 2}
    encode = partial(
        encoding.encode, data.autoencoder, "image_folder", options, tmp_path, 8, 10, tokens=True, states=False,
        progress=False,
    )  # fmt: skip
    made = encode(**settings)
    assert made.crop == {"place": "random", "flip": 0.5, "seed": 7} and made.skipped == 0
    assert made.shapes.keys() == {"mean", "tokens", "time_ids"}
    with pytest.raises(ValueError, match="was made with other crop"):
        encode(**{**settings, "crop": "center"})


def test_all_devices_share_a_batch(data, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "Drawers", partial(Drawers, devices=jax.devices()[:4]))
    options = {"folder": str(data.pictures)}
    encoding.encode(data.autoencoder, "image_folder", options, tmp_path, 6, 10, progress=False)  # rounded up to 8
    made = manifest.read(tmp_path)
    assert manifest.rows(tmp_path) == manifest.rows(data.latents)
    for shard in made.shards:
        of_one, of_four = (shards.Shard(folder / shard["file"]).read_all() for folder in (data.latents, tmp_path))
        for (_, a), (_, b) in zip(of_one, of_four, strict=True):
            np.testing.assert_allclose(a["mean"].astype(np.float32), b["mean"], atol=2e-3)
            assert np.abs(a["mean"]).max() > 0.01


def encoded(size):
    file = io.BytesIO()
    Image.new("RGB", (size, size)).save(file, "png")
    return file.getvalue()


def checked(*flags):
    done = python("-m", "launch.encode", "--check", "--model=emoji-teacher", *flags)
    assert done.returncode == 1, done.stderr
    return done.stdout.splitlines()


def test_the_check_lists_the_problems_of_tar_shards(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for name, content in [("a.png", encoded(64)), ("b.png", encoded(64)[:60]), ("b.txt", b"b"), ("c.png", b"")]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    path = tmp_path / "0.tar"
    path.write_bytes(path.read_bytes()[: 5 * 512 + 100])
    damage, silent, broken, count = checked("--reader=webdataset", f"--folder={tmp_path}")
    assert damage.startswith(f"data set: {path} is truncated") and count == "3 problems"
    assert silent == "0/a: no caption; add one or remove the image"
    assert broken.startswith(f"0/b: image b.png in {path} cannot be read")


def test_the_check_lists_the_problems_of_a_table(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"image": [encoded(64), encoded(8), b"x"], "text": ["a", "b", "c"]})
    pq.write_table(table, tmp_path / "a.parquet")
    small, broken, count = checked("--reader=parquet", f"--folder={tmp_path}")
    assert "a/1: 8x8 pixels is smaller" in small and "a/2: image in row 2 of" in broken and count == "2 problems"
