"""Runs that train a U-Net of captioned latents, or adapters of one."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lcm_jax.assembly import LATENTS, Run, assemble, check_latents, owing, placer
from lcm_jax.captions import CaptionEncoder, encode
from lcm_jax.data import manifest
from lcm_jax.data.loader import make_loader
from lcm_jax.diffusion.grid import FixedGrid
from lcm_jax.diffusion.path import vp_path
from lcm_jax.models import lora
from lcm_jax.models.functional import Net
from lcm_jax.models.spec import GuidanceSpec, ModelSpec
from lcm_jax.models.unet import unet
from lcm_jax.objectives import base
from lcm_jax.parallel.transfer import replicate
from lcm_jax.sections import build_objective, mesh_of, own_rows_of, takes
from lcm_jax.settings import call
from lcm_jax.source import network
from lcm_jax.start import Start, starting_point
from lcm_jax.typing import Params

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What a latent run is made of before any weights are read."""

    spec: ModelSpec
    start: Start
    objective: base.Objective
    trained: Net  # what is trained: the U-Net, or its adapters
    teacher: Net | None
    weights: Callable[[Params, Any], Params] | None  # (trained, frozen) -> the student's parameters; None: themselves


def latent_parts(cfg: dict[str, Any], planning: bool = False) -> Parts:
    """The parts a config describes; with `planning`, of models that need not be there (start.starting_point)."""
    start = starting_point(cfg["model"], planning)
    spec = start.spec
    name = cfg["objective"]["name"]
    settings = dict(cfg["objective"])
    if start.lora is not None and takes(name, "w_width"):
        settings.setdefault("w_width", spec.unet.w_width)  # a network without an input for w stays so
    objective = build_objective(settings, path=vp_path(**vars(spec.path)), kind=spec.kind)
    if objective.needs_teacher and start.teacher_spec is None:
        raise ValueError(f"objective {name!r} distils: set config.model.teacher to a model folder")
    if not objective.needs_teacher and start.teacher_spec is not None:
        raise ValueError(f"objective {name!r} has no use for config.model.teacher: name it in config.model.start")
    spec = distilled(spec, objective, name)
    net = unet(spec.unet, start.attention)
    teacher = unet(start.teacher_spec.unet, start.attention) if start.teacher_spec is not None else None
    if start.lora is None:
        return Parts(spec, start, objective, net, teacher, None)
    if start.model is not None and start.model.spec.unet.w_width != spec.unet.w_width:
        raise ValueError("config.model.w_width cannot be set beside config.model.lora: adapters add no input")
    if objective.needs_teacher and cfg["model"].get("start"):
        raise ValueError("config.model.start is not needed beside a teacher and adapters: they are the teacher's own")
    adapters = lora_net(net, start.lora)
    spec = dataclasses.replace(spec, about={**spec.about, "lora": lora_record(cfg["model"], start.lora)})
    merged = lambda trained, frozen: lora.merge(frozen["base"], trained, start.lora.alpha)
    return Parts(spec, start, objective, adapters, teacher, merged)


def distilled(spec: ModelSpec, objective: base.Objective, name: str) -> ModelSpec:
    """The spec of the student of an objective that tells it w, or guides its teacher by w; others' unchanged."""
    reading = getattr(objective, "reading", None)
    w = getattr(reading, "w", None)
    if w is None and spec.unet.w_width is not None:
        raise ValueError(f"config.model.w_width is {spec.unet.w_width}: objective {name!r} has none")
    if w is None:
        return spec
    if spec.unet.w_width is None and reading.w_width is not None:
        raise ValueError(f"config.model.w_width is None: objective {name!r} needs a width, such as {reading.w_width}")
    if reading.w_width != spec.unet.w_width:
        widths = f"config.objective.w_width {reading.w_width}, config.model.w_width {spec.unet.w_width}"
        raise ValueError(f"{widths}: make them equal")
    told = spec.unet.w_width is not None
    spec = dataclasses.replace(
        spec,
        role="consistency",
        guidance=GuidanceSpec(float(w.low), float(w.high)) if told else None,
        timestep_scaling=objective.boundary.timestep_scaling,
    )
    if isinstance(objective.pair, FixedGrid):  # sampled at the times it was trained at, and at no others
        n = objective.pair.intervals
        spec = dataclasses.replace(spec, original_steps=n, steps=tuple(k for k in spec.steps if k <= n))
    return spec


