"""Images side by side in one PNG that remembers how they were made."""

import json
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

GAP = 2
LETTER = 11  # pixels a label's line takes
WIDTH = 48  # letters of a line
KEY = "lcm_jax"  # name of the PNG text entry that holds the settings


def grid(
    images: UInt8[np.ndarray, "n h w 3"],
    columns: int,
    rows_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    zoom: int = 1,
) -> Image.Image:
    """Images row by row on white, `columns` a row, with optional labels at the left and above."""
    n, h, w, _ = images.shape
    h, w = h * zoom, w * zoom
    rows = -(-n // columns)
    font = ImageFont.load_default(size=LETTER)
    rows_labels = None if rows_labels is None else [wrapped(label, h // (LETTER + 3)) for label in rows_labels]
    lines = [line for label in rows_labels or () for line in label.split("\n")]
    left = 4 + max(int(font.getlength(line)) for line in lines) if lines else 0
    top = 0 if column_labels is None else LETTER * 2 + 4
    canvas = Image.new("RGB", (left + columns * (w + GAP) + GAP, top + rows * (h + GAP) + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for i, pixels in enumerate(images):
        tile = Image.fromarray(pixels).resize((w, h), Image.Resampling.LANCZOS)
        canvas.paste(tile, (left + GAP + i % columns * (w + GAP), top + GAP + i // columns * (h + GAP)))
    for r, label in enumerate(rows_labels or ()):
        draw.multiline_text((2, top + GAP + r * (h + GAP) + h // 2), label, "black", font, anchor="lm", spacing=1)
    for c, label in enumerate(column_labels or ()):
        middle = left + GAP + c * (w + GAP) + w // 2
        draw.multiline_text((middle, 2), label, "black", font, anchor="ma", align="center", spacing=1)
    return canvas


def wrapped(label: str, most: int) -> str:
    """A label in lines of at most WIDTH letters, cut after `most` of them."""
    return "\n".join(textwrap.wrap(label, WIDTH, max_lines=max(1, most), placeholder=" ..."))


def save(
    path: str | os.PathLike, image: Image.Image | UInt8[np.ndarray, "h w 3"], settings: Mapping[str, Any]
) -> Path:
    """Writes a PNG with `settings` as JSON in its text metadata; it appears whole or not at all."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngImagePlugin.PngInfo()
    info.add_itxt(KEY, json.dumps(settings, ensure_ascii=False, default=str))
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        image.save(scratch, format="PNG", pnginfo=info)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    return path


def settings(path: str | os.PathLike) -> dict[str, Any]:
    """The settings stored in a PNG; ValueError if it holds none."""
    with Image.open(path) as image:
        if KEY not in image.info:
            raise ValueError(f"{path} holds no settings of this project")
        return json.loads(image.info[KEY])
