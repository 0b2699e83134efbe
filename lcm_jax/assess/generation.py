"""The pictures of an evaluation: one model, sampler, number of steps, w and seed over all captions of a set."""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lcm_jax.assess.evaluation_set import Captioned
from lcm_jax.edm_pipeline import EDMPipeline
from lcm_jax.evaluate.features import Images, fingerprint
from lcm_jax.image_keys import image_keys
from lcm_jax.models.functional import Net
from lcm_jax.pipeline import Pipeline, to_pixels

BATCH = 64  # a device at most; the batches of a set are of equal size, so that one compilation serves all


def generate(
    pipe: Pipeline,
    sampler: str,
    steps: int,
    w: float,
    seed: int,
    asked: Captioned,
    uncond: Mapping[str, Any],
    done: Callable[[int], object] = int,
) -> Images:
    """An image for each caption, the one that the same prompt and seed give elsewhere; `done(n)` hears of each n."""
    compiled, drawers, empty = pipe.sampler(sampler, steps, w=w), pipe.drawers, dict(uncond)

    def draw(each_w, keys, *told):
        return compiled(drawers.params, dict(zip(asked.condition, told, strict=True)), empty, each_w, keys)

    rows = (np.full(len(asked), w, np.float32), image_keys(asked.captions, 1, seed), *asked.condition.values())
    return drawers.map(draw, rows, drawers.even_size(BATCH, len(asked)), done)


def reconstruct(pipe: Pipeline, images: Images) -> Images:
    """Images through the model's autoencoder, its posterior means decoded: the best a model on its latents can do."""
    drawers = pipe.drawers
    through = partial(reconstructor(pipe.autoencoder), drawers.params["autoencoder"])
    return drawers.map(through, (images,), drawers.even_size(BATCH, len(images)), int)


@lru_cache(maxsize=4)
def reconstructor(net: Net) -> Callable[..., Any]:
    """The compiled (params, uint8 pixels) -> uint8 pixels of an autoencoder."""

    @jax.jit
    def through(params, pixels):
        moments = net.apply(params, pixels.astype(jnp.float32) / 127.5 - 1.0, method="encode")
        return to_pixels(net.apply(params, jnp.split(moments, 2, axis=-1)[0], method="decode"))

    return through


def identity(pipe: Pipeline | EDMPipeline) -> str:
    """Hash of what the model is: its description and every weight."""
    leaves = jax.tree_util.tree_leaves_with_path(pipe.params)
    parts = [part for path, leaf in leaves for part in (jax.tree_util.keystr(path), np.asarray(leaf))]
    spec = {k: v for k, v in pipe.spec.to_json().items() if k != "about"}
    return fingerprint(repr(sorted(spec.items())), *parts)
