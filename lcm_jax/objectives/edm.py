"""EDM: trains a denoiser at log-normal noise, the teacher of CD and the start of ECT (EDM eq. 8, Tab. 1)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lcm_jax.diffusion.distance import l2
from lcm_jax.diffusion.grid import check_spread
from lcm_jax.diffusion.path import VE, Path, diffuse
from lcm_jax.diffusion.weight import karras
from lcm_jax.objectives.base import Nets, draw_latent
from lcm_jax.objectives.reading import Preconditioned
from lcm_jax.typing import Batch, Metrics


@dataclass(frozen=True)
class EDM:
    """Mean squared error of the denoiser, weighted so that the network's own output has unit target."""

    path: Path
    reading: Preconditioned
    P_mean: float
    P_std: float
    mu: None = None
    needs_teacher: bool = False

    def __post_init__(self) -> None:
        check_spread(self.P_std)

    def loss(
        self, nets: Nets, batch: Batch, key: PRNGKeyArray, step: Array
    ) -> tuple[Float[Array, ""], Metrics]:
        """mean_b (1 / sigma^2 + 1 / sigma_data^2) mean_elements (D(z_t, sigma) - z0)^2, ln sigma ~ N(P_mean, P_std)."""
        keys = jax.random.split(key, 4)
        z0 = draw_latent(batch, keys[0])
        b = z0.shape[0]
        t = jnp.exp(self.P_mean + self.P_std * jax.random.normal(keys[1], (b,)))
        z_t = diffuse(self.path, z0, jax.random.normal(keys[2], z0.shape, z0.dtype), t)
        denoised = self.reading(self.path, nets, batch, keys[3], b).student(z_t, t).x0
        losses = karras(t, t, self.reading.sigma_data) * l2(denoised, z0)
        loss = losses.mean()
        return loss, {"loss/mean": loss, "sample/loss": losses, "sample/t": t}


def build(
    P_mean: float = -1.2,
    P_std: float = 1.2,
    sigma_data: float = 0.5,
    time_scale: float = 250.0,
    label_drop: float = 0.0,
) -> EDM:
    """The EDM objective; `time_scale` of ln sigma is 0.25 in EDM, 250 where CD or ECT goes on from it."""
    return EDM(VE(), Preconditioned(sigma_data, time_scale, label_drop), P_mean, P_std)
