"""Captioned images to a latent data set, with the encoders of a model."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lcm_jax import data
from lcm_jax.captions import encode as encode_captions
from lcm_jax.data import encode as latents
from lcm_jax.data import manifest, resume, shorten
from lcm_jax.data.check import Problem
from lcm_jax.data.check import check as find_problems
from lcm_jax.data.check import report as report  # for launch, which sees no deeper
from lcm_jax.data.manifest import Manifest
from lcm_jax.data.processes import Processes
from lcm_jax.drawers import Drawers
from lcm_jax.models.autoencoder import autoencoder
from lcm_jax.models.encoder_sketch import sketch
from lcm_jax.parallel.agreement import on_all, the_same
from lcm_jax.source import Model, on_host, open_model
from lcm_jax.typing import Params


def encode(
    model: str | Path,
    reader: str,
    options: Mapping[str, Any],
    out: str | Path,
    batch_size: int = 32,
    shard_size: int = 1024,
    tokens: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    shortened: int = 0,
    states: bool = True,
    size: int | None = None,
    variant: str | None = None,
    kind: str | None = None,
    empty_caption: str | None = None,
    **settings: Any,
) -> Manifest:
    """Encodes what `reader` finds with the autoencoder and the caption encoder of a model into `out`.

    Pictures are cropped to `size` pixels a side, by default the model's own; `variant`, `kind` and
    `empty_caption` are open_model's.
    `tokens` stores token ids beside the caption's `states`, or instead of them, to be encoded while training;
    `shortened` takes that many shorter captions of each training picture in place of its own (data.shorten). Other
    settings are those of data.encode: crop, flip, seed, size_ids, broken, threads. Interrupted, it goes on where it
    stopped; several processes (joining.joined) encode each a share of the shards. Raises ValueError or
    FileNotFoundError naming the file or the setting at fault.
    """
    if batch_size < 1 or shard_size < 1:
        raise ValueError(f"batch_size {batch_size} and shard_size {shard_size} must be at least 1")
    check_out(out, options)
    found = open_model(model, variant, kind, empty_caption)
    spec = found.spec
    size = pixels(found, size)
    examples = data.found(reader, **options)
    if shortened:
        examples = shorten.shortened(examples, shortened)
    text = found.captions
    if getattr(spec, "pooled_width", None):
        settings = {"size_ids": True, **settings}
    params = found.load("autoencoder", on_host)
    return latents.encode(
        examples,
        picture_encoder(found, params, batch_size),
        partial(encode_captions, text) if states else None,
        out,
        size,
        batch_size,
        shard_size,
        identity={"autoencoder": found.fingerprint("autoencoder"), "text": text.identity},
        sketch=sketch(params),
        look=data.look_of(options),
        dataset={
            "reader": reader,
            "options": dict(options),
            "attribution": data.attribution(reader),
            **({"shortened": shortened} if shortened else {}),
        },
        tokenize=text.tokens if tokens else None,
        overwrite=overwrite,
        progress=progress,
        processes=sharing(),
        **settings,
    )


def check_out(out: str | Path, options: Mapping[str, Any]) -> None:
    """Raises ValueError where latents would lie among other files, the pictures of a reader's `options` above all."""
    out = Path(out)
    resume.check_folder(out)
    given = options.get("folder") or ()
    for pictures in map(Path, [given] if isinstance(given, str | Path) else given):
        one, other = out.resolve(), pictures.resolve()
        if pictures.is_dir() and not resume.begun(out) and (one.is_relative_to(other) or other.is_relative_to(one)):
            raise ValueError(f"{out} and the pictures' folder {pictures}: one lies in the other; choose another --out")


def sharing() -> Processes:
    """The processes that encode together."""
    return Processes(jax.process_index(), jax.process_count(), on_all, the_same)


def picture_encoder(found: Model, params: Params, batch_size: int) -> Callable[[np.ndarray], np.ndarray]:
    """Pictures [b, H, W, 3] in [-1, 1] to moments [b, h, w, 2c], each accelerator of this host its share of a batch."""
    drawers = Drawers(params)
    size = drawers.size(batch_size, batch_size)
    apply = jax.jit(partial(autoencoder(found.spec.autoencoder).apply, method="encode"))
    return lambda pictures: drawers.map(partial(apply, drawers.params), [pictures], size, lambda count: None)


def check(
    model: str | Path,
    reader: str,
    options: Mapping[str, Any],
    out: str | Path | None = None,
    progress: bool = True,
    size: int | None = None,
    **how: str | None,
) -> list[Problem]:
    """What is wrong with the pictures at a size (the model's), and with the latents of `out` if there are any.

    `how` is open_model's.
    """
    size = pixels(open_model(model, **how), size)
    problems = find_problems(data.reader(reader, **options), size, progress=progress)
    if out is not None and (Path(out) / manifest.FILE).exists():
        problems += find_problems(Path(out), progress=progress)
    return problems


def pixels(model: Model, size: int | None) -> int:
    """Sides of the pictures to encode; ValueError for one that the autoencoder cannot shrink."""
    if size is None:
        return model.spec.image_size
    factor = model.spec.autoencoder.factor
    if size < 1 or size % factor:
        raise ValueError(f"pictures of {size} x {size} are no multiple of {factor} pixels: choose another size")
    return size
