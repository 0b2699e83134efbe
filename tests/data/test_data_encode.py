"""Encoding: what is stored, its statistics, resuming to the same bytes, and folders that do not fit."""

import dataclasses

import numpy as np
import pytest
from small_set import SIZE, Encoders, make_examples, picture

from lcm_jax.data import images, manifest, resume, shards
from lcm_jax.data.check import check
from lcm_jax.data.encode import encode
from lcm_jax.data.latent_stats import LatentStats


def stored(folder):
    made = manifest.read(folder)
    return [r for s in made.shards for r in shards.Shard(folder / s["file"]).read_all()]


def test_records_hold_moments_context_and_names(make, encoders):
    folder, made = make(40)
    rows, records = manifest.rows(folder), stored(folder)
    assert set(encoders.batches) == {8}  # padded, so that a jitted encoder compiles once
    assert sum(made.counts.values()) == len(rows) == len(records) == 40
    assert [r.split for r in rows] == sorted((r.split for r in rows), reverse=True)  # train first
    for number, (row, (head, arrays)) in enumerate(zip(rows, records, strict=True)):
        assert (head["row"], head["key"], head["caption"]) == (number, row.key, row.caption)
        pixels = images.to_float(images.fit(picture(int(row.key[1:])), SIZE))[None]
        mean, logvar = np.split(Encoders().images(pixels)[0], 2, axis=-1)
        np.testing.assert_array_equal(arrays["mean"], mean.astype(np.float16))
        np.testing.assert_array_equal(arrays["logvar"], logvar.astype(np.float16))
        assert (arrays["context"] == len(row.caption)).all() and arrays["context"].shape == (5, 6)
    assert manifest.unconditional(folder).tolist() == np.zeros((5, 6)).tolist()
    assert (made.latent_shape, made.context_shape, made.tokens_length) == ((4, 4, 3), (5, 6), None)
    assert manifest.read(folder) == made


