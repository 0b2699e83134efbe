"""Mean and std of every element of a latent, kept beside a network that works on latents of one size."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lcm_jax.models.functional import Net
from lcm_jax.typing import Params


def latent_statistics(shape: tuple[int, ...], sigma_data: float) -> Net:
    """apply(params, z [b, *shape]) -> z times std / sigma_data plus mean: the autoencoder's latents again."""

    def apply(params: Params, z: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return z * (params["std"] / sigma_data)[None] + params["mean"][None]

    def init(key: jax.Array) -> Params:
        return {"mean": jnp.zeros(shape), "std": jnp.ones(shape)}

    return Net(sigma_data, init, apply, lambda: jax.eval_shape(init, jax.random.key(0)))
