"""Storing more than latents and states: size ids, pooled states, ids of several tokenizers; broken pictures."""

import dataclasses
import json

import numpy as np
import pytest
from small_set import SIZE, Encoders, make_examples, picture

from lcm_jax.data import images, manifest, resume, shards
from lcm_jax.data.check import check
from lcm_jax.data.crop import Crop
from lcm_jax.data.encode import encode
from lcm_jax.data.loader import make_loader


class TwoTowers(Encoders):
    """As SDXL's: context, a pooled state, and the ids of two tokenizers."""

    def text(self, captions):
        return {"context": super().text(captions), "pooled": np.stack([np.full(7, 1.0 + len(c)) for c in captions])}

    def tokens(self, captions):
        return np.stack([[np.arange(3) + len(c), np.arange(3) - len(c)] for c in captions])


def stored(folder):
    made = manifest.read(folder)
    return [r for s in made.shards if s["count"] for r in shards.Shard(folder / s["file"]).read_all()]


def write(out, examples=None, encoders=None, text=True, tokens=True, **options):
    encoders = encoders or TwoTowers()
    options = {"batch_size": 8, "shard_size": 10, "progress": False, **options}
    return encode(
        make_examples(40) if examples is None else examples, encoders.images, encoders.text if text else None, out,
        SIZE, tokenize=encoders.tokens if tokens else None, **options,
    )  # fmt: skip


@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_everything_that_sdxl_reads_goes_through(tmp_path, memory_limit):
    made = write(tmp_path, crop="random", flip=0.5, seed=3, size_ids=True)
    assert (made.context_shape, made.pooled_width, made.tokens_length, made.tokens_towers) == ((5, 6), 7, 3, 2)
    assert made.size_ids and manifest.read(tmp_path) == made and check(tmp_path, progress=False) == []
    uncond = manifest.unconditionals(tmp_path)
    assert {name: (a.dtype.name, a.shape) for name, a in uncond.items()} == {
        "context": ("float32", (5, 6)), "pooled": ("float32", (7,)), "tokens": ("int32", (2, 3)),
    }  # fmt: skip
    assert uncond["pooled"].tolist() == [1.0] * 7 and uncond["tokens"].tolist() == [[0, 1, 2]] * 2

    loader = make_loader(tmp_path, None, 20, memory_limit=memory_limit)
    batch = next(loader)
    assert {name: (a.dtype.name, a.shape) for name, a in batch.items()} == {
        "mean": ("float32", (20, 4, 4, 3)), "std": ("float32", (20, 4, 4, 3)), "context": ("float32", (20, 5, 6)),
        "pooled": ("float32", (20, 7)), "time_ids": ("int32", (20, 6)), "tokens": ("int32", (20, 2, 3)),
        "index": ("int32", (20,)),
    }  # fmt: skip
    crop, tops = Crop(SIZE, SIZE, **manifest.read(tmp_path).crop), set()
    assert crop == Crop(SIZE, SIZE, "random", 0.5, 3)
    for i, index in enumerate(batch["index"]):
        row = loader.row(index)
        pixels, ids = crop(picture(int(row.key[1:])), row.key)
        np.testing.assert_array_equal(batch["time_ids"][i], ids)
        mean = Encoders().images(images.to_float(pixels)[None])[0, ..., :3]
        np.testing.assert_array_equal(batch["mean"][i], mean.astype(np.float16))
        assert (batch["pooled"][i] == 1 + len(row.caption)).all()
        assert batch["tokens"][i].tolist() == [[len(row.caption) + j for j in range(3)],
                                               [j - len(row.caption) for j in range(3)]]  # fmt: skip
        tops.add(int(ids[2]))
    assert tops == {0, 1, 2, 3}  # 24 x 20 pixels become 19.2 x 16
    each = 2 * 4 * 48 + 2 * 30 + 2 * 7 + 4 * 6 + 4 * 6
    held = loader.rows
    held.load()
    assert held.nbytes == 40 * each == sum(a.nbytes for a in held._held.values())


