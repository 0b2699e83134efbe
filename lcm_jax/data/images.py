"""Image files to square RGB pixels: decode, composite on white, resize and crop."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def decode(path: str | Path) -> np.ndarray:
    """The whole image at `path` as uint8 [H, W, 3], transparency composited on white, EXIF rotation applied.

    Raises ValueError naming the file when it is missing, truncated or not an image.
    """
    try:
        with Image.open(path) as image:
            image.load()
            image = ImageOps.exif_transpose(image)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise ValueError(f"image {path} does not exist; remove its entry or restore the file") from None
    except Exception as error:  # PIL raises OSError, SyntaxError, struct.error, ... for broken files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"image {path} cannot be read ({reason}); replace or remove it") from error


def fit(image: np.ndarray, size: int, flip: bool = False) -> np.ndarray:
    """Aspect-preserving resize of the shorter side (Lanczos), centre crop: uint8 [size, size, 3]."""
    if image.shape[:2] != (size, size):
        image = np.asarray(ImageOps.fit(Image.fromarray(image), (size, size), Image.Resampling.LANCZOS))
    return image[:, ::-1] if flip else image


def to_float(image: np.ndarray) -> np.ndarray:
    """uint8 pixels 0..255 -> float32 in [-1, 1], the range of the autoencoders."""
    return image.astype(np.float32) / 127.5 - 1.0


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Floats in [-1, 1] -> uint8 pixels, clipped and rounded: the inverse of `to_float`."""
    return np.clip(np.rint((np.asarray(image, np.float32) + 1.0) * 127.5), 0, 255).astype(np.uint8)
