"""Consistency distillation: an EDM teacher's solver step ties neighbouring noise levels (CM Alg. 2)."""

from lcm_jax.diffusion import coupling, solver, weight
from lcm_jax.diffusion.boundary import EDMBoundary
from lcm_jax.diffusion.curriculum import Constant
from lcm_jax.diffusion.grid import Karras, KarrasNeighbours
from lcm_jax.diffusion.path import VE
from lcm_jax.objectives.consistency import Consistency
from lcm_jax.objectives.reading import Preconditioned
from lcm_jax.objectives.robust import robust


def build(
    intervals: int = 39,
    solver_name: str = "heun",
    distance_name: str = "l2",
    delta: float = 0.0,
    mu: float | None = 0.95,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    sigma_data: float = 0.5,
    time_scale: float = 250.0,
    label_drop: float = 0.0,
) -> Consistency:
    """CD on the `intervals` of Karras' grid (CM's N - 1); `mu` None takes the online network as target."""
    return Consistency(
        path=VE(),
        reading=Preconditioned(sigma_data, time_scale, label_drop),
        boundary=EDMBoundary(sigma_min, sigma_data),
        pair=KarrasNeighbours(Constant(intervals), Karras(sigma_min, sigma_max, rho)),
        solver=solver.get(solver_name),
        distance=robust(distance_name, delta),
        weight=weight.uniform,
        couple=coupling.independent,
        needs_teacher=True,
        mu=mu,
    )
