"""What a model draws from given noise and a caption, in float32: the side of ours in a comparison with PyTorch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lcm_jax import captions, exporting, source
from lcm_jax.export import diffusers_folder
from lcm_jax.models.spec import ModelSpec
from lcm_jax.pipeline import Pipeline
from lcm_jax.sampling.defaults import default_steps, default_w
from lcm_jax.typing import Params
from lcm_jax.weights import folder

DDIM_STEPS = 10
Noise = Float[np.ndarray, "n b h w c"]


@dataclass(frozen=True)
class Setting:
    """What is drawn on both sides; `draws` of unit noise are needed, each [b, h, w, c] of `latent`."""

    steps: int
    draws: int
    w: float
    latent: tuple[int, int, int]
    size: int  # pixels a side
    reads_clip: bool  # false: captions are handed over as states


@dataclass(frozen=True)
class Drawn:
    """Pictures [b, h, w, 3] in [0, 1], and the conditions they were drawn of (uncond: of the empty caption)."""

    images: np.ndarray
    condition: dict[str, np.ndarray]
    uncond: dict[str, np.ndarray]


@dataclass(frozen=True)
class Compared:
    """An export for others and how diffusers comes to its picture."""

    leaving: exporting.Leaving  # what was exported
    dtype: str  # to which its weights are rounded, still
    folder: Path  # a pipeline of diffusers: the export itself, or what its file is put into
    file: Path | None = None  # the export's weights, where it is no pipeline


def compared(
    out: Path, given: str | Path, format: str, dtype: str, scratch: Path, w: float | None = None, **which: Any
) -> Compared:
    """The export `out` of `given` (arguments of exporting.export) and its pipeline, written to `scratch` where needed.

    A single file goes into a pipeline of the same configs, adapters into one of the model that they were trained on.
    Raises ValueError for a format that PyTorch does not read, and for what diffusers does not read from it.
    """
    if format == "diffusers":
        return Compared(exporting.leaving(given, dtype, w=w, **which), dtype, out)
    if format in exporting.NAMINGS:
        kept = {key: which[key] for key in ("weights", "step") if key in which}
        base, leaving = exporting.of_adapters(given, dtype, **kept)
        (file,) = out.glob("*.safetensors")
        pipeline = diffusers_folder.write(scratch / "base", leaving.spec.to_json(), base.networks, base.tokenizers)
        return Compared(leaving, "float32", pipeline, file)
    if format != "single-file":
        raise ValueError(f"format {format!r} is not for PyTorch: there is nothing to verify")
    leaving = exporting.leaving(given, dtype, w=w, **which)
    if leaving.spec.unet.w_width is not None:
        raise ValueError(f"{out} takes w as an input, which diffusers does not read from single files: fix it with --w")
    about = leaving.spec.to_json(), leaving.networks, leaving.tokenizers
    pipeline = diffusers_folder.write(scratch / "configs", *about, dtype)
    return Compared(leaving, dtype, pipeline, out / f"{out.name}.safetensors")


def setting(spec: ModelSpec) -> Setting:
    """4 steps of a consistency model, 10 of DDIM for a teacher, at the w one would begin with."""
    student, told = spec.role == "consistency", spec.to_json()
    steps, w = default_steps(told) if student else DDIM_STEPS, default_w(told)
    return Setting(steps, steps if student else 1, w, spec.latent_shape, spec.image_size, bool(spec.text.towers))


def draw(leaving: exporting.Leaving, dtype: str, prompts: Sequence[str], noise: Noise) -> Drawn:
    """The pictures of `setting`, with weights rounded to `dtype` as the export has them; one network at a time."""
    spec, how = leaving.spec.computing_in("float32"), setting(leaving.spec)
    weights = lambda name: jax.tree.map(partial(rounded, dtype), leaving.networks[name])
    told, empty = conditions(leaving, weights, [list(prompts), [""] * len(prompts)])
    pipe = Pipeline(spec, {})
    drawn = pipe.setting(pipe.default_sampler, how.steps, w=how.w)
    w = jnp.full(len(prompts), how.w, jnp.float32)
    latents = jax.jit(lambda *given: pipe.latents(drawn, *given[:-1], noise=given[-1].__getitem__))
    z = latents(weights("unet"), pipe.sized(told, drawn), pipe.sized(empty, drawn), w, jnp.asarray(noise))
    images = jax.jit(pipe.decode)({"autoencoder": weights("autoencoder")}, z)
    return Drawn(np.clip((np.asarray(images) + 1) / 2, 0, 1), told, empty)


def conditions(
    leaving: exporting.Leaving, weights: Callable[[str], Params], texts: Sequence[Sequence[str]]
) -> list[dict[str, np.ndarray]]:
    """What the network is told of each list of captions; the encoders' weights, rounded too, are let go again."""
    text, names = leaving.spec.text, source.text_networks(leaving.spec)
    if text.towers:
        encoder = captions.Clip(text, leaving.tokenizers, lambda i: weights(names[i]), lambda i: {})
    else:
        encoder = captions.caption_encoder(text)
    return [captions.encode(encoder, some) for some in texts]


def rounded(dtype: str, leaf: Any) -> np.ndarray:
    """The leaf as an export in `dtype` keeps it, in float32."""
    return np.asarray(folder.cast(leaf, dtype), np.float32)
