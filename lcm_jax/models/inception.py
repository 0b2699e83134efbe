"""The Inception-v3 that FID looks through: 8-bit pixels to 2048 numbers (arXiv 1512.00567; FID: arXiv 1706.08500).

It is the graph TensorFlow published in December 2015, not torchvision's of the same name: average pools leave their
padding out, the last block pools by maximum, there are 1008 classes, and pictures are resized as TensorFlow 1 did.
Module paths equal the key names of the PyTorch ports of that graph (torchvision's names). Inference only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Num

from lcm_jax.models.functional import Net, functional, kept
from lcm_jax.models.layers import FrozenBatchNorm, Image, Resized

# Tensors of published files that features do not need: counters, the classifier, and training's second classifier.
UNUSED_KEYS = (r".*\.num_batches_tracked", r"AuxLogits\..*")

EPS = 1e-3
Sides = tuple[int, int]


@dataclass(frozen=True)
class InceptionConfig:
    """Sizes of the network; the defaults are the published one."""

    size: int = 299  # pixels a side; pictures of other sides are resized
    classes: int | None = None  # 1008 with the classifier, which not every published file holds
    narrow: int = 1  # divides all channels: small networks for tests

    def __post_init__(self) -> None:
        if self.size < 75:
            raise ValueError(f"Inception size {self.size} leaves nothing to pool; it takes 75 pixels or more")
        if self.narrow not in (1, 2, 4, 8, 16):
            raise ValueError(f"Inception channels do not divide by {self.narrow}; take 1, 2, 4, 8 or 16")

    @property
    def width(self) -> int:
        """Numbers a picture becomes."""
        return 2048 // self.narrow


class ConvUnit(nnx.Module):
    """Convolution without bias, batch norm, ReLU; `pad` rows and columns of zeros around (0 by default)."""

    def __init__(self, inp: int, out: int, size: int | Sides, rngs: nnx.Rngs, stride: int = 1, pad: Sides = (0, 0)):
        sides = (size, size) if isinstance(size, int) else size
        # Accelerators round float32 products to 10 or fewer bits unless told otherwise, which shifts FID.
        self.conv = nnx.Conv(
            inp, out, sides, (stride, stride), padding=[(p, p) for p in pad], use_bias=False, rngs=rngs,
            precision=jax.lax.Precision.HIGHEST,
        )  # fmt: skip
        self.bn = FrozenBatchNorm(out, EPS)

    def __call__(self, x: Image) -> Resized:
        return jax.nn.relu(self.bn(self.conv(x)))


def average(x: Image) -> Image:
    """3x3 means at stride 1 of the pixels that are there: the padding does not count (TensorFlow's SAME)."""
    return nnx.avg_pool(x, (3, 3), (1, 1), padding=[(1, 1), (1, 1)], count_include_pad=False)


def maximum(x: Image) -> Image:
    """3x3 maxima at stride 1."""
    return nnx.max_pool(x, (3, 3), (1, 1), padding=[(1, 1), (1, 1)])


def halve(x: Image) -> Resized:
    """3x3 maxima at stride 2, no padding."""
    return nnx.max_pool(x, (3, 3), (2, 2))


def joined(*parts: Array) -> Array:
    """Branches side by side."""
    return jnp.concatenate(parts, axis=-1)


class BlockA(nnx.Module):
    """35 x 35: 1x1, 5x5, two 3x3, averages."""

    def __init__(self, inp: int, pooled: int, n: int, rngs: nnx.Rngs):
        self.branch1x1 = ConvUnit(inp, 64 // n, 1, rngs)
        self.branch5x5_1 = ConvUnit(inp, 48 // n, 1, rngs)
        self.branch5x5_2 = ConvUnit(48 // n, 64 // n, 5, rngs, pad=(2, 2))
        self.branch3x3dbl_1 = ConvUnit(inp, 64 // n, 1, rngs)
        self.branch3x3dbl_2 = ConvUnit(64 // n, 96 // n, 3, rngs, pad=(1, 1))
        self.branch3x3dbl_3 = ConvUnit(96 // n, 96 // n, 3, rngs, pad=(1, 1))
        self.branch_pool = ConvUnit(inp, pooled // n, 1, rngs)

    def __call__(self, x: Image) -> Resized:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return joined(self.branch1x1(x), five, three, self.branch_pool(average(x)))


class BlockB(nnx.Module):
    """35 x 35 to 17 x 17."""

    def __init__(self, inp: int, n: int, rngs: nnx.Rngs):
        self.branch3x3 = ConvUnit(inp, 384 // n, 3, rngs, stride=2)
        self.branch3x3dbl_1 = ConvUnit(inp, 64 // n, 1, rngs)
        self.branch3x3dbl_2 = ConvUnit(64 // n, 96 // n, 3, rngs, pad=(1, 1))
        self.branch3x3dbl_3 = ConvUnit(96 // n, 96 // n, 3, rngs, stride=2)

    def __call__(self, x: Image) -> Resized:
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return joined(self.branch3x3(x), three, halve(x))


class BlockC(nnx.Module):
    """17 x 17: 1x1, 7x7 in two strips, twice that, averages; `inner` channels between strips."""

    def __init__(self, inp: int, inner: int, n: int, rngs: nnx.Rngs):
        c, out = inner // n, 192 // n
        wide = lambda a, b: ConvUnit(a, b, (1, 7), rngs, pad=(0, 3))
        tall = lambda a, b: ConvUnit(a, b, (7, 1), rngs, pad=(3, 0))
        self.branch1x1 = ConvUnit(inp, out, 1, rngs)
        self.branch7x7_1 = ConvUnit(inp, c, 1, rngs)
        self.branch7x7_2, self.branch7x7_3 = wide(c, c), tall(c, out)
        self.branch7x7dbl_1 = ConvUnit(inp, c, 1, rngs)
        self.branch7x7dbl_2, self.branch7x7dbl_3 = tall(c, c), wide(c, c)
        self.branch7x7dbl_4, self.branch7x7dbl_5 = tall(c, c), wide(c, out)
        self.branch_pool = ConvUnit(inp, out, 1, rngs)

    def __call__(self, x: Image) -> Resized:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return joined(self.branch1x1(x), seven, twice, self.branch_pool(average(x)))


class BlockD(nnx.Module):
    """17 x 17 to 8 x 8."""

    def __init__(self, inp: int, n: int, rngs: nnx.Rngs):
        self.branch3x3_1 = ConvUnit(inp, 192 // n, 1, rngs)
        self.branch3x3_2 = ConvUnit(192 // n, 320 // n, 3, rngs, stride=2)
        self.branch7x7x3_1 = ConvUnit(inp, 192 // n, 1, rngs)
        self.branch7x7x3_2 = ConvUnit(192 // n, 192 // n, (1, 7), rngs, pad=(0, 3))
        self.branch7x7x3_3 = ConvUnit(192 // n, 192 // n, (7, 1), rngs, pad=(3, 0))
        self.branch7x7x3_4 = ConvUnit(192 // n, 192 // n, 3, rngs, stride=2)

    def __call__(self, x: Image) -> Resized:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return joined(three, self.branch7x7x3_4(seven), halve(x))


class BlockE(nnx.Module):
    """8 x 8: 1x1, strips side by side, the same after a 3x3, a pool that is an average or, last, a maximum."""

    def __init__(self, inp: int, last: bool, n: int, rngs: nnx.Rngs):
        wide = lambda: ConvUnit(384 // n, 384 // n, (1, 3), rngs, pad=(0, 1))
        tall = lambda: ConvUnit(384 // n, 384 // n, (3, 1), rngs, pad=(1, 0))
        self.branch1x1 = ConvUnit(inp, 320 // n, 1, rngs)
        self.branch3x3_1 = ConvUnit(inp, 384 // n, 1, rngs)
        self.branch3x3_2a, self.branch3x3_2b = wide(), tall()
        self.branch3x3dbl_1 = ConvUnit(inp, 448 // n, 1, rngs)
        self.branch3x3dbl_2 = ConvUnit(448 // n, 384 // n, 3, rngs, pad=(1, 1))
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = wide(), tall()
        self.branch_pool = ConvUnit(inp, 192 // n, 1, rngs)
        self.last = last

    def __call__(self, x: Image) -> Resized:
        three = self.branch3x3_1(x)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = self.branch_pool(maximum(x) if self.last else average(x))
        return joined(
            self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three),
            self.branch3x3dbl_3a(twice), self.branch3x3dbl_3b(twice), pooled,
        )  # fmt: skip


class Inception(nnx.Module):
    """The trunk, its pooling and, where there is one, the classifier of 1008 classes."""

    def __init__(self, cfg: InceptionConfig, rngs: nnx.Rngs):
        n = cfg.narrow
        self.size = cfg.size
        self.Conv2d_1a_3x3 = ConvUnit(3, 32 // n, 3, rngs, stride=2)
        self.Conv2d_2a_3x3 = ConvUnit(32 // n, 32 // n, 3, rngs)
        self.Conv2d_2b_3x3 = ConvUnit(32 // n, 64 // n, 3, rngs, pad=(1, 1))
        self.Conv2d_3b_1x1 = ConvUnit(64 // n, 80 // n, 1, rngs)
        self.Conv2d_4a_3x3 = ConvUnit(80 // n, 192 // n, 3, rngs)
        self.Mixed_5b = BlockA(192 // n, 32, n, rngs)
        self.Mixed_5c = BlockA(256 // n, 64, n, rngs)
        self.Mixed_5d = BlockA(288 // n, 64, n, rngs)
        self.Mixed_6a = BlockB(288 // n, n, rngs)
        self.Mixed_6b = BlockC(768 // n, 128, n, rngs)
        self.Mixed_6c = BlockC(768 // n, 160, n, rngs)
        self.Mixed_6d = BlockC(768 // n, 160, n, rngs)
        self.Mixed_6e = BlockC(768 // n, 192, n, rngs)
        self.Mixed_7a = BlockD(768 // n, n, rngs)
        self.Mixed_7b = BlockE(1280 // n, False, n, rngs)
        self.Mixed_7c = BlockE(2048 // n, True, n, rngs)
        exact = jax.lax.Precision.HIGHEST
        self.fc = nnx.Linear(cfg.width, cfg.classes, rngs=rngs, precision=exact) if cfg.classes else None

    def features_of(self, pixels: Num[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """Pooled features [b, 2048] of pixels in 0..255 of any size."""
        x = (resized(pixels, self.size) - 128.0) / 128.0
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(halve(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(halve(x))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean((1, 2))

    def logits(self, pixels: Num[Array, "b h w 3"]) -> Float[Array, "b k"]:
        """Class logits [b, 1008]; ValueError for weights without the classifier."""
        if self.fc is None:
            raise ValueError("these Inception weights have no classifier: take a file that holds fc.weight")
        return self.fc(self.features_of(pixels))

    __call__ = features_of


def resized(pixels: Num[Array, "b h w 3"], size: int) -> Float[Array, "b s s 3"]:
    """Pixels as float32, resized to size x size as TensorFlow 1's resize_bilinear does: FID's own resize.

    Output i lies at i * old / new, corner on corner and not centre on centre, between two pixels; where a picture
    shrinks, the pixels between are skipped (no antialiasing).
    """
    x = pixels.astype(jnp.float32)
    for axis in (2, 1):
        low, high, share = taps(x.shape[axis], size)
        share = share.reshape([size if i == axis else 1 for i in range(4)])
        first = jnp.take(x, low, axis)
        x = first + (jnp.take(x, high, axis) - first) * share
    return x


def taps(old: int, new: int) -> Sequence[np.ndarray]:
    """The two pixels that each of `new` lies between, and how far it is from the first to the second."""
    place = np.arange(new, dtype=np.float32) * np.float32(old / new)
    low = np.minimum(place.astype(np.int32), old - 1)
    return low, np.minimum(low + 1, old - 1), place - low.astype(np.float32)


@kept
def inception(cfg: InceptionConfig = InceptionConfig()) -> Net:
    """Pure functions: apply(params, pixels [b, h, w, 3] in 0..255) -> features; method="logits" -> logits."""
    return functional(lambda rngs: Inception(cfg, rngs), cfg)
