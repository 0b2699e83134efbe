"""The small parts every network here is made of: norms, embeddings, residual blocks, resampling."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Num

Image = Float[Array, "b h w c"]
Resized = Float[Array, "b _ _ _"]  # an image of other sides or channels than the one it was made from


class GroupNorm(nnx.Module):
    """Group normalisation over (h, w, c / groups), statistics in float32 (arXiv 1803.08494).

    Without `scaled` there is a learned shift alone.
    """

    def __init__(self, channels: int, groups: int = 32, eps: float = 1e-5, scaled: bool = True):
        if channels % groups:
            raise ValueError(f"{channels} channels do not split into {groups} groups; change norm_groups")
        self.groups, self.eps = groups, eps
        self.scale = nnx.Param(jnp.ones((channels,))) if scaled else None
        self.bias = nnx.Param(jnp.zeros((channels,)))

    def __call__(self, x: Float[Array, "b *spatial c"]) -> Float[Array, "b *spatial c"]:
        b, c = x.shape[0], x.shape[-1]
        wide = jnp.promote_types(x.dtype, jnp.float32)
        h = x.astype(wide).reshape(b, -1, c)
        # Moments of each channel first, then of a group's channels: all long loops run over whole rows of c.
        mean_c = h.mean(1, keepdims=True)
        var_c = jnp.square(h - mean_c).mean(1)
        mean_c, var_c = mean_c.reshape(b, self.groups, -1), var_c.reshape(b, self.groups, -1)
        mean = mean_c.mean(-1, keepdims=True)
        var = (var_c + jnp.square(mean_c - mean)).mean(-1, keepdims=True)
        # One multiply-add per element: scale and shift are folded into [b, groups, c / groups].
        scale = jnp.ones((c,), wide) if self.scale is None else self.scale[...]
        gain = jax.lax.rsqrt(var + self.eps) * scale.reshape(1, self.groups, -1)
        shift = self.bias[...].reshape(1, self.groups, -1) - mean * gain
        return (h * gain.reshape(b, 1, c) + shift.reshape(b, 1, c)).reshape(x.shape).astype(x.dtype)


class Identity(nnx.Module):
    """Keeps a place in a list, so that indices match those of the reference networks."""

    def __call__(self, x: Array) -> Array:
        return x


def time_features(t: Num[Array, " b"], width: int) -> Float[Array, "b width"]:
    """Sinusoids [cos, sin] of a time with denominator half = width / 2 (Stable Diffusion's order)."""
    half = width // 2
    frequency = jnp.exp(-math.log(10_000) * jnp.arange(half, dtype=jnp.float32) / half)
    angle = t.astype(jnp.float32)[:, None] * frequency[None]
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class TimeEmbedding(nnx.Module):
    """MLP of the time features; a w embedding enters through a bias-free, zero-initialised map.

    Zero initialisation makes a student equal its teacher at step 0 (LCM section 4.3, ControlNet's idea).
    """

    def __init__(self, width: int, out: int, w_width: int | None, *, rngs: nnx.Rngs, dtype=None):
        self.linear_1 = nnx.Linear(width, out, rngs=rngs, dtype=dtype)
        self.linear_2 = nnx.Linear(out, out, rngs=rngs, dtype=dtype)
        if w_width:
            self.cond_proj = nnx.Linear(
                w_width, width, use_bias=False, kernel_init=nnx.initializers.zeros, rngs=rngs, dtype=dtype
            )

    def __call__(
        self, features: Float[Array, "b d"], w_features: Float[Array, "b e"] | None = None
    ) -> Float[Array, "b o"]:
        if w_features is not None:
            features = features + self.cond_proj(w_features)
        return self.linear_2(nnx.silu(self.linear_1(features)))


def conv(
    inp: int, out: int, size: int = 3, stride: int = 1, *, rngs: nnx.Rngs, dtype=None, padding="SAME", **kw
):
    """A square NHWC convolution with PyTorch's symmetric padding."""
    pad = [(size // 2, size // 2)] * 2 if padding == "SAME" else padding
    return nnx.Conv(inp, out, (size, size), (stride, stride), padding=pad, rngs=rngs, dtype=dtype, **kw)


class ResnetBlock(nnx.Module):
    """norm-silu-conv twice around an optional time shift, plus the (projected) input."""

    def __init__(
        self, inp: int, out: int, temb: int | None, groups: int, eps: float, *, rngs: nnx.Rngs, dtype=None
    ):
        self.norm1 = GroupNorm(inp, groups, eps)
        self.conv1 = conv(inp, out, rngs=rngs, dtype=dtype)
        if temb:
            self.time_emb_proj = nnx.Linear(temb, out, rngs=rngs, dtype=dtype)
        self.norm2 = GroupNorm(out, groups, eps)
        self.conv2 = conv(out, out, rngs=rngs, dtype=dtype)
        self.conv_shortcut = conv(inp, out, 1, rngs=rngs, dtype=dtype) if inp != out else None

    def __call__(self, x: Image, temb: Float[Array, "b d"] | None = None) -> Resized:
        h = self.conv1(nnx.silu(self.norm1(x)))
        if temb is not None:
            h = h + self.time_emb_proj(nnx.silu(temb))[:, None, None]
        h = self.conv2(nnx.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nnx.Module):
    """Stride-2 convolution; `asymmetric` pads right and bottom only, as the KL encoder does."""

    def __init__(self, channels: int, *, asymmetric: bool = False, rngs: nnx.Rngs, dtype=None):
        padding = [(0, 1), (0, 1)] if asymmetric else "SAME"
        self.conv = conv(channels, channels, stride=2, padding=padding, rngs=rngs, dtype=dtype)

    def __call__(self, x: Image) -> Resized:
        return self.conv(x)


def double(x: Image) -> Resized:
    """Every pixel four times: nearest-neighbour enlargement to twice the sides."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


class Upsample(nnx.Module):
    """Nearest-neighbour enlargement to `size` (twice by default), then a convolution."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs, dtype=None):
        self.conv = conv(channels, channels, rngs=rngs, dtype=dtype)

    def __call__(self, x: Image, size: tuple[int, int] | None = None) -> Resized:
        h, w = x.shape[1:3]
        if size is None or size == (2 * h, 2 * w):
            x = double(x)
        else:  # odd latents: the skip connection decides the size; pixel i comes from floor(i old / new)
            rows, cols = (np.arange(new) * old // new for new, old in zip(size, (h, w), strict=True))
            x = x[:, rows][:, :, cols]
        return self.conv(x)


def check_sides(image: Image, factor: int) -> None:
    """Raises ValueError where an autoencoder cannot shrink an image by its factor."""
    h, w = image.shape[1:3]
    if h % factor or w % factor:
        raise ValueError(f"image {h} x {w} is not divisible by {factor}, this autoencoder's factor: resize or crop")


class FrozenBatchNorm(nnx.Module):
    """Batch normalisation by stored statistics, for networks that are not trained: one multiply-add a channel."""

    def __init__(self, channels: int, eps: float = 1e-5):
        self.eps = eps
        self.scale, self.var = nnx.Param(jnp.ones((channels,))), nnx.Param(jnp.ones((channels,)))
        self.bias, self.mean = nnx.Param(jnp.zeros((channels,))), nnx.Param(jnp.zeros((channels,)))

    def __call__(self, x: Image) -> Image:
        gain = self.scale[...] * jax.lax.rsqrt(self.var[...] + self.eps)
        shift = self.bias[...] - self.mean[...] * gain
        return x * gain.reshape(1, 1, 1, -1) + shift.reshape(1, 1, 1, -1)
