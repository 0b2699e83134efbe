"""The one formula of the family: the online f at (z_t, t) meets the target f at (psi(z_t), s).

Distillation rides a teacher's field from t to s; training rides the oracle's, which knows z0 and eps
and lands exactly on the point of shared noise. All else is a choice of parts.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from lcm_jax.diffusion.boundary import Boundary, consistency
from lcm_jax.diffusion.field import oracle_field
from lcm_jax.diffusion.grid import PairSampler
from lcm_jax.diffusion.path import Path, diffuse
from lcm_jax.diffusion.solver import Solver
from lcm_jax.objectives.base import Decay, Nets, draw_latent
from lcm_jax.objectives.extra import Extra, nothing
from lcm_jax.objectives.reading import Reading
from lcm_jax.objectives.robust import StepDistance
from lcm_jax.typing import Batch, Coupling, Latent, Metrics, PairWeight, Times


class Pairs(NamedTuple):
    """What is compared: the online f at t and the target's at s, on one trajectory from one clean latent."""

    z0: Latent
    t: Times
    s: Times
    online: Latent
    target: Latent
    drawn: Metrics  # to be logged


@dataclass(frozen=True)
class Consistency:
    """Parts of a consistency objective; methods are files that name them (architecture: one formula)."""

    path: Path
    reading: Reading
    boundary: Boundary
    pair: PairSampler
    solver: Solver
    distance: StepDistance
    weight: PairWeight
    couple: Coupling
    needs_teacher: bool
    mu: Decay
    extra: Extra = nothing

    def __post_init__(self) -> None:
        if not (self.mu is None or callable(self.mu) or 0 <= self.mu < 1):
            raise ValueError(f"mu is {self.mu}: give the target's decay, at least 0 and below 1")

    def pairs(self, nets: Nets, batch: Batch, key: PRNGKeyArray, step: Array) -> Pairs:
        """Both sides of the loss; no gradient flows into the target's."""
        keys = jax.random.split(key, 4)
        z0 = draw_latent(batch, keys[0])
        b = z0.shape[0]
        eps, coupled = self.couple(z0, jax.random.normal(keys[1], z0.shape, z0.dtype))
        t, s = self.pair(keys[2], b, step)
        fields = self.reading(self.path, nets, batch, keys[3], b)

        z_t = diffuse(self.path, z0, eps, t)
        field = fields.teacher if self.needs_teacher else oracle_field(z0, eps)
        z_s = jax.lax.stop_gradient(self.solver(self.path, field, z_t, t, s))

        f = lambda field: consistency(self.path, self.boundary, field)
        online, target = f(fields.student)(z_t, t), jax.lax.stop_gradient(f(fields.target)(z_s, s))
        return Pairs(z0, t, s, online, target, fields.drawn | coupled)

    def loss(
        self, nets: Nets, batch: Batch, key: PRNGKeyArray, step: Array
    ) -> tuple[Float[Array, ""], Metrics]:
        """mean_b weight(t, s) distance(f(z_t, t), sg f-(psi(z_t), s)) + extra (LCM eq. 14, CM eq. 7)."""
        z0, t, s, online, target, drawn = self.pairs(nets, batch, key, step)
        losses = self.weight(t, s) * self.distance(online, target, step)
        extra, added = self.extra(z0, online, t, step)
        loss = losses.mean() + extra
        metrics = {"loss/mean": loss, "sample/loss": losses, "sample/t": t}
        return loss, metrics | drawn | added
