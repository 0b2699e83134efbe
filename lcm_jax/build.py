"""The composition root: the only reader of configs; turns one into a run's typed parts, or says what is wrong."""

import dataclasses
import difflib
import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lcm_jax.data import manifest
from lcm_jax.data.image_loader import make_image_loader
from lcm_jax.data.loader import Loader, make_loader
from lcm_jax.diffusion.path import vp_path
from lcm_jax.models import presets
from lcm_jax.models.autoencoder import AutoencoderConfig, autoencoder
from lcm_jax.models.functional import Net
from lcm_jax.models.spec import GuidanceSpec, ModelSpec, PathSpec
from lcm_jax.models.spec import build as build_dataclass
from lcm_jax.models.unet import UNetConfig, unet
from lcm_jax.objectives import base
from lcm_jax.parallel import rules
from lcm_jax.parallel.mesh import make_mesh
from lcm_jax.parallel.transfer import place_batch, replicate
from lcm_jax.pipeline import load_params, model_folder
from lcm_jax.train.optimizer import SETTINGS as OPTIMIZER_SETTINGS
from lcm_jax.train.optimizer import learning_rate, optimizer
from lcm_jax.train.state import State
from lcm_jax.train.step import Step, init_state, train_step
from lcm_jax.typing import Params
from lcm_jax.weights import folder

log = logging.getLogger(__name__)
FIRST_WEIGHTS = 0x1417  # folded into the run's key for initialisation, apart from every step's fold
SECTIONS = ("seed", "steps", "data", "model", "objective", "optimizer", "average", "mesh", "loop", "checkpoint")
MODEL_KEYS = ("start", "teacher", "unet", "kind", "path", "w_width", "dtype", "remat", "about")
OPTIMIZER_KEYS = ("name", "rate", "schedule", "warmup", "final", "accumulate", *OPTIMIZER_SETTINGS)
IN_THE_STEP = ("mean", "std", "context", "image")  # entries of a batch that go to the device