def test_tokens_alone_are_served(tmp_path):
    made = write(tmp_path, text=False)
    assert (made.context_shape, made.pooled_width) == (None, None)
    assert list(manifest.unconditionals(tmp_path)) == ["tokens"]
    assert not (tmp_path / manifest.UNCONDITIONAL.format("context")).exists()
    loader = make_loader(tmp_path, "train", 8)
    batch = next(loader)
    assert set(batch) == {"mean", "std", "tokens", "index"} and batch["tokens"].shape == (8, 2, 3)
    assert loader.rows.nbytes == sum(a.nbytes for a in loader.rows._held.values())
    assert check(tmp_path, progress=False) == []
    manifest.check_fits(made, (4, 4, 3), tokens_shape=(2, 3))
    for shape, message in [((3,), "token ids are 2x3, the model takes 3"), ((2, 77), "takes 2x77")]:
        with pytest.raises(ValueError, match=message):
            manifest.check_fits(made, (4, 4, 3), tokens_shape=shape)


def test_check_fits_knows_pooled_states_and_size_ids(tmp_path, make):
    made = write(tmp_path, size_ids=True)
    manifest.check_fits(made, (4, 4, 3), 6, 7, True, (2, 3))
    with pytest.raises(ValueError, match="pooled text state is 7 wide, the model takes 1280"):
        manifest.check_fits(made, (4, 4, 3), 6, 1280)
    _, plain = make(9)
    for options, message in [
        ({"pooled_width": 7}, "stores no pooled text state, the model takes width 7"),
        ({"size_ids": True}, "stores no size ids, the model takes them; encode it again with size_ids"),
        ({"tokens_shape": (3,)}, "stores no token ids"),
    ]:
        with pytest.raises(ValueError, match=message):
            manifest.check_fits(plain, (4, 4, 3), 6, **options)


def test_folders_with_other_arrays_do_not_mix(tmp_path):
    write(tmp_path / "a", size_ids=True)
    write(tmp_path / "b")
    with pytest.raises(ValueError, match="size_ids is True in .*a but False in .*b"):
        make_loader([tmp_path / "a", tmp_path / "b"], None, 8)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"crop": "center"}, "flip, crop"),
        ({"flip": 0.25}, "flip"),
        ({"seed": 1}, "seed"),
        ({"size_ids": False}, "size_ids"),
    ],
)
def test_resuming_with_another_crop_is_refused(tmp_path, change, named):
    first = {"crop": "random", "flip": 0.5, "seed": 0, "size_ids": True}
    write(tmp_path, **first)
    if "crop" in change:
        change, named = {**change, "flip": 0.0}, "crop, flip, seed"
    with pytest.raises(ValueError, match="was made with other ") as raised:
        write(tmp_path, **{**first, **change})
    assert set(named.split(", ")) == set(str(raised.value).partition("other ")[2].partition(";")[0].split(", "))


def test_resuming_with_another_look_is_refused(make):
    make(40)
    with pytest.raises(ValueError, match="was made with other grayscale;"):
        make(40, look=images.Look(grayscale=True))


def test_a_folder_made_before_there_were_options_is_taken_up(tmp_path, make):
    folder, made = make(40)
    path = folder / manifest.FILE
    content = json.loads(path.read_text())
    for new in ("pooled_width", "tokens_towers", "size_ids", "crop", "skipped"):
        del content[new]
    path.write_text(json.dumps(content))
    assert manifest.read(folder) == made
    assert content["plan"].keys() == {"encoders", "image_size", "moment_dtype", "stores", "rows_sha256", "shards"}
    assert next(make_loader(folder, "train", 8))["mean"].shape == (8, 4, 4, 3)
    before = path.read_bytes()
    assert make(40)[1] == made and path.read_bytes() == before  # nothing was written
    with pytest.raises(ValueError, match="was made with other crop, seed;"):
        make(40, crop="random")


def test_encoders_that_give_other_arrays_are_noticed_on_resuming(tmp_path):
    write(tmp_path)
    (tmp_path / manifest.ELEMENTS).unlink()
    with pytest.raises(ValueError, match=r"stores captions as .*'pooled': \(7,\).* the encoders now give"):
        write(tmp_path, encoders=Encoders())
    wrong = Encoders()
    wrong.text = lambda captions: {"states": np.zeros((len(captions), 5, 6))}
    with pytest.raises(ValueError, match="text encoder gives states; it must give context, and may pooled"):
        write(tmp_path / "other", encoders=wrong)


