"""Mean, spread and scale of latents, summed over posterior moments in one pass."""

import numpy as np
from jaxtyping import Float


class LatentStats:
    """Running sums over moments: the exact mean and variance of z = mean + std n, no sampling needed."""

    def __init__(self):
        self.count = 0
        self._mean = self._square = 0.0  # E z and E z^2 of each element, as float64 sums

    def add(self, mean: Float[np.ndarray, "n h w c"], logvar: Float[np.ndarray, "n h w c"]) -> None:
        """Add one shard's moments."""
        mean, variance = mean.astype(np.float64), np.exp(logvar.astype(np.float64))
        self.count += len(mean)
        self._mean = self._mean + mean.sum(0)
        self._square = self._square + (mean**2 + variance).sum(0)

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
