"""Pictures for prompts as files: one each and a grid, every one with the settings that made it."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lcm_jax import __version__
from lcm_jax.evaluate import grid
from lcm_jax.pipeline import Pipeline

TILE = 128  # pixels a picture of the grid should at least have along a side


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
    progress: bool = True,
) -> tuple[Path, dict[str, Any]]:
    """Draws n pictures of each prompt into `out`; the path of their grid (a prompt a row), and the settings."""
    chosen = settings(pipe, steps, w, seed, sampler)
    keywords = {name: chosen[name] for name in ("steps", "w", "seed", "sampler")}
    images = pipe(prompts, n=n, progress=progress, **keywords)
    stem = f"{chosen['sampler']}{chosen['steps']}-w{chosen['w']:g}-seed{seed}"
    for i, pixels in enumerate(images):
        row, number = divmod(i, n)
        name = f"{row:03d}-{slug(prompts[row])}-{stem}-{number:02d}.png"
        grid.save(Path(out) / name, pixels, {"prompt": prompts[row], "number": number, **chosen})
    zoom = max(1, TILE // pipe.spec.image_size)
    if len(prompts) == 1:
        sheet = grid.grid(images, math.ceil(math.sqrt(n)), zoom=zoom)
    else:
        sheet = grid.grid(images, n, rows_labels=list(prompts), zoom=zoom)
    about = {"prompts": list(prompts), "n": n, **chosen}
    return grid.save(Path(out) / f"grid-{stem}.png", sheet, about), chosen


def settings(
    pipe: Pipeline, steps: int | None, w: float | None, seed: int, sampler: str | None
) -> dict[str, Any]:
    """Everything that decides the pixels besides the prompt, the pipeline's defaults filled in."""
    w = pipe.default_w if w is None else w
    name = sampler or pipe.default_sampler
    steps = pipe.default_steps if steps is None else steps
    pipe.sampler(name, steps)  # raises now what cannot be sampled
    versions = {"lcm_jax": __version__, "jax": jax.__version__, "numpy": np.__version__}
    chosen = {"sampler": name, "steps": steps, "evaluations": pipe.nfe(name, steps), "w": w, "guidance": w + 1}
    return {**chosen, "seed": seed, **pipe.origin, "versions": versions, "device": jax.devices()[0].device_kind}


def slug(prompt: str) -> str:
    """A prompt as part of a file name: its first 40 letters and digits, the rest as hyphens."""
    return re.sub(r"\W+", "-", prompt.lower()).strip("-")[:40].rstrip("-") or "empty"
