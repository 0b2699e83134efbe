"""Shuffled batches of pictures held in memory, for training an autoencoder."""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Integer
from tqdm import tqdm

from lcm_jax.data import images, reader
from lcm_jax.data.example import TRAIN, Example
from lcm_jax.data.loader import Loader, stream
from lcm_jax.data.manifest import Row

DECODING = 4  # threads


class ImageRows:
    """Every example decoded once, uint8 [n, size, size, 3]."""

    def __init__(self, examples: Sequence[Example], size: int):
        def load(example: Example) -> np.ndarray:
            return images.fit(example.load(), size)

        with ThreadPoolExecutor(DECODING) as pool:
            loaded = pool.map(load, examples)
            bar = tqdm(loaded, "decode", len(examples), unit="image", dynamic_ncols=True)
            self.pixels = np.stack(list(bar))
        self.names = [Row(e.key, e.caption, e.group, e.split, e.tags) for e in examples]
        self.chosen = np.arange(len(examples), dtype=np.int32)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def fingerprint(self) -> str:
        """Short hash of which examples there are, in order."""
        return hashlib.sha256("\n".join(row.key for row in self.names).encode()).hexdigest()[:16]

    def batch(self, positions: Integer[np.ndarray, " b"]) -> dict[str, np.ndarray]:
        """{"image": uint8 [b, h, w, 3], "index": int32 [b]}."""
        return {"image": self.pixels[positions], "index": self.chosen[positions]}


def training_images(
    reader_name: str, image_size: int, split: str | None = TRAIN, options: Mapping[str, Any] | None = None
) -> ImageRows:
    """A reader's images of one split (None: of all), decoded; raises ValueError if there are none."""
    examples = [e for e in reader(reader_name, **(options or {})) if split is None or e.split == split]
    if not examples:
        raise ValueError(f"the data set is empty: reader {reader_name!r} has no examples of split {split!r}")
    return ImageRows(examples, image_size)


def make_image_loader(
    reader_name: str,
    image_size: int,
    batch_size: int,
    split: str | None = TRAIN,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    own: np.ndarray | None = None,
    each: str = "examples",
    threads: int = 2,
) -> Loader:
    """Batches of `training_images`, an epoch visiting `each` as in `make_loader`.

    Raises ValueError if there are none or too few.
    """
    rows = training_images(reader_name, image_size, split, options)
    return stream(rows, batch_size, seed, own, None, True, each, threads)
