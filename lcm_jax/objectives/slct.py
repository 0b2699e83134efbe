"""Improved latent consistency training: iCT with four changes that latents need (arXiv 2502.01441).

The fifth, non-scaling LayerNorm, is a choice of the network (norm "ns_layer" of models.adm, models.dit).
"""

from functools import partial

from lcm_jax.objectives import ict

build = partial(
    ict.build,
    s1=640,
    distance_name="cauchy",
    reduction="mean",
    delta=0.03456,
    schedule_delta=True,
    diffusion_weight=5.0,
    transport=True,
)
