"""The conditional latent U-Net of Stable Diffusion, sized by a preset, with room for guidance w.

Module paths equal the key names of diffusers' UNet2DConditionModel, so weights map leaf by leaf.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from lcm_jax.models.attention import SpatialTransformer
from lcm_jax.models.functional import Net, functional, kept
from lcm_jax.models.layers import (
    Downsample,
    GroupNorm,
    Image,
    Resized,
    ResnetBlock,
    TimeEmbedding,
    Upsample,
    conv,
    time_features,
)

_POLICIES = jax.checkpoint_policies
# What the backward pass recomputes instead of keeping it: nothing; each residual block with its transformer; of
# those, all but the results of linear maps and convolutions (attention weights, quadratic in pixels, go too).
REMAT = {
    "none": None,
    "block": _POLICIES.nothing_saveable,
    "dots": _POLICIES.save_from_both_policies(
        _POLICIES.dots_with_no_batch_dims_saveable, lambda op, *_, **__: op is jax.lax.conv_general_dilated_p
    ),
}


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of a U-Net; one entry a resolution level, from the finest down."""

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    attention: tuple[bool, ...] = (True, True, True, False)  # which levels look at the caption
    depth: tuple[int, ...] = (1, 1, 1, 1)  # transformer blocks per spatial transformer
    heads: tuple[int, ...] = (8, 8, 8, 8)  # head counts (diffusers' misnamed attention_head_dim)
    layers: int = 2  # residual blocks a level on the way down; one more on the way up
    latent_channels: int = 4
    out_channels: int | None = None
    context_width: int = 768
    linear_projection: bool = False  # Linear instead of 1x1 conv around transformers (SD 2.x, SDXL)
    w_width: int | None = None  # width of the guidance embedding; None for an unguided teacher
    added_width: int | None = None  # SDXL: width of pooled text + size ids
    added_time_width: int = 256  # SDXL: sinusoid width of each size id
    norm_groups: int = 32
    upcast_attention: bool = False  # other software's switch, kept for it: attention is float32 here at any rate
    dtype: str = "float32"  # compute; parameters stay float32
    remat: str = "none"  # what the backward pass recomputes: see REMAT

    def __post_init__(self) -> None:
        levels = len(self.channels)
        for name in ("attention", "depth", "heads"):
            if len(getattr(self, name)) != levels:
                given = getattr(self, name)
                raise ValueError(f"unet.{name} has {len(given)} entries, channels has {levels}: make them equal")
        if self.remat not in REMAT:
            raise ValueError(f"unet.remat is {self.remat!r}; choose {' or '.join(map(repr, REMAT))}")


Widths = list[list[tuple[int, int]]]


def block_widths(cfg: UNetConfig) -> tuple[Widths, Widths]:
    """(inputs, outputs) of each residual block: of the levels on the way down, and on the way up, in that order."""
    ch, n = cfg.channels, len(cfg.channels)
    skips, down = [ch[0]], []
    for i in range(n):
        inputs = [ch[max(i - 1, 0)]] + [ch[i]] * (cfg.layers - 1)
        down.append([(inp, ch[i]) for inp in inputs])
        skips += [ch[i]] * (cfg.layers + (i < n - 1))
    up, width = [], ch[-1]
    for i in reversed(range(n)):
        up.append([])
        for _ in range(cfg.layers + 1):
            up[-1].append((width + skips.pop(), ch[i]))
            width = ch[i]
    return down, up


class Level(nnx.Module):
    """Residual blocks of one resolution, each followed by a spatial transformer where asked."""

    def __init__(
        self, widths: list[tuple[int, int]], i: int, temb: int, cfg: UNetConfig, rngs: nnx.Rngs, kernel: str = "auto"
    ):
        kw = {"rngs": rngs, "dtype": jnp.dtype(cfg.dtype)}
        self.resnets = nnx.List(
            [ResnetBlock(inp, out, temb, cfg.norm_groups, 1e-5, **kw) for inp, out in widths]
        )
        self.attentions = nnx.List(
            [_transformer(out, i, cfg, rngs, kernel) for _, out in widths] if cfg.attention[i] else []
        )

    def layer(self, j: int, x: Image, temb: Array, context: Array) -> Resized:
        x = self.resnets[j](x, temb)
        return self.attentions[j](x, context) if len(self.attentions) else x


def _transformer(width: int, i: int, cfg: UNetConfig, rngs: nnx.Rngs, kernel: str) -> SpatialTransformer:
    return SpatialTransformer(
        width,
        cfg.context_width,
        cfg.heads[i],
        cfg.depth[i],
        cfg.norm_groups,
        cfg.linear_projection,
        kernel=kernel,
        rngs=rngs,
        dtype=jnp.dtype(cfg.dtype),
    )


class MidBlock(nnx.Module):
    """Residual, transformer, residual at the coarsest resolution."""

    def __init__(self, temb: int, cfg: UNetConfig, rngs: nnx.Rngs, kernel: str = "auto"):
        width, kw = cfg.channels[-1], {"rngs": rngs, "dtype": jnp.dtype(cfg.dtype)}
        self.resnets = nnx.List([ResnetBlock(width, width, temb, cfg.norm_groups, 1e-5, **kw) for _ in range(2)])
        self.attentions = nnx.List([_transformer(width, -1, cfg, rngs, kernel)])

    def __call__(self, x: Image, temb: Array, context: Array) -> Image:
        x = self.attentions[0](self.resnets[0](x, temb), context)
        return self.resnets[1](x, temb)


