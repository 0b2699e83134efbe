"""launch.evaluate --tag: only the examples that carry the tag are asked for, drawn and scored."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from PIL import Image

from lcm_jax import captions
from lcm_jax.assess import evaluation_set
from lcm_jax.data.encode import encode
from lcm_jax.data.image_folder import examples

ROOT = Path(__file__).parents[2]
HELDOUT, TRAIN = range(8), range(8, 32)  # numbers of each kind of picture; "rare" has no held-out one

# The command with a feature network that needs no download, telling what it draws.
COMMAND = """
import json
from lcm_jax.assess import evaluation, feature_networks
from lcm_jax.evaluate.features import FeatureNet
from launch import entry, evaluate

pool = lambda x: x.reshape(-1, 4, 4, 4, 4, 3).mean((2, 4)).reshape(len(x), 48) / 255
feature_networks.NETWORKS["pooled"] = lambda weights: FeatureNet("Pooled", "1", pool)
evaluation.figure.figure = lambda result, path: path
draw = evaluation.draw

def told(pipe, setting, seed, asked, *rest):
    print("drawn", json.dumps([setting.split, asked.keys]))
    return draw(pipe, setting, seed, asked, *rest)

evaluation.draw = told
entry.run(evaluate.main)
"""


def picture(name: str) -> np.ndarray:
    return np.random.default_rng(list(name.encode())).integers(0, 256, (tiny.SIZE, tiny.SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    """Latents of flags and animals, a few of both also rare, and an untrained student."""
    root = tmp_path_factory.mktemp("tagged")
    pictures = root / "pictures"
    pictures.mkdir()
    lines = []
    for kind in ("flag", "animal"):
        for i in (*HELDOUT, *TRAIN):
            name = f"{kind}{i:02d}"
            Image.fromarray(picture(name)).save(pictures / f"{name}.png")
            tags = [kind, "rare"] if i > 29 else [kind]
            split = "heldout" if i in HELDOUT else "train"
            lines.append({"file_name": f"{name}.png", "text": f"the {name}", "tags": tags, "split": split})
    (pictures / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    moments = lambda x: np.zeros((len(x), 2, 2, 8), np.float32)
    text = tiny.FakeCaptions(20)
    where = {"reader": "image_folder", "options": {"folder": str(pictures)}}
    told = partial(captions.encode, text)
    encode(examples(pictures), moments, told, root / "latents", tiny.SIZE, progress=False, dataset=where)
    return SimpleNamespace(root=root, latents=root / "latents", text=text, model=tiny.model_folder(root / "model"))


def evaluate(tagged, out: Path, *arguments: str, command: tuple[str, ...] = ("-m", "launch.evaluate")):
    given = (f"--model={tagged.model}", f"--data={tagged.latents}", f"--out={out}", *arguments)
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "LCM_JAX_CACHE": str(out.parent / "cache")}
    return subprocess.run([sys.executable, *command, *given], cwd=ROOT, env=env, capture_output=True, text=True)


def test_only_examples_of_the_tag_are_drawn_and_scored(tagged, tmp_path):
    settings = ("--tag=flag", "--features=pooled", "--steps=1", "--w=1", "--seeds=0", "--resamples=2")
    done = evaluate(tagged, tmp_path / "out", *settings, command=("-c", COMMAND))
    assert done.returncode == 0, done.stderr
    drawn = dict(json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("drawn "))
    flags = [f"flag{i:02d}.png" for i in range(32)]
    assert sorted(drawn["heldout"]) == flags[:8]
    assert len(drawn["train"]) == 8 and set(drawn["train"]) <= set(flags[8:])
    references = json.loads((tmp_path / "out" / "scores.json").read_text())["references"]
    sizes = {split: [about[name] for name in ("n", "gallery", "train")] for split, about in references.items()}
    assert sizes == {"heldout": [8, 8, 24], "train": [8, 24, 24]}  # retrieval and copies know no animals either


def test_an_unknown_tag_names_the_known_ones_before_anything_is_fetched_or_drawn(tagged, tmp_path):
    done = evaluate(tagged, tmp_path / "out", "--tag=flags")
    assert done.returncode == 1 and done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1 and "no rows with split None and tag 'flags'" in done.stderr
    assert done.stderr.rstrip().endswith("tags: animal, flag, rare")
    assert list(tmp_path.iterdir()) == []


def test_rows_of_a_tag_keep_their_own_images_and_captions(tagged):
    spec = tiny.spec()
    read = lambda tag: evaluation_set.open_folder(tagged.latents, None, {}, spec, tag, progress=False)[0]
    assert {split: len(rows) for split, rows in read(None).items()} == {"heldout": 16, "train": 48}
    found = read("rare")
    names = ["animal30", "animal31", "flag30", "flag31"]
    assert found["train"].keys == [f"{name}.png" for name in names]
    np.testing.assert_array_equal(found["train"].images, [picture(name) for name in names])
    states = captions.encode(tagged.text, [f"the {name}" for name in names])["context"].astype(np.float16)
    np.testing.assert_array_equal(found["train"].condition["context"], states)
    with pytest.raises(ValueError, match="no rows in split 'heldout': leave it out of --splits"):
        evaluation_set.choose(found, ["heldout"])
    for tag, count in (("rare", 4), (None, 48)):
        assert evaluation_set.training_pictures(tagged.latents, {}, spec, tag, progress=False).count == count
    with pytest.raises(ValueError, match="only 2 images to score"):
        evaluation_set.choose(found, ["train"])