def lora_net(net: Net, config: lora.LoraConfig) -> Net:
    """The adapters of a network as what is trained; `apply` takes the merged parameters."""
    make = lambda key: lora.init(key, net.abstract(), config)
    return Net(config, make, net.apply, lambda: jax.eval_shape(make, jax.random.key(0)))


def lora_record(model: Mapping[str, Any], config: lora.LoraConfig) -> dict[str, Any]:
    """What a run of adapters must remember: their settings and the model they belong to."""
    base_of = model.get("start") or model["teacher"]
    settings = {**dataclasses.asdict(config), "targets": list(config.targets)}
    return {**settings, "base": base_of, "variant": model.get("variant")}


def latent_run(cfg: dict[str, Any]) -> Run:
    """The parts of a run that trains a U-Net, or its adapters, on latents."""
    parts = latent_parts(cfg)
    spec, start = parts.spec, parts.start
    loader = call(make_loader, "config.data", cfg["data"], seed=cfg["seed"], own=own_rows_of(cfg))
    captions = start.model.captions
    check_data(loader.manifest, spec, captions)
    networks = {"autoencoder": start.model.load("autoencoder")}
    check_latents(loader, networks["autoencoder"])
    spec = owing(spec, (made.dataset.get("attribution") for made in loader.rows.manifests))
    mesh, rule_set = mesh_of(cfg)
    place = lambda abstract, dtype, tree="teacher": placer(abstract, rule_set[tree], mesh, dtype)
    frozen: dict[str, Any] = {"batch": {"scale": jnp.float32(spec.autoencoder.scale)}}
    prepare, reads = None, (*LATENTS, *base.CONDITION)
    if "context" in loader.manifest.shapes:
        stored = manifest.unconditionals(loader.rows.folders[0])
        frozen["batch"]["uncond"] = {k: v for k, v in stored.items() if k != "tokens"}
    else:
        frozen["batch"]["uncond"] = {k: v[0] for k, v in encode(captions, [""]).items()}
        frozen["text"], reads = captions.params, (*reads, "tokens")
        prepare = lambda frozen, batch: {**batch, **captions.states(frozen["text"], batch["tokens"])}
    frozen = replicate(frozen, mesh)
    frozen["teacher"] = None
    if start.teacher is not None:
        frozen["teacher"] = start.teacher.load("unet", place(parts.teacher.abstract(), start.teacher_dtype))
    if start.lora is not None:  # one frozen copy serves as teacher and as what is adapted
        below = frozen["teacher"]
        abstract = unet(spec.unet).abstract()
        frozen["base"] = start.model.load("unet", place(abstract, start.teacher_dtype)) if below is None else below
    first = None
    if not start.fresh and start.lora is None:
        into = place(network(start.model.spec, "unet").abstract(), "float32", "params")
        first = lambda: start.model.load("unet", into)
    return assemble(
        cfg,
        spec,
        networks,
        "unet" if start.lora is None else "lora",
        reads,
        loader,
        parts.objective,
        parts.trained,
        first,
        frozen,
        None if parts.teacher is None else parts.teacher.apply,
        model=start.model,
        weights=parts.weights,
        prepare=prepare,
    )


def check_data(made: manifest.Manifest, spec: ModelSpec, captions: CaptionEncoder) -> None:
    """Raises ValueError where latents were not made for a model; warns where their scale is another."""
    size_ids = spec.unet.added_width is not None
    if "context" in made.shapes:
        told = {"context_width": spec.unet.context_width, "pooled_width": spec.pooled_width}
    else:
        told = {"tokens_shape": captions.tokens([""]).shape[1:]}
    manifest.check_fits(made, spec.latent_shape, size_ids=size_ids, **told)
    text, wanted = made.encoders.get("text"), captions.identity
    if text is not None and text != wanted:
        raise ValueError(f"captions were encoded with {text}, the model takes {wanted}: encode the data set again")
    if not np.isclose(made.scale, spec.autoencoder.scale, rtol=0.5):
        log.warning("latents measure a scale of %.4f, the model uses %.4f", made.scale, spec.autoencoder.scale)
