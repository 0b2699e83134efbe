"""A U-Net taken apart: its blocks in the order in which they run, each as a network of its own, and what is left."""

from dataclasses import dataclass, replace

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from lcm_jax.models.functional import Net, functional, kept
from lcm_jax.models.layers import Downsample, Image, Resized, Upsample
from lcm_jax.models.unet import Level, MidBlock, UNet, UNetConfig, block_widths


@dataclass(frozen=True)
class Block:
    """What a U-Net runs as one piece: everything it reads but weights, times and captions is a map of features."""

    kind: str  # "layer", "mid", "down" or "up"
    level: int
    sides: tuple[int, int]
    inputs: int
    outputs: int
    depth: int = 0  # of its transformer
    source: int | None = None  # which block, counted from 0, made what came over its skip connection; -1: conv_in
    skipped: int = 0  # channels of that

    @property
    def out_sides(self) -> tuple[int, int]:
        """Of the map that it makes."""
        halve = lambda side: (side + 1) // 2
        return {"down": tuple(map(halve, self.sides)), "up": tuple(2 * side for side in self.sides)}.get(
            self.kind, self.sides
        )

    @property
    def name(self) -> str:
        """What blocks that compile to the same program share."""
        sees = f" depth {self.depth}" if self.depth else ""
        return f"{self.kind} {self.inputs}-{self.outputs} at {self.sides[0]}x{self.sides[1]}{sees}"


class _Layer(Level):
    """One residual block and its transformer."""

    def __call__(self, x: Image, temb: Array, context: Array) -> Resized:
        return self.layer(0, x, temb, context)


class _Frame(UNet):
    """A U-Net that skips its blocks."""

    def __call__(self, z: Image, t: Array, context: Array, w_features=None, pooled=None, time_ids=None) -> Resized:
        dtype = jnp.dtype(self.cfg.dtype)
        temb = self._embed_time(t, w_features, pooled, time_ids, dtype)
        x = self.conv_in(z.astype(dtype)) + temb[:, None, None, : self.cfg.channels[0]]
        return self.conv_out(nnx.silu(self.conv_norm_out(x))).astype(z.dtype)


def blocks(cfg: UNetConfig, sides: tuple[int, int]) -> list[Block]:
    """A U-Net's blocks on a latent of that height and width, in the order in which they run."""
    down, up = block_widths(cfg)
    found: list[Block] = []
    skips = [(-1, cfg.channels[0])]
    depth = lambda i: cfg.depth[i] if cfg.attention[i] else 0
    at = [sides]
    for i, level in enumerate(down):
        for inputs, outputs in level:
            found.append(Block("layer", i, at[-1], inputs, outputs, depth(i)))
            skips.append((len(found) - 1, outputs))
        if i < len(down) - 1:
            found.append(Block("down", i, at[-1], outputs, outputs))
            skips.append((len(found) - 1, outputs))
            at.append(found[-1].out_sides)
    found.append(Block("mid", -1, at[-1], cfg.channels[-1], cfg.channels[-1], cfg.depth[-1]))
    for i, level in zip(reversed(range(len(down))), up, strict=True):
        for inputs, outputs in level:
            source, skipped = skips.pop()
            found.append(Block("layer", i, at[-1], inputs, outputs, depth(i), source, skipped))
        at.pop()
        if i > 0:
            found.append(Block("up", i, found[-1].sides, outputs, outputs))
    return found


@kept
def block_net(block: Block, cfg: UNetConfig) -> Net:
    """apply(params, x[, temb, context]) -> x of one block of such a U-Net."""
    temb, deep = 4 * cfg.channels[0], replace(cfg, depth=(block.depth,) * len(cfg.depth))
    kw = {"dtype": jnp.dtype(cfg.dtype)}
    make = {
        "layer": lambda rngs: _Layer([(block.inputs, block.outputs)], block.level, temb, deep, rngs),
        "mid": lambda rngs: MidBlock(temb, deep, rngs),
        "down": lambda rngs: Downsample(block.inputs, rngs=rngs, **kw),
        "up": lambda rngs: Upsample(block.inputs, rngs=rngs, **kw),
    }
    return functional(make[block.kind])


@kept
def frame(cfg: UNetConfig) -> Net:
    """A U-Net with all its weights that runs none of its blocks."""
    return functional(lambda rngs: _Frame(cfg, rngs), cfg)
