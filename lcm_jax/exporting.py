"""Models and runs on their way into other worlds: Flax, diffusers, single files, LoRA files."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lcm_jax import run_folder, source
from lcm_jax.diffusion.guidance import guidance_embedding
from lcm_jax.export import diffusers_folder, flax_folder, lora, single_file
from lcm_jax.export.network_file import Networks
from lcm_jax.export.new_folder import check_free
from lcm_jax.models import flax_file
from lcm_jax.models import lora as lora_tree
from lcm_jax.models.edm_spec import EDMSpec
from lcm_jax.typing import Params
from lcm_jax.weights import folder

FORMATS = ("flax", "diffusers", "single-file", "lora", "kohya")
NAMINGS = {"lora": "peft", "kohya": "kohya"}


@dataclass(frozen=True)
class Leaving:
    """A model about to be written: networks are loaded when asked for."""

    spec: source.Spec
    networks: Networks
    tokenizers: Sequence[Path]


def export(
    given: str | os.PathLike,
    out: str | os.PathLike,
    format: str = "flax",
    dtype: str = "float32",
    *,
    weights: str = "ema",
    step: int | None = None,
    w: float | None = None,
    overwrite: bool = False,
    msgpack: bool = True,
    **how: str | None,
) -> Path:
    """Writes a run, or a model of any source (source.open_model), as a folder in a format; returns the folder.

    `weights` and `step` choose among a run's, `how` is open_model's (variant, kind, empty_caption). `w`
    fixes the guidance of a consistency model that takes it as an input, for programs that have none to give (`fixed`).
    Raises ValueError for an unknown format or dtype and for what a format cannot hold, FileExistsError for a folder
    that is there (`overwrite` replaces an earlier export, nothing else), OSError for a full disk.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; choose one of {', '.join(FORMATS)}")
    folder.cast({}, dtype)  # refuses an unknown one
    check_free(Path(out), overwrite)  # before anything is loaded
    is_run = run_folder.is_run(given)
    if format in NAMINGS:
        if not is_run:
            raise ValueError(f"{given} is a whole model, not the run that trained adapters: give --checkpoint RUN")
        if w is not None:
            raise ValueError("w is for whole models: adapters keep the guidance they were trained with, leave it out")
        return _export_lora(given, out, NAMINGS[format], dtype, weights, step, overwrite)
    if format == "flax" and is_run and w is None:
        return run_folder.export(given, out, dtype, weights, step, overwrite, msgpack)
    model = leaving(given, dtype, weights=weights, step=step, w=w, **how)
    if format != "flax" and isinstance(model.spec, EDMSpec):
        raise ValueError(f"{given} is a network of noise levels, which {format} has no place for: take --format flax")
    about = model.spec.to_json(), model.networks
    if format == "flax":
        to_bytes = flax_file.to_bytes if msgpack else None
        return flax_folder.write(out, *about, to_bytes, dtype, overwrite, model.tokenizers)
    write = {"diffusers": diffusers_folder.write, "single-file": single_file.write}[format]
    return write(out, *about, model.tokenizers, dtype, overwrite)


def leaving(
    given: str | os.PathLike,
    dtype: str = "float32",
    *,
    weights: str = "ema",
    step: int | None = None,
    w: float | None = None,
    **how: str | None,
) -> Leaving:
    """What `export` writes; its arguments."""
    model = of_run(given, weights, step) if run_folder.is_run(given) else of_model(given, dtype, **how)
    return model if w is None else fixed(model, w)


def of_model(given: str | os.PathLike, dtype: str = "float32", **how: str | None) -> Leaving:
    """The model of a source; each network comes as arrays of `dtype` on the host. `how` is open_model's."""
    model = source.open_model(given, **how)
    names = [*source.image_networks(model.spec), *source.text_networks(model.spec)]

    def load(name: str) -> Params:
        return model.load(name, lambda path, array: folder.cast(array, dtype, "/".join((name, *path))))

    abstract = {name: source.network(model.spec, name).abstract() for name in names}
    return Leaving(model.spec, Networks(abstract, load), model.tokenizers)


