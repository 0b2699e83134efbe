"""Easy consistency tuning: a pretrained EDM becomes a consistency model as the gap closes (arXiv 2406.14548)."""

from lcm_jax.diffusion import coupling, solver, weight
from lcm_jax.diffusion.boundary import EDMBoundary
from lcm_jax.diffusion.grid import LogNormalGap
from lcm_jax.diffusion.path import VE
from lcm_jax.objectives.consistency import Consistency
from lcm_jax.objectives.reading import Preconditioned
from lcm_jax.objectives.robust import robust


def build(
    stage_steps: int,
    q: float = 2.0,
    P_mean: float = -1.1,
    P_std: float = 2.0,
    delta: float = 0.0,
    weight_name: str = "inverse_step",
    sigma_data: float = 0.5,
    time_scale: float = 250.0,
    label_drop: float = 0.0,
) -> Consistency:
    """ECT: s = t (1 - n(t) / q^(stage + 1)), a stage lasting `stage_steps`; start from an EDM's weights.

    The norm of the difference (pseudo-Huber, sum, `delta` 0) at weight 1 / (t - s); ImageNet 64 has "karras".
    """
    return Consistency(
        path=VE(),
        reading=Preconditioned(sigma_data, time_scale, label_drop),
        boundary=EDMBoundary(0.0, sigma_data),
        pair=LogNormalGap(q, stage_steps, P_mean, P_std),
        solver=solver.get("euler"),
        distance=robust("pseudo_huber", delta, "sum"),
        weight=weight.get(weight_name, sigma_data),
        couple=coupling.independent,
        needs_teacher=False,
        mu=None,
    )
