"""Networks as fields: (z, t) -> Prediction, with everything else bound; plain, and guided without a classifier."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lcm_jax.diffusion.guidance import guide
from lcm_jax.diffusion.path import Path, Prediction, predict
from lcm_jax.typing import Condition, Field, Guidance, Latent, Times

Network = Callable[..., Latent]  # (z, t, **condition) -> output of the given kind


def network_field(path: Path, kind: str, network: Network) -> Field:
    """The field of a network (its condition bound) whose outputs are of `kind` ("eps", "v", "x0")."""

    def field(z: Latent, t: Times) -> Prediction:
        return predict(path, kind, network(z, t), z, t)

    return field


def guided_field(
    path: Path, kind: str, network: Network, condition: Condition, uncond: Condition, w: Guidance
) -> Field:
    """cond + w (cond - uncond) of a teacher (LCM eq. 12), both asked in one call of twice the batch.

    Each sample stands beside its unconditional twin, so a batch sharded over devices stays where it is.
    """
    pair = lambda a, b: jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:])
    both = {name: pair(condition[name], uncond[name]) for name in condition}

    def field(z: Latent, t: Times) -> Prediction:
        z2, t2 = pair(z, z), pair(t, t)
        prediction = predict(path, kind, network(z2, t2, **both), z2, t2)
        side = lambda i: jax.tree.map(lambda x: x.reshape(-1, 2, *x.shape[1:])[:, i], prediction)
        return guide(side(0), side(1), w)

    return field


def oracle_field(z0: Latent, eps: Latent) -> Field:
    """The field that knows the answer: integrating it lands on the point of shared noise, exactly."""
    return lambda z, t: Prediction(z0, eps)
