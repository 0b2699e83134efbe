"""Consistency training: no teacher, a grid that grows finer and a target that follows faster (CM Alg. 3)."""

from lcm_jax.diffusion import coupling, solver, weight
from lcm_jax.diffusion.boundary import EDMBoundary
from lcm_jax.diffusion.curriculum import SquareRoot, ct_mu
from lcm_jax.diffusion.grid import Karras, KarrasNeighbours
from lcm_jax.diffusion.path import VE
from lcm_jax.objectives.consistency import Consistency
from lcm_jax.objectives.reading import Preconditioned
from lcm_jax.objectives.robust import robust


def build(
    steps: int,
    s0: int = 2,
    s1: int = 150,
    mu0: float = 0.9,
    distance_name: str = "l2",
    delta: float = 0.0,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    sigma_data: float = 0.5,
    time_scale: float = 250.0,
    label_drop: float = 0.0,
) -> Consistency:
    """CT over `steps` updates: N(k) from s0 to s1 intervals, target decay mu(k) = exp(s0 ln mu0 / N(k))."""
    if not 0 < mu0 < 1:
        raise ValueError(f"mu0 is {mu0}: give the target's first decay, above 0 and below 1")
    intervals = SquareRoot(s0, s1, steps)
    return Consistency(
        path=VE(),
        reading=Preconditioned(sigma_data, time_scale, label_drop),
        boundary=EDMBoundary(sigma_min, sigma_data),
        pair=KarrasNeighbours(intervals, Karras(sigma_min, sigma_max, rho)),
        solver=solver.get("euler"),
        distance=robust(distance_name, delta),
        weight=weight.uniform,
        couple=coupling.independent,
        needs_teacher=False,
        mu=lambda step: ct_mu(intervals(step), mu0, s0),
    )
