"""Features of image sets through any feature network, kept on disk for the sets that never change."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

BATCH = 60

Images = UInt8[np.ndarray, "n h w 3"]
Set = UInt8[np.ndarray, "_ _ _ 3"]  # images of one of many sets, whose numbers and sizes may differ
Features = Float[np.ndarray, "n d"]


@dataclass(frozen=True)
class FeatureNet:
    """A frozen network that scores look through; the name goes into every score's name."""

    name: str  # such as "MobileNetV2": the distance is then FD-MobileNetV2
    hash: str  # of its weights and sizes
    apply: Callable[..., Any]  # compiled: uint8 pixels [b, h, w, 3] -> features [b, d]
    resize: str = ""  # how pictures come to the network's size, in words: part of what a score is comparable under


def extract(net: FeatureNet, images: Images, batch: int = BATCH, progress: bool = False) -> Features:
    """Features [n, d] float32 of the images; the last batch is padded, so that one compilation serves all.

    Raises ValueError for no images or features that are not finite.
    """
    if not len(images):
        raise ValueError("no images to take features of")
    with tqdm(total=len(images), unit="image", desc=net.name, disable=not progress, dynamic_ncols=True) as bar:
        return np.concatenate(list(feature_batches(net, [images], batch, bar.update)))


def feature_batches(
    net: FeatureNet, sets: Iterable[Set], batch: int = BATCH, done: Callable[[int], object] = int
) -> Iterator[Float[np.ndarray, "_ d"]]:
    """Features [b, d] float32 batch by batch; of the images only those under way are held. `done(n)` hears of each n.

    The network works on one batch while the one before is taken from it. The last batch of each set is padded: give
    sets of a multiple of `batch`. Raises ValueError for features that are not finite.
    """
    waiting: tuple[Any, int] | None = None

    def finish(result: Any, used: int) -> Features:
        features = np.asarray(result, np.float32)[:used]
        if not np.isfinite(features).all():
            raise ValueError(f"{net.name} gives nan or inf for some images: look at the images that gave them")
        done(used)
        return features

    for images in sets:
        for start in range(0, len(images), batch):
            some = images[start : start + batch]
            padded = np.concatenate([some, np.repeat(some[-1:], batch - len(some), axis=0)])
            started = net.apply(padded), len(some)
            if waiting is not None:
                yield finish(*waiting)
            waiting = started
    if waiting is not None:
        yield finish(*waiting)


def cached(net: FeatureNet, images: Images, folder: str | os.PathLike, progress: bool = False) -> Features:
    """`extract`, read from `folder` when these very pixels went through this very network before."""
    path = Path(folder) / f"{net.name}-{fingerprint(net.hash, images)}.npy"
    if path.exists():
        try:
            kept = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):  # half-written or damaged: it is made anew
            kept = np.zeros((0, 0), np.float32)
        if len(kept) == len(images):
            return kept
    features = extract(net, images, progress=progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with scratch.open("wb") as file:
        np.save(file, features)
    scratch.replace(path)
    return features


def fingerprint(*parts: str | np.ndarray) -> str:
    """Sixteen hex digits that tell texts and arrays (bytes, shape and type) from all others."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(f"text {len(part)}\n{part}".encode())
        else:
            digest.update(f"{part.dtype} {part.shape}\n".encode())
            digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)  # bfloat16 is no buffer itself
    return digest.hexdigest()[:16]
