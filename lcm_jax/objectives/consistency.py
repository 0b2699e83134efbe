"""The one formula of the family: the online f at (z_t, t) meets the target f at (psi(z_t), s).

Distillation rides a teacher's field from t to s; training rides the oracle's, which knows z0 and eps
and lands exactly on the point of shared noise. All else is a choice of parts.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lcm_jax.diffusion.boundary import Boundary, consistency
from lcm_jax.diffusion.field import guided_field, network_field, oracle_field
from lcm_jax.diffusion.grid import PairSampler
from lcm_jax.diffusion.guidance import guidance_embedding, sample_w
from lcm_jax.diffusion.path import Path, diffuse
from lcm_jax.diffusion.solver import Solver
from lcm_jax.objectives.base import Nets, Uniform, draw_latent, drop_context
from lcm_jax.typing import Batch, Coupling, Distance, Metrics, PairWeight


@dataclass(frozen=True)
class Consistency:
    """Parts of a consistency objective; methods are files that name them (architecture: one formula)."""

    path: Path
    kind: str  # what the networks predict: "eps", "v" or "x0"
    boundary: Boundary
    pair: PairSampler
    solver: Solver
    distance: Distance
    weight: PairWeight
    couple: Coupling
    w: Uniform
    w_width: int
    drop: float  # share of captions replaced by the empty one
    needs_teacher: bool
    mu: float | None

    def loss(
        self, nets: Nets, batch: Batch, key: PRNGKeyArray, step: Array
    ) -> tuple[Float[Array, ""], Metrics]:
        """mean_b weight(t, s) distance(f(z_t, t), sg f-(psi(z_t), s)) (LCM eq. 14, CM eq. 7)."""
        keys = jax.random.split(key, 5)
        z0 = draw_latent(batch, keys[0])
        b = z0.shape[0]
        eps = self.couple(z0, jax.random.normal(keys[1], z0.shape, z0.dtype))
        t, s = self.pair(keys[2], b, step)
        w = sample_w(keys[3], b, self.w.low, self.w.high)
        context = drop_context(batch["context"], batch["uncond"], jax.random.bernoulli(keys[4], self.drop, (b,)))

        z_t = diffuse(self.path, z0, eps, t)
        if self.needs_teacher:
            uncond = jnp.broadcast_to(batch["uncond"], context.shape)
            field = guided_field(self.path, self.kind, nets.teacher, context, uncond, w)
        else:
            field = oracle_field(z0, eps)
        z_s = jax.lax.stop_gradient(self.solver(self.path, field, z_t, t, s))

        w_features = guidance_embedding(w, self.w_width)
        f = lambda net: consistency(
            self.path, self.boundary, network_field(self.path, self.kind, net, context, w_features)
        )
        online, target = f(nets.student)(z_t, t), jax.lax.stop_gradient(f(nets.target)(z_s, s))
        losses = self.weight(t, s) * self.distance(online, target)
        loss = losses.mean()
        return loss, {"loss/mean": loss, "sample/loss": losses, "sample/t": t, "sample/w": w}
