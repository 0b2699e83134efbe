"""The length of a gradient, over all its tensors."""

from typing import Any

import jax
import jax.numpy as jnp


def norm(tree: Any) -> jax.Array:
    """Euclidean norm of all leaves together, float32."""
    squares = [jnp.square(x.astype(jnp.float32)).sum() for x in jax.tree.leaves(tree)]
    # Each is done before they are added: a CPU's compiler else fuses hundreds of loops into one and takes minutes.
    return jnp.sqrt(sum(jax.lax.optimization_barrier(squares)))
