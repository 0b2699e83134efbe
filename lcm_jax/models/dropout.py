"""Dropout by a key that is given, so that two networks can drop the same units."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def drop(x: Float[Array, "*any"], share: float, key: Key[Array, ""] | None) -> Float[Array, "*any"]:
    """Sets a share of the elements to zero and scales up the rest; without a key all are kept."""
    if key is None or not share:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - share, x.shape), x / (1 - share), 0).astype(x.dtype)