def test_states_that_float16_cannot_hold_are_named(tmp_path):
    loud = TwoTowers()
    loud.text = lambda c: {"context": Encoders.text(loud, c), "pooled": np.full((len(c), 7), 1e6)}
    with pytest.raises(ValueError, match=r"k\d+: pooled is not finite"):
        write(tmp_path, encoders=loud)


# Broken pictures -----------------------------------------------------------------------------------------------

BROKEN = (3, 4, 5, 6, 7, 8, 9, 17, 39)


def unreadable(i):
    def load():
        raise ValueError(f"image k{i:03d}.png cannot be read (cut off); replace or remove it")

    return load


def damaged(broken=BROKEN, n=40):
    return [
        dataclasses.replace(e, load=unreadable(i)) if i in broken else e for i, e in enumerate(make_examples(n))
    ]


def test_a_broken_picture_stops_with_the_way_out(tmp_path):
    with pytest.raises(ValueError, match=r"k003.png cannot be read .*, or leave such images out with broken=skip$"):
        write(tmp_path, damaged())
    silent = [dataclasses.replace(e, caption="") if i == 4 else e for i, e in enumerate(make_examples(9))]
    with pytest.raises(ValueError, match="1 image without a caption, first 'k004'; .* leave them out with broken=skip"):
        write(tmp_path / "silent", silent)
    with pytest.raises(ValueError, match="broken is 'ignore'; choose one of stop, skip"):
        write(tmp_path, broken="ignore")


def test_skipping_leaves_out_and_lists(tmp_path):
    examples = damaged()
    examples[11] = dataclasses.replace(examples[11], caption="")
    made = write(tmp_path, examples, broken="skip")
    left_out = [*BROKEN, 11]
    assert made.skipped == len(left_out) and sum(made.counts.values()) == 40 - len(left_out)
    listed = [json.loads(line) for line in (tmp_path / manifest.SKIPPED).read_text().splitlines()]
    assert [row["key"] for row in listed] == [f"k{i:03d}" for i in sorted(left_out)]
    assert listed[0]["reason"].startswith("image k003.png cannot be read")
    assert {row["key"]: row["reason"] for row in listed}["k011"] == "no caption"
    rows = manifest.rows(tmp_path)
    assert {r.key for r in rows} == {f"k{i:03d}" for i in range(40) if i not in left_out}
    assert [head["key"] for head, _ in stored(tmp_path)] == [r.key for r in rows]
    first = 0
    for shard in made.shards:
        assert shard["first_row"] == first
        first += shard["count"]
    assert first == len(rows) and check(tmp_path, progress=False) == []
    # latents of those that are left are what they are without the broken ones; each row is served as itself
    whole = {h["key"]: a for h, a in stored_whole(tmp_path / "whole")}
    loader = make_loader(tmp_path, None, len(rows), shuffle=False, memory_limit=0)
    batch = next(loader)
    for i, row in enumerate(rows):
        assert loader.row(batch["index"][i]) == row
        np.testing.assert_array_equal(batch["mean"][i], whole[row.key]["mean"])


def stored_whole(out):
    write(out)
    return stored(out)


def test_a_shard_of_nothing_but_broken_pictures(tmp_path):
    train = [i for i, e in enumerate(make_examples(40)) if e.split == "train"]
    made = write(tmp_path, damaged(train[10:20]), broken="skip")
    assert [s["count"] for s in made.shards if s["split"] == "train"][:3] == [10, 0, min(10, len(train) - 20)]
    assert check(tmp_path, progress=False) == []
    index = next(make_loader(tmp_path, "train", len(train) - 10, memory_limit=0))["index"]
    assert sorted(index) == list(range(len(train) - 10))
    with pytest.raises(ValueError, match="no train image could be read, first 'k001': image k001.png cannot"):
        write(tmp_path / "none", damaged(range(40)), broken="skip")


class Interrupted(Exception):
    pass


