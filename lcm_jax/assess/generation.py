"""The pictures of an evaluation: one model, sampler, number of steps, w and seed over all captions of a set."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lcm_jax.assess.evaluation_set import Captioned
from lcm_jax.edm_pipeline import EDMPipeline
from lcm_jax.evaluate.features import Images, fingerprint
from lcm_jax.models.functional import Net
from lcm_jax.pipeline import Pipeline, image_keys, to_pixels

BATCH = 64  # at most; the batches of a set are of equal size, so that one compilation serves all


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
    draw = pipe.sampler(sampler, steps, w=w)
    keys = image_keys(asked.captions, 1, seed)
    found = []
    for index, used in batches(len(asked)):
        told = {name: values[index] for name, values in asked.condition.items()}
        every_w = jnp.full(len(index), w, jnp.float32)
        found.append(np.asarray(draw(pipe.params, told, dict(uncond), every_w, keys[index]))[:used])
        done(used)
    return np.concatenate(found)


def reconstruct(pipe: Pipeline, images: Images) -> Images:
    """Images through the model's autoencoder, its posterior means decoded: the best a model on its latents can do."""
    through, params = reconstructor(pipe.autoencoder), pipe.params["autoencoder"]
    return np.concatenate([np.asarray(through(params, images[index]))[:used] for index, used in batches(len(images))])


@lru_cache(maxsize=4)
def reconstructor(net: Net) -> Callable[..., Any]:
    """The compiled (params, uint8 pixels) -> uint8 pixels of an autoencoder."""

    @jax.jit
    def through(params, pixels):
        moments = net.apply(params, pixels.astype(jnp.float32) / 127.5 - 1.0, method="encode")
        return to_pixels(net.apply(params, jnp.split(moments, 2, axis=-1)[0], method="decode"))

    return through


def batches(n: int) -> list[tuple[np.ndarray, int]]:
    """(row numbers, how many of them count) of each batch; the last row fills the last batch up."""
    size = -(-n // -(-n // BATCH))
    return [(np.minimum(np.arange(i, i + size), n - 1), min(size, n - i)) for i in range(0, n, size)]


def identity(pipe: Pipeline | EDMPipeline) -> str:
    """Hash of what the model is: its description and every weight."""
    leaves = jax.tree_util.tree_leaves_with_path(pipe.params)
    parts = [part for path, leaf in leaves for part in (jax.tree_util.keystr(path), np.asarray(leaf))]
    spec = {k: v for k, v in pipe.spec.to_json().items() if k != "about"}
    return fingerprint(repr(sorted(spec.items())), *parts)
