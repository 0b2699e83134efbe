"""Mean and covariance of features that are never held together: taken batch by batch, merged over hosts.

Why it is exact: features are float32 and all sums float64. Each batch is centred on its own mean and brought to the
common one by the identity of Chan, Golub and LeVeque (1983, eq. 2.1), which is no approximation: no large equal
numbers are subtracted, so only the rounding of float64 additions remains - about 1e-15 of the largest variance,
whatever the number of images, the batches and the hosts they lay on.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float

from lcm_jax.evaluate.features import BATCH, FeatureNet, Features, Set, feature_batches
from lcm_jax.evaluate.frechet import Moments, moments_of

_ROWS = 64  # of the scatter that all hosts exchange at a time: 64 x 2048 numbers are 1 MB a host


@dataclass(eq=False)
class FeatureStatistics:
    """Count, mean and scatter (sum of (x - mean)(x - mean)^T) of some features, in float64."""

    count: int
    mean: Float[np.ndarray, " d"]
    scatter: Float[np.ndarray, "d d"]

    @classmethod
    def none(cls, width: int) -> "FeatureStatistics":
        """Those of no features."""
        return cls(0, np.zeros(width), np.zeros((width, width)))

    def add(self, features: Features) -> None:
        """Counts these features in; ValueError for another width or numbers that are not finite."""
        if features.shape[1] != len(self.mean):
            raise ValueError(f"features of width {features.shape[1]} among some of {len(self.mean)}: use one network")
        if not len(features):
            return
        x = features.astype(np.float64)
        mean = x.mean(0)
        if not np.isfinite(mean).all():
            raise ValueError("features hold nan or inf: look at the images that gave them")
        x -= mean
        total = self.count + len(x)
        away = (mean - self.mean) * np.sqrt(self.count * len(x) / total)
        rows = np.concatenate([x, away[None]])
        self.scatter += rows.T @ rows
        self.mean = self.mean + (mean - self.mean) * (len(x) / total)
        self.count = total

    @property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        """The unbiased covariance; ValueError for fewer than two features."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {self.count}: generate more")
        return self.scatter / (self.count - 1)

    @property
    def moments(self) -> Moments:
        """As `frechet_distance` takes them; one eigendecomposition."""
        return moments_of(self.mean, self.covariance)


def statistics(
    net: FeatureNet, sets: Iterable[Set], batch: int = BATCH, done: Callable[[int], object] = int
) -> FeatureStatistics:
    """Statistics of all images of this host, each set dropped once it went through the network.

    Raises ValueError for no images or features that are not finite.
    """
    found = None
    for features in feature_batches(net, sets, batch, done):
        found = found or FeatureStatistics.none(features.shape[1])
        found.add(features)
    if found is None:
        raise ValueError("no images to take features of")
    return found


def merged_over_hosts(own: FeatureStatistics) -> FeatureStatistics:
    """The statistics of all processes in one, the same bits on each; a process that had no images gives `none`.

    All processes must call it. Numbers travel as bytes, since devices hold no float64 unless they are told to.
    """
    if jax.process_count() == 1:
        return own
    counts = _gathered(np.array([float(own.count)]))[:, 0].astype(int)
    total, mean, scatter = _between(counts, _gathered(own.mean))
    for start in range(0, len(mean), _ROWS):
        scatter[start : start + _ROWS] += _gathered(own.scatter[start : start + _ROWS]).sum(0)
    return FeatureStatistics(total, mean, scatter)


def joined_over_hosts(own: Features, n: int) -> Float[np.ndarray, "n d"]:
    """The features of n pictures of which the processes took turns, in order; all must call it."""
    count = jax.process_count()
    if len(own) != len(range(jax.process_index(), n, count)):
        raise ValueError(f"{len(own)} features came, which is not this process's turn of {n}")
    if count == 1:
        return own
    most = -(-n // count)
    padded = np.concatenate([own, np.zeros((most - len(own), own.shape[1]), own.dtype)])
    gathered = np.asarray(multihost_utils.process_allgather(padded))  # [processes, most, d]
    return gathered.swapaxes(0, 1).reshape(most * count, -1)[:n]


def _between(counts: np.ndarray, means: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """Total, common mean and the scatter of the parts' means about it."""
    total = int(counts.sum())
    if total == 0:
        return 0, np.zeros(means.shape[1]), np.zeros((means.shape[1],) * 2)
    mean = counts @ means / total
    rows = (means - mean) * np.sqrt(counts)[:, None]
    return total, mean, rows.T @ rows


def _gathered(array: np.ndarray) -> np.ndarray:
    """[processes, ...] of the float64 arrays that the processes hold."""
    raw = np.ascontiguousarray(array, np.float64).reshape(-1).view(np.uint8)
    return np.asarray(multihost_utils.process_allgather(raw)).view(np.float64).reshape(-1, *array.shape)
