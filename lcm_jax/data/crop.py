"""Where a picture is cropped and whether it is mirrored, decided by its key: the same on every machine."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from lcm_jax.data import images
from lcm_jax.data.example import fraction

PLACES = ("center", "random")


@dataclass(frozen=True)
class Crop:
    """Pictures of any size to `height` x `width` pixels: aspect-preserving resize, crop, perhaps a mirror.

    `place` "center" or "random"; `flip` is the share of pictures that are mirrored left to right. What is
    random depends on `seed` and the picture's key, on nothing else.
    Raises ValueError for an unknown place or a share outside 0..1.
    """

    height: int
    width: int
    place: str = "center"
    flip: float = 0.0
    seed: int = 0

    def __post_init__(self):
        if self.place not in PLACES:
            raise ValueError(f"crop is {self.place!r}; choose one of {', '.join(PLACES)}")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip is {self.flip}; it is the share of pictures to mirror, 0 to 1")
        if self.height < 1 or self.width < 1:
            raise ValueError(f"image size {self.height}x{self.width} must be at least 1x1")

    @property
    def settings(self) -> dict:
        """`place`, `flip` and `seed` where they are not the default, as a data set remembers them."""
        chosen = {"place": self.place} if self.place != "center" else {}
        if self.flip:
            chosen["flip"] = self.flip
        return {**chosen, "seed": self.seed} if chosen else {}

    def __call__(
        self, image: UInt8[np.ndarray, "_ _ 3"], key: str
    ) -> tuple[UInt8[np.ndarray, "h w 3"], Int32[np.ndarray, " 6"]]:
        """The cropped picture and its size ids, in pixels (SDXL, arXiv 2307.01952, sec. 2.2).

        The ids: original height and width; top and left of the crop in the resized and mirrored picture (a
        centre between two pixels is rounded); height and width of the crop.
        """
        original = image.shape[:2]
        scale = max(self.height / original[0], self.width / original[1])
        # Of the resized picture, what the crop leaves out; one of the two is zero.
        spare = [max(0.0, n * scale - m) for n, m in zip(original, (self.height, self.width), strict=True)]
        if self.place == "center":
            corner, place = [round(s / 2) for s in spare], images.CENTRE
        else:
            corner = [
                int(fraction(f"{self.seed}/{axis}/{key}") * (int(s + 1e-6) + 1))
                for axis, s in zip(("top", "left"), spare, strict=True)
            ]
            top, left = (min(1.0, c / s) if c else 0.0 for c, s in zip(corner, spare, strict=True))
            place = (top, left)
        flip = fraction(f"{self.seed}/flip/{key}") < self.flip
        pixels = images.fit(image, (self.height, self.width), flip, place)
        return pixels, np.array([*original, *corner, self.height, self.width], np.int32)

    def nothing(self, _: Any) -> tuple[None, Int32[np.ndarray, " 6"]]:
        """In the place of a cropped picture where there is none: no pixels, the size ids of one drawn at this size."""
        return None, np.array([self.height, self.width, 0, 0, self.height, self.width], np.int32)
