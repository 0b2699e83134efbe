"""Caption retrieval: do the real images nearest to a generated one carry its label?"""

from collections import Counter
from collections.abc import Sequence
from math import comb
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int


class Retrieval(NamedTuple):
    """Per query whether one of the first k neighbours matched, and the mean rate of blind guessing."""

    hits: Bool[np.ndarray, " m"]
    chance: float

    @property
    def rate(self) -> float:
        return float(self.hits.mean())


def neighbours(
    generated: Float[np.ndarray, "m d"], real: Float[np.ndarray, "n d"], k: int
) -> Int[np.ndarray, "m k"]:
    """Indices of the k real features nearest to each generated one by cosine, nearest first.

    Raises ValueError when there are fewer than k reals.
    """
    if len(real) < k:
        raise ValueError(f"{k} neighbours asked of {len(real)} real images: lower k or encode more images")
    cosine = unit(generated) @ unit(real).T
    return np.argsort(-cosine, axis=1, kind="stable")[:, :k]


def retrieval(nearest: Int[np.ndarray, "m k"], wanted: Sequence[str], labels: Sequence[str]) -> Retrieval:
    """Scores `neighbours` by any label: captions, or groups such as the base emoji.

    `wanted` [m]: the labels asked for; `labels` [n]: those of the real images. Top-1: give nearest[:, :1].
    Chance is drawing k different reals blindly: 1 - C(n - matches, k) / C(n, k), averaged over the queries.
    """
    found = np.asarray(labels, object)[nearest] == np.asarray(wanted, object)[:, None]
    counts, n, k = Counter(labels), len(labels), nearest.shape[1]
    chance = [1 - comb(n - counts[label], k) / comb(n, k) for label in wanted]
    return Retrieval(found.any(1), float(np.mean(chance)))


def unit(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """The directions of rows, in float64."""
    x = np.asarray(x, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
