"""Image files to RGB pixels of one size: decode, composite on a background, resize and crop."""

import re
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageColor, ImageOps

CENTRE = (0.5, 0.5)


@dataclass(frozen=True)
class Look:
    """How files become pixels: the colour behind transparent images ("black", "#rrggbb"), and whether in grays alone.

    Raises ValueError for what is no colour.
    """

    background: str = "white"
    grayscale: bool = False

    def __post_init__(self) -> None:
        try:
            ImageColor.getrgb(self.background)
        except ValueError:
            message = f"background {self.background!r} is no colour: give a name such as black, or #rrggbb"
            raise ValueError(message) from None

    @property
    def settings(self) -> dict[str, str | bool]:
        """Those that are not the default."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    def decode(self, path: str | Path) -> np.ndarray:
        """The whole image at `path` as uint8 [H, W, 3], EXIF rotation applied; grays are luma (ITU-R 601-2).

        Raises ValueError naming the file when it is missing, truncated or not an image.
        """
        try:
            return self._decoded(path, f"image {path}")
        except FileNotFoundError:
            raise ValueError(f"image {path} does not exist; remove its entry or restore the file") from None

    def decode_bytes(self, content: bytes | None, name: str) -> np.ndarray:
        """`decode` of an image file's content; `name` says in errors where it came from."""
        if not content:
            raise ValueError(f"{name} is empty; replace or remove it")
        return self._decoded(BytesIO(content), name)

    def _decoded(self, source: str | Path | BytesIO, name: str) -> np.ndarray:
        try:
            with Image.open(source) as image:
                image.load()
                deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG"))
                image = ImageOps.exif_transpose(image)
                if not deep and image.mode in ("I", "F"):
                    raise ValueError("its pixels are of 32 bits, in no known range: save it with 8 or 16")
                if deep:  # Pillow would cut 16 bits off at 255
                    image = Image.fromarray((np.asarray(image).astype(np.uint16) // 257).astype(np.uint8))
                if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                    image = image.convert("RGBA")
                    image = Image.alpha_composite(Image.new("RGBA", image.size, self.background), image)
                return np.asarray((image.convert("L") if self.grayscale else image).convert("RGB"))
        except FileNotFoundError:
            raise
        except Exception as error:  # PIL raises OSError, SyntaxError, struct.error, ... for broken files
            # PIL shows a file without a name as the object that holds it, which says nothing
            reason = re.sub(r" ?<_io\.BytesIO.*?>", "", " ".join(str(error).split())) or type(error).__name__
            raise ValueError(f"{name} cannot be read ({reason}); replace or remove it") from error


PLAIN = Look()


def fit(
    image: np.ndarray, size: int | tuple[int, int], flip: bool = False, place: tuple[float, float] = CENTRE
) -> UInt8[np.ndarray, "h w 3"]:
    """Aspect-preserving resize that covers `size` (Lanczos), then the crop at `place`: uint8 [h, w, 3].

    `size` is pixels, of a square's side or (height, width); `place` the shares of what is cut off that lie
    (above, left of) the crop. `flip` mirrors left and right before that.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if flip:
        image = image[:, ::-1]
    if image.shape[:2] != (height, width):
        top, left = place
        fitted = ImageOps.fit(Image.fromarray(image), (width, height), Image.Resampling.LANCZOS, centering=(left, top))
        image = np.asarray(fitted)
    return image


def to_float(image: np.ndarray) -> np.ndarray:
    """uint8 pixels 0..255 -> float32 in [-1, 1], the range of the autoencoders."""
    return image.astype(np.float32) / 127.5 - 1.0
