"""Confidence intervals that respect groups: whole groups are drawn anew, never single members of one.

The skin tones of one emoji are nearly copies; resampling them singly would make intervals too narrow.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Interval(NamedTuple):
    """Bounds of a percentile interval."""

    low: float
    high: float


def group_weights(resamples: int, seed: int, *sets: Sequence[str]) -> tuple[Float[np.ndarray, "r _"], ...]:
    """How often each sample occurs in each resample, for one or more sets of samples given by their groups.

    One draw with replacement over the groups of all sets together, so real and generated images of a group
    come and go together, and two methods given the same groups and seed are compared on the same resamples.
    Raises ValueError for fewer than two groups.
    """
    names = sorted(set().union(*sets))
    if len(names) < 2:
        raise ValueError(f"{len(names)} group: an interval over groups needs at least 2")
    uniform = np.full(len(names), 1 / len(names))
    draws = np.random.default_rng(seed).multinomial(len(names), uniform, resamples)
    column = {name: i for i, name in enumerate(names)}
    return tuple(draws[:, [column[name] for name in groups]].astype(np.float64) for groups in sets)


def resampled_mean(
    values: Float[np.ndarray, " n"], weights: Float[np.ndarray, "r n"]
) -> Float[np.ndarray, " r"]:
    """The mean of per-sample values (hits, say, as 0.0 and 1.0) in each resample; nan where one is empty."""
    total = weights.sum(1)
    return np.divide(weights @ values, total, out=np.full(len(total), np.nan), where=total > 0)


def interval(resampled: Float[np.ndarray, " r"], level: float = 0.95) -> Interval:
    """The central percentile interval of a resampled statistic.

    Raises ValueError for a statistic that is not finite or a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level {level} lies outside (0, 1); 0.95 is usual")
    if not np.isfinite(resampled).all():
        raise ValueError("a resampled statistic is nan or inf: there are too few groups for an interval")
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
