"""TensorFlow Datasets without tensorflow: a set written here by the library itself, and what is missing named."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from lcm_jax import data
from lcm_jax.data import tfds as reader


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ModuleNotFoundError, match="the tfds reader needs its library: pip install tensorflow-datasets"):
        reader.examples("tiny")


def encoded(i):
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (i, 0, 0)).save(file, "png")
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten images; the caption is a text, a class or the first of several."""
    tfds = pytest.importorskip("tensorflow_datasets")
    images = tfds.features.Image()

    class TinyPictures(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"image": images, "mask": tfds.features.Image(), "text": tfds.features.Text(),
                        "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                        "captions": tfds.features.Sequence({"text": tfds.features.Text()})}  # fmt: skip
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples(10), "test": self._generate_examples(2)}

        def _generate_examples(self, n):
            for i in range(n):
                several = [{"text": f"first {i}"}, {"text": "second"}]
                yield i, {"image": encoded(i), "mask": b"no image at all", "text": f"picture {i}", "label": i % 2,
                          "captions": several}  # fmt: skip

    where = tmp_path_factory.mktemp("tfds")
    TinyPictures(data_dir=str(where), file_format="array_record").download_and_prepare()
    return where


def test_images_and_captions_of_any_kind(folder):
    found = data.reader("tfds", name="tiny_pictures", data_dir=str(folder))
    assert [e.key for e in found] == [f"train/{i}" for i in range(10)]
    assert sorted(e.caption for e in found) == [f"picture {i}" for i in range(10)]
    for example in found:
        image = example.load()
        assert image.shape == (6, 8, 3) and image.dtype == np.uint8
        assert example.caption == f"picture {image[0, 0, 0]}"
    assert "tensorflow" not in sys.modules
    for caption, expected in [("label", {"a photo of a cat", "a photo of a dog"}), ("captions/text", {
        f"first {i}" for i in range(10)
    })]:  # fmt: skip
        named = reader.examples("tiny_pictures", data_dir=folder, caption=caption)
        assert {e.caption for e in named} == expected
    for example in found:  # the class of the feature `label`, unless another is named
        assert example.label == ("cat", "dog")[int(example.caption.split()[1]) % 2]
    assert found.classes == ("cat", "dog")
    some = reader.examples("tiny_pictures:1.0.0", "train[:40%]+test", data_dir=folder, heldout=1.0)
    assert len(some) == 6 and {e.split for e in some} == {"heldout"}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"split": "validation"}, "'tiny_pictures', split 'validation': Unknown split"),
        ({"name": "nosuch_set"}, "'nosuch_set', split 'train': Dataset nosuch_set not found"),
        ({"image": "picture"}, r"no image feature 'picture'; it has .*image \(Image\).*: name one as image=KEY"),
        ({"image": "label"}, r"feature 'label' of tiny_pictures is no image; it has .*image \(Image\)"),
        ({"caption": "captions/words"}, r"no caption feature 'captions/words'; it has .*captions \(Sequence\)"),
    ],
)
def test_what_is_not_there_is_named(folder, options, message):
    with pytest.raises(ValueError, match=message) as raised:
        reader.examples(**{"name": "tiny_pictures", "data_dir": folder, **options})
    assert "\n" not in str(raised.value)
