"""Frechet distances of many resamples from inner products alone: a bootstrap in seconds, not minutes."""

import numpy as np
from jaxtyping import Float


def frechet_resampled(
    real: Float[np.ndarray, "n d"],
    fake: Float[np.ndarray, "m d"],
    real_weights: Float[np.ndarray, "r n"],
    fake_weights: Float[np.ndarray, "r m"],
) -> Float[np.ndarray, " r"]:
    """`frechet_distance` of r resamples; a weight says how often a sample was drawn.

    Means, traces and the product of the two factors are all sums of x_i . x_j, so the width d is met once.
    Raises ValueError when a resample holds fewer than two samples.
    """
    centre = real.mean(0, dtype=np.float64)  # near the origin, differences of squares round less
    x, y = real - centre, fake - centre
    xx, xy, yy = x @ x.T, x @ y.T, y @ y.T
    u, v = np.asarray(real_weights, np.float64), np.asarray(fake_weights, np.float64)
    if min(u.sum(1).min(), v.sum(1).min()) < 2:
        raise ValueError("a covariance needs at least 2 samples on each side: generate more")
    a, b = u / u.sum(1, keepdims=True), v / v.sum(1, keepdims=True)
    inner = lambda p, gram, q: np.einsum("rn,rn->r", p @ gram, q)
    means = inner(a, xx, a) - 2 * inner(a, xy, b) + inner(b, yy, b)
    cross = np.array([_cross(xy, *each) for each in zip(u, v, a, b, strict=True)])
    return means + _trace(xx, u, a, inner) + _trace(yy, v, b, inner) - 2 * cross


def _trace(gram: np.ndarray, count: np.ndarray, share: np.ndarray, inner) -> np.ndarray:
    """Tr S = sum of |x_i - mean|^2 / (n - 1), one a resample."""
    total = count.sum(1)
    return (count @ np.diag(gram) - total * inner(share, gram, share)) / (total - 1)


def _cross(xy: np.ndarray, u: np.ndarray, v: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """Tr (S1 S2)^(1/2): the sum of the singular values of the two factors' product."""
    rows, columns = u > 0, v > 0
    centred = xy - (a @ xy)[None] - (xy @ b)[:, None] + a @ xy @ b
    product = centred[np.ix_(rows, columns)]
    product *= np.sqrt(u[rows] / (u.sum() - 1))[:, None] * np.sqrt(v[columns] / (v.sum() - 1))[None]
    return float(np.linalg.svd(product, compute_uv=False).sum())
