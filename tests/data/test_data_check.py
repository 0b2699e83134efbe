"""The check finds each kind of damage, names it in one line, and stays quiet on clean data."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from small_set import make_examples

from lcm_jax.data import image_folder, manifest
from lcm_jax.data.check import check, report


def test_clean_data_has_no_problems(make):
    assert check(make_examples(10), image_size=20, progress=False) == []
    folder, _ = make(40)
    assert check(folder, progress=False) == []
    assert report([]) == "no problems found"


def test_every_bad_image_is_listed(tmp_path):
    for name in ("good", "cut", "silent", "small"):
        noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise[:8] if name == "small" else noise).save(tmp_path / f"{name}.png")
        if name != "silent":
            (tmp_path / f"{name}.txt").write_text("noise")
    cut = tmp_path / "cut.png"
    cut.write_bytes(cut.read_bytes()[:200])
    examples = image_folder.examples(tmp_path)
    examples.append(dataclasses.replace(examples[1], caption="again"))
    problems = [str(p) for p in check(examples, image_size=16, progress=False)]
    assert [p.split(":")[0] for p in problems] == ["cut.png", "silent.png", "small.png", "good.png"]
    for problem, what in zip(
        problems, ["cannot be read", "no caption", "32x8 pixels", "2 times"], strict=True
    ):
        assert what in problem and "\n" not in problem
    assert check([], progress=False)[0].what.startswith("empty")


def test_report_is_cut_with_a_count():
    problems = check([dataclasses.replace(e, caption="") for e in make_examples(9)], progress=False)
    lines = report(problems, limit=4).splitlines()
    assert len(lines) == 6 and lines[-2:] == ["... and 5 more", "9 problems"]


KINDS = ["missing", "truncated", "flipped", "unconditional", "statistics", "rows", "manifest"]


@pytest.mark.parametrize("damage", KINDS)
def test_every_damage_of_a_latent_folder_is_named(make, damage):
    folder, made = make(40)
    path = folder / made.shards[2]["file"]
    whole = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(whole[:-10])
    elif damage == "flipped":
        whole[len(whole) // 2] ^= 1
        path.write_bytes(whole)
    else:
        names = {
            "unconditional": "unconditional_context.npy",
            "statistics": manifest.ELEMENTS,
            "rows": manifest.ROWS,
            "manifest": manifest.FILE,
        }
        path = folder / names[damage]
        path.write_bytes(path.read_bytes()[:-20])
    (problem,) = check(folder, progress=False)
    assert path.name in str(problem) and "\n" not in str(problem)


def test_shard_of_another_set_is_found_by_count_and_shape(make):
    folder, made = make(40)
    fewer = tuple({**s, "count": s["count"] - 1} for s in made.shards)
    manifest.write(folder, dataclasses.replace(made, shards=fewer))
    assert all("records, the manifest says" in p.what for p in check(folder, progress=False))
    manifest.write(folder, dataclasses.replace(made, latent_shape=(8, 8, 3)))
    assert len(check(folder, progress=False)) == len(made.shards) + 1  # and the statistics
