"""Latent consistency distillation: a guided teacher's solver step ties neighbouring times (LCM Alg. 1)."""

from functools import partial

from lcm_jax.diffusion import coupling, solver, weight
from lcm_jax.diffusion.boundary import LCMBoundary
from lcm_jax.diffusion.grid import FixedGrid, UniformSkip
from lcm_jax.diffusion.path import VPTable
from lcm_jax.objectives.base import Uniform
from lcm_jax.objectives.consistency import Consistency
from lcm_jax.objectives.reading import Captioned
from lcm_jax.objectives.robust import robust
from lcm_jax.typing import PairWeight


def build(
    path: VPTable,
    kind: str,
    skip: int = 20,
    grid: str = "any",
    solver_name: str = "ddim",
    distance_name: str = "huber",
    delta: float = 1e-3,
    w_min: float = 2.0,
    w_max: float = 14.0,
    w_width: int | None = 256,
    mu: float | None = 0.95,
    drop: float = 0.0,
    timestep_scaling: float = 10.0,
    weight_name: str = "uniform",
) -> Consistency:
    """LCD. `grid` "any" draws every t >= skip as the paper does, "fixed" the 50 times of diffusers' script.

    `mu` None takes the online network as target. Guidance [w_min, w_max] is LCM's w (others' scale - 1), which the
    student is told through an embedding of `w_width`, or, where that is None, learns without being told. `weight_name`
    "uniform" weighs all times alike (LCM), "root_snr" small ones more, as a loss of eps does (weight.root_snr).
    """
    return Consistency(
        path=path,
        reading=Captioned(kind, Uniform(w_min, w_max), w_width, drop),
        boundary=LCMBoundary(timestep_scaling),
        pair=skipping(grid, path.T, skip),
        solver=solver.get(solver_name),
        distance=robust(distance_name, delta),
        weight=weighing(weight_name, path),
        couple=coupling.independent,
        needs_teacher=True,
        mu=mu,
    )


def skipping(grid: str, T: int, skip: int) -> UniformSkip | FixedGrid:
    """The skipping-step pair law by name."""
    laws = {"any": lambda: UniformSkip(T, skip), "fixed": lambda: FixedGrid(T, T // skip, skip)}
    if grid not in laws:
        raise ValueError(f"unknown grid {grid!r}; choose any (LCM Alg. 1) or fixed (diffusers)")
    if skip < 1:
        raise ValueError(f"skip must be at least 1, got {skip}")
    if grid == "fixed" and T % skip:
        raise ValueError(f"skip {skip} does not divide T = {T}: a fixed grid needs a target on the grid, or grid any")
    return laws[grid]()


def weighing(name: str, path: VPTable) -> PairWeight:
    """The weight of pairs in table time by name."""
    laws = {"uniform": weight.uniform, "root_snr": partial(weight.root_snr, path)}
    if name not in laws:
        raise ValueError(f"unknown weight {name!r}; choose uniform (LCM) or root_snr (as a loss of eps does)")
    return laws[name]
