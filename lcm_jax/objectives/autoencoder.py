"""Training of the KL autoencoder: reconstruction, edges and a light pull of the posterior to N(0, 1)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lcm_jax.objectives.base import Nets
from lcm_jax.typing import Batch, Metrics


@dataclass(frozen=True)
class AutoencoderObjective:
    """mean |x - x'| + edge * mean |grad x - grad x'| + kl * mean KL (arXiv 2112.10752, eq. 25 without critic)."""

    kl_weight: float
    edge_weight: float
    shift: int
    mu: None = None
    needs_teacher: bool = False

    def loss(
        self, nets: Nets, batch: Batch, key: PRNGKeyArray, step: Array
    ) -> tuple[Float[Array, ""], Metrics]:
        """`batch["image"]` is uint8 [b, h, w, 3]."""
        move, draw = jax.random.split(key)
        x = augment(move, batch["image"].astype(jnp.float32) / 127.5 - 1.0, self.shift)
        mean, logvar = jnp.split(nets.student(x, method="encode"), 2, axis=-1)
        z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(draw, mean.shape)
        y = nets.student(z, method="decode")
        pixel = jnp.abs(x - y).mean()
        edge = sum(jnp.abs(jnp.diff(x - y, axis=a)).mean() for a in (1, 2))
        kl = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar).mean()
        loss = pixel + self.edge_weight * edge + self.kl_weight * kl
        mse = jnp.square(x - jnp.clip(y, -1, 1)).mean((1, 2, 3))
        psnr = (10.0 * jnp.log10(4.0 / mse)).mean()
        return loss, {"loss/mean": loss, "pixel/mean": pixel, "edge/mean": edge, "kl/mean": kl, "psnr/mean": psnr}


def augment(key: PRNGKeyArray, x: Float[Array, "b h w c"], shift: int) -> Float[Array, "b h w c"]:
    """Mirrors half of the images and rolls each by up to `shift` pixels (margins are plain)."""
    flip_key, roll_key = jax.random.split(key)
    flip = jax.random.bernoulli(flip_key, 0.5, (x.shape[0],))
    x = jnp.where(flip[:, None, None, None], x[:, :, ::-1], x)
    by = jax.random.randint(roll_key, (x.shape[0], 2), -shift, shift + 1)
    return jax.vmap(lambda image, d: jnp.roll(image, d, axis=(0, 1)))(x, by)


def build(kl_weight: float = 1e-3, edge_weight: float = 1.0, shift: int = 3) -> AutoencoderObjective:
    """The autoencoder objective; `shift` is in pixels."""
    return AutoencoderObjective(kl_weight, edge_weight, shift)