class UNet(nnx.Module):
    """Predicts eps, v or x0 of a noisy latent from its time, caption and (a student's) guidance w."""

    def __init__(self, cfg: UNetConfig, rngs: nnx.Rngs, kernel: str = "auto"):
        self.cfg = cfg
        ch, n = cfg.channels, len(cfg.channels)
        temb, dtype = 4 * ch[0], jnp.dtype(cfg.dtype)
        kw = {"rngs": rngs, "dtype": dtype}
        self.conv_in = conv(cfg.latent_channels, ch[0], **kw)
        self.time_embedding = TimeEmbedding(ch[0], temb, cfg.w_width, **kw)
        if cfg.added_width:
            self.add_embedding = TimeEmbedding(cfg.added_width, temb, None, **kw)

        downward, upward = block_widths(cfg)
        down = []
        for i, widths in enumerate(downward):
            level = Level(widths, i, temb, cfg, rngs, kernel)
            level.downsamplers = nnx.List([Downsample(ch[i], **kw)] if i < n - 1 else [])
            down.append(level)
        self.down_blocks = nnx.List(down)
        self.mid_block = MidBlock(temb, cfg, rngs, kernel)

        up = []
        for i, widths in zip(reversed(range(n)), upward, strict=True):
            level = Level(widths, i, temb, cfg, rngs, kernel)
            level.upsamplers = nnx.List([Upsample(ch[i], **kw)] if i > 0 else [])
            up.append(level)
        self.up_blocks = nnx.List(up)
        self.conv_norm_out = GroupNorm(ch[0], cfg.norm_groups)
        self.conv_out = conv(ch[0], cfg.out_channels or cfg.latent_channels, **kw)

    def __call__(
        self,
        z: Image,
        t: Num[Array, " b"],
        context: Float[Array, "b l d"],
        w_features: Float[Array, "b e"] | None = None,
        pooled: Float[Array, "b p"] | None = None,
        time_ids: Num[Array, "b 6"] | None = None,
    ) -> Resized:
        self._check(z, context, w_features, pooled, time_ids)
        dtype = jnp.dtype(self.cfg.dtype)
        temb = self._embed_time(t, w_features, pooled, time_ids, dtype)
        x, context = self.conv_in(z.astype(dtype)), context.astype(dtype)
        skips = [x]
        for level in self.down_blocks:
            for j in range(len(level.resnets)):
                x = self._layer(level, j, x, temb, context)
                skips.append(x)
            for downsample in level.downsamplers:
                x = downsample(x)
                skips.append(x)
        x = self._maybe_remat(self.mid_block)(x, temb, context)
        for level in self.up_blocks:
            for j in range(len(level.resnets)):
                x = self._layer(level, j, jnp.concatenate([x, skips.pop()], axis=-1), temb, context)
            for upsample in level.upsamplers:
                x = upsample(x, skips[-1].shape[1:3])
        return self.conv_out(nnx.silu(self.conv_norm_out(x))).astype(z.dtype)

    def _check(self, z: Array, context: Array, w_features: Array | None, pooled: Array | None, time_ids: Array | None):
        cfg = self.cfg
        if z.shape[-1] != cfg.latent_channels:
            raise ValueError(f"latent has {z.shape[-1]} channels, this U-Net takes {cfg.latent_channels}")
        if context.shape[-1] != cfg.context_width:
            raise ValueError(f"context is {context.shape[-1]} wide, this U-Net takes {cfg.context_width}")
        if w_features is not None and w_features.shape[-1] != cfg.w_width:
            raise ValueError(f"w_features are {w_features.shape[-1]} wide, this U-Net has w_width {cfg.w_width}")
        if any((given is not None) != bool(cfg.added_width) for given in (pooled, time_ids)):
            takes = "pooled text and size ids" if cfg.added_width else "neither pooled text nor size ids"
            raise ValueError(f"this U-Net has added_width {cfg.added_width} and takes {takes}")

    def _embed_time(
        self, t: Array, w_features: Array | None, pooled: Array | None, time_ids: Array | None, dtype
    ) -> Array:
        """Sinusoids stay float32 until they are features; bf16 arguments would have no resolution left."""
        features = time_features(t, self.cfg.channels[0]).astype(dtype)
        temb = self.time_embedding(features, None if w_features is None else w_features.astype(dtype))
        if self.cfg.added_width:
            sizes = time_features(time_ids.reshape(-1), self.cfg.added_time_width).reshape(time_ids.shape[0], -1)
            temb = temb + self.add_embedding(jnp.concatenate([pooled, sizes], -1).astype(dtype))
        return temb

    def _layer(self, level: Level, j: int, x: Array, temb: Array, context: Array) -> Array:
        return self._maybe_remat(lambda *a: level.layer(j, *a))(x, temb, context)

    def _maybe_remat(self, block):
        policy = REMAT[self.cfg.remat]
        return block if policy is None else jax.checkpoint(lambda *a: block(*a), policy=policy)


@kept
def unet(cfg: UNetConfig, attention: str = "auto") -> Net:
    """apply(params, z [b,h,w,c], t [b], context [b,l,d], w_features=None, pooled=None, time_ids=None) -> [b,h,w,c].

    `w_features` is the guidance embedding [b, w_width] (diffusion.guidance.guidance_embedding). SDXL takes pooled
    text [b, p] and time_ids [b, 6]: original height and width, crop top and left, target height and width (sec. 2.2).
    `attention` is one of attention.KERNELS, a matter of the machine and not of the model; ValueError if it has none.
    """
    return functional(lambda rngs: UNet(cfg, rngs, attention), cfg)
