"""The CLIP image tower, which scores how well a picture fits its caption.

Module paths equal the key names of Hugging Face's CLIPVisionModelWithProjection (arXiv 2103.00020, section 2.4).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from lcm_jax.models.clip_text import (
    Encoder,
    Pooled,
    States,
    TowerConfig,
    layer_norm,
    projection,
    rows,
    sizes,
    tower_of,
    widen,
)
from lcm_jax.models.functional import Net, functional, kept
from lcm_jax.models.layers import Image

# Tensors of published files that the image tower does not need: an old buffer, and the rest of a whole CLIP.
UNUSED_KEYS = (
    r"(vision_model\.)?embeddings\.position_ids",
    r"text_model\..*",
    r"text_projection\.weight",
    r"logit_scale",
)

# Of red, green and blue in [0, 1], as CLIP was trained.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_BITS = 22  # of the fixed-point weights of resizing


@dataclass(frozen=True)
class ClipVisionConfig(TowerConfig):
    """Sizes of a CLIP image tower; the defaults are OpenAI's ViT-L/14."""

    width: int = 1024
    layers: int = 24
    heads: int = 16
    inner: int = 4096
    projection: int | None = 768
    size: int = 224  # pixels a side
    patch: int = 14

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % self.patch:
            raise ValueError(f"CLIP size {self.size} is no multiple of its patch {self.patch}; change one")


class ClipImage(NamedTuple):
    """What the tower says of pictures."""

    last: States  # class token, then patches row by row; not normed
    pooled: Pooled  # the class token's last state, normed
    embeds: Pooled | None  # `pooled`, projected; None without a projection


class ImageEmbeddings(nnx.Module):
    """A class token and one token a patch, with positions."""

    def __init__(self, cfg: ClipVisionConfig, rngs: nnx.Rngs):
        patch, side, dtype = (cfg.patch, cfg.patch), cfg.size // cfg.patch, jnp.dtype(cfg.dtype)
        self.class_embedding = nnx.Param(nnx.initializers.normal(cfg.width**-0.5)(rngs.params(), (cfg.width,)))
        self.patch_embedding = nnx.Conv(
            3, cfg.width, patch, patch, padding="VALID", use_bias=False, rngs=rngs, dtype=dtype
        )
        self.position_embedding = nnx.Embed(side**2 + 1, cfg.width, rngs=rngs)

    def __call__(self, image: Image) -> States:
        patches = self.patch_embedding(image)
        b, d = patches.shape[0], patches.shape[-1]
        first = jnp.broadcast_to(self.class_embedding[...].astype(patches.dtype), (b, 1, d))
        tokens = jnp.concatenate([first, patches.reshape(b, -1, d)], axis=1)
        return tokens + rows(self.position_embedding, jnp.arange(tokens.shape[1]))[None].astype(tokens.dtype)


class VisionTransformer(nnx.Module):
    """Embeddings and layers between two norms; "pre_layrnorm" is the reference's name."""

    def __init__(self, cfg: ClipVisionConfig, rngs: nnx.Rngs):
        self.embeddings = ImageEmbeddings(cfg, rngs)
        self.pre_layrnorm, self.post_layernorm = layer_norm(cfg, rngs), layer_norm(cfg, rngs)
        self.encoder = Encoder(cfg, False, rngs)

    def __call__(self, image: Image) -> tuple[States, Pooled]:
        last, _ = self.encoder(self.pre_layrnorm(self.embeddings(image)))
        return last, self.post_layernorm(last[:, 0])


class ClipVisionEncoder(nnx.Module):
    """Normalised pictures to patch states and one vector a picture."""

    def __init__(self, cfg: ClipVisionConfig, rngs: nnx.Rngs):
        self.cfg = cfg
        self.vision_model = VisionTransformer(cfg, rngs)
        self.visual_projection = projection(cfg, rngs)

    def __call__(self, image: Float[Array, "b h w 3"]) -> ClipImage:
        """The result in float32 (float64 if computed so) whatever the compute dtype."""
        side = self.cfg.size
        if image.shape[1:3] != (side, side):
            raise ValueError(
                f"picture of {image.shape[1]} x {image.shape[2]}, this tower takes {side} x {side}: use clip_preprocess"
            )
        last, pooled = self.vision_model(image.astype(self.cfg.dtype))
        embeds = None if self.visual_projection is None else self.visual_projection(pooled)
        return jax.tree.map(widen, ClipImage(last, pooled, embeds))