def test_skipping_is_resumed_to_the_same_bytes(tmp_path):
    made = write(tmp_path / "whole", damaged(), broken="skip", size_ids=True, crop="random")
    failing = TwoTowers()
    count = failing.images

    def stops(x):
        if len(failing.batches) == 4:
            raise Interrupted
        return count(x)

    failing.images = stops
    with pytest.raises(Interrupted):
        write(tmp_path / "again", damaged(), failing, broken="skip", size_ids=True, crop="random")
    second = TwoTowers()
    assert write(tmp_path / "again", damaged(), second, broken="skip", size_ids=True, crop="random") == made
    assert 0 < len(second.batches) < 8
    names = {p.name for p in (tmp_path / "whole").iterdir()}
    assert names == {p.name for p in (tmp_path / "again").iterdir()} and manifest.SKIPPED in names
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    third = TwoTowers()
    assert write(tmp_path / "again", damaged(), third, broken="skip", size_ids=True, crop="random") == made
    assert third.batches == []


def test_what_stopped_goes_on_with_skip_and_mended_pictures_come_in_with_stop(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="k039.png cannot be read"):
        write(out, damaged([39]))
    done = len(list(out.glob(resume.NOTE.format("*"))))
    assert done > 0
    encoders = TwoTowers()
    made = write(out, damaged([39]), encoders, broken="skip")
    assert made.skipped == 1 and len(encoders.batches) <= 2 * (len(made.shards) - done)
    with pytest.raises(ValueError, match="k039.png cannot be read"):  # stop means that nothing is left out
        write(out, damaged([39]))
    encoders = TwoTowers()
    mended = write(out, make_examples(40), encoders)
    assert len(encoders.batches) <= 2 and mended.skipped == 0 and not (out / manifest.SKIPPED).exists()
    assert mended == write(tmp_path / "whole")
    for shard in mended.shards:
        assert (out / shard["file"]).read_bytes() == (tmp_path / "whole" / shard["file"]).read_bytes()


def test_only_folders_of_latents_are_written_into(tmp_path):
    out = tmp_path / "out"
    resume.check_folder(out)
    write(out)
    resume.check_folder(out)
    (out / "notes.txt").touch()
    resume.check_folder(out)  # the user's own, beside a data set
    (out / "manifest.json").unlink()
    with pytest.raises(ValueError, match="out holds 'notes.txt', which is of no latent data set: choose an"):
        resume.check_folder(out)
    (out / "notes.txt").unlink()
    for name in (".hidden", "encoding.json.partial", "x.array_record.partial", "x.array_record.note.npz"):
        (out / name).touch()
    resume.check_folder(out)  # what any interruption leaves
    with pytest.raises(ValueError, match="rows.jsonl is a file: give a folder"):
        resume.check_folder(out / "rows.jsonl")


@pytest.mark.parametrize("damage", ["missing", "cut", "no list"])
def test_a_damaged_list_of_what_was_skipped_is_found(tmp_path, damage):
    made = write(tmp_path, damaged(), broken="skip")
    path = tmp_path / manifest.SKIPPED
    path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:-30] if damage == "cut" else b"[1]\n")
    (problem,) = check(tmp_path, progress=False)
    assert problem.where == manifest.SKIPPED or manifest.SKIPPED in problem.what
    if damage == "missing":  # it is made anew with the shards it belongs to
        assert write(tmp_path, damaged(), broken="skip") == made and path.exists()
    else:
        with pytest.raises(ValueError, match="skipped.jsonl is broken .*; encode the data set again with overwrite"):
            write(tmp_path, damaged(), broken="skip")
        assert write(tmp_path, damaged(), broken="skip", overwrite=True) == made


def test_arrays_that_the_manifest_does_not_name_are_found(tmp_path):
    made = write(tmp_path, size_ids=True)
    manifest.write(tmp_path, dataclasses.replace(made, size_ids=False))
    assert len(check(tmp_path, progress=False)) == len(made.shards)
    manifest.write(tmp_path, dataclasses.replace(made, pooled_width=8))
    assert all("the manifest says" in p.what for p in check(tmp_path, progress=False))
