"""Denoising diffusion: trains the teacher to predict eps, v or x0 of captioned latents (DDPM eq. 14)."""

from dataclasses import dataclass
from functools import partial

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from lcm_jax.diffusion.distance import l2
from lcm_jax.diffusion.path import VPTable, diffuse, output_of
from lcm_jax.diffusion.weight import min_snr
from lcm_jax.objectives.base import Nets, check_share, condition_of, draw_latent, drop_captions
from lcm_jax.typing import Batch, Metrics


@dataclass(frozen=True)
class Diffusion:
    """Mean squared error of the network's output, optionally weighted by min(SNR, gamma)."""

    path: VPTable
    kind: str
    drop: float
    gamma: float | None
    mu: None = None
    needs_teacher: bool = False

    def loss(
        self, nets: Nets, batch: Batch, key: PRNGKeyArray, step: Array
    ) -> tuple[Float[Array, ""], Metrics]:
        """mean_b weight(t) mean_elements (output - target)^2 at t ~ U{0 .. T-1}; captions dropped at `drop`."""
        keys = jax.random.split(key, 4)
        z0 = draw_latent(batch, keys[0])
        b = z0.shape[0]
        eps = jax.random.normal(keys[1], z0.shape, z0.dtype)
        t = jax.random.randint(keys[2], (b,), 0, self.path.T)
        told = drop_captions(condition_of(batch), batch["uncond"], jax.random.bernoulli(keys[3], self.drop, (b,)))
        output = nets.student(diffuse(self.path, z0, eps, t), t, **told)
        error = l2(output, output_of(self.path, self.kind, z0, eps, t))
        weigh = (lambda t: 1.0) if self.gamma is None else partial(min_snr, self.path, self.kind, gamma=self.gamma)
        losses = weigh(t=t) * error
        loss = losses.mean()
        return loss, {"loss/mean": loss, "error/mean": error.mean(), "sample/loss": losses, "sample/t": t}


def build(path: VPTable, kind: str = "v", drop: float = 0.1, gamma: float | None = None) -> Diffusion:
    """The diffusion objective; `drop` is the share of captions replaced by the empty one (for guidance).

    Raises ValueError for a drop that is no share, and where eps prediction meets a zero terminal SNR, at which eps
    says nothing about z0.
    """
    if kind == "eps" and path.zero_terminal_snr:
        raise ValueError("eps says nothing about x0 at zero terminal SNR: set kind to v or x0")
    check_share(drop)
    return Diffusion(path, kind, drop, gamma)