def test_statistics_match_sampled_latents(make):
    folder, made = make(40)
    arrays = [a for h, a in stored(folder) if h["split"] == "train"]
    mean = np.stack([a["mean"] for a in arrays]).astype(np.float64)
    std = np.exp(0.5 * np.stack([a["logvar"] for a in arrays]).astype(np.float64))
    z = mean + std * np.random.default_rng(0).standard_normal((400, *mean.shape))
    assert made.scale == pytest.approx(1 / z.std(), rel=5e-3)
    np.testing.assert_allclose(made.channel_std, z.std((0, 1, 2, 3)), rtol=1e-2)
    np.testing.assert_allclose(made.channel_mean, mean.mean((0, 1, 2)), rtol=1e-6)
    element_mean, element_std = manifest.element_stats(folder)
    np.testing.assert_allclose(element_mean, mean.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(element_std, z.std((0, 1)), rtol=5e-2)


@pytest.mark.parametrize("per", ["element", "channel"])
def test_folders_that_are_read_together_are_measured_together(per, make, encoders, tmp_path):
    whole, _ = make(40, name="whole")
    pieces = [tmp_path / name for name in ("few", "many")]
    for out, examples in zip(pieces, (make_examples(40)[:11], make_examples(40)[11:]), strict=True):
        encode(examples, encoders.images, encoders.text, out, SIZE, 8, 10, {"vae": "patches"}, progress=False)
    together, wanted = manifest.statistics(pieces, per), manifest.statistics([whole], per)
    for ours, theirs, alone in zip(together, wanted, manifest.statistics(pieces[:1], per), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
        assert np.abs(alone - theirs).max() > 1e-3
    if per == "element":
        np.testing.assert_array_equal(wanted, manifest.element_stats(whole))


def test_statistics_of_pieces_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    mean, logvar = rng.normal(size=(2, 12, 2, 2, 3)).astype(np.float32)
    whole, pieces = LatentStats(), LatentStats()
    whole.add(mean, logvar)
    pieces.add(mean[:5], logvar[:5])
    pieces.add(mean[5:], logvar[5:])
    np.testing.assert_allclose(pieces.scale, whole.scale, rtol=1e-12)


class Interrupted(Exception):
    pass


def test_interrupted_encoding_goes_on_to_the_same_bytes(tmp_path, make):
    whole, made = make(40, name="whole")
    failing = Encoders()

    def stops(x):
        if len(failing.batches) == 5:
            raise Interrupted
        return failing.images(x)

    out, options = tmp_path / "again", {"batch_size": 8, "shard_size": 10, "identity": {"vae": "patches"}}
    out.mkdir()
    (out / "film.iso.partial").write_text("of another program")
    with pytest.raises(Interrupted):
        encode(make_examples(40), stops, failing.text, out, SIZE, progress=False, **options)
    with pytest.raises(FileNotFoundError, match="has not finished"):
        manifest.read(out)
    second = Encoders()
    resumed = encode(make_examples(40), second.images, second.text, out, SIZE, progress=False, **options)
    assert resumed == made
    assert len(second.batches) < len(made.shards) * 2  # the finished shards were not made again
    for file in [s["file"] for s in made.shards] + [manifest.ROWS, manifest.ELEMENTS]:
        assert (out / file).read_bytes() == (whole / file).read_bytes()
    assert [path.name for path in out.glob("*.partial")] == ["film.iso.partial"]
    assert not (out / resume.PROGRESS).exists()


def test_second_run_encodes_nothing_and_mends_a_broken_shard(make, encoders):
    folder, made = make(40)
    done = len(encoders.batches)
    assert make(40)[1] == made and len(encoders.batches) == done
    path = folder / made.shards[1]["file"]
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert make(40)[1] == made and path.read_bytes() == whole
    assert len(encoders.batches) == done + 2  # ten rows are two batches of eight


@pytest.mark.parametrize(
    "change, named",
    [
        ({"identity": {"vae": "other"}}, "encoders"),
        ({"shard_size": 20}, "shards"),
        ({"moment_dtype": "float32"}, "moment_dtype"),
        ({"n": 38}, "rows_sha256, shards"),
    ],
)
def test_a_folder_made_otherwise_is_an_error_until_overwritten(make, change, named):
    folder, made = make(40)
    with pytest.raises(ValueError, match=f"made with other {named}; .*overwrite"):
        make(**change)
    assert manifest.read(folder) == made
    _, other = make(**change, overwrite=True)
    files = {s["file"] for s in other.shards}
    assert other != made and {p.name for p in folder.glob("*.array_record")} == files


def test_tokens_instead_of_or_beside_context(tmp_path, encoders):
    options = {"batch_size": 8, "progress": False}
    made = encode(
        make_examples(9), encoders.images, None, tmp_path, SIZE, tokenize=encoders.tokens, **options
    )
    assert (made.context_shape, made.tokens_length) == (None, 3)
    head, arrays = stored(tmp_path)[0]
    assert arrays["tokens"].tolist() == [len(head["caption"]) + i for i in range(3)]
    assert manifest.unconditional(tmp_path, "tokens").tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="give encode_text, tokenize or both"):
        encode(make_examples(9), encoders.images, None, tmp_path, SIZE)


def test_bad_examples_are_named(make, tmp_path, encoders):
    good = make_examples(9)
    silent = [*good[:3], dataclasses.replace(good[3], caption="")]
    for wrong, message in [
        ([], "no examples"),
        ([*good, good[4]], "first 'k004'"),
        (silent, "1 image without a caption, first 'k003'"),
    ]:
        with pytest.raises(ValueError, match=message):
            encode(wrong, encoders.images, encoders.text, tmp_path, SIZE)

    def huge(x):
        return encoders.images(x) + np.float32(1e6) * (np.arange(len(x)) == 2)[:, None, None, None]

    with pytest.raises(ValueError, match=r"k\d+: mean, logvar is not finite as float16"):
        encode(good, huge, encoders.text, tmp_path / "o", SIZE, batch_size=4, progress=False)


def test_check_fits_names_both_sizes(make):
    _, made = make(9)
    manifest.check_fits(made, (4, 4, 3), 6)
    for shape, width, message in [
        ((4, 4, 4), 6, "3 channels, the model takes 4"),
        ((8, 8, 3), 6, "4x4x3, the model takes 8x8x3"),
        ((4, 4, 3), 768, "6 wide, the model takes 768"),
    ]:
        with pytest.raises(ValueError, match=message):
            manifest.check_fits(made, shape, width)
    with pytest.raises(ValueError, match="no text context"):
        manifest.check_fits(dataclasses.replace(made, context_shape=None), (4, 4, 3), 6)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "is not JSON"),
        ("[]", "not a latent data set"),
        ('{"format": "lcm_jax.latents", "version": 9}', "version 9, this code reads 1"),
        ('{"format": "lcm_jax.latents", "version": 1}', "missing or unknown entries"),
    ],
)
def test_broken_manifest(tmp_path, text, message):
    (tmp_path / manifest.FILE).write_text(text)
    with pytest.raises(ValueError, match=message):
        manifest.read(tmp_path)


def test_broken_side_files(make):
    folder, _ = make(9)
    (folder / manifest.ROWS).write_text("")
    with pytest.raises(ValueError, match="rows.jsonl is missing or not the manifest's"):
        manifest.rows(folder)
    (folder / manifest.UNCONDITIONAL.format("context")).write_bytes(b"")
    with pytest.raises(ValueError, match="unconditional_context.npy is missing or broken"):
        manifest.unconditional(folder)


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda path: path.unlink(), "is missing or broken .*No such file"),
        (cut, "is missing or broken"),
        (lambda path: np.save(path, np.ones((2, 4, 4), np.float32)), "is float32 2x4x4, mean and std .* 2x4x4x3"),
        (lambda path: np.save(path, np.ones((2, 4, 4, 3))), "is float64 2x4x4x3"),
        (lambda path: np.save(path, np.full((2, 4, 4, 3), np.nan, np.float32)), "is float32 .* finite float32 2x4x4x3"),
    ],
)
def test_broken_statistics_are_named_and_made_again(make, damage, message):
    folder, _ = make(9)
    path = folder / manifest.ELEMENTS
    whole = path.read_bytes()
    damage(path)
    with pytest.raises(ValueError, match=f"element_stats.npy {message}.*; delete it and encode the data s") as said:
        manifest.statistics([folder])
    assert "\n" not in str(said.value)
    assert [str(p).split(":")[0] for p in check(folder, progress=False)] == ["element_stats.npy"]
    assert manifest.statistics([folder], "channel")[0].shape == (4, 4, 3)  # those are the manifest's
    path.unlink(missing_ok=True)
    make(9)
    assert path.read_bytes() == whole