@dataclass(frozen=True)
class Run:
    """Everything the loop needs."""

    spec: ModelSpec
    networks: dict[str, Params]  # what the trained network is exported with and does not train
    trains: str  # "unet" or "autoencoder"
    loader: Loader
    mesh: Mesh
    step: Step  # jitted, state donated
    init: Callable[[], State]  # sharded where the rules say
    abstract: State  # the same, nothing allocated, shardings attached
    frozen: Any
    key: jax.Array
    config: dict[str, Any]

    def place(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """A host batch as global arrays on the mesh, without what the step does not read."""
        return place_batch({k: v for k, v in batch.items() if k in IN_THE_STEP}, self.mesh)

    def describe_batch(self, names: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Key and caption of each row of a batch, for the record a failed step leaves."""
        return [{"key": (row := self.loader.row(i)).key, "caption": row.caption} for i in names["index"]]


def run(config: ConfigDict | Mapping[str, Any]) -> Run:
    """The parts of the run a config describes.

    Raises ValueError or FileNotFoundError, naming the key or the file, before anything compiles.
    """
    cfg = plain(config)
    return (autoencoder_run if cfg["objective"]["name"] == "autoencoder" else latent_run)(cfg)


def latent_run(cfg: dict[str, Any]) -> Run:
    """The parts of a run that trains a U-Net on latents."""
    loader = call(make_loader, "config.data", **cfg["data"], seed=cfg["seed"], **processes())
    start = starting_point(cfg["model"])
    spec = start.spec
    manifest.check_fits(loader.manifest, spec.latent_shape, spec.unet.context_width)
    if not np.isclose(loader.manifest.scale, spec.autoencoder.scale, rtol=0.5):
        log.warning("latents measure a scale of %.4f, the model uses %.4f", loader.manifest.scale, spec.autoencoder.scale)

    objective = build_objective(cfg["objective"], path=vp_path(**vars(spec.path)), kind=spec.kind)
    if objective.needs_teacher and start.teacher is None:
        raise ValueError(f"objective {cfg['objective']['name']!r} distils: set config.model.teacher to a model folder")
    if not objective.needs_teacher and start.teacher is not None:
        raise ValueError(f"objective {cfg['objective']['name']!r} has no use for config.model.teacher: use model.start")
    w = getattr(objective, "w", None)
    if (w is None) != (spec.unet.w_width is None):
        raise ValueError(f"config.model.w_width is {spec.unet.w_width}: consistency objectives need one, others none")
    if w is not None:
        spec = dataclasses.replace(spec, role="consistency", guidance=GuidanceSpec(w.low, w.high))
    frozen = {
        "teacher": start.teacher,
        "batch": {
            "scale": jnp.float32(spec.autoencoder.scale),
            "uncond": jnp.asarray(manifest.unconditional(loader.rows.folders[0])),
        },
    }
    teacher_apply = unet(start.teacher_spec.unet).apply if start.teacher is not None else None
    return assemble(
        cfg, spec, {"autoencoder": start.autoencoder}, "unet", loader, objective, unet(spec.unet), start.unet, frozen, teacher_apply
    )


def autoencoder_run(cfg: dict[str, Any]) -> Run:
    """The parts of a run that trains an autoencoder on images."""
    loader = call(make_image_loader, "config.data", **cfg["data"], seed=cfg["seed"], **processes())
    sizes = call(AutoencoderConfig, "config.model", **cfg["model"]) if isinstance(cfg["model"], dict) else presets.named(presets.AUTOENCODERS, cfg["model"])
    spec = ModelSpec("autoencoder", "v", cfg["data"]["image_size"], None, sizes)
    objective = build_objective(cfg["objective"])
    frozen = {"teacher": None, "batch": {}}
    return assemble(cfg, spec, {}, "autoencoder", loader, objective, autoencoder(sizes), None, frozen, None)


def assemble(
    cfg: dict[str, Any],
    spec: ModelSpec,
    networks: dict[str, Params],
    trains: str,
    loader: Loader,
    objective: base.Objective,
    net: Net,
    start: Params | None,
    frozen: Any,
    teacher_apply: Callable[..., Any] | None,
) -> Run:
    """Mesh, optimiser, step and state around an objective and its network."""
    mesh_cfg = dict(cfg["mesh"])
    rule_set = mesh_cfg.pop("rules", "replicate")
    mesh = call(make_mesh, "config.mesh", **mesh_cfg)
    opt = dict(cfg["optimizer"])
    known(opt, OPTIMIZER_KEYS, "config.optimizer")
    tx = optimizer(
        opt["name"],
        learning_rate(opt["rate"], cfg["steps"], **{k: opt[k] for k in ("schedule", "warmup", "final") if k in opt}),
        **{k: opt[k] for k in OPTIMIZER_SETTINGS if k in opt},
    )
    accumulate = opt.get("accumulate", 1)
    if cfg["data"]["batch_size"] % accumulate:
        raise ValueError(f"config.optimizer.accumulate {accumulate} does not divide batch size {cfg['data']['batch_size']}")
    step = call(train_step, "config.average", objective, net.apply, teacher_apply, tx, accumulate=accumulate, **cfg["average"])

    key = jax.random.key(cfg["seed"])
    make = lambda key: init_state(overlay(net.init(key), start or {}), tx, objective)
    shapes = jax.eval_shape(make, key)
    shardings = rules.infer(shapes, rule_set, mesh)
    return Run(
        spec=spec,
        networks=networks,
        trains=trains,
        loader=loader,
        mesh=mesh,
        step=jax.jit(step, donate_argnums=0, out_shardings=(shardings, None)),
        init=lambda: jax.jit(make, out_shardings=shardings)(jax.random.fold_in(key, FIRST_WEIGHTS)),
        abstract=rules.with_shardings(shapes, shardings),
        frozen=replicate(frozen, mesh),
        key=replicate(key, mesh),
        config=cfg,
    )


@dataclass(frozen=True)
class Start:
    """What a run goes on from: the student's description and first weights, its teacher, its autoencoder."""

    spec: ModelSpec
    unet: Params | None
    teacher: Params | None
    teacher_spec: ModelSpec | None
    autoencoder: Params


def starting_point(model: dict[str, Any]) -> Start:
    """Reads config.model: `start` is the folder to go on from, `teacher` the one to distil (and, alone, to start from).

    `unet` as a preset's name draws a fresh network; as a dict it changes sizes of the one started from.
    """
    known(model, MODEL_KEYS, "config.model")
    source = model.get("start") or model.get("teacher")
    if source is None:
        raise ValueError("config.model.start is missing: give a model folder (an autoencoder's for a new U-Net)")
    where, spec = read_spec(source)
    fresh = isinstance(model.get("unet"), str)
    sizes = presets.named(presets.UNETS, model["unet"]) if fresh else spec.unet
    if sizes is None:
        raise ValueError(f"{source} holds an autoencoder only: name a preset in config.model.unet")
    changes = {} if fresh else dict(model.get("unet") or {})
    changes |= {k: model[k] for k in ("w_width", "dtype", "remat") if model.get(k) is not None}
    sizes = build_dataclass(UNetConfig, dataclasses.asdict(sizes) | changes, "config.model.unet")
    spec = dataclasses.replace(spec, role="diffusion" if fresh else spec.role, unet=sizes)
    if model.get("kind"):
        spec = dataclasses.replace(spec, kind=model["kind"])
    if model.get("path"):
        spec = dataclasses.replace(spec, path=build_dataclass(PathSpec, model["path"], "config.model.path"))
    if model.get("about"):
        spec = dataclasses.replace(spec, about={**spec.about, **model["about"]})
    teacher = teacher_spec = None
    if model.get("teacher"):
        teacher_where, teacher_spec = read_spec(model["teacher"])
        if (teacher_spec.latent_shape, teacher_spec.path, teacher_spec.kind) != (spec.latent_shape, spec.path, spec.kind):
            raise ValueError(f"teacher {model['teacher']} and student differ in latent shape, noise schedule or kind")
        teacher = load_params(teacher_where, "unet", teacher_spec)
    first = None if fresh else load_params(where, "unet", dataclasses.replace(spec, unet=read_spec(source)[1].unet))
    return Start(spec, first, teacher, teacher_spec, load_params(where, "autoencoder", spec))


def read_spec(source: str) -> tuple[Path, ModelSpec]:
    """Folder and description of a model given by path or shipped name."""
    where = model_folder(source)
    return where, ModelSpec.from_json(folder.describe(where), str(where / folder.DESCRIPTION))


def overlay(fresh: Params, start: Params) -> Params:
    """`fresh` with every leaf that `start` has taken from there: the w projection alone stays as drawn, zero."""
    return {
        k: overlay(v, start.get(k, {})) if isinstance(v, Mapping) else start.get(k, v) for k, v in fresh.items()
    }


def build_objective(section: Mapping[str, Any], **given: Any) -> base.Objective:
    """The objective a config section names."""
    settings = dict(section)
    return base.get(settings.pop("name"), **given, **settings)


def plain(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """The config as nested dicts, its sections checked."""
    cfg = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    known(cfg, SECTIONS, "config")
    if missing := [s for s in SECTIONS if s not in cfg]:
        raise ValueError(f"config lacks {', '.join(missing)}")
    return cfg


def call(function: Callable[..., Any], section: str, *args: Any, **settings: Any) -> Any:
    """function(*args, **settings); a setting it does not take is an error with the nearest name."""
    known(settings, inspect.signature(function).parameters, section)
    return function(*args, **settings)


def known(given: Any, allowed: Any, section: str) -> None:
    """Raises ValueError for the first name in `given` that is not in `allowed`."""
    for name in given:
        if name not in allowed:
            near = difflib.get_close_matches(name, list(allowed), 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes: {', '.join(allowed)}"
            raise ValueError(f"{section} has no key {name!r}; {hint}")


def processes() -> dict[str, int]:
    """Which part of every batch is this process's."""
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}
