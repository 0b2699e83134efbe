"""Parquet files and folders saved by `datasets`: columns found or named, read lazily, and errors that list them."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from small_set import SIZE, Encoders

from lcm_jax.data import manifest, parquet
from lcm_jax.data.check import check
from lcm_jax.data.encode import encode

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def encoded(i):
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (i, 0, 0)).save(file, "png")
    return file.getvalue()


def columns(n, **more):
    return {"image": [{"bytes": encoded(i), "path": f"{i}.png"} for i in range(n)],
            "text": [f"caption {i}" for i in range(n)], **more}  # fmt: skip


def write(path, content, rows=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content if isinstance(content, pa.Table) else pa.table(content), path, row_group_size=rows)
    return path


def test_rows_are_examples(tmp_path):
    write(tmp_path / "a.parquet", columns(7, tags=[["odd"] if i % 2 else [] for i in range(7)]))
    write(tmp_path / "b.parquet", columns(2))
    found = parquet.examples(tmp_path)
    assert [e.key for e in found] == [f"a/{i}" for i in range(7)] + ["b/0", "b/1"]
    assert [e.caption for e in found[:7]] == [f"caption {i}" for i in range(7)]
    assert [e.load()[0, 0, 0] for e in found] == [*range(7), 0, 1]
    assert found[6].load().shape == (6, 8, 3)
    assert [e.key for e in parquet.examples(tmp_path, tag="odd")] == ["a/1", "a/3", "a/5"]
    assert {e.split for e in parquet.examples(tmp_path, heldout=1.0)} == {"heldout"}
    assert check(found, progress=False) == []


def test_files_named_as_splits_are_these(tmp_path):
    for name in ("data/train-00000-of-00001", "data/test-00000-of-00001", "data/validation-00000-of-00001"):
        write(tmp_path / "hub" / f"{name}.parquet", columns(20))
    for name in ("train/data-00000", "test/data-00000"):
        write(tmp_path / "disk" / f"{name}.parquet", columns(20))
    write(tmp_path / "alone" / "test-00000-of-00001.parquet", columns(20))
    splits = lambda folder: [e.split for e in parquet.examples(tmp_path / folder)]
    assert splits("hub") == ["heldout"] * 20 + ["train"] * 20 + ["heldout"] * 20
    assert splits("disk") == ["heldout"] * 20 + ["train"] * 20
    assert {e.split for e in parquet.examples(tmp_path / "disk", heldout=0.0)} == {"train"}
    write(tmp_path / "disk" / "validation_matched" / "data-00000.parquet", columns(20))
    assert splits("disk") == ["heldout"] * 20 + ["train"] * 20 + ["heldout"] * 20
    assert set(splits("alone")) == {"train", "heldout"}


def test_twins_of_another_ending_keep_it_in_their_keys(tmp_path):
    write(tmp_path / "a.parquet", columns(1))
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), pa.table(columns(1)).schema) as writer:
        writer.write_table(pa.table(columns(1)))
    assert [e.key for e in parquet.examples(tmp_path)] == ["a.arrow/0", "a.parquet/0"]


def test_raw_bytes_and_named_columns(tmp_path):
    content = {"picture": [encoded(5)], "words": ["a  five"], "image": ["x"], "text": [3.5]}
    path = write(tmp_path / "a.parquet", content)
    (example,) = parquet.examples(path, image="picture", caption="words")
    assert (example.caption, example.load()[0, 0, 0]) == ("a five", 5)


@pytest.mark.parametrize("form", ["stream", "file"])
def test_folders_that_datasets_saved(tmp_path, form):
    for split in ("train", "test"):
        path = tmp_path / split / "data-00000-of-00001.arrow"
        path.parent.mkdir()
        table = pa.table(columns(5))
        new = pa.ipc.new_stream if form == "stream" else pa.ipc.new_file
        with new(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
        (path.parent / "state.json").write_text("{}")
        (path.parent / "cache-123.arrow").write_bytes(b"something computed")
    found = parquet.examples(tmp_path)
    assert found.damage == ()
    assert [e.key for e in found[4:6]] == ["test/data-00000-of-00001/4", "train/data-00000-of-00001/0"]
    assert [e.load()[0, 0, 0] for e in found] == [0, 1, 2, 3, 4] * 2 and found[8].caption == "caption 3"


def test_several_captions_and_class_labels(tmp_path):
    write(tmp_path / "s.parquet", columns(2, text=[["first", "second"], []]))
    assert [e.caption for e in parquet.examples(tmp_path / "s.parquet")] == ["first", ""]
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table(columns(3, label=[1, 0, -1])).replace_schema_metadata(metadata)
    path = write(tmp_path / "l.parquet", table)
    assert [e.caption for e in parquet.examples(path, caption="label")] == ["a photo of a dog", "a photo of a cat", ""]
    assert parquet.examples(path, caption="label", template="{}")[0].caption == "dog"


def test_an_image_may_lie_beside_the_table(tmp_path):
    Image.new("RGB", (4, 4), (9, 0, 0)).save(tmp_path / "9.png")
    image = pa.array([{"bytes": None, "path": "9.png"}], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    write(tmp_path / "a.parquet", {"image": image, "text": ["x"]})
    assert parquet.examples(tmp_path / "a.parquet")[0].load()[0, 0, 0] == 9


def test_row_groups_are_read_once_in_order_and_not_kept(tmp_path, monkeypatch):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.parquet", columns(9))
    read = []
    group = parquet.Table.group
    monkeypatch.setattr(parquet.Table, "group", lambda t, n, c: read.append((t.path.stem, n)) or group(t, n, c))
    found = parquet.examples(tmp_path)
    assert read == []
    for example in found:
        example.load()
    assert read == [(name, n) for name in "ab" for n in range(3)]
    groups = found[0].load.args[1]
    found[0].load()
    assert len(groups._held) == parquet.HELD


@pytest.mark.parametrize(
    "content, options, message",
    [
        ({"text": ["x"]}, {}, r"a.parquet has no image column image or img or .*: name one as image=COLUMN"),
        ({"image": [b"x"], "prompt": ["x"]}, {}, r"no caption column text or caption; .*prompt \(string\): name one"),
        (columns(1), {"caption": "prompt"}, r"no caption column 'prompt'; its columns are image \(struct"),
        ({"image": [1], "text": ["x"]}, {}, r"image column 'image' of .* is of type int64: it must hold the bytes"),
        ({"image": ["a.png"], "text": ["x"]}, {}, "is of type string: it must hold the bytes"),
        ({"image": [{"path": "x"}], "text": ["x"]}, {}, "is of type struct<path: string>: it must"),
        (columns(1, text=[1.5]), {}, "caption column 'text' of .* is of type double, not text"),
        (columns(1, text=[1]), {}, "caption column 'text' of .* holds numbers without names"),
        (columns(0), {}, "holds no rows"),
    ],
)  # fmt: skip
def test_columns_that_are_missing_or_of_another_type(tmp_path, content, options, message):
    if not content.get("image", [0]):
        content = pa.table(columns(1)).slice(0, 0)
    write(tmp_path / "a.parquet", content)
    with pytest.raises(ValueError, match=message) as raised:
        parquet.examples(tmp_path, **options)
    assert "\n" not in str(raised.value)


def test_damaged_files_are_left_out_and_named(tmp_path):
    path = write(tmp_path / "b.parquet", columns(4))
    write(tmp_path / "a.parquet", columns(2))
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    found = parquet.examples(tmp_path)
    assert [e.key for e in found] == ["a/0", "a/1"]
    (problem,) = check(found, progress=False)
    assert "b.parquet cannot be read" in problem.what and "\n" not in problem.what
    with pytest.raises(ValueError, match="holds no rows; .*b.parquet cannot be read"):
        parquet.examples(path)
    (tmp_path / "c.arrow").write_bytes(b"nothing of the kind")
    assert "c.arrow cannot be read" in parquet.examples(tmp_path).damage[1]


def test_a_damaged_file_stops_an_encoding_or_is_listed(tmp_path):
    write(tmp_path / "a.parquet", columns(4))
    (tmp_path / "b.parquet").write_bytes(b"nothing of the kind")
    encoders, out = Encoders(), tmp_path / "out"
    stored = lambda broken: encode(
        parquet.examples(tmp_path, heldout=0.0), encoders.images, encoders.text, out, SIZE, 4, 4,
        progress=False, broken=broken,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"^[^ ]*b.parquet cannot be read .* what is damaged with --broken skip$"):
        stored("stop")
    assert stored("skip").skipped == 1
    assert "b.parquet cannot be read" in manifest.skipped(out)["damaged file 1"]


def test_broken_images_are_named_by_row(tmp_path):
    path = write(tmp_path / "a.parquet", {"image": [encoded(0), b"\x89PNG no more", None, b""], "text": ["x"] * 4})
    problems = [str(p) for p in check(parquet.examples(path), progress=False)]
    assert len(problems) == 3
    for row, problem in enumerate(problems, 1):
        assert problem.startswith(f"a/{row}: image in row {row} of {path} ") and "BytesIO" not in problem
    found = parquet.examples(path)
    path.unlink()
    with pytest.raises(ValueError, match="image in row 0 of .* cannot be read .*restore the file"):
        found[0].load()


def test_without_pyarrow_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match="the parquet reader needs pyarrow: pip install pyarrow"):
        parquet.examples(tmp_path)


def test_rows_decode_alike_from_many_threads(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    write(tmp_path / "a.parquet", columns(40), rows=4)
    with ThreadPoolExecutor(8) as pool:
        loaded = list(pool.map(lambda e: e.load()[0, 0, 0], parquet.examples(tmp_path)))
    np.testing.assert_array_equal(loaded, range(40))
