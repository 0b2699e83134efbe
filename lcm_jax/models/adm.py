"""The U-Net of consistency training: EDM's form of the ADM network with a choice of normalisation.

F(c_in x, c_noise, labels) of EDM eq. 7; it is handed scaled images and scaled log noise levels and knows nothing
of what they mean (EDM app. F; arXiv 2502.01441 for the norms).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, Num

from lcm_jax.models.attention import attend
from lcm_jax.models.dropout import drop
from lcm_jax.models.functional import Net, functional, kept
from lcm_jax.models.layers import Image, Resized, conv, double, time_features
from lcm_jax.models.noise_input import check_input
from lcm_jax.models.norms import norm


@dataclass(frozen=True)
class ADMConfig:
    """Sizes; the defaults are the 32 x 32 x 4 latent network of arXiv 2502.01441 (158.4 M with its ns_layer)."""

    side: int = 32  # of the input; part of the network where a norm spans the whole sample
    in_channels: int = 4
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 3, 4)  # of the width, a level each, from the finest down
    layers: int = 4  # residual blocks a level on the way down; one more on the way up
    attention: tuple[int, ...] = (16, 8)  # sides at which every block attends; the bottom always does once
    head_width: int = 64
    norm: str = "ns_layer"
    dropout: float = 0.0
    classes: int = 0  # 0: no labels
    dtype: str = "float32"  # compute; parameters stay float32
    remat: bool = False  # recompute each block in the backward pass

    def __post_init__(self) -> None:
        halvings = len(self.multipliers) - 1
        if self.side % 2**halvings:
            raise ValueError(f"side {self.side} cannot be halved {halvings} times: change side or multipliers")
        sides = [self.side >> i for i in range(len(self.multipliers))]
        attending = {m * self.width for m, s in zip(self.multipliers, sides, strict=True) if s in self.attention}
        for channels in attending | {self.multipliers[-1] * self.width}:
            if channels % self.head_width:
                raise ValueError(f"{channels} channels do not split into heads of {self.head_width}: change head_width")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}: give a share of at least 0 and below 1")


def uniform(fan_in: int) -> nnx.Initializer:
    """Kaiming-uniform with a gain of sqrt(1/3), of kernels and biases alike: U(-1, 1) / sqrt(fan_in)."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -1, 1) / fan_in**0.5


def _conv(inp: int, out: int, size: int, cfg: ADMConfig, rngs: nnx.Rngs, zero: bool = False) -> nnx.Conv:
    init = nnx.initializers.zeros if zero else uniform(inp * size * size)
    return conv(inp, out, size, rngs=rngs, dtype=jnp.dtype(cfg.dtype), kernel_init=init, bias_init=init)


def _linear(inp: int, out: int, cfg: ADMConfig, rngs: nnx.Rngs) -> nnx.Linear:
    init = uniform(inp)
    return nnx.Linear(inp, out, kernel_init=init, bias_init=init, rngs=rngs, dtype=jnp.dtype(cfg.dtype))


