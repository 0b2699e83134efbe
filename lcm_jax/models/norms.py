"""The normalisations that consistency training was compared under, one module for all of them.

They differ in what one mean and variance is taken over and in whether a learned scale follows. Non-scaling
LayerNorm ("ns_layer", arXiv 2502.01441 sec. 4.5) shifts but never scales, so that one outlier channel cannot be
amplified; its learned bias has a value for every element.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from lcm_jax.models.layers import GroupNorm, Image

# What one mean and variance spans: groups of channels, the whole sample, or one channel of it. "rms" takes no mean.
SPANS = ("group", "layer", "instance", "rms")
NORMS = (*SPANS, "ns_group", "ns_layer", "ns_instance")
EPS = 1e-5


class SampleNorm(nnx.Module):
    """Layer, instance or root-mean-square normalisation of [b, h, w, c], statistics in float32.

    Over the whole sample ("layer") scale and bias are [h, w, c], so the image's size is part of the network; else
    they are [c]. "rms" spans the channels of a pixel, divides by their root mean square and has no bias.
    """

    def __init__(self, span: str, scaled: bool, side: int, channels: int):
        shape = (side, side, channels) if span == "layer" else (channels,)
        self.axes = {"layer": (1, 2, 3), "instance": (1, 2), "rms": (3,)}[span]
        self.centred = span != "rms"
        self.scale = nnx.Param(jnp.ones(shape)) if scaled else None
        self.bias = nnx.Param(jnp.zeros(shape)) if self.centred else None

    def __call__(self, x: Image) -> Image:
        h = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if self.centred:
            h = h - h.mean(self.axes, keepdims=True)
        h = h * jax.lax.rsqrt(jnp.square(h).mean(self.axes, keepdims=True) + EPS)
        wide = lambda p: p[...].reshape((1,) * (4 - p[...].ndim) + p[...].shape)
        h = h if self.scale is None else h * wide(self.scale)
        h = h if self.bias is None else h + wide(self.bias)
        return h.astype(x.dtype)


def norm(name: str, side: int, channels: int) -> nnx.Module:
    """The normalisation of that name for images [b, side, side, channels]; ValueError lists the names.

    Groups are those of EDM: 32, or fewer so that each holds at least 4 channels.
    """
    if name not in NORMS:
        raise ValueError(f"unknown norm {name!r}; choose one of {', '.join(NORMS)}")
    span, scaled = name.removeprefix("ns_"), not name.startswith("ns_")
    if span == "group":
        make = partial(GroupNorm, channels, max(1, min(32, channels // 4)), EPS)
        return make() if scaled else make(scaled=False)
    return SampleNorm(span, scaled, side, channels)
