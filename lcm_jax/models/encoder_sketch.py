"""A few numbers of an autoencoder's encoder, by which latents are known to be its own."""

from collections.abc import Sequence

import jax
import numpy as np

from lcm_jax.typing import Params

PARTS = ("encoder", "quant_conv")  # what makes latents; decoders may be tuned apart
ALIKE = 0.01  # relative difference of numbers that other precisions of the same weights stay below


def sketch(params: Params) -> tuple[float, ...]:
    """One number of every kernel of an autoencoder's encoder."""
    leaves = jax.tree.leaves({part: params[part] for part in PARTS if part in params})
    kernels = [np.asarray(leaf) for leaf in leaves if leaf.ndim > 1]
    return tuple(float(kernel.reshape(-1)[kernel.size // 2]) for kernel in kernels)


def alike(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two sketches are of the same encoder, in whatever precision its weights were stored."""
    a, b = np.array(one), np.array(other)
    return a.shape == b.shape and bool(np.linalg.norm(a - b) <= ALIKE * np.linalg.norm(b))
