"""A run on disk and its way through the loop: description, checkpoints, metrics and sample grids in one folder."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lcm_jax.build import Run
from lcm_jax.evaluate import grid
from lcm_jax.models.autoencoder import autoencoder
from lcm_jax.models.functional import Net
from lcm_jax.models.spec import ModelSpec
from lcm_jax.models.unet import unet
from lcm_jax.pipeline import Pipeline, load_params, to_pixels
from lcm_jax.train import loop
from lcm_jax.train.checkpoint import Checkpointer
from lcm_jax.train.metrics import MetricsWriter
from lcm_jax.train.state import State
from lcm_jax.typing import Params
from lcm_jax.weights import folder

CONFIG, CHECKPOINTS, SAMPLES = "config.json", "checkpoints", "samples"
FREE = ("steps", "loop", "checkpoint", "mesh")  # sections that may change when a run goes on
SHOWN = 16  # images in a training grid


def train(run: Run, where: str | Path, progress: bool = True) -> State:
    """Starts the run in `where`, or goes on with the one that is there; returns the last state.

    Raises ValueError if the folder holds another run.
    """
    where = Path(where)
    open_folder(run, where)
    about = {"spec": run.spec.to_json(), "trains": run.trains}
    loop_settings = dict(run.config["loop"])
    keep = Checkpointer(where / CHECKPOINTS, about=about, **run.config["checkpoint"])
    restored = keep.restore(run.abstract)
    if restored is None:
        state, start = run.init(), 0
    else:
        state, start = restored.state, restored.step
        run.loader.set_state(restored.position)
    writer = MetricsWriter(where, start=start, steps=run.config["steps"], bar=progress)
    hook = sample_hook(run, where / SAMPLES) if loop_settings.get("sample_steps") else None
    try:
        return loop.run(
            run.step,
            state,
            run.frozen,
            run.loader,
            run.key,
            run.config["steps"],
            place_batch=run.place,
            checkpointer=keep,
            writer=writer,
            hooks=() if hook is None else (hook,),
            describe_batch=run.describe_batch,
            folder=where,
            **loop_settings,
        )
    finally:
        writer.close()
        keep.close()
        run.loader.close()


def open_folder(run: Run, where: Path) -> None:
    """Writes config and description of a new run; ValueError if the folder is another run's."""
    where.mkdir(parents=True, exist_ok=True)
    config = where / CONFIG
    if config.exists():
        before, now = json.loads(config.read_text()), json.loads(json.dumps(run.config))
        differ = [k for k in now if k not in FREE and before.get(k) != now[k]]
        if differ:
            raise ValueError(
                f"{where} holds a run whose config differs in {', '.join(differ)}: choose another --run, "
                "or give the same config to go on"
            )
    else:
        folder.write(where, run.spec.to_json(), run.networks, "float32")
    folder.write_text(config, json.dumps(run.config, indent=2) + "\n")


def load(where: str | Path, step: int | None = None, weights: str = "ema") -> tuple[ModelSpec, dict[str, Params], int]:
    """A run's model: spec, networks (trained one from the checkpoint of `step`, newest if None) and that step.

    `weights` is "ema", "params" or "target". Raises FileNotFoundError or CheckpointError saying what is missing.
    """
    where = Path(where)
    spec = ModelSpec.from_json(folder.describe(where), str(where / folder.DESCRIPTION))
    keep = Checkpointer(where / CHECKPOINTS, read_only=True)
    try:
        step = keep.steps()[-1] if step is None and keep.steps() else step
        trains = keep.describe_step(step)["trains"]
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        net = network(spec, trains)
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), net.abstract())
        params = {trains: keep.restore_part(weights, abstract, step)}
    finally:
        keep.close()
    for name in ("unet", "autoencoder"):
        if name not in params and getattr(spec, name) is not None:
            params[name] = load_params(where, name, spec)
    return spec, params, step


def is_run(where: str | Path) -> bool:
    """Whether a folder holds a run rather than exported weights."""
    return (Path(where) / CHECKPOINTS).is_dir()


def pipeline(source: str | Path, step: int | None = None, weights: str = "ema") -> Pipeline:
    """The pipeline of a run, an exported folder or a shipped model."""
    if not is_run(source):
        return Pipeline.load(source)
    spec, params, _ = load(source, step, weights)
    return Pipeline(spec, params)


def network(spec: ModelSpec, name: str) -> Net:
    """The network of that name at the sizes a spec gives."""
    return {"unet": lambda: unet(spec.unet), "autoencoder": lambda: autoencoder(spec.autoencoder)}[name]()


def sample_hook(run: Run, where: Path) -> Callable[[int, State, Mapping[str, float]], None]:
    """hook(step, state, metrics) that writes a grid of fixed prompts and seeds (or of reconstructions)."""
    draw = {"unet": prompts_drawer, "autoencoder": reconstructions_drawer}[run.trains](run)

    def hook(step: int, state: State, metrics: Mapping[str, float]) -> None:
        images, about = draw(state.ema)
        grid.save(where / f"step_{step:07d}.png", grid.grid(images, 8, zoom=2), {"step": step, **about})

    return hook


def prompts_drawer(run: Run) -> Callable[[Params], tuple[np.ndarray, dict[str, Any]]]:
    """Samples of the first captions of the training set with one seed: 4 steps of an LCM, 25 of a teacher."""
    pipe = Pipeline(run.spec, run.networks)
    spread = np.linspace(0, run.loader.size - 1, SHOWN).astype(int)
    rows = run.loader.rows.batch(spread)
    names = [run.loader.row(i).caption for i in rows["index"]]
    steps = 4 if run.spec.role == "consistency" else 25
    g = run.spec.guidance
    w = 2.0 if g is None else (g.w_min + g.w_max) / 2
    sampler = pipe.sampler(pipe.default_sampler, steps)
    context, uncond = jnp.asarray(rows["context"]), run.frozen["batch"]["uncond"]

    def draw(params: Params) -> tuple[np.ndarray, dict[str, Any]]:
        params = {"unet": params, **run.networks}
        images = sampler(params, context, uncond, jnp.full(SHOWN, w), jax.random.key(0))
        return np.asarray(images), {"prompts": names, "steps": steps, "w": w, "guidance": w + 1, "seed": 0}

    return draw


def reconstructions_drawer(run: Run) -> Callable[[Params], tuple[np.ndarray, dict[str, Any]]]:
    """Images above their reconstructions."""
    net = network(run.spec, "autoencoder")
    spread = np.linspace(0, run.loader.size - 1, SHOWN // 2).astype(int)
    images = run.loader.rows.batch(spread)["image"]

    @jax.jit
    def reconstruct(params: Params) -> jax.Array:
        moments = net.apply(params, jnp.asarray(images, jnp.float32) / 127.5 - 1.0, method="encode")
        return to_pixels(net.apply(params, jnp.split(moments, 2, axis=-1)[0], method="decode"))

    return lambda params: (np.concatenate([images, np.asarray(reconstruct(params))]), asdict(run.spec.autoencoder))
