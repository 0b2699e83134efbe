"""MobileNetV2 as a feature network for scores: images to 1280 numbers, or to ImageNet logits as a check.

Module paths equal the key names of torchvision's mobilenet_v2 (arXiv 1801.04381, Table 2). Inference only.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lcm_jax.models.functional import Net, functional, kept
from lcm_jax.models.layers import FrozenBatchNorm, Identity, Image, conv

Reduced = Float[Array, "b h2 w2 c2"]  # after a stride

# Tensors of the published file that inference does not need.
UNUSED_KEYS = (r".*\.num_batches_tracked",)

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, of images in [0, 1]


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of a MobileNetV2; the defaults are the published network of width 1."""

    # Larger images are shrunk to this many pixels a side; smaller ones stay as they are, since enlarging is itself
    # a blur that hides blur. 420 held-out Twemoji of 64 px against other real ones, and against those under a
    # 1 px blur, by KID x 1000: 210 and 771 at 64, 33 and 136 enlarged to 128. The blur's share of what a trained
    # generator scores: 0.72 at 64, 0.45 at 128.
    size: int = 224
    stem: int = 32
    stages: tuple[tuple[int, int, int, int], ...] = (  # expansion, channels, blocks, first stride
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    width: int = 1280
    classes: int = 1000


class Sequence(nnx.Module):
    """Layers in a row under bare indices, as torch's Sequential names them."""

    def __init__(self, layers: list[nnx.Module]):
        for index, layer in enumerate(layers):
            setattr(self, str(index), layer)
        self.count = len(layers)

    def __call__(self, x: Array) -> Array:
        for index in range(self.count):
            x = getattr(self, str(index))(x)
        return x


class Depthwise(nnx.Module):
    """A 3x3 filter a channel, zero-padded by 1, as nine multiply-adds.

    XLA fuses them into one loop; its grouped convolution is several times slower on CPUs.
    """

    def __init__(self, channels: int, stride: int, rngs: nnx.Rngs):
        init = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(init(rngs.params(), (3, 3, 1, channels)))
        self.stride = stride

    def __call__(self, x: Image) -> Reduced:
        height, width, s = *x.shape[1:3], self.stride
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        taps = self.kernel[...].reshape(3, 3, 1, 1, 1, -1)
        offsets = ((i, j) for i in range(3) for j in range(3))
        return sum(padded[:, i : i + height : s, j : j + width : s] * taps[i, j] for i, j in offsets)


class Relu6(nnx.Module):
    """min(max(x, 0), 6)."""

    def __call__(self, x: Image) -> Image:
        return jax.nn.relu6(x)


class InvertedResidual(nnx.Module):
    """Widen, filter each channel, narrow; the input is added where shapes allow."""

    def __init__(self, inp: int, out: int, stride: int, expansion: int, rngs: nnx.Rngs):
        inner = inp * expansion
        pointwise = partial(conv, size=1, use_bias=False, rngs=rngs)
        widen = [Sequence([pointwise(inp, inner), FrozenBatchNorm(inner), Relu6()])] if expansion != 1 else []
        filtered = Sequence([Depthwise(inner, stride, rngs), FrozenBatchNorm(inner), Relu6()])
        self.conv = Sequence([*widen, filtered, pointwise(inner, out), FrozenBatchNorm(out)])
        self.residual = stride == 1 and inp == out

    def __call__(self, x: Image) -> Reduced:
        return x + self.conv(x) if self.residual else self.conv(x)


class VisionNet(nnx.Module):
    """The trunk, its pooling and the ImageNet classifier."""

    def __init__(self, cfg: VisionConfig, rngs: nnx.Rngs):
        self.size = cfg.size
        stem = conv(3, cfg.stem, 3, 2, use_bias=False, rngs=rngs)
        layers: list[nnx.Module] = [Sequence([stem, FrozenBatchNorm(cfg.stem), Relu6()])]
        inp = cfg.stem
        for expansion, out, blocks, stride in cfg.stages:
            for block in range(blocks):
                layers.append(InvertedResidual(inp, out, 1 if block else stride, expansion, rngs))
                inp = out
        head = conv(inp, cfg.width, 1, use_bias=False, rngs=rngs)
        layers.append(Sequence([head, FrozenBatchNorm(cfg.width), Relu6()]))
        self.features = Sequence(layers)
        self.classifier = Sequence([Identity(), nnx.Linear(cfg.width, cfg.classes, rngs=rngs)])

    def features_of(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """Pooled features [b, 1280] of images in [-1, 1] of any size."""
        x = jnp.clip(image, -1.0, 1.0) / 2 + 0.5
        if max(image.shape[1:3]) > self.size:
            x = jax.image.resize(x, (len(x), self.size, self.size, 3), "linear", antialias=True)
        x = (x - jnp.asarray(_MEAN).reshape(1, 1, 1, 3)) / jnp.asarray(_STD).reshape(1, 1, 1, 3)
        return self.features(x).mean((1, 2))

    def logits(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b k"]:
        """ImageNet logits [b, 1000] of images in [-1, 1] of any size."""
        return self.classifier(self.features_of(image))

    __call__ = features_of


@kept
def mobilenet_v2(cfg: VisionConfig = VisionConfig()) -> Net:
    """Pure functions: apply(params, image [b, h, w, 3]) -> features; method="logits" -> logits."""
    return functional(lambda rngs: VisionNet(cfg, rngs), cfg)
