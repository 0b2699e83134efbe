"""What a run draws while it trains, to be looked at."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lcm_jax.assembly import Run
from lcm_jax.edm_pipeline import EDMPipeline
from lcm_jax.evaluate import grid
from lcm_jax.image_keys import image_keys
from lcm_jax.objectives.base import condition_of
from lcm_jax.parallel.transfer import fetch
from lcm_jax.pipeline import Pipeline, to_pixels
from lcm_jax.source import network
from lcm_jax.train.state import State
from lcm_jax.train.step import readable
from lcm_jax.typing import Params

SHOWN = 16  # images in a training grid


def sample_hook(run: Run, where: Path) -> Callable[[int, State, Mapping[str, float]], None]:
    """hook(step, state, metrics) that writes a grid of fixed prompts and seeds (of seeds alone, or reconstructions)."""
    drawers = {"autoencoder": reconstructions_drawer, "network": noise_drawer}
    draw = drawers.get(run.trains, prompts_drawer)(run)

    def hook(step: int, state: State, metrics: Mapping[str, float]) -> None:
        images, about = draw(run.sampled(state))  # by all processes: the weights may lie across them
        if jax.process_index() == 0:
            grid.save(where / f"step_{step:07d}.png", grid.grid(images, 8, zoom=2), {"step": step, **about})

    return hook


def prompts_drawer(run: Run) -> Callable[[Params], tuple[np.ndarray, dict[str, Any]]]:
    """Samples of the first captions of the training set with one seed: 4 steps of an LCM, 25 of a teacher."""
    read = run.read("ema" if run.weights is None else "teacher")
    attention = run.config["model"].get("attention", "auto")
    pipe = Pipeline(run.spec, run.networks, captions=run.model.captions, read=read, attention=attention)
    spread = np.linspace(0, run.loader.size - 1, SHOWN).astype(int)
    rows = run.loader.rows.batch(spread)
    names = [run.loader.row(i).caption for i in rows["index"]]
    steps = pipe.default_steps if run.spec.role == "consistency" else 25
    w = pipe.default_w
    sampler = pipe.sampler(pipe.default_sampler, steps, w=w)
    told = condition_of(rows) if "context" in rows else pipe.encode(names)
    uncond = run.frozen["batch"]["uncond"]
    keys = image_keys(names, 1, seed=0)
    whole = jax.jit(lambda params, frozen: readable(params, "ema", frozen, run.weights, run.readings)[0])

    def draw(params: Params) -> tuple[np.ndarray, dict[str, Any]]:
        params = {"unet": params if run.weights is None else whole(params, run.frozen), **run.networks}
        images = sampler(params, told, uncond, jnp.full(SHOWN, w), keys)
        return fetch(images), {"prompts": names, "steps": steps, "w": w, "guidance": w + 1, "seed": 0}

    return draw


def noise_drawer(run: Run) -> Callable[[Params], tuple[np.ndarray, dict[str, Any]]]:
    """Samples from noise with one seed: a consistency model's in each number of steps, a denoiser's in 18.

    Of a network with classes, each of them in turn.
    """
    pipe = EDMPipeline(run.spec, run.networks, read=run.read("ema"))
    counts = range(1, len(run.spec.sigmas) + 1) if run.spec.role == "consistency" else [pipe.default_steps]
    samplers = [pipe.sampler(steps) for steps in counts]
    keys, labels = image_keys([""], SHOWN, seed=0), pipe.labels(SHOWN)
    about = {"steps": list(counts), "seed": 0, **pipe.told(labels)}

    def draw(params: Params) -> tuple[np.ndarray, dict[str, Any]]:
        networks = {"network": params, **run.networks}
        images = [fetch(sample(networks, keys, labels)) for sample in samplers]
        return np.concatenate(images), about

    return draw


def reconstructions_drawer(run: Run) -> Callable[[Params], tuple[np.ndarray, dict[str, Any]]]:
    """Images above their reconstructions."""
    net = network(run.spec, "autoencoder")
    spread = np.linspace(0, run.loader.size - 1, SHOWN // 2).astype(int)
    images = run.loader.rows.batch(spread)["image"]

    @jax.jit
    def reconstruct(params: Params) -> jax.Array:
        apply = partial(net.apply, params, read=run.read("ema"))
        moments = apply(jnp.asarray(images, jnp.float32) / 127.5 - 1.0, method="encode")
        return to_pixels(apply(jnp.split(moments, 2, axis=-1)[0], method="decode"))

    return lambda params: (np.concatenate([images, fetch(reconstruct(params))]), asdict(run.spec.autoencoder))
