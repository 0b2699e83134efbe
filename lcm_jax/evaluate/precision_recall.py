"""Precision and recall by k-nearest-neighbour manifolds (arXiv 1904.06991, eq. 1 and 2)."""

import numpy as np
from jaxtyping import Bool, Float

_ROWS = 1024  # queries a block: bounds the memory of the distance table


def covered(
    support: Float[np.ndarray, "n d"], queries: Float[np.ndarray, "m d"], k: int = 3
) -> Bool[np.ndarray, " m"]:
    """Whether each query lies within reach of a support sample: no farther than that one's k-th neighbour.

    Raises ValueError when the support has no k neighbours.
    """
    if len(support) <= k:
        raise ValueError(f"{len(support)} samples have no {k} neighbours each: generate more or lower k")
    centre = support.mean(0, dtype=np.float64)  # near the origin, the squared distances round less
    x, y = support - centre, queries - centre
    blocks = range(0, len(x), _ROWS)
    # The nearest neighbour of a sample is itself, at index 0.
    reach = np.concatenate([np.partition(_squared(x[i : i + _ROWS], x), k, axis=1)[:, k] for i in blocks])
    hits = np.zeros(len(y), bool)
    for i in range(0, len(y), _ROWS):
        hits[i : i + _ROWS] = (_squared(y[i : i + _ROWS], x) <= reach).any(1)
    return hits


def precision_recall(
    real: Float[np.ndarray, "n d"], fake: Float[np.ndarray, "m d"], k: int = 3
) -> tuple[float, float]:
    """Share of fakes among the reals' manifold, and of reals among the fakes'."""
    return float(covered(real, fake, k).mean()), float(covered(fake, real, k).mean())


def _squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.square(a).sum(1)[:, None] + np.square(b).sum(1)[None] - 2 * a @ b.T
