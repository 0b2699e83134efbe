"""Tar shards: what is found, read by offset, and what of a damaged shard is left and reported."""

import io
import json
import logging
import tarfile

import numpy as np
import pytest
from PIL import Image
from small_set import SIZE, Encoders

from lcm_jax import data
from lcm_jax.data import manifest, webdataset
from lcm_jax.data.check import check
from lcm_jax.data.encode import encode
from lcm_jax.data.example import split_of
from lcm_jax.data.loader import make_loader


def encoded(colour, kind="png", size=(8, 6)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


def shard(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def sample(stem, colour, caption, kind="png"):
    return [(f"{stem}.{kind}", encoded(colour, kind)), (f"{stem}.txt", caption.encode())]


@pytest.fixture
def folder(tmp_path):
    about = {"caption": "a blue\n square", "width": 8, "height": 6, "tags": ["blue"], "split": "validation"}
    shard(tmp_path / "s" / "0.tar", [*sample("a", "red", "a red square\n"), ("b.json", json.dumps(about).encode()),
                                     ("b.PNG", encoded("blue"))])  # fmt: skip
    shard(tmp_path / "s" / "1.tar", [*sample("sub/a", "green", "a green square", "webp"), ("._a.png", b"\0")])
    return tmp_path / "s"


def test_members_of_a_stem_are_one_example(folder):
    a, b, c = webdataset.examples(folder)
    assert [e.key for e in (a, b, c)] == ["0/a", "0/b", "1/sub/a"]
    assert [e.caption for e in (a, b, c)] == ["a red square", "a blue square", "a green square"]
    assert (b.tags, b.split, b.group) == (("blue",), split_of("0/b"), "0/b")
    assert a.load().shape == (6, 8, 3) and a.load()[0, 0].tolist() == [255, 0, 0]
    assert b.load()[0, 0].tolist() == [0, 0, 255] and abs(int(c.load()[0, 0, 1]) - 128) < 4
    assert [e.key for e in webdataset.examples(folder, tag="blue")] == ["0/b"]
    assert all(e.split == "heldout" for e in webdataset.examples(folder, heldout=1.0))
    assert check(webdataset.examples(folder), progress=False) == []


def test_a_pattern_a_file_and_a_list_name_shards_too(folder):
    keys = lambda where: [e.key for e in webdataset.examples(where)]
    assert keys(str(folder / "[0-9].tar")) == ["0/a", "0/b", "1/sub/a"]
    assert keys(folder / "1.tar") == ["1/sub/a"]
    assert keys([str(folder / "1.tar"), str(folder / "0.tar")]) == ["1/sub/a", "0/a", "0/b"]
    shard(folder / "more" / "0.tar", sample("a", "red", "again"))
    assert len(set(keys(folder))) == 4 and keys(folder)[-1] == "more/0/a"


def test_a_named_json_entry_goes_before_the_usual_ones(tmp_path):
    content = json.dumps({"caption": "short", "long": "a long one"}).encode()
    shard(tmp_path / "0.tar", [("a.png", encoded("red")), ("a.json", content)])
    assert webdataset.examples(tmp_path)[0].caption == "short"
    assert webdataset.examples(tmp_path, caption="long")[0].caption == "a long one"


# Six samples: KEY.png at 2048 KEY (header, data at + 512), KEY.txt at + 1024, nine bytes at + 1536; end at 12288.
@pytest.mark.parametrize(
    "end, left",
    [(12288, 6), (11785, 6), (11780, 5), (11264, 5), (10800, 5), (10300, 5), (10240, 5), (4690, 2), (1800, 1)],
)
def test_a_truncated_shard_yields_what_precedes_the_damage(tmp_path, end, left, caplog):
    path = shard(tmp_path / "0.tar", [m for i in range(6) for m in sample(f"{i}", "red", f"caption {i}")])
    whole = path.read_bytes()
    assert whole[10240:10245] == b"5.png" and not any(whole[12288:])
    path.write_bytes(whole[:end])
    with caplog.at_level(logging.WARNING):
        found = data.reader("webdataset", folder=tmp_path)
    assert [e.caption for e in found] == [f"caption {i}" for i in range(left)]
    assert all(e.load().shape == (6, 8, 3) for e in found)
    (damage,) = found.damage
    assert f"{path} is truncated or damaged after {left} samples" in damage and "\n" not in damage
    assert damage in caplog.text
    (problem,) = check(found, progress=False)
    assert str(problem) == f"data set: {damage}"


def test_a_corrupt_header_ends_a_shard_and_a_corrupt_image_only_itself(tmp_path):
    path = shard(tmp_path / "0.tar", [m for i in range(6) for m in sample(f"{i}", "red", f"caption {i}")])
    whole = bytearray(path.read_bytes())
    whole[2 * 2048 + 512 : 2 * 2048 + 560] = bytes(48)  # data of 2.png
    path.write_bytes(whole)
    found = webdataset.examples(tmp_path)
    assert len(found) == 6 and found.damage == ()
    (problem,) = check(found, progress=False)
    assert problem.where == "0/2" and "image 2.png in" in problem.what and "cannot be read" in problem.what
    assert str(path) in problem.what and "BytesIO" not in problem.what
    whole[4 * 2048 + 20] ^= 255  # header of 4.png
    path.write_bytes(whole)
    found = webdataset.examples(tmp_path)
    assert len(found) == 4 and f"after 4 samples: no tar header at byte {4 * 2048}" in found.damage[0]


def test_captions_that_are_missing_or_broken_are_named(tmp_path):
    shard(tmp_path / "0.tar", [("a.png", encoded("red")), ("b.txt", b"alone"), ("c.png", encoded("red")),
                               ("c.json", b"{oops"), ("d.png", encoded("red")), ("d.json", b"[1]"),
                               ("e.png", encoded("red")), ("e.json", b'{"url": "x"}')])  # fmt: skip
    found = webdataset.examples(tmp_path)
    assert [(e.key, e.caption) for e in found] == [("0/a", ""), ("0/c", ""), ("0/d", ""), ("0/e", "")]
    listed = [str(p) for p in check(found, progress=False)]
    assert sum("no caption" in line for line in listed) == 4
    for part in ("c.json is not JSON", "d.json is not a JSON object", "1 sample without an image, first b: txt"):
        assert sum(part in line for line in listed) == 1


def test_what_is_no_shard_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no .tar files at .*nowhere; give a folder"):
        webdataset.examples(tmp_path / "nowhere")
    (tmp_path / "0.tar").write_bytes(b"not a tar" * 200)
    with pytest.raises(ValueError, match="1 tar shards .* hold no images; .*0.tar cannot be read as a tar archive"):
        webdataset.examples(tmp_path)
    shard(tmp_path / "1.tar", sample("a", "red", "x"))
    found = webdataset.examples(tmp_path)
    assert [e.key for e in found] == ["1/a"] and "0.tar cannot be read" in found.damage[0]
    (example,) = found
    (tmp_path / "1.tar").unlink()
    with pytest.raises(ValueError, match="image a.png in .*1.tar cannot be read .*restore the shard"):
        example.load()
    shard(tmp_path / "t" / "0.tar", [("a.txt", b"x")])
    with pytest.raises(ValueError, match=r"hold no images; .*1 sample without an image"):
        webdataset.examples(tmp_path / "t")


def test_a_damaged_shard_is_encoded_without_what_is_broken(tmp_path):
    path = shard(tmp_path / "t" / "0.tar", [m for i in range(9) for m in sample(f"{i}", "red", f"caption {i}")])
    whole = bytearray(path.read_bytes())
    whole[2 * 2048 + 512 : 2 * 2048 + 560] = bytes(48)  # data of 2.png
    path.write_bytes(whole[: 7 * 2048 + 700])  # 7.png is cut off
    encoders, out = Encoders(), tmp_path / "out"
    stored = lambda broken: encode(
        webdataset.examples(path, heldout=0.0), encoders.images, encoders.text, out, SIZE, 4, 4,
        progress=False, size_ids=True, broken=broken,
    )  # fmt: skip
    with pytest.raises(ValueError, match="^[^ ]*0.tar is truncated or damaged after 7 .*; restore .* --broken skip$"):
        stored("stop")
    assert not out.exists()
    made = stored("skip")
    assert (made.counts, made.skipped) == ({"train": 6}, 2) and stored("skip") == made
    assert [row.key for row in manifest.rows(out)] == [f"0/{i}" for i in (0, 1, 3, 4, 5, 6)]
    (damage, line), (key, _) = manifest.skipped(out).items()
    assert (damage, key) == ("damaged file 1", "0/2") and f"{path} is truncated or damaged after 7 samples" in line
    assert check(out, progress=False) == []
    batch = next(make_loader(out, "train", 6))
    assert batch["time_ids"].tolist() == [[6, 8, 0, 3, SIZE, SIZE]] * 6  # 8 x 6 enlarged to 21.3 x 16


def test_all_damage_stops_an_encoding_and_what_is_mended_is_not_listed_any_more(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.tar").write_bytes(b"not a tar" * 200)
    shard(tmp_path / "d.tar", [m for i in range(5) for m in sample(f"{i}", "red", f"caption {i}")])
    encoders, out = Encoders(), tmp_path / "out"
    stored = lambda broken: encode(
        data.found("webdataset", folder=tmp_path, heldout=0.0), encoders.images, encoders.text, out, SIZE, 4, 4,
        progress=False, broken=broken,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"a.tar cannot be read as a tar archive .* \(and 2 more like it\); restore"):
        stored("stop")
    assert stored("skip").skipped == 3 and list(manifest.skipped(out)) == [f"damaged file {i}" for i in (1, 2, 3)]
    calls = len(encoders.batches)
    for name in "abc":
        (tmp_path / f"{name}.tar").unlink()
    assert stored("stop").skipped == 0 and manifest.skipped(out) == {} and len(encoders.batches) == calls


@pytest.mark.parametrize(
    "member, parts",
    [("a.png", ("a", "png")), ("./x/a.b.JPG", ("x/a", "b.jpg")), ("x.y/a.txt", ("x.y/a", "txt")),
     ("x/._a.png", ("", "_a.png")), ("a", ("a", ""))],
)  # fmt: skip
def test_a_stem_reaches_to_the_first_dot_of_the_name(member, parts):
    assert webdataset._parted(member) == parts


def test_nothing_is_read_of_an_image_until_it_is_loaded(folder, monkeypatch):
    loaded = []
    note = lambda look, content, name: loaded.append(name) or np.zeros(3)
    monkeypatch.setattr(webdataset.images.Look, "decode_bytes", note)
    found = webdataset.examples(folder)
    assert loaded == []
    found[0].load()
    assert loaded == [f"image a.png in {folder / '0.tar'}"]
