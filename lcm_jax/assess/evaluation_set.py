"""Captions to generate from and the real images to hold the results against, at equal numbers."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lcm_jax import data
from lcm_jax.assess.reference_statistics import RealImages, of_loads
from lcm_jax.data import latent_copy, manifest
from lcm_jax.data.crop import Crop
from lcm_jax.data.example import HELDOUT, TRAIN
from lcm_jax.data.latent_rows import LatentRows
from lcm_jax.evaluate.features import Images
from lcm_jax.models.edm_spec import EDMSpec
from lcm_jax.models.spec import ModelSpec

SPLITS = (HELDOUT, TRAIN)


@dataclass(frozen=True, eq=False)
class Captioned:
    """Real images with everything that is asked about them, row by row."""

    keys: Sequence[str]
    captions: Sequence[str]
    groups: Sequence[str]
    images: Images
    condition: Mapping[str, np.ndarray]  # context [n, l, d][, pooled [n, p]] of the captions
    labels: np.ndarray | None = None  # numbers of the classes, int32 [n], of a labelled set

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, index: np.ndarray) -> "Captioned":
        """The rows at `index`, in that order."""
        keys, captions, groups = ([names[i] for i in index] for names in (self.keys, self.captions, self.groups))
        condition = {name: values[index] for name, values in self.condition.items()}
        labels = None if self.labels is None else self.labels[index]
        return Captioned(keys, captions, groups, self.images[index], condition, labels)


@dataclass(frozen=True, eq=False)
class EvaluationSet:
    """One split, whole, with the row numbers of what is generated and of the floor; both of equal number."""

    whole: Captioned
    train: Captioned
    chosen: np.ndarray  # rows of `whole` whose captions are generated
    other: np.ndarray  # rows of `train` in other groups


def open_folder(
    folder: str | Path,
    reader: str | None,
    options: Mapping[str, Any],
    spec: ModelSpec | EDMSpec,
    tag: str | None = None,
    progress: bool = True,
) -> tuple[dict[str, Captioned], dict[str, np.ndarray]]:
    """`read` at a model's image size, and the condition of the empty caption.

    Without a `reader`, the one the folder says it was encoded with; `options` go before those it was encoded
    with. Raises ValueError when the folder does not fit the model, or names no reader.
    """
    folder, reader, options = source(folder, reader, options, spec)
    found = read(folder, reader, options, spec.image_size, tag, progress)
    return found, {k: v for k, v in manifest.unconditionals(folder).items() if k != "tokens"}


def training_pictures(
    folder: str | Path,
    options: Mapping[str, Any],
    spec: ModelSpec | EDMSpec,
    tag: str | None = None,
    progress: bool = True,
) -> RealImages:
    """All pictures that the training latents of a folder (with `tag`) were made of, as they were made, never all held.

    `options` go before those the folder was encoded with. Raises ValueError as `open_folder` does.
    """
    folder, reader, options = source(folder, None, options, spec)
    rows = LatentRows([folder], split=TRAIN, tag=tag)
    return of_loads(loads(rows, reader, options, spec.image_size), progress)


def source(
    folder: str | Path, reader: str | None, options: Mapping[str, Any], spec: ModelSpec | EDMSpec
) -> tuple[Path, str, dict[str, Any]]:
    """A latent folder on this machine that fits a model, and the reader of its pictures with its options."""
    folder = latent_copy.here(folder)
    made = manifest.read(folder)
    told = {} if isinstance(spec, EDMSpec) else {"context_width": spec.unet.context_width}
    manifest.check_fits(made, spec.latent_shape, **told)
    if isinstance(spec, EDMSpec):
        manifest.check_classes(made.classes, spec.network.classes, spec.classes)
    reader = reader or made.dataset.get("reader")
    if reader == made.dataset.get("reader"):
        options = {**made.dataset.get("options", {}), **options}
    if not reader:
        raise ValueError(f"{folder} does not say which reader its images came from: give --reader")
    return Path(folder), reader, dict(options)


def read(
    folder: str | Path,
    reader: str,
    options: Mapping[str, Any],
    image_size: int,
    tag: str | None = None,
    progress: bool = True,
) -> dict[str, Captioned]:
    """Split -> rows of a latent folder that carry `tag`, in its order, with the reader's images at `image_size`.

    Raises ValueError when the reader lacks a key of the folder; unreadable images name their file.
    """
    rows = LatentRows([folder], tag=tag)
    names = [rows.names[i] for i in rows.chosen]
    with ThreadPoolExecutor(4) as pool:
        loaded = pool.map(lambda load: load(), loads(rows, reader, options, image_size))
        images = np.stack(list(tqdm(loaded, "images", len(rows), unit="image", disable=not progress)))
    stored = rows.batch(np.arange(len(rows)))
    told = {name: stored[name] for name in ("context", "pooled") if name in stored}
    named = [r.key for r in names], [r.caption for r in names], [r.group for r in names]
    whole = Captioned(*named, images, told, stored.get("label"))
    places = {split: np.array([i for i, r in enumerate(names) if r.split == split], int) for split in SPLITS}
    return {split: whole.take(index) for split, index in places.items()}


def loads(
    rows: LatentRows, reader: str, options: Mapping[str, Any], image_size: int
) -> list[Callable[[], np.ndarray]]:
    """What reads the picture of each row, uint8 [image_size, image_size, 3], cropped as its latents were.

    Raises ValueError when the reader lacks a key of the rows.
    """
    names = [rows.names[i] for i in rows.chosen]
    examples = {e.key: e for e in data.reader(reader, **options)}
    if missing := [row.key for row in names if row.key not in examples]:
        raise ValueError(
            f"reader {reader!r} lacks {len(missing)} of the images encoded in {rows.folders[0]}, first "
            f"{missing[0]!r}: give the reader and the options that the folder was encoded with"
        )
    crop = Crop(image_size, image_size, **(rows.manifests[0].crop or {}))
    return [lambda e=examples[row.key]: crop(e.load(), e.key)[0] for row in names]


def choose(
    found: Mapping[str, Captioned], splits: Sequence[str], limit: int | None = None
) -> dict[str, EvaluationSet]:
    """Equal numbers everywhere: all held-out images, if they are asked for, unless `limit` or half of the
    training set is fewer.

    Whole groups are drawn with a fixed seed, so two runs see the same images; training images to generate and
    those of the floor share no group. Raises ValueError for an unknown or empty split or too few images.
    """
    for split in splits:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; choose {' or '.join(SPLITS)}")
        if not len(found[split]):
            raise ValueError(f"the data set has no rows in split {split!r}: leave it out of --splits")
    train, heldout = found[TRAIN], found[HELDOUT]
    order = shuffled(train.groups)
    n = min(x for x in (limit, len(heldout) if HELDOUT in splits else None, len(train) // 2) if x is not None)
    if n < 8:
        raise ValueError(f"only {n} images to score; scores need at least 8: raise --limit or encode more images")
    first = order[:n]
    taken = {train.groups[i] for i in first}
    other = np.array([i for i in order[n:] if train.groups[i] not in taken], int)[:n]
    if len(other) < n:
        raise ValueError(f"the training set has no {2 * n} images in different groups: lower --limit below {n}")
    sets = {}
    for split in splits:
        whole = found[split]
        chosen = first if split == TRAIN else np.sort(shuffled(whole.groups)[:n])
        sets[split] = EvaluationSet(whole, train, chosen, other)
    return sets


def shuffled(groups: Sequence[str]) -> np.ndarray:
    """Row numbers, groups in a random but fixed order, the rows of one next to each other."""
    names = sorted(set(groups))
    rank = dict(zip(names, np.random.default_rng(0).permutation(len(names)).tolist(), strict=True))
    return np.array(sorted(range(len(groups)), key=lambda i: (rank[groups[i]], i)), int)
