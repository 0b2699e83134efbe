"""How pictures are drawn: what a sampler is told beside weights, captions and noise."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SizeIds:
    """What SDXL's networks are told of the picture they draw (SDXL section 2.2), as diffusers names it.

    Sizes are (height, width), by default the picture's own; `crop` is (top, left).
    """

    original: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)
    target: tuple[int, int] | None = None

    def of(self, height: int, width: int) -> tuple[int, ...]:
        """The six numbers for a picture of that size."""
        own = (height, width)
        return *(self.original or own), *self.crop, *(self.target or own)


UNCROPPED = SizeIds()


@dataclass(frozen=True)
class Setting:
    """How pictures are drawn: sampler, steps, pixels; of images to be changed, how strongly.

    `tile` (pixels a side) encodes and decodes in overlapping tiles, for images too large to go through at once.
    `guided` asks the network of the empty caption, too, at every evaluation.
    """

    sampler: str
    steps: int
    height: int
    width: int
    strength: float | None = None
    tile: int | None = None
    ids: SizeIds = UNCROPPED
    guided: bool = True
