"""Kernel distance of two sets whose i-th members share a caption (U-statistic of Gretton et al. 2012, eq. 5).

An image and the real one of its own caption are alike beyond their laws, so that pair is left out; kept in, it
would lower the distance of every model that listens to its caption, below 0 for a perfect one.
"""

import numpy as np
from jaxtyping import Float

from lcm_jax.evaluate.kid import kernel


def kid_paired(
    real: Float[np.ndarray, "n d"], fake: Float[np.ndarray, "n d"], weights: Float[np.ndarray, "r n"]
) -> Float[np.ndarray, " r"]:
    """The distance in r resamples; a weight says how often a caption was drawn. Rows of ones give the estimate.

    Raises ValueError when a resample holds fewer than two different captions.
    """
    x, y, w = (np.asarray(a, np.float64) for a in (real, fake, weights))
    pairs = w.sum(1) ** 2 - np.square(w).sum(1)
    if not (pairs > 0).all():
        raise ValueError("a kernel distance needs at least 2 different captions: generate more")
    cross = kernel(x, y)
    h = kernel(x, x) + kernel(y, y) - cross - cross.T
    np.fill_diagonal(h, 0.0)
    return np.einsum("rn,rn->r", w @ h, w) / pairs
