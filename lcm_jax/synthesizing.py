"""Captions to a latent data set of pictures that a teacher draws: distillation where there are no pictures."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lcm_jax import data
from lcm_jax.captions import encode as encode_captions
from lcm_jax.data import encode as latents
from lcm_jax.data import prompts
from lcm_jax.data.encoders import STATES
from lcm_jax.data.example import TRAIN
from lcm_jax.data.example import counted as counted  # for launch, which sees no deeper
from lcm_jax.data.manifest import Manifest
from lcm_jax.drawers import Drawers
from lcm_jax.encoding import check_out, pixels, sharing
from lcm_jax.image_keys import image_keys
from lcm_jax.models.encoder_sketch import sketch
from lcm_jax.objectives.base import unconditional
from lcm_jax.pipeline import Pipeline
from lcm_jax.setting import Setting
from lcm_jax.source import open_model


def synthesize(
    model: str | Path,
    captions: Sequence[str],
    out: str | Path,
    n: int = 1,
    sampler: str = "dpmpp_2m",
    steps: int = 15,
    w: float | None = None,
    seed: int = 0,
    size: int | None = None,
    dtype: str | None = None,
    batch_size: int = 32,
    shard_size: int = 1024,
    tokens: bool = False,
    states: bool = True,
    overwrite: bool = False,
    progress: bool = True,
    variant: str | None = None,
    kind: str | None = None,
    empty_caption: str | None = None,
) -> Manifest:
    """Draws n pictures of each caption with a diffusion model and stores their latents in `out`, all for training.

    The latents are those the solver ends in, never decoded; `w` is LCM's guidance, by default the model's own. A
    student that learns from them meets what its teacher makes of captions no picture has (InstaFlow, arXiv 2309.06380,
    learns from such alone). `tokens`, `states`, `size`, `variant`, `kind`, `empty_caption` and what an interruption or
    several processes mean are those of `encoding.encode`. Raises ValueError or FileNotFoundError naming the file or
    the setting at fault.
    """
    if batch_size < 1 or shard_size < 1:
        raise ValueError(f"batch_size {batch_size} and shard_size {shard_size} must be at least 1")
    check_out(out, {})
    how = {"variant": variant, "kind": kind, "empty_caption": empty_caption}
    found, pipe = open_model(model, **how), Pipeline.load(model, dtype, **how)
    if pipe.spec.role == "consistency":
        raise ValueError(f"{model} is a consistency model: have the pictures drawn by its teacher, a diffusion model")
    side = pixels(found, size)
    w = pipe.default_w if w is None else w
    pipe.check_guidance(w)
    setting = pipe.setting(sampler, steps, (side, side), w=w)
    drawn = {"sampler": sampler, "steps": steps, "w": w, "seed": seed}
    return latents.encode(
        prompts.to_draw(captions, n),
        None,
        partial(encode_captions, pipe.captions) if states else None,
        out,
        side,
        batch_size,
        shard_size,
        identity={"autoencoder": found.fingerprint("autoencoder"), "text": pipe.captions.identity},
        sketch=sketch(pipe.params["autoencoder"]),
        dataset={"drawn_by": str(model), "attribution": "; ".join(pipe.spec.about.get("attribution", ())), **drawn},
        tokenize=pipe.captions.tokens if tokens or not states else None,
        overwrite=overwrite,
        progress=progress,
        size_ids=bool(pipe.spec.pooled_width),
        processes=sharing(),
        draw=drawer(pipe, setting, w, seed, batch_size, states),
        drawn={"unet": found.fingerprint("unet"), "dtype": dtype, **drawn},
    )


def captions_of(
    reader: str, options: Mapping[str, Any], recombine: int | None = None, seed: int = 0
) -> list[str]:
    """The training captions that a reader finds, each once, or `recombine` new ones of their words (data.prompts)."""
    examples = data.reader(reader, **options)
    if recombine is not None:
        return prompts.recombined(examples, recombine, seed)
    return list(dict.fromkeys(e.caption for e in examples if e.split == TRAIN and e.caption))


def drawer(
    pipe: Pipeline, setting: Setting, w: float, seed: int, batch_size: int, states: bool
) -> Callable[..., np.ndarray]:
    """(keys, what is stored of their captions) -> unscaled latents [b, h, w, c], each by its own key.

    Without `states` only token ids are stored, of which they are made.
    """
    drawers = Drawers((pipe.params["unet"], None if states else pipe.captions.params))
    size, empty = drawers.size(batch_size, batch_size), pipe.uncond

    @jax.jit
    def draw(params, text, keys, *stored):
        told = dict(zip(STATES, stored, strict=False)) if states else pipe.captions.states(text, *stored)
        told = pipe.sized(told, setting)
        each_w = jnp.full(len(keys), w, jnp.float32)
        z = pipe.latents(setting, params, told, unconditional(told, empty), each_w, pipe.noise(setting, keys))
        return z / pipe.spec.autoencoder.scale

    def of(keys: Sequence[str], stored: Mapping[str, np.ndarray]) -> np.ndarray:
        if states:
            rows = [stored[name].astype(np.float32) for name in STATES if name in stored]
        else:
            rows = [stored["tokens"]]
        return drawers.map(partial(draw, *drawers.params), [image_keys(keys, 1, seed), *rows], size, lambda count: None)

    return of
