"""Big images through an autoencoder a part at a time: overlapping tiles blended linearly.

A tile's group norms and attention see that tile alone, so a KL autoencoder's tiles differ in tone from the whole
image; blending hides where they meet but does not undo it. Convolutions alone (a tiny autoencoder) differ only
within reach of a tile's edge, where zeros take the neighbours' place.
"""

import math
from collections.abc import Callable
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lcm_jax.models.layers import Image, Resized

Apply = Callable[[Image], Resized]  # an encode or decode with its parameters bound


def tiled(apply: Apply, x: Image, tile: int | tuple[int, int], overlap: int) -> Resized:
    """`apply` to overlapping tiles of x, one after the other, blended linearly where they overlap.

    `tile` (one side or height and width) and `overlap`, the least there is between neighbours, are in pixels of x,
    image or latent; tiles are spread evenly. Memory is that of one tile besides input and output. An image no
    larger than a tile goes through whole. Any sides that `apply` takes will do.
    Raises ValueError where tiles cannot overlap so or do not begin at whole pixels of the output.
    """
    sides = x.shape[1:3]
    tile = (tile, tile) if isinstance(tile, int) else tile
    if not 0 <= overlap < min(tile):
        raise ValueError(f"overlap {overlap} must be at least 0 and less than tile {tile[0]} x {tile[1]}")
    tile = tuple(min(t, n) for t, n in zip(tile, sides, strict=True))
    if tile == sides:
        return apply(x)
    part = jax.eval_shape(apply, jax.ShapeDtypeStruct((x.shape[0], *tile, x.shape[-1]), x.dtype))
    ratio = Fraction(part.shape[1], tile[0])  # output pixels per pixel of x
    if ratio != Fraction(part.shape[2], tile[1]):
        raise ValueError(f"a tile {tile[0]} x {tile[1]} becomes {part.shape[1]} x {part.shape[2]}: not of one scale")
    starts = [_starts(n, t, overlap, ratio) for n, t in zip(sides, tile, strict=True)]
    fades = [_fades(s, t, ratio) for s, t in zip(starts, tile, strict=True)]
    places = [(i, j) for i in range(len(starts[0])) for j in range(len(starts[1]))]
    begin = np.array([(starts[0][i], starts[1][j]) for i, j in places])

    def add(whole, place):
        (top, left), rows, columns = place
        done = apply(jax.lax.dynamic_slice(x, (0, top, left, 0), (x.shape[0], *tile, x.shape[-1])))
        fade = (rows[:, None] * columns[None, :])[None, :, :, None].astype(whole.dtype)
        at = (0, *(corner * ratio.numerator // ratio.denominator for corner in (top, left)), 0)
        here = jax.lax.dynamic_slice(whole, at, done.shape)
        return jax.lax.dynamic_update_slice(whole, here + done * fade, at), None

    # Sums in half precision would show as a grid.
    dtype = jnp.promote_types(part.dtype, jnp.float32)
    whole = jnp.zeros((x.shape[0], *(int(n * ratio) for n in sides), part.shape[-1]), dtype)
    rows, columns = (np.stack([fade[p[axis]] for p in places]) for axis, fade in enumerate(fades))
    return jax.lax.scan(add, whole, (begin, rows, columns))[0].astype(part.dtype)


def _starts(side: int, tile: int, overlap: int, ratio: Fraction) -> list[int]:
    """Where tiles begin along a side, evenly spread on multiples of the ratio's denominator."""
    if side == tile:
        return [0]
    unit = ratio.denominator
    if any(length % unit for length in (side, tile, overlap)):
        raise ValueError(f"side {side}, tile {tile} and overlap {overlap} must be multiples of {unit}")
    steps = math.ceil((side - tile) / (tile - overlap))  # from the first tile to the last
    return [(side - tile) // unit * i // steps * unit for i in range(steps + 1)]


def _fades(starts: list[int], tile: int, ratio: Fraction) -> Float[np.ndarray, "tiles t"]:
    """How much each tile counts along its output: ramps over the overlaps; all tiles together count as 1."""
    ends = [int((start + tile) * ratio) for start in starts]
    begins = [int(start * ratio) for start in starts]
    place = np.arange(ends[-1]) + 0.5
    fades = np.zeros((len(starts), ends[-1]))
    for k, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        fades[k, begin:end] = 1.0
        if k:
            fades[k] *= _ramp(place, begin, ends[k - 1])
        if k < len(starts) - 1:
            fades[k] *= 1.0 - _ramp(place, begins[k + 1], end)
    fades /= fades.sum(0)
    return np.stack([fade[b:e] for fade, b, e in zip(fades, begins, ends, strict=True)]).astype(np.float32)


def _ramp(place: Float[np.ndarray, " n"], begin: int, end: int) -> Float[np.ndarray, " n"]:
    """0 before `begin`, 1 after `end`, a straight line between."""
    return np.clip((place - begin) / max(end - begin, 1), 0.0, 1.0)
