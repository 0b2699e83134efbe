"""The composition root: the only reader of configs; turns one into a run's parts, or says what is wrong."""

import dataclasses
import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lcm_jax.captions import caption_encoder
from lcm_jax.data import attribution, manifest
from lcm_jax.data.image_loader import make_image_loader
from lcm_jax.data.loader import Loader, make_loader
from lcm_jax.diffusion.grid import FixedGrid
from lcm_jax.diffusion.path import vp_path
from lcm_jax.models import presets
from lcm_jax.models.autoencoder import AutoencoderConfig, autoencoder
from lcm_jax.models.functional import Net
from lcm_jax.models.spec import GuidanceSpec, ModelSpec
from lcm_jax.models.spec import build as build_dataclass
from lcm_jax.models.unet import unet
from lcm_jax.objectives import base
from lcm_jax.parallel import rules
from lcm_jax.parallel.mesh import make_mesh
from lcm_jax.parallel.transfer import place_batch, replicate
from lcm_jax.settings import call, known
from lcm_jax.start import starting_point
from lcm_jax.train.optimizer import SETTINGS as OPTIMIZER_SETTINGS
from lcm_jax.train.optimizer import learning_rate, optimizer
from lcm_jax.train.state import State
from lcm_jax.train.step import Step, init_state, train_step
from lcm_jax.typing import Params

log = logging.getLogger(__name__)
FIRST_WEIGHTS = 0x1417  # folded into the run's key for initialisation, apart from every step's fold
SECTIONS = ("seed", "steps", "data", "model", "objective", "optimizer", "average", "mesh", "loop", "checkpoint")
AVERAGE_KEYS = ("ema_decay",)
OPTIMIZER_KEYS = ("name", "rate", "schedule", "warmup", "final", "accumulate", *OPTIMIZER_SETTINGS)
REQUIRED = {"data": ("batch_size",), "objective": ("name",), "optimizer": ("name", "rate")}
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
    make = autoencoder_run if cfg["objective"]["name"] == "autoencoder" else latent_run
    return make(cfg)


def latent_run(cfg: dict[str, Any]) -> Run:
    """The parts of a run that trains a U-Net on latents."""
    start = starting_point(cfg["model"])
    spec = start.spec
    name = cfg["objective"]["name"]
    if "kind" not in inspect.signature(base.builder(name)).parameters:
        raise ValueError(
            f"objective {name!r} trains networks of noise levels, not the captioned U-Nets of launch.train: "
            "use it from Python with models.adm and train.step"
        )
    objective = build_objective(cfg["objective"], path=vp_path(**vars(spec.path)), kind=spec.kind)
    if objective.needs_teacher and start.teacher is None:
        raise ValueError(f"objective {name!r} distils: set config.model.teacher to a model folder")
    if not objective.needs_teacher and start.teacher is not None:
        raise ValueError(f"objective {name!r} has no use for config.model.teacher: name it in config.model.start")
    reading = getattr(objective, "reading", None)
    w = getattr(reading, "w", None)
    if (w is None) != (spec.unet.w_width is None):
        need = "needs a width, such as 256" if w is not None else "has none"
        raise ValueError(f"config.model.w_width is {spec.unet.w_width}: objective {name!r} {need}")
    if w is not None:
        if reading.w_width != spec.unet.w_width:
            widths = f"config.objective.w_width {reading.w_width}, config.model.w_width {spec.unet.w_width}"
            raise ValueError(f"{widths}: make them equal")
        spec = dataclasses.replace(
            spec,
            role="consistency",
            guidance=GuidanceSpec(float(w.low), float(w.high)),
            timestep_scaling=objective.boundary.timestep_scaling,
        )
        if isinstance(objective.pair, FixedGrid):  # sampled at the times it was trained at, and at no others
            n = objective.pair.intervals
            spec = dataclasses.replace(spec, original_steps=n, steps=tuple(k for k in spec.steps if k <= n))

    loader = call(make_loader, "config.data", **cfg["data"], seed=cfg["seed"], **processes())
    check_data(loader.manifest, spec)
    spec = owing(spec, loader.manifest.dataset.get("attribution"))
    frozen = {
        "teacher": start.teacher,
        "batch": {
            "scale": jnp.float32(spec.autoencoder.scale),
            "uncond": jnp.asarray(manifest.unconditional(loader.rows.folders[0])),
        },
    }
    teacher_apply = unet(start.teacher_spec.unet).apply if start.teacher is not None else None
    rest = {"autoencoder": start.autoencoder}
    net = unet(spec.unet)
    return assemble(cfg, spec, rest, "unet", loader, objective, net, start.unet, frozen, teacher_apply)


def autoencoder_run(cfg: dict[str, Any]) -> Run:
    """The parts of a run that trains an autoencoder on images."""
    if isinstance(cfg["model"], dict):
        sizes = build_dataclass(AutoencoderConfig, cfg["model"], "config.model")
    else:
        sizes = presets.named(presets.AUTOENCODERS, cfg["model"])
    spec = ModelSpec("autoencoder", "v", cfg["data"]["image_size"], None, sizes)
    spec = owing(spec, attribution(cfg["data"]["reader_name"]))
    objective = build_objective(cfg["objective"])
    loader = call(make_image_loader, "config.data", **cfg["data"], seed=cfg["seed"], **processes())
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
    accumulate, batch = opt.get("accumulate", 1), cfg["data"]["batch_size"]
    if accumulate < 1 or batch % accumulate:
        raise ValueError(f"config.optimizer.accumulate {accumulate} does not divide batch size {batch}")
    known(cfg["average"], AVERAGE_KEYS, "config.average")
    step = train_step(objective, net.apply, teacher_apply, tx, accumulate=accumulate, **cfg["average"])

    def make(key: jax.Array) -> State:
        return init_state(overlay(net.init(key), start or {}), tx, objective)

    key = jax.random.key(cfg["seed"])
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


def check_data(made: manifest.Manifest, spec: ModelSpec) -> None:
    """Raises ValueError where latents were not made for a model; warns where their scale is another."""
    manifest.check_fits(made, spec.latent_shape, spec.unet.context_width)
    text, wanted = made.encoders.get("text"), caption_encoder(spec.text).identity
    if text is not None and text != wanted:
        raise ValueError(f"captions were encoded with {text}, the model takes {wanted}: encode the data set again")
    if not np.isclose(made.scale, spec.autoencoder.scale, rtol=0.5):
        log.warning("latents measure a scale of %.4f, the model uses %.4f", made.scale, spec.autoencoder.scale)


def owing(spec: ModelSpec, attribution: str | None) -> ModelSpec:
    """The spec with whom its pictures are owed to noted, once."""
    owed = list(spec.about.get("attribution", ()))
    if not attribution or attribution in owed:
        return spec
    return dataclasses.replace(spec, about={**spec.about, "attribution": [*owed, attribution]})


def overlay(fresh: Params, start: Params) -> Params:
    """`fresh` with every leaf that `start` has taken from there: the w projection alone stays as drawn, zero."""
    return {
        k: overlay(v, start.get(k, {})) if isinstance(v, Mapping) else start.get(k, v)
        for k, v in fresh.items()
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
    for section, keys in REQUIRED.items():
        if missing := [key for key in keys if key not in cfg[section]]:
            raise ValueError(f"config.{section} lacks {', '.join(missing)}")
    return cfg


def processes() -> dict[str, int]:
    """Which part of every batch is this process's."""
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}