def halve(x: Image) -> Resized:
    """The mean of every 2 x 2 pixels."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


class Block(nnx.Module):
    """norm-silu-resample-conv, norm-modulate-silu-dropout-conv, plus the resampled input; attention at its end."""

    def __init__(self, inp: int, out: int, side: int, resample: str, attends: bool, cfg: ADMConfig, rngs: nnx.Rngs):
        self.resample, self.dropout, self.heads = resample, cfg.dropout, out // cfg.head_width
        before = {"": side, "down": 2 * side, "up": side // 2}[resample]  # `side` is that of the output
        self.norm0, self.conv0 = norm(cfg.norm, before, inp), _conv(inp, out, 3, cfg, rngs)
        self.affine = _linear(4 * cfg.width, 2 * out, cfg, rngs)
        self.norm1, self.conv1 = norm(cfg.norm, side, out), _conv(out, out, 3, cfg, rngs, zero=True)
        self.skip = _conv(inp, out, 1, cfg, rngs) if inp != out else None
        self.norm2 = norm(cfg.norm, side, out) if attends else None
        self.qkv = _conv(out, 3 * out, 1, cfg, rngs) if attends else None
        self.proj = _conv(out, out, 1, cfg, rngs, zero=True) if attends else None

    def __call__(self, x: Image, emb: Float[Array, "b e"], key: Key[Array, ""] | None) -> Resized:
        move = {"": lambda h: h, "down": halve, "up": double}[self.resample]
        h = self.conv0(move(nnx.silu(self.norm0(x))))
        scale, shift = jnp.split(self.affine(emb)[:, None, None], 2, axis=-1)
        h = nnx.silu(self.norm1(h) * (1 + scale) + shift)
        h = self.conv1(drop(h, self.dropout, key))
        x = move(x)
        h = h + (x if self.skip is None else self.skip(x))
        return h if self.qkv is None else h + self.attend(h)

    def attend(self, x: Image) -> Image:
        b, h, w, c = x.shape
        q, k, v = jnp.split(self.qkv(self.norm2(x)).reshape(b, h * w, 3 * c), 3, axis=-1)
        return self.proj(attend(q, k, v, self.heads).reshape(x.shape))


class ADM(nnx.Module):
    """F: scaled image, scaled noise level and label to an image of the same shape; its output starts at zero."""

    def __init__(self, cfg: ADMConfig, rngs: nnx.Rngs):
        self.cfg = cfg
        emb = 4 * cfg.width
        self.map_layer0, self.map_layer1 = _linear(cfg.width, emb, cfg, rngs), _linear(emb, emb, cfg, rngs)
        # One more row than there are classes: the last stands for "no label".
        unit = nnx.initializers.normal(1.0)  # as EDM's own starts: its linear map of one-hot labels, scaled back up
        self.map_label = nnx.Embed(cfg.classes + 1, emb, embedding_init=unit, rngs=rngs) if cfg.classes else None

        channels = [m * cfg.width for m in cfg.multipliers]
        sides = [cfg.side >> i for i in range(len(channels))]
        make = lambda i, o, level, resample="", attends=False: Block(i, o, sides[level], resample, attends, cfg, rngs)
        looks = [side in cfg.attention for side in sides]

        self.conv_in = _conv(cfg.in_channels, channels[0], 3, cfg, rngs)
        down, skips, width = [], [channels[0]], channels[0]
        for level, out in enumerate(channels):
            if level:
                down.append(make(width, width, level, "down"))
                skips.append(width)
            for _ in range(cfg.layers):
                down.append(make(width, out, level, attends=looks[level]))
                width = out
                skips.append(width)
        self.down = nnx.List(down)

        bottom = len(channels) - 1
        self.middle = nnx.List([make(width, width, bottom, attends=True), make(width, width, bottom)])
        up, takes = [], []
        for level in reversed(range(len(channels))):
            if level < bottom:
                up.append(make(width, width, level, "up"))
                takes.append(False)
            for _ in range(cfg.layers + 1):
                up.append(make(width + skips.pop(), channels[level], level, attends=looks[level]))
                takes.append(True)
                width = channels[level]
        self.up, self.takes = nnx.List(up), tuple(takes)  # takes: which of them are given a skip
        self.norm_out = norm(cfg.norm, cfg.side, width)
        self.conv_out = _conv(width, cfg.in_channels, 3, cfg, rngs, zero=True)

    def __call__(
        self,
        x: Image,
        noise: Num[Array, " b"],
        labels: Num[Array, " b"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Image:
        """`labels` run from 0 to classes - 1, `classes` being no label; dropout is off without a key."""
        check_input(self.cfg, x, labels)
        dtype = jnp.dtype(self.cfg.dtype)
        emb = nnx.silu(self.map_layer0(time_features(noise, self.cfg.width).astype(dtype)))
        emb = self.map_layer1(emb)
        if self.map_label is not None:
            emb = emb + self.map_label(labels).astype(dtype)
        emb = nnx.silu(emb)

        keys = iter([None] * self._blocks() if dropout_key is None else jax.random.split(dropout_key, self._blocks()))
        h = self.conv_in(x.astype(dtype))
        skips = [h]
        for block in self.down:
            h = self._run(block, h, emb, next(keys))
            skips.append(h)
        for block in self.middle:
            h = self._run(block, h, emb, next(keys))
        for block, takes in zip(self.up, self.takes, strict=True):
            h = jnp.concatenate([h, skips.pop()], axis=-1) if takes else h
            h = self._run(block, h, emb, next(keys))
        return self.conv_out(nnx.silu(self.norm_out(h))).astype(x.dtype)

    def _blocks(self) -> int:
        return len(self.down) + len(self.middle) + len(self.up)

    def _run(self, block: Block, h: Array, emb: Array, key: Array | None) -> Array:
        return jax.checkpoint(lambda *a: block(*a))(h, emb, key) if self.cfg.remat else block(h, emb, key)


@kept
def adm(cfg: ADMConfig) -> Net:
    """apply(params, x [b,h,w,c], noise [b], labels=None, dropout_key=None) -> [b,h,w,c]."""
    return functional(lambda rngs: ADM(cfg, rngs), cfg)
