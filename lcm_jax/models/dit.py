"""The diffusion transformer for noise levels: patches of a latent, modulated by noise and label (arXiv 2212.09748).

F(c_in x, c_noise, labels) of EDM eq. 7, as models.adm is: the same call, the same switches.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key, Num

from lcm_jax.models.attention import attend
from lcm_jax.models.dropout import drop
from lcm_jax.models.functional import Net, functional, kept
from lcm_jax.models.layers import Image, time_features
from lcm_jax.models.noise_input import check_input
from lcm_jax.models.norms import norm

FREQUENCIES = 256  # sinusoids of the noise level


@dataclass(frozen=True)
class DiTConfig:
    """Sizes; the defaults are DiT-B/2 for 32 x 32 x 4 latents (130 M)."""

    side: int = 32  # of the input
    in_channels: int = 4
    patch: int = 2
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 4  # widths of the hidden layer
    norm: str = "rms"
    qk_norm: bool = True  # queries and keys have unit root mean square before they meet
    dropout: float = 0.0
    classes: int = 0  # 0: no labels
    dtype: str = "float32"  # compute; parameters stay float32
    remat: bool = False  # recompute each block in the backward pass

    def __post_init__(self) -> None:
        if self.side % self.patch:
            raise ValueError(f"side {self.side} does not split into patches of {self.patch}: change one of them")
        if self.width % (4 * self.heads):
            raise ValueError(f"width {self.width} does not split into {self.heads} heads of a multiple of 4: change it")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}: give a share of at least 0 and below 1")


def positions(side: int, width: int) -> Float[np.ndarray, "side side width"]:
    """Sinusoids of row and column, half of the width each."""
    frequency = 10_000 ** -(np.arange(width // 4) / (width // 4))
    angle = np.arange(side)[:, None] * frequency
    wave = np.concatenate([np.sin(angle), np.cos(angle)], -1)
    rows = np.broadcast_to(wave[:, None], (side, side, width // 2))
    return np.concatenate([rows, rows.swapaxes(0, 1)], -1).astype(np.float32)


def _linear(inp: int, out: int, cfg: DiTConfig, rngs: nnx.Rngs, zero: bool = False) -> nnx.Linear:
    init = nnx.initializers.zeros if zero else nnx.initializers.xavier_uniform()
    return nnx.Linear(inp, out, kernel_init=init, rngs=rngs, dtype=jnp.dtype(cfg.dtype))


class Block(nnx.Module):
    """Attention, then two linear layers; norm, scale and shift before each, a gate after, which starts at zero."""

    def __init__(self, cfg: DiTConfig, rngs: nnx.Rngs):
        self.cfg = cfg
        side, width = cfg.side // cfg.patch, cfg.width
        self.modulation = _linear(width, 6 * width, cfg, rngs, zero=True)
        self.norm1, self.norm2 = norm(cfg.norm, side, width), norm(cfg.norm, side, width)
        self.qkv, self.proj = _linear(width, 3 * width, cfg, rngs), _linear(width, width, cfg, rngs)
        self.fc1, self.fc2 = _linear(width, cfg.mlp * width, cfg, rngs), _linear(cfg.mlp * width, width, cfg, rngs)

    def __call__(self, x: Image, emb: Float[Array, "b e"], key: Key[Array, ""] | None) -> Image:
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(self.modulation(emb)[:, None, None], 6, axis=-1)
        x = x + gate1 * self.attend(self.norm1(x) * (1 + scale1) + shift1)
        h = nnx.gelu(self.fc1(self.norm2(x) * (1 + scale2) + shift2), approximate=True)
        return x + gate2 * self.fc2(drop(h, self.cfg.dropout, key))

    def attend(self, x: Image) -> Image:
        b, h, w, c = x.shape
        q, k, v = jnp.split(self.qkv(x).reshape(b, h * w, 3 * c), 3, axis=-1)
        if self.cfg.qk_norm:
            q, k = self._unit(q), self._unit(k)
        return self.proj(attend(q, k, v, self.cfg.heads).reshape(x.shape))

    def _unit(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        split = x.reshape(*x.shape[:2], self.cfg.heads, -1).astype(jnp.promote_types(x.dtype, jnp.float32))
        size = jax.lax.rsqrt(jnp.square(split).mean(-1, keepdims=True) + 1e-6)
        return (split * size).reshape(x.shape).astype(x.dtype)


class DiT(nnx.Module):
    """F: scaled image, scaled noise level and label to an image of the same shape; its output starts at zero."""

    def __init__(self, cfg: DiTConfig, rngs: nnx.Rngs):
        self.cfg = cfg
        width, pixels = cfg.width, cfg.in_channels * cfg.patch**2
        self.patches = _linear(pixels, width, cfg, rngs)
        self.map_layer0, self.map_layer1 = _linear(FREQUENCIES, width, cfg, rngs), _linear(width, width, cfg, rngs)
        # One more row than there are classes: the last stands for "no label".
        self.map_label = nnx.Embed(cfg.classes + 1, width, rngs=rngs) if cfg.classes else None
        self.blocks = nnx.List([Block(cfg, rngs) for _ in range(cfg.depth)])
        self.norm_out = norm(cfg.norm, cfg.side // cfg.patch, width)
        self.modulation = _linear(width, 2 * width, cfg, rngs, zero=True)
        self.out = _linear(width, pixels, cfg, rngs, zero=True)

    def __call__(
        self,
        x: Image,
        noise: Num[Array, " b"],
        labels: Num[Array, " b"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Image:
        """`labels` run from 0 to classes - 1, `classes` being no label; dropout is off without a key."""
        cfg = self.cfg
        check_input(cfg, x, labels)
        dtype = jnp.dtype(cfg.dtype)
        emb = self.map_layer1(nnx.silu(self.map_layer0(time_features(noise, FREQUENCIES).astype(dtype))))
        if self.map_label is not None:
            emb = emb + self.map_label(labels).astype(dtype)
        emb = nnx.silu(emb)

        n, p = cfg.side // cfg.patch, cfg.patch
        cut = x.astype(dtype).reshape(-1, n, p, n, p, cfg.in_channels).transpose(0, 1, 3, 2, 4, 5)
        h = self.patches(cut.reshape(-1, n, n, p * p * cfg.in_channels)) + positions(n, cfg.width).astype(dtype)[None]
        keys = [None] * cfg.depth if dropout_key is None else jax.random.split(dropout_key, cfg.depth)
        for block, key in zip(self.blocks, keys, strict=True):
            h = jax.checkpoint(lambda *a, block=block: block(*a))(h, emb, key) if cfg.remat else block(h, emb, key)
        shift, scale = jnp.split(self.modulation(emb)[:, None, None], 2, axis=-1)
        h = self.out(self.norm_out(h) * (1 + scale) + shift)
        whole = h.reshape(-1, n, n, p, p, cfg.in_channels).transpose(0, 1, 3, 2, 4, 5)
        return whole.reshape(x.shape).astype(x.dtype)


@kept
def dit(cfg: DiTConfig) -> Net:
    """apply(params, x [b,h,w,c], noise [b], labels=None, dropout_key=None) -> [b,h,w,c]."""
    return functional(lambda rngs: DiT(cfg, rngs), cfg)
