"""Latent consistency fine-tuning: a trained LCM learns new images without a teacher (LCM Alg. 4)."""

from dataclasses import replace

from lcm_jax.diffusion.path import VPTable
from lcm_jax.objectives import lcd
from lcm_jax.objectives.consistency import Consistency


def build(
    path: VPTable,
    kind: str,
    skip: int = 20,
    grid: str = "any",
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
    """LCF: LCD with the oracle's field in the teacher's place, both times sharing the noise that was drawn."""
    like_lcd = lcd.build(
        path, kind, skip, grid, "ddim", distance_name, delta, w_min, w_max, w_width, mu, drop, timestep_scaling,
        weight_name,
    )
    return replace(like_lcd, needs_teacher=False)
