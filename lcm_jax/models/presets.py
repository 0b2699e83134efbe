"""Sizes of known networks by name."""

from typing import TypeVar

from lcm_jax.models.adm import ADMConfig
from lcm_jax.models.autoencoder import AutoencoderConfig
from lcm_jax.models.autoencoder_tiny import TinyAutoencoderConfig
from lcm_jax.models.dit import DiTConfig
from lcm_jax.models.unet import UNetConfig

UNETS = {
    # 9.3 M: 64 px emoji on a laptop; 8 x 8 x 12 latents, MiniLM captions.
    "emoji": UNetConfig(
        channels=(96, 192),
        attention=(False, True),
        depth=(1, 1),
        heads=(4, 4),
        layers=1,
        latent_channels=12,
        context_width=384,
    ),
    # 4.2 M: 128 px emoji in Stable Diffusion's latents, 16 x 16 x 4.
    "noto": UNetConfig(
        channels=(64, 128), attention=(False, True), depth=(1, 1), heads=(2, 4), layers=1, context_width=384
    ),
    # For tests: runs in milliseconds and has every kind of part.
    "tiny": UNetConfig(
        channels=(32, 64),
        attention=(False, True),
        depth=(1, 1),
        heads=(2, 2),
        layers=1,
        latent_channels=4,
        context_width=16,
    ),
    # 859.5 M, CLIP ViT-L captions, predicts eps (SD 1.4 and 1.5).
    "sd15": UNetConfig(),
    # 865.9 M, OpenCLIP ViT-H captions; base predicts eps, 768 predicts v (SD 2.0 and 2.1).
    "sd21": UNetConfig(heads=(5, 10, 20, 20), context_width=1024, linear_projection=True),
    # 2.57 B, two text encoders, pooled text and size ids (SDXL base 1.0).
    "sdxl": UNetConfig(
        channels=(320, 640, 1280),
        attention=(False, True, True),
        depth=(1, 2, 10),
        heads=(5, 10, 20),
        context_width=2048,
        linear_projection=True,
        added_width=2816,
    ),
}

ADMS = {
    # 4.7 M: the emoji's 8 x 8 x 12 latents on a laptop.
    "emoji": ADMConfig(side=8, in_channels=12, width=64, multipliers=(1, 2), layers=2, attention=(4,), head_width=32),
    # 0.9 M: the same latents, four times as fast.
    "emoji_small": ADMConfig(
        side=8, in_channels=12, width=32, multipliers=(1, 2), layers=1, attention=(4,), head_width=32
    ),
    # For tests.
    "tiny": ADMConfig(side=4, in_channels=4, width=16, multipliers=(1, 2), layers=1, attention=(2,), head_width=8),
    # 158.4 M, 32 x 32 x 4 latents of 256 px pictures: CelebA-HQ, LSUN Church, FFHQ (arXiv 2502.01441).
    "latent32": ADMConfig(),
}

DITS = {
    # 5.5 M: the emoji's 8 x 8 x 12 latents, every one a token.
    "dit_emoji": DiTConfig(side=8, in_channels=12, patch=1, width=192, depth=8, heads=6),
    # For tests.
    "dit_tiny": DiTConfig(side=4, in_channels=4, patch=2, width=16, depth=2, heads=2),
    # 130 M, 32 x 32 x 4 latents of 256 px pictures: DiT-B/2.
    "dit_b2": DiTConfig(),
}
NOISE_NETWORKS = ADMS | DITS  # of noise levels, one name each

AUTOENCODERS = {
    "emoji": AutoencoderConfig(
        channels=(64, 128), layers=1, latent_channels=12, patch=4, norm_groups=16, scale=1.0
    ),
    "tiny": AutoencoderConfig(channels=(16, 16), layers=1, latent_channels=4, patch=4, norm_groups=8, scale=1.0),
    "sd": AutoencoderConfig(force_upcast=True),
    "sdxl": AutoencoderConfig(scale=0.13025, force_upcast=True),
    # 2.4 M, latents of SD 1 and 2 already scaled (TAESD); those of SD 3 (TAESD3).
    "taesd": TinyAutoencoderConfig(),
    "taesd3": TinyAutoencoderConfig(latent_channels=16),
}

Config = TypeVar("Config")


def named(presets: dict[str, Config], name: str) -> Config:
    """The preset of that name; ValueError lists the names."""
    if name not in presets:
        raise ValueError(f"unknown preset {name!r}; choose one of {', '.join(presets)}")
    return presets[name]
