"""Small networks with both names: ours and the keyword arguments of their reference, and the numbers fed to them."""

import hashlib
import zlib
from collections.abc import Mapping

import numpy as np

from lcm_jax.models.autoencoder import AutoencoderConfig
from lcm_jax.models.unet import UNetConfig

# name -> (our sizes, keyword arguments of diffusers' UNet2DConditionModel, latent shape NHWC)
UNETS = {
    # three levels, odd sizes, 1x1 convolutions, one head count for all, as SD 1.5
    "sd15": (
        UNetConfig((16, 32, 32), (True, True, False), (1, 1, 1), (4, 4, 4), 2, context_width=24, norm_groups=8),
        dict(
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(16, 32, 32),
            attention_head_dim=4,
            cross_attention_dim=24,
            norm_num_groups=8,
        ),
        (2, 9, 7, 4),
    ),
    # linear projections and a head count per level, as SD 2.x
    "sd21": (
        UNetConfig((16, 32), (True, True), (1, 1), (2, 8), 1, context_width=24, linear_projection=True, norm_groups=8),
        dict(
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(16, 32),
            layers_per_block=1,
            attention_head_dim=(2, 8),
            cross_attention_dim=24,
            use_linear_projection=True,
            norm_num_groups=8,
        ),
        (2, 8, 8, 4),
    ),
    # pooled text and size ids, deeper transformers, as SDXL
    "sdxl": (
        UNetConfig(
            (16, 32),
            (False, True),
            (1, 2),
            (2, 4),
            1,
            context_width=24,
            linear_projection=True,
            added_width=58,
            added_time_width=8,
            norm_groups=8,
        ),
        dict(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(16, 32),
            layers_per_block=1,
            attention_head_dim=(2, 4),
            transformer_layers_per_block=(1, 2),
            cross_attention_dim=24,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=58,
            norm_num_groups=8,
        ),
        (2, 7, 8, 4),
    ),
    # an embedded guidance, as LCM
    "lcm": (
        UNetConfig((16, 32), (False, True), (1, 1), (2, 2), 1, context_width=24, w_width=12, norm_groups=8),
        dict(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(16, 32),
            layers_per_block=1,
            attention_head_dim=2,
            cross_attention_dim=24,
            time_cond_proj_dim=12,
            norm_num_groups=8,
        ),
        (2, 8, 8, 4),
    ),
}

# name -> (our sizes, keyword arguments of diffusers' AutoencoderKL, image shape NHWC)
AUTOENCODERS = {
    "kl": (
        AutoencoderConfig((16, 16, 32), 2, norm_groups=8),
        dict(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(16, 16, 32),
            layers_per_block=2,
            latent_channels=4,
            norm_num_groups=8,
        ),
        (2, 24, 16, 3),
    ),
}

# The published networks behind the presets, in the reference's words.
PUBLISHED_UNETS = {
    "sd15": dict(cross_attention_dim=768, attention_head_dim=8),
    "sd21": dict(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True),
    "sdxl": dict(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(320, 640, 1280),
        attention_head_dim=(5, 10, 20),
        transformer_layers_per_block=(1, 2, 10),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    ),
}
PUBLISHED_AUTOENCODERS = {
    "sd": dict(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
    )
}


def fill(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Weights in PyTorch's names and layouts: each tensor drawn from a seed that is its name."""
    return {name: _tensor(name, tuple(shape)) for name, shape in shapes.items()}


def _tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    n = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) > 1:
        return n / np.sqrt(np.prod(shape[1:]))  # keeps the variance of activations
    return 0.1 * n + name.endswith("weight")  # norms scale by about one, biases are small


def unet_inputs(name: str) -> dict[str, np.ndarray]:
    """z [b, h, w, c], t, context and, where the network takes them, w_features or pooled and time_ids."""
    cfg, _, shape = UNETS[name]
    rng = np.random.default_rng(7)
    b = shape[0]
    inputs = {
        "z": rng.standard_normal(shape),
        "t": np.array([3, 981]),
        "context": rng.standard_normal((b, 5, cfg.context_width)),
    }
    if cfg.w_width:
        inputs["w_features"] = rng.uniform(-1, 1, (b, cfg.w_width))
    if cfg.added_width:
        inputs["pooled"] = rng.standard_normal((b, cfg.added_width - 6 * cfg.added_time_width))
        inputs["time_ids"] = np.array([[64, 48, 0, 3, 64, 64], [33, 64, 5, 0, 64, 64.0]])
    return inputs


def sinusoids(times: np.ndarray, width: int) -> np.ndarray:
    """[cos, sin] of times in float64: what both sides are fed where neither's own float32 ones would do."""
    angle = np.asarray(times, np.float64).reshape(-1, 1) * 10_000.0 ** (-np.arange(width // 2) / (width // 2))
    return np.concatenate([np.cos(angle), np.sin(angle)], axis=1)


def autoencoder_inputs(name: str) -> dict[str, np.ndarray]:
    """An image [b, H, W, 3] in [-1, 1] and a latent."""
    cfg, _, shape = AUTOENCODERS[name]
    rng = np.random.default_rng(11)
    small = (shape[0], shape[1] // cfg.factor, shape[2] // cfg.factor, cfg.latent_channels)
    return {"image": rng.uniform(-1, 1, shape), "z": rng.standard_normal(small)}


def digest(named_shapes: Mapping[str, tuple[int, ...]]) -> str:
    """A fingerprint of all keys and shapes."""
    lines = sorted(f"{key} {tuple(shape)}" for key, shape in named_shapes.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
