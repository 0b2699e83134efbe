"""Frechet distance between two sets of features, each taken as a Gaussian (arXiv 1706.08500, eq. 6).

|m1 - m2|^2 + Tr(S1) + Tr(S2) - 2 Tr((S1 S2)^(1/2)), all in float64. With S = F F^T the last trace is the
sum of the singular values of F1^T F2: no root of a rounded product is taken, so singular covariances (fewer
samples than features) are exact and equal sets have distance 0 to rounding.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Moments(NamedTuple):
    """A Gaussian: its mean and any factor F of its covariance F F^T."""

    mean: Float[np.ndarray, " d"]
    factor: Float[np.ndarray, "d k"]


def moments(features: Float[np.ndarray, "n d"], weights: Float[np.ndarray, " n"] | None = None) -> Moments:
    """Mean and unbiased covariance; `weights` counts each row that many times (for the bootstrap).

    Raises ValueError for fewer than two rows or numbers that are not finite.
    """
    x = _finite(features)
    count = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    x, count = x[count > 0], count[count > 0]
    total = count.sum()
    if total < 2:
        raise ValueError(f"a covariance needs at least 2 samples, got {total:g}: generate more")
    mean = count @ x / total
    rows = (x - mean) * np.sqrt(count / (total - 1))[:, None]
    if len(rows) > 2 * rows.shape[1]:  # so many that their covariance is as good a start, and much cheaper
        return moments_of(mean, rows.T @ rows)
    if len(rows) > rows.shape[1]:  # R of the QR decomposition has the same R^T R, and is smaller
        rows = np.linalg.qr(rows, mode="r")
    return Moments(mean, rows.T)


def moments_of(mean: Float[np.ndarray, " d"], covariance: Float[np.ndarray, "d d"]) -> Moments:
    """Moments from a mean and a covariance: its Cholesky factor, which is ten times cheaper than eigenvectors.

    A singular covariance has none; there, tiny negative eigenvalues (rounding) are taken as 0.
    """
    mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
    try:
        return Moments(mean, np.linalg.cholesky(covariance))
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(covariance)
        return Moments(mean, vectors * np.sqrt(np.maximum(values, 0.0)))


def frechet_distance(a: Moments, b: Moments) -> float:
    """The squared distance (what papers call FID for Inception features); squared units of the features."""
    cross = np.linalg.svd(a.factor.T @ b.factor, compute_uv=False).sum()
    spread = np.square(a.factor).sum() + np.square(b.factor).sum() - 2 * cross
    return float(np.square(a.mean - b.mean).sum() + spread)


def _finite(features: np.ndarray) -> np.ndarray:
    if not np.isfinite(features).all():
        raise ValueError("features hold nan or inf: look at the images that gave them")
    return np.asarray(features, np.float64)
