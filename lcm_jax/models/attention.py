"""Attention, feed-forward and the spatial transformer that lets an image look at its caption."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.backend import get_backend
from jaxtyping import Array, Float

from lcm_jax.models.attention_blocks import by_head
from lcm_jax.models.layers import GroupNorm, Identity, Image, conv

MANY = 2**19  # weights a head, 2 MiB of float32
TOO_MANY, TURN = 2**22, 512  # weights a head that take memory rather than time; pixels that look at once
KERNELS = ("auto", "xla", "cudnn")

Tokens = Float[Array, "b n d"]
Heads = Float[Array, "b n h d"]


def attend(
    q: Tokens, k: Float[Array, "b m d"], v: Float[Array, "b m d"], heads: int, kernel: str = "auto"
) -> Tokens:
    """Scaled dot-product attention by one of KERNELS; "auto": cuDNN's fused one where it applies, XLA elsewhere."""
    split = lambda x: x.reshape(*x.shape[:2], heads, -1)
    if q.dtype == jnp.float16 and platform() == "cpu":  # knows no products of float16 summed in float32
        return attend(*(x.astype(jnp.float32) for x in (q, k, v)), heads).astype(q.dtype)
    if q.dtype in (jnp.float32, jnp.float64):
        exact = by_head if in_cache(q.shape[1] * k.shape[1]) else normalised_late
        return exact(split(q), split(k), split(v)).reshape(q.shape)
    if kernel == "auto":
        kernel = implementation(platform(), q.dtype, q.shape[-1] // heads)
    fused = partial(jax.nn.dot_product_attention, implementation=kernel)
    if kernel == "xla" and q.shape[1] * k.shape[1] >= TOO_MANY and q.shape[1] % TURN == 0:
        return in_turn(fused, split(q), split(k), split(v)).reshape(q.shape)
    return fused(split(q), split(k), split(v)).reshape(q.shape)


def in_turn(
    kernel: Callable[..., Heads], q: Heads, k: Float[Array, "b m h d"], v: Float[Array, "b m h d"]
) -> Heads:
    """Attention of TURN pixels at a time, again on the way back: no weights of all pixels are kept, or ever there.

    Pixels are what a mesh does not split, so that every device takes its samples and heads through one loop.
    """
    b, n, h, d = q.shape
    turns = q.reshape(b, n // TURN, TURN, h, d).swapaxes(0, 1)
    return jax.lax.map(jax.checkpoint(lambda some: kernel(some, k, v)), turns).swapaxes(0, 1).reshape(q.shape)


def normalised_late(q: Heads, k: Float[Array, "b m h d"], v: Float[Array, "b m h d"]) -> Heads:
    """Scaled dot-product attention in the inputs' own precision.

    Weights are divided by their sum after the product with v: n d divisions instead of n m, and one pass less over
    what is quadratic in pixels. At 1,024 pixels on a CPU the way forward takes 0.65 of the time of jax's own.
    """
    logits = jnp.einsum("bnhd,bmhd->bhnm", q * q.shape[-1] ** -0.5, k)
    # The largest logit cancels, so no gradient flows through it.
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v) / weights.sum(-1).swapaxes(1, 2)[..., None]


def in_cache(weights: int) -> bool:
    """Whether attention with that many weights a head is worth taking apart: on one processor alone, where many.

    At 1,024 pixels on two cores the way forward takes 0.6 of the time, with the gradient 0.7. Over several devices
    a loop over heads and samples would gather the batch.
    """
    return weights >= MANY and platform() == "cpu" and jax.device_count() == 1


def implementation(platform: str, dtype: np.dtype, size: int) -> str:
    """"cudnn", whose memory does not grow with the square of the pixels, where it can be had, else "xla".

    cuDNN's kernel takes heads of half precision whose `size` is a multiple of 8 up to 128 (256 from Hopper on).
    """
    half = dtype in (jnp.bfloat16, jnp.float16)
    return "cudnn" if platform == "cuda" and half and size <= 128 and size % 8 == 0 else "xla"


def check_kernel(kernel: str, dtype: np.dtype, size: int) -> None:
    """Raises ValueError for an unknown kernel, and for cuDNN's where heads of `size` numbers cannot have it."""
    if kernel not in KERNELS:
        raise ValueError(f"unknown attention {kernel!r}; choose one of {', '.join(KERNELS)}")
    if kernel == "cudnn" and implementation(platform(), dtype, size) != "cudnn":
        raise ValueError(
            "attention 'cudnn' takes heads of 8, 16, .. 128 numbers in bfloat16 or float16 on an NVIDIA GPU, here are "
            f"some of {size} in {dtype} on {platform()}: choose auto, which takes it where it fits, or xla"
        )


def platform() -> str:
    """What computes here: "cpu", "tpu", "cuda" or "rocm" (both of which jax calls gpu)."""
    chosen = jax.config.jax_default_device
    name = jax.default_backend() if chosen is None else getattr(chosen, "platform", chosen)
    if name != "gpu":
        return name
    return "cuda" if "cuda" in get_backend().platform_version else "rocm"


class Attention(nnx.Module):
    """Multi-head attention of x to `context` (to itself by default)."""

    def __init__(self, width: int, context: int, heads: int, *, kernel: str = "auto", rngs: nnx.Rngs, dtype=None):
        if width % heads:
            raise ValueError(f"attention width {width} does not split into {heads} heads; change `heads`")
        check_kernel(kernel, jnp.dtype(dtype or "float32"), width // heads)
        self.heads, self.kernel = heads, kernel
        self.to_q = nnx.Linear(width, width, use_bias=False, rngs=rngs, dtype=dtype)
        self.to_k = nnx.Linear(context, width, use_bias=False, rngs=rngs, dtype=dtype)
        self.to_v = nnx.Linear(context, width, use_bias=False, rngs=rngs, dtype=dtype)
        self.to_out = nnx.List([nnx.Linear(width, width, rngs=rngs, dtype=dtype)])

    def __call__(self, x: Tokens, context: Float[Array, "b m e"] | None = None) -> Tokens:
        context = x if context is None else context
        return self.to_out[0](attend(self.to_q(x), self.to_k(context), self.to_v(context), self.heads, self.kernel))


@jax.custom_vjp
def gated(x: Tokens) -> Float[Array, "b n d//2"]:
    """The first half times the exact GELU of the second. For the gradient x alone is kept, not what GELU is made of."""
    h, gate = jnp.split(x, 2, axis=-1)
    return h * jax.nn.gelu(gate, approximate=False)


def _gated_backward(x: Tokens, by_out: Float[Array, "b n e"]) -> tuple[Tokens]:
    wide = jnp.promote_types(x.dtype, jnp.float32)  # where the gate is low, halves of 1 + erf would be rounded away
    h, gate = jnp.split(x.astype(wide), 2, axis=-1)
    # erf here and erfc on the way forward: XLA would take the same function for one and keep it from there to here.
    below = 0.5 + 0.5 * jax.lax.erf(gate * 0.5**0.5)
    density = jnp.exp(-0.5 * gate**2) * (2 * math.pi) ** -0.5
    by_x = jnp.concatenate([gate * below, h * (below + gate * density)], axis=-1)
    return ((jnp.concatenate([by_out, by_out], axis=-1) * by_x).astype(x.dtype),)


gated.defvjp(lambda x: (gated(x), x), _gated_backward)


class GEGLU(nnx.Module):
    """Gated GELU projection (arXiv 2002.05202), exact GELU as Stable Diffusion uses."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs, dtype=None):
        self.proj = nnx.Linear(width, 2 * hidden, rngs=rngs, dtype=dtype)

    def __call__(self, x: Tokens) -> Float[Array, "b n e"]:
        return gated(self.proj(x))


class FeedForward(nnx.Module):
    """GEGLU to four times the width and back."""

    def __init__(self, width: int, *, rngs: nnx.Rngs, dtype=None):
        back = nnx.Linear(4 * width, width, rngs=rngs, dtype=dtype)
        self.net = nnx.List([GEGLU(width, 4 * width, rngs=rngs, dtype=dtype), Identity(), back])

    def __call__(self, x: Tokens) -> Tokens:
        return self.net[2](self.net[0](x))


class TransformerBlock(nnx.Module):
    """Self-attention, attention to the caption, feed-forward; each pre-normed and residual."""

    def __init__(self, width: int, context: int, heads: int, *, kernel: str = "auto", rngs: nnx.Rngs, dtype=None):
        norm = lambda: nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs, dtype=dtype, use_fast_variance=False)
        self.norm1, self.norm2, self.norm3 = norm(), norm(), norm()
        self.attn1 = Attention(width, width, heads, kernel=kernel, rngs=rngs, dtype=dtype)
        self.attn2 = Attention(width, context, heads, kernel=kernel, rngs=rngs, dtype=dtype)
        self.ff = FeedForward(width, rngs=rngs, dtype=dtype)

    def __call__(self, x: Tokens, context: Float[Array, "b l e"]) -> Tokens:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nnx.Module):
    """Transformer blocks over the pixels of a feature map, added to that map."""

    def __init__(
        self,
        channels: int,
        context: int,
        heads: int,
        depth: int,
        groups: int,
        linear: bool,
        *,
        kernel: str = "auto",
        rngs: nnx.Rngs,
        dtype=None,
    ):
        project = (
            (lambda: nnx.Linear(channels, channels, rngs=rngs, dtype=dtype))
            if linear
            else (lambda: conv(channels, channels, 1, rngs=rngs, dtype=dtype))
        )
        self.norm = GroupNorm(channels, groups, 1e-6)
        self.proj_in, self.proj_out = project(), project()
        self.transformer_blocks = nnx.List(
            [TransformerBlock(channels, context, heads, kernel=kernel, rngs=rngs, dtype=dtype) for _ in range(depth)]
        )

    def __call__(self, x: Image, context: Float[Array, "b l e"]) -> Image:
        b, h, w, c = x.shape
        tokens = self.proj_in(self.norm(x)).reshape(b, h * w, c)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return x + self.proj_out(tokens.reshape(b, h, w, c))
