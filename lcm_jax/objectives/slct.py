"""Improved latent consistency training: iCT with four changes that latents need (arXiv 2502.01441).

The fifth, non-scaling LayerNorm, is a choice of the network (models.adm, norm "ns_layer").
"""

from dataclasses import replace

from lcm_jax.diffusion import coupling
from lcm_jax.diffusion.grid import Karras
from lcm_jax.objectives import ict
from lcm_jax.objectives.consistency import Consistency
from lcm_jax.objectives.extra import LowNoise, nothing
from lcm_jax.objectives.robust import robust, scheduled


def build(
    steps: int,
    s0: int = 10,
    s1: int = 640,
    curriculum: str = "doubling",
    P_mean: float = -1.1,
    P_std: float = 2.0,
    distance_name: str = "cauchy",
    delta: float = 0.03456,
    schedule_delta: bool = True,
    diffusion_weight: float = 5.0,
    diffusion_share: float = 0.75,
    transport: bool = True,
    transport_parts: int = 1,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    sigma_data: float = 0.5,
    time_scale: float = 250.0,
) -> Consistency:
    """sLCT over `steps` updates. Each change has its switch: `distance_name` (per-sample mean) at scale `delta`,
    which `schedule_delta` lets fall from the second stage on; `diffusion_weight` 0 leaves out the denoising loss
    on noise levels below share `diffusion_share` of the grid; `transport` couples noise and data in
    `transport_parts`.
    """
    grid, intervals = Karras(sigma_min, sigma_max, rho), ict.growing(curriculum, s0, s1, steps)
    scale = scheduled(intervals, delta, s0) if schedule_delta else delta
    like_ict = ict.build(
        steps, s0, s1, curriculum, P_mean, P_std,
        sigma_min=sigma_min, sigma_max=sigma_max, rho=rho, sigma_data=sigma_data, time_scale=time_scale,
    )  # fmt: skip
    denoise = LowNoise(intervals, grid, diffusion_weight, diffusion_share, sigma_data)
    return replace(
        like_ict,
        distance=robust(distance_name, scale),
        couple=coupling.OptimalTransport(transport_parts) if transport else coupling.independent,
        extra=denoise if diffusion_weight else nothing,
    )
