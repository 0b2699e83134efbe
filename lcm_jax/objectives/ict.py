"""Improved consistency training: log-normal noise, pseudo-Huber, doubling grid, no average (arXiv 2310.14189)."""

from lcm_jax.diffusion import coupling, solver, weight
from lcm_jax.diffusion.boundary import EDMBoundary
from lcm_jax.diffusion.curriculum import Curriculum, Doubling, Geometric
from lcm_jax.diffusion.grid import Karras, LogNormalNeighbours
from lcm_jax.diffusion.path import VE
from lcm_jax.objectives.consistency import Consistency
from lcm_jax.objectives.extra import LowNoise, nothing
from lcm_jax.objectives.reading import Preconditioned
from lcm_jax.objectives.robust import by_dimension, robust, scheduled

CURRICULA = {"doubling": Doubling, "geometric": Geometric}


def build(
    steps: int,
    s0: int = 10,
    s1: int = 1280,
    curriculum: str = "doubling",
    P_mean: float = -1.1,
    P_std: float = 2.0,
    distance_name: str = "pseudo_huber",
    reduction: str = "sum",
    delta: float | None = None,
    schedule_delta: bool = False,
    diffusion_weight: float = 0.0,
    diffusion_share: float = 0.75,
    transport: bool = False,
    transport_parts: int = 1,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    sigma_data: float = 0.5,
    time_scale: float = 250.0,
    label_drop: float = 0.0,
) -> Consistency:
    """iCT over `steps` updates; `delta` None is .00054 sqrt(d), with a schedule that of the first stage.

    `curriculum` "geometric" grows N smoothly where "doubling" jumps. The switches of sLCT are off: `schedule_delta`
    lets `delta` fall from the second stage on, `diffusion_weight` adds the denoising loss on noise levels below
    share `diffusion_share` of the grid, `transport` couples noise and data in `transport_parts`.
    """
    grid, intervals = Karras(sigma_min, sigma_max, rho), growing(curriculum, s0, s1, steps)
    scale = scheduled(intervals, delta, s0) if schedule_delta else by_dimension if delta is None else delta
    denoise = LowNoise(intervals, grid, diffusion_weight, diffusion_share, sigma_data)
    return Consistency(
        path=VE(),
        reading=Preconditioned(sigma_data, time_scale, label_drop),
        boundary=EDMBoundary(sigma_min, sigma_data),
        pair=LogNormalNeighbours(intervals, P_mean, P_std, grid),
        solver=solver.get("euler"),
        distance=robust(distance_name, scale, reduction),
        weight=weight.inverse_step,
        couple=coupling.OptimalTransport(transport_parts) if transport else coupling.independent,
        needs_teacher=False,
        mu=None,
        extra=denoise if diffusion_weight else nothing,
    )


def growing(name: str, s0: int, s1: int, steps: int) -> Curriculum:
    """The curriculum of that name; ValueError lists the names."""
    if name not in CURRICULA:
        raise ValueError(f"unknown curriculum {name!r}; choose one of {', '.join(CURRICULA)}")
    return CURRICULA[name](s0, s1, steps)
