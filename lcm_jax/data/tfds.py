"""Reader of TensorFlow Datasets by name, through `tensorflow_datasets.data_source`: no tensorflow is needed."""

import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from lcm_jax.data import images
from lcm_jax.data.example import Example, Found, described, with_tag

CAPTIONS = ("text", "caption", "captions", "label")  # tried in this order when none is named


def examples(
    name: str,
    split: str = "train",
    image: str = "image",
    caption: str | None = None,
    label: str | None = None,
    template: str = "a photo of a {}",
    data_dir: str | Path | None = None,
    download: bool = False,
    tag: str | None = None,
    heldout: float = 0.1,
    look: images.Look = images.PLAIN,
) -> list[Example]:
    """Every example of `split` ("train", "train[:10%]", "train+test") of the set `name` ("mnist", "coco:1.1.0").

    `image` and `caption` are keys of its features, a/b for b within a; of several captions the first is taken,
    and a class label's name goes into `template`. Labels are those of the class feature `label`, by default of
    one of that name. The set lies in `data_dir` as ArrayRecord, or is prepared
    there with `download`. Keys are SPLIT/NUMBER. Captions are held, which reads the set once; images are read
    and decoded by `load`.
    Raises ModuleNotFoundError without tensorflow_datasets and ValueError when the set, the split or a feature
    is not there (with the features there are).
    """
    tfds = _tensorflow_datasets()
    source = partial(tfds.data_source, name, split=split, data_dir=data_dir, download=download)
    try:
        features = source().dataset_info.features
    except Exception as error:  # of many kinds, among them lists of a thousand known names
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        hint = "" if download else ", prepare it as array_record, or let download=true do it"
        raise ValueError(f"TFDS data set {name!r}, split {split!r}: {reason}; check name and data_dir{hint}") from error
    if not isinstance(_feature(features, image, name, "image"), tfds.features.Image):
        raise ValueError(f"feature {image!r} of {name} is no image; it has {_listed(features)}: name one as image=KEY")
    caption = caption or next((c for c in CAPTIONS if c in features), "caption")
    names = getattr(_feature(features, caption, name, "caption"), "names", None)
    if label is None and "label" in features and getattr(features["label"], "names", None):
        label = "label"
    classes = () if label is None else getattr(_feature(features, label, name, "label"), "names", None)
    if classes is None:
        raise ValueError(f"feature {label!r} of {name} is no class; it has {_listed(features)}: name one as label=KEY")

    # Images, masks and the like stay a file's bytes until they are asked for.
    files = source(decoders=_undecoded(features, tfds))
    found, lock = [], threading.Lock()
    for number in range(len(files)):
        example = files[number]
        text, number_of = _value(example, caption), _value(example, label) if classes else -1
        if names:
            labels = [n for n in np.ravel(text) if 0 <= n < len(names)]
            text = template.format(names[labels[0]]) if labels else ""
        load = partial(_load, look, files, number, image, f"image {number} of {name}/{split}", lock)
        about = {"label": classes[number_of]} if 0 <= number_of < len(classes) else {}
        found.append(described(f"{split}/{number}", text, load, about, heldout))
    if not found:
        raise ValueError(f"TFDS data set {name!r} has no examples in split {split!r}")
    return with_tag(Found(found, classes=classes), tag)


def _load(look: images.Look, files: Any, number: int, image: str, where: str, lock: Any) -> np.ndarray:
    with lock:
        content = _value(files[number], image)
    return look.decode_bytes(content, where)


def _undecoded(features: Any, tfds: ModuleType) -> dict:
    """Decoders that leave every image of a tree of features as it is stored."""
    found = {}
    for key, feature in features.items():
        if isinstance(feature, tfds.features.Image):
            found[key] = tfds.decode.SkipDecoding()
        elif isinstance(feature, tfds.features.FeaturesDict):
            found[key] = _undecoded(feature, tfds)
    return found


def _value(example: Mapping[str, Any], key: str) -> Any:
    for part in key.split("/"):
        example = example[part]
    return example


def _feature(features: Any, key: str, name: str, what: str) -> Any:
    """The feature at a/b; sequences of features are looked through."""
    found = features
    for part in key.split("/"):
        found = getattr(found, "feature", found)
        if not hasattr(found, "keys") or part not in found.keys():
            raise ValueError(
                f"{name} has no {what} feature {key!r}; it has {_listed(features)}: name one as {what}=KEY"
            )
        found = found[part]
    return found


def _listed(features: Any) -> str:
    return ", ".join(f"{key} ({type(feature).__name__})" for key, feature in features.items())


def _tensorflow_datasets() -> ModuleType:
    try:
        import tensorflow_datasets
    except ImportError:
        raise ModuleNotFoundError("the tfds reader needs its library: pip install tensorflow-datasets") from None
    return tensorflow_datasets
