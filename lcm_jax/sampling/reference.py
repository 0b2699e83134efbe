"""Whole trajectories of a diffusion teacher, from noise to sample, with the usual solvers.

The field comes in guided (diffusion.guidance.guide), so that every rule sees one prediction an evaluation.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Num

from lcm_jax.diffusion import solver
from lcm_jax.diffusion.grid import Karras
from lcm_jax.diffusion.path import Path, diffuse, expand, pure_noise
from lcm_jax.typing import Field, Latent

MULTISTEP = ("ddim", "ddim_leading", "dpmpp_2m")  # one evaluation a step
SINGLE_STEP = ("heun", "dpm_solver", "dpm_solver_pp")  # two, one in the last step
SAMPLERS = MULTISTEP + SINGLE_STEP
SPACINGS = ("trailing", "leading", "linspace")
SPACING = {"ddim_leading": "leading"}  # DDIM as Stable Diffusion's own scheduler files set it; all others trail


def reference_times(n: int, T: int = 1000, spacing: str = "trailing") -> np.ndarray:
    """The n + 1 falling table times of n steps, ending at 0 (names as in diffusers; Lin et al. 2023, Tab. 2).

    "trailing" starts at T - 1 with even gaps up to the end, "leading" is Stable Diffusion's 1, 1 + T // n, ..
    (it never sees T - 1), "linspace" divides [0, T - 1] evenly. Raises ValueError unless 1 <= n <= T / 2 and
    the spacing is known.
    """
    if not 1 <= n <= T // 2:
        raise ValueError(f"a table of {T} times allows 1 to {T // 2} steps, got {n}")
    if spacing == "trailing":
        times = np.round(np.arange(n, 0, -1) * T / n).astype(int) - 1
    elif spacing == "leading":
        times = np.arange(n - 1, -1, -1) * (T // n) + 1
    elif spacing == "linspace":
        times = np.round(np.linspace(T - 1, 0, n + 1)[:-1]).astype(int)
    else:
        raise ValueError(f"unknown spacing {spacing!r}; choose one of {', '.join(SPACINGS)}")
    return np.append(times, 0)


def edm_times(n: int, karras: Karras) -> np.ndarray:
    """The n + 1 falling noise levels of n steps of EDM's sampler, Karras' grid and 0 (EDM Alg. 1, eq. 5).

    Raises ValueError unless n >= 2.
    """
    if n < 2:
        raise ValueError(f"EDM's sampler takes at least 2 steps, got {n}")
    return np.append(np.asarray(karras.grid(n - 1)), 0.0)


def sampler_times(sampler: str, n: int, T: int = 1000) -> np.ndarray:
    """`reference_times` at the spacing of a named sampler."""
    _check(sampler)
    return reference_times(n, T, SPACING.get(sampler, "trailing"))


def nfe(sampler: str, steps: int, guided: bool) -> int:
    """Network evaluations of a sample; a guided field counts twice. ValueError for an unknown sampler."""
    _check(sampler)
    evaluations = steps if sampler in MULTISTEP else 2 * steps - 1
    return evaluations * (2 if guided else 1)


def sample(
    sampler: str,
    path: Path,
    field: Field,
    noise: Latent,
    times: Num[Array | np.ndarray, " n"],
    count: int | Int[Array, ""] | None = None,
    denoise: bool = True,
    start: Latent | None = None,
) -> Latent:
    """Integrates unit `noise` [b, ..] along falling `times` with a named sampler, as a loop over the steps.

    Of `times` the first `count` are walked, all by default; it may be traced (schedule.filled).
    `start`, clean latents, is noised to the first time: an image to be changed.
    The last step is of first order (diffusers' lower-order final). With `denoise` it ends in its clean
    prediction x0; without, at the last time. Raises ValueError for an unknown sampler or fewer than two times.
    """
    _check(sampler)
    if len(times) < 2:
        raise ValueError(f"a trajectory needs at least two times, got {len(times)}")
    times, steps = jnp.asarray(times), (len(times) if count is None else count) - 1
    first = _spread(times[0], noise)
    z = pure_noise(path, noise, first) if start is None else diffuse(path, start, noise, first)
    if sampler in MULTISTEP:
        z, x0 = _multistep(path, field, z, times, steps, second_order=sampler == "dpmpp_2m")
    else:
        z, x0 = _single_step(solver.get(sampler), path, field, z, times, steps)
    return x0 if denoise else z


def _single_step(
    psi: solver.Solver, path: Path, field: Field, z: Latent, times: Array, steps: int | Array
) -> tuple[Latent, Latent]:
    """z at the last time and the x0 of the last evaluation."""

    def step(i, z):
        return psi(path, field, z, _spread(times[i], z), _spread(times[i + 1], z)).astype(z.dtype)

    z = jax.lax.fori_loop(0, steps - 1, step, z)
    last = field(z, _spread(times[steps - 1], z))
    return solver.ride(path, last, _spread(times[steps], z)), last.x0


def _multistep(
    path: Path, field: Field, z: Latent, times: Array, steps: int | Array, second_order: bool
) -> tuple[Latent, Latent]:
    """DDIM, or DPM-Solver++(2M) (DPM-Solver++ Alg. 2): x0 extrapolated from the previous evaluation.

    Returns z at the last time and the x0 of the last evaluation.
    """
    h = jnp.diff(path.lam(times))

    def step(i, carry):
        z, previous = carry
        t, s = _spread(times[i], z), _spread(times[i + 1], z)
        here = field(z, t)
        z_s = solver.ride(path, here, s)
        if second_order:  # but for the first and the last step; lead is 1 / (2 r) of the paper
            lead = jnp.where((i > 0) & (i < steps - 1), h[i] / (2 * h[i - 1]), 0)
            z_s += expand(solver.x0_gap(path, t, s), z) * lead * (here.x0 - previous)
        return z_s.astype(z.dtype), here.x0.astype(z.dtype)

    return jax.lax.fori_loop(0, steps, step, (z, z))


def _spread(time: Array, like: Latent) -> Array:
    return jnp.broadcast_to(time, like.shape[:1])


def _check(sampler: str) -> None:
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}; choose one of {', '.join(SAMPLERS)}")