def of_run(where: str | os.PathLike, weights: str = "ema", step: int | None = None) -> Leaving:
    """The model of a run at a step, with the run's record in `about`."""
    where = Path(run_folder.located(where))
    spec, networks, step = run_folder.load(where, step, weights)
    beside = source.FlaxFolder(where)
    names = [*networks, *source.text_networks(spec)]

    def load(name: str) -> Params:
        return networks[name] if name in networks else beside.load(name, source.on_host)

    abstract = {name: source.network(spec, name).abstract() for name in names}
    return Leaving(run_folder.recorded(spec, where, step, weights), Networks(abstract, load), beside.tokenizers)


def of_adapters(
    where: str | os.PathLike, dtype: str = "float32", weights: str = "ema", step: int | None = None
) -> tuple[Leaving, Leaving]:
    """The model that a run's adapters belong to, and the same with them merged in, as rounded as `dtype` keeps them."""
    spec, adapters, _ = run_folder.adapters(where, step, weights)
    record = spec.about["lora"]
    base = of_model(record["base"], variant=record["variant"], kind=spec.kind)

    def load(name: str) -> Params:
        if name != "unet":
            return base.networks[name]
        rounded = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), folder.cast(adapters, dtype))
        return lora_tree.merge(base.networks[name], rounded, record["alpha"])

    return base, Leaving(spec, Networks(base.networks.abstract, load), base.tokenizers)


def fixed(model: Leaving, w: float) -> Leaving:
    """The same consistency model for one w, which its U-Net then takes no more.

    The embedding of w enters the time embedding through two linear maps in a row: for one w it is a shift of the
    second one's bias, and nothing is lost. Raises ValueError for a model that takes no w.
    """
    spec = model.spec
    if getattr(spec, "unet", None) is None or spec.unet.w_width is None:
        raise ValueError(f"w = {w:g} was given to be fixed, but this model takes no w as an input: leave it out")
    if spec.guidance is not None and not spec.guidance.w_min <= w <= spec.guidance.w_max:
        low, high = spec.guidance.w_min, spec.guidance.w_max
        raise ValueError(f"w = {w:g} is outside the range [{low:g}, {high:g}] that this model was trained on")
    embedding = np.asarray(guidance_embedding(jnp.full(1, w, jnp.float32), spec.unet.w_width), np.float64)[0]
    network = replace(spec.unet, w_width=None)
    spec = replace(spec, unet=network, guidance=None, about={**spec.about, "fixed w": w})

    def load(name: str) -> Params:
        return _without_w(model.networks[name], embedding) if name == "unet" else model.networks[name]

    abstract = {**model.networks.abstract, "unet": source.network(spec, "unet").abstract()}
    return Leaving(spec, Networks(abstract, load), model.tokenizers)


def _without_w(unet: Params, embedding: np.ndarray) -> Params:
    time = dict(unet["time_embedding"])
    into, first = np.asarray(time.pop("cond_proj")["kernel"], np.float64), time["linear_1"]
    bias = np.asarray(first["bias"])
    shift = embedding @ into @ np.asarray(first["kernel"], np.float64)
    shifted = (bias.astype(np.float64) + shift).astype(bias.dtype)
    return {**unet, "time_embedding": {**time, "linear_1": {**first, "bias": shifted}}}


def _export_lora(
    where: str | os.PathLike,
    out: str | os.PathLike,
    naming: str,
    dtype: str,
    weights: str,
    step: int | None,
    overwrite: bool,
) -> Path:
    spec, adapters, step = run_folder.adapters(where, step, weights)
    description = run_folder.recorded(spec, where, step, weights).to_json()
    record = spec.about["lora"]
    shapes = source.network(spec, "unet").abstract()
    return lora.write(
        out, description, adapters, record["alpha"], shapes, naming, dtype, overwrite, str(record["base"])
    )
