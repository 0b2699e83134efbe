"""Distances between two estimates of the clean sample, in float32: distance(a, b, ..) -> one number a sample.

`reduction` says how the squared differences of one sample are gathered: "mean" or "sum". Papers mix the two,
and the scale `delta` (their c) belongs to one of them. Every gradient is finite at a = b.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from lcm_jax.typing import Latent, PerSample

Scale = float | Float[Array, ""]
ROOT_FLOOR = 1e-12  # keeps the slope of sqrt finite at a = b when delta is 0


def l2(a: Latent, b: Latent, reduction: str = "mean") -> PerSample:
    """(a - b)^2."""
    return _gather(_difference(a, b) ** 2, reduction)


def l1(a: Latent, b: Latent, reduction: str = "mean") -> PerSample:
    """|a - b|."""
    return _gather(jnp.abs(_difference(a, b)), reduction)


def huber(a: Latent, b: Latent, delta: Scale = 1e-3, reduction: str = "mean") -> PerSample:
    """sqrt((a - b)^2 + delta^2) - delta of every element (LCM code; delta .001 with the mean)."""
    return _gather(_bowl(_difference(a, b) ** 2, delta), reduction)


def pseudo_huber(a: Latent, b: Latent, delta: Scale, reduction: str = "sum") -> PerSample:
    """sqrt(m + delta^2) - delta of the whole sample (iCT eq. 9: .00054 sqrt(d) with the sum; ECT: 0)."""
    return _bowl(l2(a, b, reduction), delta)


def cauchy(a: Latent, b: Latent, delta: Scale, reduction: str = "mean") -> PerSample:
    """log(1 + m / (2 delta^2)) (sLCT): m / (2 delta^2) for small m, scale-free gradients for large m."""
    return jnp.log1p(l2(a, b, reduction) / (2 * delta**2))


def geman_mcclure(a: Latent, b: Latent, delta: Scale, reduction: str = "mean") -> PerSample:
    """2 m / (m + 4 delta^2): m / (2 delta^2) for small m, at most 2."""
    m = l2(a, b, reduction)
    return 2 * m / (m + 4 * delta**2)


DISTANCES: dict[str, Callable[..., PerSample]] = {
    d.__name__: d for d in (l2, l1, huber, pseudo_huber, cauchy, geman_mcclure)
}


def get(name: str) -> Callable[..., PerSample]:
    """The distance of that name; ValueError lists the names."""
    if name not in DISTANCES:
        raise ValueError(f"unknown distance {name!r}; choose one of {', '.join(DISTANCES)}")
    return DISTANCES[name]


def dimension_delta(d: int) -> float:
    """iCT's scale for samples of d elements: .00054 sqrt(d), meant for the sum."""
    return 0.00054 * d**0.5


def scheduled_delta(N: int | Num[Array, ""], first: float = 0.03456, until: int = 10) -> Float[Array, ""]:
    """sLCT's scale at N intervals, for the mean: exp(-1.15 ln N - .85), and `first` for N <= `until`.

    The default is what iCT's .00054 sqrt(d) gives 4,096 elements; the mean knows no size, so it serves any.
    """
    return jnp.where(N <= until, first, jnp.exp(-1.15 * jnp.log(1.0 * N) - 0.85))


def _difference(a: Latent, b: Latent) -> Latent:
    dtype = jnp.promote_types(jnp.result_type(a, b), jnp.float32)
    return a.astype(dtype) - b.astype(dtype)


def _bowl(m: Array, delta: Scale) -> Array:
    """sqrt(m + delta^2) - delta, written without cancellation."""
    return m / (jnp.sqrt(m + jnp.maximum(delta**2, ROOT_FLOOR)) + delta)


def _gather(x: Latent, reduction: str) -> PerSample:
    if reduction not in ("mean", "sum"):
        raise ValueError(f"unknown reduction {reduction!r}; choose mean or sum")
    return getattr(jnp, reduction)(x, axis=tuple(range(1, x.ndim)))
