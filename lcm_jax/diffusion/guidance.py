"""Classifier-free guidance: the guided prediction, the law of its strength w, and the embedding of w."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lcm_jax.diffusion.path import Prediction, expand
from lcm_jax.typing import Guidance


def guide(cond: Prediction, uncond: Prediction, w: Guidance) -> Prediction:
    """cond + w (cond - uncond) in both views (LCM eq. 12); w = 0 is plain cond, the usual scale is w + 1.

    Second-order solvers must be given the guided field, not two separate solves.
    """
    return Prediction(*(c + expand(w, c) * (c - u) for c, u in zip(cond, uncond, strict=True)))


def sample_w(key: jax.Array, b: int, w_min: float, w_max: float) -> Guidance:
    """w ~ U[w_min, w_max] per sample (LCM Alg. 1)."""
    return jax.random.uniform(key, (b,), minval=w_min, maxval=w_max)


def guidance_embedding(w: Guidance, dim: int) -> Float[Array, "b {dim}"]:
    """[sin, cos] of 1000 w 10000^(-j / (half - 1)), j < half = dim / 2, in float32.

    The angles reach 14,000, where float32 sines of different libraries part by 5e-4. Here w times the
    frequency is reduced to a fraction of a turn by exact products of 12-bit pieces, before any rounding.
    Raises ValueError if dim is odd or below 4.
    """
    if dim < 4 or dim % 2:
        raise ValueError(f"the embedding of w needs an even dim of at least 4, got {dim}")
    half = dim // 2
    turns = 1000 / (2 * np.pi) * 10000.0 ** (-np.arange(half) / (half - 1))  # per unit of w
    fraction = jnp.zeros((len(w), half), jnp.float32)
    for w_piece in _pieces_of_w(w.astype(jnp.float32)):
        for turns_piece in _pieces_of_turns(turns):
            product = w_piece[:, None] * turns_piece[None, :]
            fraction += product - jnp.round(product)
    angle = 2 * np.pi * (fraction - jnp.round(fraction))
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def _pieces_of_w(w: Guidance) -> tuple[Guidance, Guidance]:
    """w as a sum of two float32 of 12 significant bits each."""
    high = jax.lax.reduce_precision(w, exponent_bits=8, mantissa_bits=11)
    return high, w - high


def _pieces_of_turns(turns: np.ndarray) -> list[np.ndarray]:
    """Float64 turns as a sum of three float32 of 12 significant bits each."""
    pieces = []
    for _ in range(3):
        unit = 2.0 ** (np.frexp(turns)[1] - 12)
        pieces.append(np.round(turns / unit) * unit)
        turns = turns - pieces[-1]
    return [piece.astype(np.float32) for piece in pieces]
