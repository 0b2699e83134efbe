"""Mean, spread and scale of latents, summed over posterior moments in one pass."""

import numpy as np
from jaxtyping import Float


class LatentStats:
    """Running sums over moments: the exact mean and variance of z = mean + std n, no sampling needed."""

    def __init__(self, count: int = 0, mean: float | np.ndarray = 0.0, square: float | np.ndarray = 0.0):
        self.count = count
        self._mean, self._square = mean, square  # E z and E z^2 of each element, as float64 sums

    def add(self, mean: Float[np.ndarray, "n h w c"], variance: Float[np.ndarray, "n h w c"]) -> None:
        """Add moments of some examples."""
        mean, variance = mean.astype(np.float64), variance.astype(np.float64)
        self.join(LatentStats(len(mean), mean.sum(0), (mean**2 + variance).sum(0)))

    def join(self, other: "LatentStats") -> None:
        """Add what another has summed; the same shards in the same order give the same numbers to the bit."""
        self.count += other.count
        self._mean, self._square = self._mean + other._mean, self._square + other._square

    @property
    def sums(self) -> dict[str, int | float | np.ndarray]:
        """What a LatentStats is made of again: the number of examples, and their sums [h, w, c] float64."""
        return {"count": self.count, "mean": self._mean, "square": self._square}

    @property
    def element(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and std of each element, float64 [h, w, c]."""
        return _mean_std(self._mean / self.count, self._square / self.count)

    @property
    def channel(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and std of each channel over places and examples, float64 [c]."""
        axes = (0, 1)
        return _mean_std((self._mean / self.count).mean(axes), (self._square / self.count).mean(axes))

    @property
    def scale(self) -> float:
        """1 / std over all elements: the factor that gives latents unit spread (LDM, sec. G)."""
        mean, square = self._mean / self.count, self._square / self.count
        return float(1.0 / np.sqrt(square.mean() - mean.mean() ** 2))


def _mean_std(mean: np.ndarray, square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return mean, np.sqrt(np.maximum(square - mean**2, 0.0))
