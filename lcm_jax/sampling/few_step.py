"""Multistep consistency sampling: jump to the data, add noise again, jump again (LCM Alg. 3, CM Alg. 1)."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, Num

from lcm_jax.diffusion.boundary import Consistency
from lcm_jax.diffusion.path import Path
from lcm_jax.typing import Latent

StepNoise = Callable[[int | Int[Array, ""]], Latent]  # a step's number to its noise


def lcm_times(n: int, T: int = 1000, original_steps: int = 50, strength: float = 1.0) -> np.ndarray:
    """The n times of LCM sampling, falling: entries floor(linspace(0, original_steps)) of the reversed grid.

    The grid is that of training, i T / original_steps - 1; 4 steps give 999, 759, 499, 259. Of an image to be
    changed only the lower `strength` of the grid is walked: 4 steps at .5 give 499, 379, 259, 139. Raises
    ValueError unless 1 <= n <= strength original_steps and original_steps <= T.
    """
    if not 1 <= original_steps <= T:
        raise ValueError(f"original_steps must lie in 1 .. T = {T}, got {original_steps}")
    if not 0 < strength <= 1:
        raise ValueError(f"strength must lie in (0, 1], got {strength}")
    walked = int(original_steps * strength)
    if not 1 <= n <= walked:
        why = "" if strength == 1 else f" at strength {strength:g}"
        raise ValueError(f"LCM sampling takes 1 to {walked} steps{why}, got {n}")
    falling = np.arange(walked, 0, -1) * (T // original_steps) - 1
    return falling[np.floor(np.linspace(0, walked, n, endpoint=False)).astype(int)]


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
    noise: StepNoise,
    times: Num[Array | np.ndarray, " n"],
    count: int | Int[Array, ""] | None = None,
    sigma_min: float = 0.0,
    start: Latent | None = None,
) -> Latent:
    """The last of n calls of f at falling times, each on the previous answer noised anew; f is traced once.

    `noise` gives a step's unit normal noise (`fresh`). Of `times` the first `count` are walked, all by default; it may
    be traced (schedule.filled). `start`, clean latents of an image to be changed, is noised to the first time. New
    noise has variance sigma_t^2 - sigma_min^2: CM's f lands at sigma_min (.002), LCM's at the data (0). Raises
    ValueError for no times.
    """
    if len(times) < 1:
        raise ValueError("sampling needs at least one time")
    times, like = jnp.asarray(times), jax.eval_shape(noise, 0)
    sigma, whole = path.sigma(times), start is None and path.variance_preserving  # pure noise has a std of 1 there
    keep, renew = path.alpha(times), jnp.sqrt(jnp.maximum(sigma**2 - sigma_min**2, 0))
    renew = renew.at[0].set(1 if whole else sigma[0])
    start = jnp.zeros(like.shape, like.dtype) if start is None else start

    def jump(i, x):
        z = keep[i] * x + renew[i] * noise(i)  # LCM Alg. 3 line 5, CM Alg. 1 line 4
        return f(z.astype(x.dtype), jnp.broadcast_to(times[i], x.shape[:1])).astype(x.dtype)

    return jax.lax.fori_loop(0, len(times) if count is None else count, jump, start)


def fresh(keys: Key[Array, " b"], shape: tuple[int, ...]) -> StepNoise:
    """The unit normal noise of every step for the samples of these keys, each from its own; `shape` is one latent's."""
    return lambda i: jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i), shape))(keys)
