"""What may be added to a consistency loss, computed from the same output of the student."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from lcm_jax.diffusion.curriculum import Curriculum
from lcm_jax.diffusion.distance import l2
from lcm_jax.diffusion.grid import Karras
from lcm_jax.diffusion.weight import karras
from lcm_jax.typing import Latent, Metrics, Times

Extra = Callable[[Latent, Latent, Times, Array], tuple[Any, Metrics]]  # (z0, f(z_t, t), t, step)


def nothing(z0: Latent, online: Latent, t: Times, step: Array) -> tuple[float, Metrics]:
    """No further term."""
    return 0.0, {}


@dataclass(frozen=True)
class LowNoise:
    """sLCT's denoising loss at small noise: weight * mean (1 / t^2 + 1 / sigma_data^2) |f - z0|^2 / d.

    The mean runs over the samples on the last 1 - share of the grid's points; over none of them it is 0.
    """

    intervals: Curriculum
    grid: Karras
    weight: float = 5.0
    share: float = 0.75
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ValueError(f"weight is {self.weight}: give the diffusion loss 0 or more, 0 to leave it out")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is {self.share}: give the part of the grid without the loss, from 0 to 1")

    def highest(self, step: Array) -> Array:
        """The largest noise level that takes part: index floor(share (N + 1)) of N + 1 points."""
        N = self.intervals(step)
        return self.grid.sigma(jnp.floor(self.share * (N + 1)).astype(int), N)

    def __call__(self, z0: Latent, online: Latent, t: Times, step: Array) -> tuple[Array, Metrics]:
        taken = t <= self.highest(step) * (1 + 1e-5)  # a grid point computed twice may differ by a rounding
        terms = jnp.where(taken, karras(t, t, self.sigma_data) * l2(online, z0), 0)
        loss = terms.sum() / jnp.maximum(taken.sum(), 1)
        return self.weight * loss, {"low_noise/mean": loss, "low_noise_share/mean": taken.mean()}
