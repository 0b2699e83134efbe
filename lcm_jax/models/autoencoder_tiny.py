"""The tiny autoencoder (TAESD): Stable Diffusion's latents by a few convolutions, with no posterior spread.

Module paths equal the key names of diffusers' AutoencoderTiny (github.com/madebyollin/taesd).
"""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lcm_jax.models.layers import Identity, Image, Resized, check_sides, conv, double

NO_SPREAD = -30.0  # the log-variance of moments that have none: std 3e-7, the least a KL autoencoder gives
_BOUND = 3.0  # latents are squashed into (-3, 3) before they are decoded


@dataclass(frozen=True)
class TinyAutoencoderConfig:
    """Sizes of a tiny autoencoder; blocks a level, the encoder's from the finest, the decoder's from the coarsest."""

    width: int = 64
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    latent_channels: int = 4
    scale: float = 1.0  # latents are multiplied by this before diffusion
    shift: float = 0.0  # `encode` takes it off latents, `decode` puts it back
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if len(self.encoder_blocks) != len(self.decoder_blocks):
            down, up = len(self.encoder_blocks), len(self.decoder_blocks)
            raise ValueError(f"encoder_blocks has {down} levels, decoder_blocks {up}: make them equal")

    @property
    def factor(self) -> int:
        """Image pixels per latent pixel along one side."""
        return 2 ** (len(self.encoder_blocks) - 1)


class Block(nnx.Module):
    """Three convolutions around the input, ReLU between and behind."""

    def __init__(self, width: int, **kw):
        three = [conv(width, width, **kw) for _ in range(3)]
        self.conv = nnx.List([three[0], Identity(), three[1], Identity(), three[2]])

    def __call__(self, x: Image) -> Image:
        h = nnx.relu(self.conv[2](nnx.relu(self.conv[0](x))))
        return nnx.relu(x + self.conv[4](h))


class Relu(nnx.Module):
    """ReLU as an entry of a list of layers."""

    def __call__(self, x: Array) -> Array:
        return nnx.relu(x)


class Double(nnx.Module):
    """Nearest-neighbour enlargement as an entry of a list of layers."""

    def __call__(self, x: Image) -> Resized:
        return double(x)


class Layers(nnx.Module):
    """Layers one after the other."""

    def __init__(self, layers: list[nnx.Module]):
        self.layers = nnx.List(layers)

    def __call__(self, x: Image) -> Resized:
        for layer in self.layers:
            x = layer(x)
        return x


def _encoder(cfg: TinyAutoencoderConfig, **kw) -> Layers:
    layers = []
    for i, blocks in enumerate(cfg.encoder_blocks):
        smaller = lambda: conv(cfg.width, cfg.width, stride=2, use_bias=False, **kw)
        layers.append(smaller() if i else conv(3, cfg.width, **kw))
        layers += [Block(cfg.width, **kw) for _ in range(blocks)]
    return Layers([*layers, conv(cfg.width, cfg.latent_channels, **kw)])


def _decoder(cfg: TinyAutoencoderConfig, **kw) -> Layers:
    layers = [conv(cfg.latent_channels, cfg.width, **kw), Relu()]
    for i, blocks in enumerate(cfg.decoder_blocks):
        if i:
            layers += [Double(), conv(cfg.width, cfg.width, use_bias=False, **kw)]
        layers += [Block(cfg.width, **kw) for _ in range(blocks)]
    return Layers([*layers, conv(cfg.width, 3, **kw)])


class TinyAutoencoder(nnx.Module):
    """Encoder and decoder; inside, pictures are in [0, 1]."""

    def __init__(self, cfg: TinyAutoencoderConfig, rngs: nnx.Rngs):
        kw = {"rngs": rngs, "dtype": jnp.dtype(cfg.dtype)}
        self.cfg = cfg
        self.encoder, self.decoder = _encoder(cfg, **kw), _decoder(cfg, **kw)

    def encode(self, image: Float[Array, "b h w 3"]) -> Resized:
        """Image in [-1, 1] to moments [b, h/f, w/f, 2 c] (mean, a log-variance of NO_SPREAD), unscaled."""
        check_sides(image, self.cfg.factor)
        mean = self.encoder(((image + 1) / 2).astype(jnp.dtype(self.cfg.dtype))) - self.cfg.shift
        return jnp.concatenate([mean, jnp.full_like(mean, NO_SPREAD)], axis=-1).astype(image.dtype)

    def decode(self, z: Image) -> Float[Array, "b _ _ 3"]:
        """Unscaled latent to an image, nominally in [-1, 1] (not clipped)."""
        x = z.astype(jnp.dtype(self.cfg.dtype)) + self.cfg.shift
        return (2 * self.decoder(_BOUND * jnp.tanh(x / _BOUND)) - 1).astype(z.dtype)

    __call__ = decode


def original_name(key: str) -> str:
    """The name in the original files, which begin with "encoder." or "decoder." here, of one of diffusers' keys.

    They are flat lists of layers, a file a side; the original decoder counts its squashing as a layer.
    """
    side, _, index, *rest = key.split(".")
    return ".".join([side, str(int(index) + (side == "decoder")), *rest])
