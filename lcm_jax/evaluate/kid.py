"""Kernel distance (KID): unbiased squared MMD with the kernel (x.y / d + 1)^3 (arXiv 1801.01401, sec. 4)."""

import numpy as np
from jaxtyping import Float

Features = Float[np.ndarray, "n d"]


def kid(real: Features, fake: Float[np.ndarray, "m d"]) -> float:
    """Unbiased estimate over all pairs of different samples; 0 on average for equal laws, at times negative.

    Raises ValueError for fewer than two samples on either side.
    """
    return float(kid_resampled(real, fake, np.ones((1, len(real))), np.ones((1, len(fake))))[0])


def kid_resampled(
    real: Features,
    fake: Float[np.ndarray, "m d"],
    real_weights: Float[np.ndarray, "r n"],
    fake_weights: Float[np.ndarray, "r m"],
) -> Float[np.ndarray, " r"]:
    """`kid` of r resamples at once; a weight says how often a sample was drawn; it never meets itself.

    Raises ValueError when a resample holds fewer than two different samples.
    """
    x, y = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    u, v = np.asarray(real_weights, np.float64), np.asarray(fake_weights, np.float64)
    cross = np.einsum("rm,rm->r", u @ kernel(x, y), v) / (u.sum(1) * v.sum(1))
    return _within(x, u) + _within(y, v) - 2 * cross


def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The kernel of every pair of rows."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def _within(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    pairs = weights.sum(1) ** 2 - np.square(weights).sum(1)
    if not (pairs > 0).all():
        raise ValueError("a kernel distance needs at least 2 different samples on each side: generate more")
    k = kernel(x, x)
    np.fill_diagonal(k, 0.0)
    return np.einsum("rn,rn->r", weights @ k, weights) / pairs