@kept
def clip_vision(cfg: ClipVisionConfig = ClipVisionConfig()) -> Net:
    """The tower as pure functions: apply(params, image [b, size, size, 3] of clip_preprocess) -> ClipImage."""
    return functional(lambda rngs: ClipVisionEncoder(cfg, rngs), cfg)


_VISION_KEYS = {  # of a config.json: our name and what is meant where it is left out
    "hidden_size": ("width", 768),
    "intermediate_size": ("inner", 3072),
    "num_hidden_layers": ("layers", 12),
    "num_attention_heads": ("heads", 12),
    "hidden_act": ("hidden_act", "quick_gelu"),
    "layer_norm_eps": ("eps", 1e-5),
    "image_size": ("size", 224),
    "patch_size": ("patch", 32),
}


def clip_vision_config(value: Mapping[str, Any]) -> ClipVisionConfig:
    """The sizes in a Hugging Face config.json, of an image tower or of a whole CLIP model.

    Raises ValueError, in one line, for another kind of model or a value that is not supported.
    """
    own, projected = tower_of(value, "vision", "Vision")
    if (channels := own.get("num_channels", 3)) != 3:
        raise ValueError(f"config.json has num_channels {channels!r}; supported are 3, red, green and blue")
    return ClipVisionConfig(**sizes(own, _VISION_KEYS), projection=projected)


def clip_preprocess(image: UInt8[Array, "b h w 3"], size: int = 224) -> Float[Array, "b s s 3"]:
    """Pixels as CLIP takes them: the shorter side resized to `size` (bicubic), centre crop, normalised.

    The arithmetic is Pillow's, so the pixels are those of transformers' CLIPImageProcessor with its PIL backend,
    bit for bit - except where Pillow 13 takes height before width to save work, in pictures about twice as tall as
    wide or more: there up to 2 levels of 255 in a photograph, 10 in noise (1000 x 333).
    """
    h, w = image.shape[1:3]
    new_h, new_w = size * h // min(h, w), size * w // min(h, w)
    x = _resized(_resized(image, 2, new_w), 1, new_h)
    top, left = (new_h - size) // 2, (new_w - size) // 2
    mean, std = (np.array(rgb, np.float32).reshape(1, 1, 1, 3) for rgb in (MEAN, STD))
    return (x[:, top : top + size, left : left + size].astype(jnp.float32) / 255 - mean) / std


def _resized(x: UInt8[Array, "b _ _ 3"], axis: int, length: int) -> UInt8[Array, "b _ _ 3"]:
    """Pixels resized along one axis as Pillow does: integer weights, 8-bit results."""
    if x.shape[axis] == length:
        return x
    index, weight = _taps(x.shape[axis], length)
    shape = [length if i == axis else 1 for i in range(4)]
    taps = (jnp.take(x, i, axis).astype(jnp.int32) * k.reshape(shape) for i, k in zip(index, weight, strict=True))
    return jnp.clip((sum(taps) + (1 << _BITS - 1)) >> _BITS, 0, 255).astype(jnp.uint8)


def _taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices [k, new] of the pixels under the Keys cubic (a = -1/2) and their weights, integers of sum 2^22."""
    stretch = max(old / new, 1.0)  # the kernel widens where the image shrinks
    centre = (np.arange(new) + 0.5) * (old / new)
    index = np.floor(centre - 2 * stretch + 0.5).astype(int) + np.arange(2 * math.ceil(2 * stretch) + 1)[:, None]
    x = np.abs(index + 0.5 - centre) / stretch
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    kernel = np.where(x < 1, near, far) * ((x < 2) & (index >= 0) & (index < old))
    weight = kernel / kernel.sum(0) * (1 << _BITS)
    return index.clip(0, old - 1), np.trunc(weight + np.copysign(0.5, weight)).astype(np.int32)
