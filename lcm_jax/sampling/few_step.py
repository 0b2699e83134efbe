"""Multistep consistency sampling: jump to the data, add noise again, jump again (LCM Alg. 3, CM Alg. 1)."""

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Num

from lcm_jax.diffusion.boundary import Consistency
from lcm_jax.diffusion.path import Path, pure_noise
from lcm_jax.typing import Latent


def lcm_times(n: int, T: int = 1000, original_steps: int = 50) -> np.ndarray:
    """The n times of LCM sampling, falling: entries floor(linspace(0, original_steps)) of the reversed grid.

    The grid is that of training, i T / original_steps - 1; 4 steps give 999, 759, 499, 259. Raises ValueError
    unless 1 <= n <= original_steps <= T.
    """
    if not 1 <= original_steps <= T:
        raise ValueError(f"original_steps must lie in 1 .. T = {T}, got {original_steps}")
    if not 1 <= n <= original_steps:
        raise ValueError(f"LCM sampling takes 1 to {original_steps} steps, got {n}")
    falling = np.arange(original_steps, 0, -1) * (T // original_steps) - 1
    return falling[np.floor(np.linspace(0, original_steps, n, endpoint=False)).astype(int)]


def check_falling(sigmas: Sequence[float], sigma_min: float = 0.0) -> None:
    """Raises ValueError for noise levels that do not fall, or reach down to `sigma_min`, where f is the identity."""
    if not len(sigmas):
        raise ValueError("sampling needs at least one noise level")
    for before, after in pairwise(sigmas):
        if not after < before:
            raise ValueError(f"noise levels must fall, got {before:g} before {after:g}: sort them from high to low")
    if not sigmas[-1] > sigma_min:
        raise ValueError(f"noise level {sigmas[-1]:g} is not above {sigma_min:g}, where nothing is left to do: drop it")


def sample(
    f: Consistency,
    path: Path,
    key: jax.Array,
    shape: tuple[int, ...],
    times: Num[Array | np.ndarray, " n"],
    noise: Latent | None = None,
    sigma_min: float = 0.0,
) -> Latent:
    """The last of n calls of f at falling times, each on the previous answer noised anew; f is traced once.

    `shape` is [b, ..]; `noise`, unit normal of that shape, replaces the first draw. New noise has variance
    sigma_t^2 - sigma_min^2: CM's f lands at sigma_min (.002), LCM's at the data (0). The last gets none.
    """
    if len(times) < 1:
        raise ValueError("sampling needs at least one time")
    times = jnp.asarray(times)
    keys = jax.random.split(key, len(times))
    noise = jax.random.normal(keys[0], shape) if noise is None else noise
    keep = path.alpha(times).at[0].set(1)
    renew = jnp.sqrt(jnp.maximum(path.sigma(times) ** 2 - sigma_min**2, 0)).at[0].set(0)

    def jump(x, now):
        t, keep, renew, key = now
        z = keep * x + renew * jax.random.normal(key, x.shape, x.dtype)  # LCM Alg. 3 line 5, CM Alg. 1 line 4
        return f(z, jnp.broadcast_to(t, x.shape[:1])).astype(x.dtype), None

    z = pure_noise(path, noise, jnp.broadcast_to(times[0], shape[:1]))
    return jax.lax.scan(jump, z, (times, keep, renew, keys))[0]
