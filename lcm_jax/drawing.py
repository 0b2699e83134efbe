"""Pictures for prompts as files: one each and a grid, every one with the settings that made it."""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from lcm_jax import __version__
from lcm_jax.data import images as pixels
from lcm_jax.data.shards import sha256
from lcm_jax.edm_pipeline import EDMPipeline
from lcm_jax.evaluate import grid
from lcm_jax.evaluate.features import fingerprint
from lcm_jax.image_keys import firsts
from lcm_jax.parallel.agreement import on_all
from lcm_jax.pipeline import Pipeline
from lcm_jax.setting import UNCROPPED, Setting, SizeIds

TILE = 128  # pixels a picture of the grid should at least have along a side
SHEET = 64  # prompts a grid holds at most
LOOKED_AT = 64  # numbers of each tensor by which models are told apart
FREE = ("versions", "device", "image")  # what may differ where pictures are the same: machine, place of an image


def draw(
    pipe: Pipeline,
    prompts: Sequence[str],
    out: str | Path,
    *,
    steps: int | None = None,
    w: float | None = None,
    seed: int = 0,
    n: int = 16,
    sampler: str | None = None,
    negative_prompt: str | None = None,
    size: tuple[int, int] | None = None,
    image: str | Path | None = None,
    strength: float = 0.6,
    tile: int | None = None,
    ids: SizeIds = UNCROPPED,
    batch: int | None = None,
    progress: bool = True,
) -> tuple[Path, dict[str, Any]]:
    """Draws n pictures of each prompt into `out`; the path of their grid (a prompt a row), and the settings.

    Pictures that are there already, made with the same settings and weights, are kept: an interrupted list goes on;
    those of other settings have other names. A prompt named again gets other pictures. `image` is the file of a
    picture to be changed; it is cropped to whole latents. Several processes draw each its own prompts into a folder
    that they share; the grid is the first one's.
    """
    start = None if image is None else opened(pipe, image, size)
    size = size if start is None else start.shape[:2]
    w = pipe.default_w if w is None else w
    setting = pipe.setting(sampler, steps, size, None if start is None else strength, tile, ids, w)
    chosen = settings(pipe, setting, w, seed)
    more = {"size": [setting.height, setting.width]} if size is not None else {}
    more |= {"negative_prompt": negative_prompt} if negative_prompt else {}
    more |= {"tile": tile} if tile is not None else {}
    if image is not None:
        more |= {"image": str(image), "image_sha256": sha256(image), "strength": strength}
    more |= {} if ids == UNCROPPED else {"size_ids": list(ids.of(setting.height, setting.width))}
    chosen |= more
    stem = f"{chosen['sampler']}{chosen['steps']}-w{chosen['w']:g}-seed{seed}-{digest(chosen)}"
    names = [
        [Path(out) / f"{row:03d}-{slug(prompt)}-{stem}-{number:02d}.png" for number in range(n)]
        for row, prompt in enumerate(prompts)
    ]
    start_at = firsts(prompts, n)
    wanted = lambda row, number: {"prompt": prompts[row], "number": start_at[row] + number, **chosen}
    own = range(jax.process_index(), len(prompts), jax.process_count())
    missing = [(row, i) for row in own for i in range(n) if not made_with(names[row][i], wanted(row, i))]
    keywords = {"steps": setting.steps, "w": w, "seed": seed, "sampler": setting.sampler, "tile": tile}
    keywords |= {"negative_prompt": negative_prompt, "size": size, "image": start, "strength": strength}
    keywords |= {"ids": ids, "batch": batch}
    count = pipe.at_once(setting, batch, len(missing))
    with tqdm(total=len(missing), unit="image", desc=setting.sampler, disable=not progress, dynamic_ncols=True) as bar:
        for at in range(0, len(missing), count):  # what is drawn is kept: an interrupted list goes on
            some = missing[at : at + count]
            filled = [*some, *some[-1:] * (count - len(some))]  # so that one compilation serves all
            asked, first = [prompts[row] for row, _ in filled], [start_at[row] + i for row, i in filled]
            for (row, i), picture in zip(some, pipe(asked, first=first, **keywords), strict=False):
                grid.save(names[row][i], picture, wanted(row, i))
            bar.update(len(some))
    sheet = Path(out) / f"grid-{stem}.png"
    on_all(True)  # every process has drawn
    if jax.process_index():
        return sheet, chosen
    shown = list(range(min(len(prompts), SHEET)))
    if not all(path.exists() for row in shown for path in names[row]):
        raise ValueError(f"{out} is not the same folder for every process: give an --out on storage that all share")
    images = np.stack([pixels.PLAIN.decode(path) for row in shown for path in names[row]])
    zoom = max(1, TILE // min(images.shape[1:3]))
    if len(prompts) == 1:
        together = grid.grid(images, math.ceil(math.sqrt(n)), zoom=zoom)
    else:
        together = grid.grid(images, n, rows_labels=[prompts[row] for row in shown], zoom=zoom)
    about = {"prompts": list(prompts), "n": n, **chosen}
    return grid.save(sheet, together, about), chosen


def draw_from_noise(
    pipe: EDMPipeline,
    out: str | Path,
    *,
    steps: int | None = None,
    sigmas: Sequence[float] | None = None,
    label: str | int | None = None,
    seed: int = 0,
    n: int = 16,
    batch: int | None = None,
    progress: bool = True,
) -> tuple[Path, dict[str, Any]]:
    """Draws n pictures of a model without captions into `out`; the path of their grid, and the settings.

    Of a model with classes they are of the class `label`, or each class has its turn. Pictures that are there already,
    made with the same settings and weights, are kept.
    """
    if n < 1:
        raise ValueError(f"nothing to draw: {n} images")
    times, labels = pipe.times(steps, sigmas), pipe.labels(n, label)
    steps = len(times) if pipe.spec.role == "consistency" else len(times) - 1
    chosen = {"sampler": pipe.name, "steps": steps, "evaluations": pipe.nfe(steps), "seed": seed}
    chosen |= {"sigmas": times.tolist()} if pipe.spec.role == "consistency" else {}
    chosen |= made_by(pipe)
    of = "" if label is None else f"{slug(str(label))}-"
    stem = f"{pipe.name}{steps}-{of}seed{seed}-{digest(chosen)}"
    names = [Path(out) / f"{stem}-{number:03d}.png" for number in range(n)]
    own = lambda i: {} if labels is None else pipe.told(labels[i : i + 1])
    wanted = lambda i: {"number": i, **own(i), **chosen}
    missing = np.array([i for i in range(n) if not made_with(names[i], wanted(i))], int)
    told, waiting = {"steps": steps, "sigmas": sigmas, "label": labels, "seed": seed, "batch": batch}, iter(missing)
    with tqdm(total=len(missing), unit="image", desc=pipe.name, disable=not progress, dynamic_ncols=True) as bar:
        for drawn in pipe.stream(n, missing, **told, done=bar.update):
            for picture in drawn:
                grid.save(names[i := int(next(waiting))], picture, wanted(i))
    images = np.stack([pixels.PLAIN.decode(path) for path in names])
    zoom = max(1, TILE // min(images.shape[1:3]))
    sheet = grid.grid(images, math.ceil(math.sqrt(n)), zoom=zoom)
    chosen |= pipe.told(labels)
    return grid.save(Path(out) / f"grid-{stem}.png", sheet, {"n": n, **chosen}), chosen


def opened(pipe: Pipeline, path: str | Path, size: tuple[int, int] | None) -> np.ndarray:
    """The picture of a file at (height, width), or at its own size less what is over whole latents."""
    picture, factor = pixels.PLAIN.decode(Path(path)), pipe.spec.autoencoder.factor
    height, width = size or (side - side % factor for side in picture.shape[:2])
    if not height or not width:
        sides = f"{picture.shape[1]} x {picture.shape[0]}"
        raise ValueError(f"{path} is {sides}: give a picture of {factor} pixels or more")
    return pixels.fit(picture, (height, width))


def made_with(path: Path, wanted: dict[str, Any]) -> bool:
    """Whether a file is a picture of these settings, whatever machine made it and wherever the image it changed lay."""
    if not path.exists():
        return False
    try:
        return decisive(grid.settings(path)) == decisive(wanted)
    except (ValueError, OSError):
        return False


def settings(pipe: Pipeline, setting: Setting, w: float, seed: int) -> dict[str, Any]:
    """What decides the pixels besides the prompt, and a picture's size and start."""
    chosen = {"sampler": setting.sampler, "steps": setting.steps, "evaluations": pipe.nfe(setting)}
    chosen |= {"w": w, "guidance": w + 1}
    return {**chosen, "seed": seed, **made_by(pipe)}


def made_by(pipe: Pipeline | EDMPipeline) -> dict[str, Any]:
    """Model and machine."""
    return {**pipe.origin, "tensors": mark(pipe), "versions": versions(), "device": jax.devices()[0].device_kind}


def mark(pipe: Pipeline | EDMPipeline) -> str:
    """What tells a model from one of the same name trained otherwise: a hash of some numbers of each tensor."""
    told = pipe.captions.params if isinstance(pipe, Pipeline) else ()
    flat = [np.ravel(leaf) for leaf in jax.tree.leaves((pipe.params, told))]
    return fingerprint(*[leaf[:: max(1, leaf.size // LOOKED_AT)] for leaf in flat])


def decisive(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that decide the pixels."""
    return {k: v for k, v in settings.items() if k not in FREE}


def digest(settings: dict[str, Any]) -> str:
    """Six letters of a file's name, by which pictures of other settings are not written over."""
    return hashlib.sha256(json.dumps(decisive(settings), sort_keys=True, default=str).encode()).hexdigest()[:6]


def versions() -> dict[str, str]:
    """What made a picture."""
    return {"lcm_jax": __version__, "jax": jax.__version__, "numpy": np.__version__}


def slug(prompt: str) -> str:
    """A prompt as part of a file name: its first 40 letters and digits, the rest as hyphens."""
    return re.sub(r"\W+", "-", prompt.lower()).strip("-")[:40].rstrip("-") or "empty"
