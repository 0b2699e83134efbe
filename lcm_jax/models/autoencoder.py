"""The KL autoencoder of latent diffusion: images to moments of a Gaussian latent, latents to images.

Module paths equal the key names of diffusers' AutoencoderKL (arXiv 2112.10752).
"""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lcm_jax.models.attention import attend
from lcm_jax.models.autoencoder_tiny import TinyAutoencoder, TinyAutoencoderConfig
from lcm_jax.models.functional import Net, functional, kept
from lcm_jax.models.layers import Downsample, GroupNorm, Image, Resized, ResnetBlock, Upsample, check_sides, conv


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of an autoencoder; the latent is smaller by patch * 2^(levels - 1)."""

    channels: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    latent_channels: int = 4
    patch: int = 1  # pixels folded into channels before the first convolution (1 for Stable Diffusion)
    norm_groups: int = 32
    scale: float = 0.18215  # latents are multiplied by this before diffusion
    shift: float = 0.0  # `encode` takes it off latents, `decode` puts it back (diffusers' shift_factor)
    dtype: str = "float32"  # compute; parameters stay float32
    force_upcast: bool = False  # compute in float32 at least, where weights overflow float16 (SDXL's do)

    @property
    def factor(self) -> int:
        """Image pixels per latent pixel along one side."""
        return self.patch * 2 ** (len(self.channels) - 1)

    @property
    def compute_dtype(self) -> jnp.dtype:
        """`dtype`, or a wider one under `force_upcast`."""
        return jnp.promote_types(self.dtype, jnp.float32) if self.force_upcast else jnp.dtype(self.dtype)


class PixelAttention(nnx.Module):
    """Single-head self-attention over pixels with its own norm and residual."""

    def __init__(self, width: int, groups: int, *, rngs: nnx.Rngs, dtype=None):
        self.group_norm = GroupNorm(width, groups, 1e-6)
        linear = lambda: nnx.Linear(width, width, rngs=rngs, dtype=dtype)
        self.to_q, self.to_k, self.to_v = linear(), linear(), linear()
        self.to_out = nnx.List([linear()])

    def __call__(self, x: Image) -> Image:
        b, h, w, c = x.shape
        n = self.group_norm(x).reshape(b, h * w, c)
        out = self.to_out[0](attend(self.to_q(n), self.to_k(n), self.to_v(n), 1))
        return x + out.reshape(b, h, w, c)


class MidBlock(nnx.Module):
    """Residual, attention, residual."""

    def __init__(self, width: int, groups: int, **kw):
        self.resnets = nnx.List([ResnetBlock(width, width, None, groups, 1e-6, **kw) for _ in range(2)])
        self.attentions = nnx.List([PixelAttention(width, groups, **kw)])

    def __call__(self, x: Image) -> Image:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Level(nnx.Module):
    """Residual blocks of one resolution and the change to the next."""

    def __init__(self, inp: int, out: int, layers: int, groups: int, **kw):
        widths = [inp] + [out] * (layers - 1)
        self.resnets = nnx.List([ResnetBlock(c, out, None, groups, 1e-6, **kw) for c in widths])
        self.downsamplers = nnx.List([])
        self.upsamplers = nnx.List([])

    def __call__(self, x: Image) -> Resized:
        for part in (*self.resnets, *self.downsamplers, *self.upsamplers):
            x = part(x)
        return x


class Encoder(nnx.Module):
    """Image to 2 c channels: mean and log-variance."""

    def __init__(self, cfg: AutoencoderConfig, **kw):
        ch = cfg.channels
        self.conv_in = conv(3 * cfg.patch**2, ch[0], **kw)
        self.down_blocks = nnx.List([])
        for i, width in enumerate(ch):
            level = Level(ch[max(i - 1, 0)], width, cfg.layers, cfg.norm_groups, **kw)
            if i < len(ch) - 1:
                level.downsamplers.append(Downsample(width, asymmetric=True, **kw))
            self.down_blocks.append(level)
        self.mid_block = MidBlock(ch[-1], cfg.norm_groups, **kw)
        self.conv_norm_out = GroupNorm(ch[-1], cfg.norm_groups, 1e-6)
        self.conv_out = conv(ch[-1], 2 * cfg.latent_channels, **kw)

    def __call__(self, x: Image) -> Resized:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nnx.Module):
    """Latent to image; one residual block more a level than the encoder."""

    def __init__(self, cfg: AutoencoderConfig, **kw):
        ch = cfg.channels
        self.conv_in = conv(cfg.latent_channels, ch[-1], **kw)
        self.mid_block = MidBlock(ch[-1], cfg.norm_groups, **kw)
        self.up_blocks = nnx.List([])
        for i in reversed(range(len(ch))):
            level = Level(ch[min(i + 1, len(ch) - 1)], ch[i], cfg.layers + 1, cfg.norm_groups, **kw)
            if i > 0:
                level.upsamplers.append(Upsample(ch[i], **kw))
            self.up_blocks.append(level)
        self.conv_norm_out = GroupNorm(ch[0], cfg.norm_groups, 1e-6)
        self.conv_out = conv(ch[0], 3 * cfg.patch**2, **kw)

    def __call__(self, z: Image) -> Resized:
        x = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(x)))


class Autoencoder(nnx.Module):
    """Encoder and decoder around 1x1 convolutions on the latent side."""

    def __init__(self, cfg: AutoencoderConfig, rngs: nnx.Rngs):
        kw = {"rngs": rngs, "dtype": cfg.compute_dtype}
        self.cfg = cfg
        self.encoder, self.decoder = Encoder(cfg, **kw), Decoder(cfg, **kw)
        self.quant_conv = conv(2 * cfg.latent_channels, 2 * cfg.latent_channels, 1, **kw)
        self.post_quant_conv = conv(cfg.latent_channels, cfg.latent_channels, 1, **kw)

    def encode(self, image: Float[Array, "b h w 3"]) -> Resized:
        """Image in [-1, 1] to moments [b, h/f, w/f, 2 c] (mean, log-variance), unscaled."""
        check_sides(image, self.cfg.factor)
        b, h, w, _ = image.shape
        p = self.cfg.patch
        x = image.reshape(b, h // p, p, w // p, p, 3).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(b, h // p, w // p, 3 * p * p).astype(self.cfg.compute_dtype)
        mean, logvar = jnp.split(self.quant_conv(self.encoder(x)), 2, axis=-1)
        moments = [mean - self.cfg.shift, jnp.clip(logvar, -30.0, 20.0)]
        return jnp.concatenate(moments, axis=-1).astype(image.dtype)

    def decode(self, z: Image) -> Float[Array, "b _ _ 3"]:
        """Unscaled latent to an image, nominally in [-1, 1] (not clipped)."""
        p = self.cfg.patch
        x = self.decoder(self.post_quant_conv(z.astype(self.cfg.compute_dtype) + self.cfg.shift))
        b, h, w, _ = x.shape
        x = x.reshape(b, h, w, p, p, 3).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(b, h * p, w * p, 3).astype(z.dtype)

    __call__ = decode


@kept
def autoencoder(cfg: AutoencoderConfig | TinyAutoencoderConfig) -> Net:
    """apply(params, image, method="encode") -> moments; apply(params, z, method="decode") -> image."""
    kind = TinyAutoencoder if isinstance(cfg, TinyAutoencoderConfig) else Autoencoder
    return functional(lambda rngs: kind(cfg, rngs), cfg)
