"""The composition root: the only reader of configs; turns one into a run's parts, or says what is wrong."""

import dataclasses
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lcm_jax.captions import CaptionEncoder, encode
from lcm_jax.data import attribution, manifest
from lcm_jax.data.image_loader import make_image_loader
from lcm_jax.data.loader import Loader, make_loader
from lcm_jax.diffusion.grid import FixedGrid
from lcm_jax.diffusion.path import vp_path
from lcm_jax.models import lora, presets
from lcm_jax.models.autoencoder import AutoencoderConfig, autoencoder
from lcm_jax.models.edm_spec import EDMSpec
from lcm_jax.models.functional import Net
from lcm_jax.models.spec import GuidanceSpec, ModelSpec
from lcm_jax.models.spec import build as build_dataclass
from lcm_jax.models.unet import unet
from lcm_jax.objectives import base
from lcm_jax.parallel import rules
from lcm_jax.parallel.mesh import make_mesh
from lcm_jax.parallel.reading import Reading, readings
from lcm_jax.parallel.transfer import fetch, own_rows, place_array, place_batch, replicate
from lcm_jax.settings import call, known
from lcm_jax.source import Model, Place, Spec, network, on_host
from lcm_jax.start import Start, starting_point
from lcm_jax.start_edm import EDMStart
from lcm_jax.start_edm import starting_point as starting_point_edm
from lcm_jax.train.averages import averages
from lcm_jax.train.optimizer import SETTINGS as OPTIMIZER_SETTINGS
from lcm_jax.train.optimizer import learning_rate, optimizer
from lcm_jax.train.state import State
from lcm_jax.train.step import Step, init_state, train_step
from lcm_jax.typing import Params
from lcm_jax.weights.bijection import flatten

log = logging.getLogger(__name__)
FIRST_WEIGHTS = 0x1417  # folded into the run's key for initialisation, apart from every step's fold
SECTIONS = ("seed", "steps", "data", "model", "objective", "optimizer", "average", "mesh", "loop", "checkpoint")
AVERAGE_KEYS = ("ema_decay", "ema_power")
OPTIMIZER_KEYS = ("name", "rate", "schedule", "warmup", "final", "accumulate", *OPTIMIZER_SETTINGS)
REQUIRED = {"data": ("batch_size",), "objective": ("name",), "optimizer": ("name", "rate")}
WHOLE_SHOWN = 4  # tensors a warning names
LATENTS = ("mean", "std")  # entries of a batch, as are the names of a condition


@dataclass(frozen=True)
class Run:
    """Everything the loop needs."""

    spec: Spec
    networks: dict[str, Params]  # what the trained network is exported with and does not train
    trains: str  # "unet", "network", "autoencoder" or "lora": adapters of a U-Net
    reads: tuple[str, ...]  # the entries of a batch that go to the device
    loader: Loader
    mesh: Mesh
    step: Step  # jitted, state donated
    init: Callable[[], State]  # sharded where the rules say
    abstract: State  # the same, nothing allocated, shardings attached
    frozen: Any
    key: jax.Array
    config: dict[str, Any]
    model: Model | None = None  # what it went on from, for what else belongs to it: text encoders, tokenizers
    weights: Callable[[Params, Any], Params] | None = None  # (trained, frozen) -> the network's parameters
    readings: Mapping[str, Reading] = field(default_factory=dict)  # of weights in parts, by tree (parallel.reading)

    def place(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """A host batch as global arrays on the mesh, without what the step does not read."""
        return place_batch({k: v for k, v in batch.items() if k in self.reads}, self.mesh)

    def sampled(self, state: State) -> Params:
        """The average that samples are drawn with: the first."""
        names = average_names(self.config)
        return state.ema if len(names) == 1 else state.ema[names[0]]

    def read(self, tree: str) -> Reading | None:
        """How layers read the weights of a tree (parallel.rules.TREES); None: as they are."""
        return self.readings.get(tree)

    def describe_batch(self, names: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Key and caption of each row of a global batch, for the record a failed step leaves; all processes call it."""
        index = fetch(place_batch({"index": names["index"]}, self.mesh)["index"])
        return [{"key": (row := self.loader.row(i)).key, "caption": row.caption} for i in index]


def run(config: ConfigDict | Mapping[str, Any]) -> Run:
    """The parts of the run a config describes.

    Raises ValueError or FileNotFoundError, naming the key or the file, before anything compiles.
    """
    cfg = plain(config)
    name = cfg["objective"]["name"]
    if name == "autoencoder":
        return autoencoder_run(cfg)
    return latent_run(cfg) if takes(name, "kind") else edm_run(cfg)


def takes(objective: str, setting: str) -> bool:
    """Whether an objective has a setting; those of captioned U-Nets have a `kind`."""
    return setting in inspect.signature(base.builder(objective)).parameters


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
    net = unet(spec.unet)
    teacher = unet(start.teacher_spec.unet) if start.teacher_spec is not None else None
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
    loader = call(make_loader, "config.data", **cfg["data"], seed=cfg["seed"], own=own_rows_of(cfg))
    captions = start.model.captions
    check_data(loader.manifest, spec, captions)
    spec = owing(spec, loader.manifest.dataset.get("attribution"))
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
        {"autoencoder": start.model.load("autoencoder")},
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


def autoencoder_run(cfg: dict[str, Any]) -> Run:
    """The parts of a run that trains an autoencoder on images."""
    if isinstance(cfg["model"], dict):
        sizes = build_dataclass(AutoencoderConfig, cfg["model"], "config.model")
    else:
        sizes = presets.named(presets.AUTOENCODERS, cfg["model"])
    spec = ModelSpec("autoencoder", "v", cfg["data"]["image_size"], None, sizes)
    spec = owing(spec, attribution(cfg["data"]["reader_name"]))
    objective = build_objective(cfg["objective"])
    loader = call(make_image_loader, "config.data", **cfg["data"], seed=cfg["seed"], own=own_rows_of(cfg))
    frozen = {"teacher": None, "batch": {}}
    return assemble(cfg, spec, {}, "autoencoder", ("image",), loader, objective, autoencoder(sizes), None, frozen, None)


def edm_parts(cfg: dict[str, Any], planning: bool = False) -> tuple[base.Objective, EDMStart]:
    """What a run of a network of noise levels is made of before any weights are read."""
    section = with_curriculum(cfg)["objective"]
    objective = build_objective(section)
    return objective, starting_point_edm(cfg["model"], objective, section["name"], planning)


def with_curriculum(cfg: dict[str, Any]) -> dict[str, Any]:
    """The config with the length of the objective's curriculum, by default the run's, written down.

    So a run that goes on for longer than it was begun for cannot change what its first steps were.
    """
    section = cfg["objective"]
    if not takes(section["name"], "steps") or section.get("steps") is not None:
        return cfg
    return {**cfg, "objective": {**section, "steps": cfg["steps"]}}


def edm_run(cfg: dict[str, Any]) -> Run:
    """The parts of a run that trains a network of noise levels on latents at sigma_data, without captions."""
    cfg = with_curriculum(cfg)
    objective, start = edm_parts(cfg)
    data = dict(cfg["data"])
    per = data.pop("statistics", "element")
    loader = call(make_loader, "config.data", **data, seed=cfg["seed"], own=own_rows_of(cfg))
    made = loader.manifest
    manifest.check_fits(made, start.spec.latent_shape)
    manifest.check_classes(made, start.spec.network.classes, start.spec.classes)
    told = noise_condition(start.spec)
    spec = dataclasses.replace(start.spec, classes=made.classes if told else ())
    spec = owing(spec, made.dataset.get("attribution"))
    if start.fresh:
        mean, std = manifest.statistics(loader.rows.folders[0], per)
        statistics = {"mean": mean, "std": std}
    else:  # the network has learned them
        statistics = start.model.load("statistics", on_host)
    mesh, rule_set = mesh_of(cfg)
    normalised = {"shift": statistics["mean"], "scale": spec.sigma_data / statistics["std"]}
    frozen: dict[str, Any] = {"batch": replicate({**normalised, **told}, mesh), "teacher": None}
    reads = (*LATENTS, "label") if told else LATENTS
    teacher = None
    if start.teacher is not None:
        teacher = network(start.teacher.spec, "network")
        into = placer(teacher.abstract(), rule_set["teacher"], mesh, "float32")
        frozen["teacher"] = start.teacher.load("network", into)
    net, first = network(spec, "network"), None
    if not start.fresh:
        first = lambda: start.model.load("network", placer(net.abstract(), rule_set["params"], mesh, "float32"))
    networks = {"autoencoder": start.model.load("autoencoder"), "statistics": statistics}
    apply = None if teacher is None else teacher.apply
    return assemble(cfg, spec, networks, "network", reads, loader, objective, net, first, frozen, apply, start.model)


def noise_condition(spec: EDMSpec) -> dict[str, Any]:
    """What every batch of a network that is told labels holds beside its own: the number that means none of them."""
    return {"no_label": jnp.int32(spec.network.classes)} if spec.network.classes else {}


def assemble(
    cfg: dict[str, Any],
    spec: Spec,
    networks: dict[str, Params],
    trains: str,
    reads: tuple[str, ...],
    loader: Loader,
    objective: base.Objective,
    net: Net,
    first: Callable[[], Params] | None,
    frozen: Any,
    teacher_apply: Callable[..., Any] | None,
    model: Model | None = None,
    weights: Callable[[Params, Any], Params] | None = None,
    prepare: Callable[[Any, Any], Any] | None = None,
) -> Run:
    """Mesh, optimiser, step and state around an objective and what it trains.

    `first` reads the weights to start from onto the mesh: only a run that begins calls it, and does not keep them.
    """
    mesh, rule_set = mesh_of(cfg)
    tx, read = optimizer_of(cfg), readings(rule_set, mesh, computes_in(cfg))
    step = step_of(cfg, objective, net, teacher_apply, tx, weights, prepare, read)
    make = first_state(cfg, net, tx, objective)
    key = jax.random.key(cfg["seed"])
    shapes = jax.eval_shape(make, key, None)  # the same with first weights and without
    shardings = rules.infer(shapes, rule_set, mesh)
    warn_of_whole(shapes, rule_set, mesh)
    return Run(
        spec=spec,
        networks=networks,
        trains=trains,
        reads=reads,
        loader=loader,
        mesh=mesh,
        step=jax.jit(step, donate_argnums=0, out_shardings=(shardings, None)),
        init=lambda: jax.jit(make, out_shardings=shardings)(
            jax.random.fold_in(key, FIRST_WEIGHTS), None if first is None else first()
        ),
        abstract=rules.with_shardings(shapes, shardings),
        frozen=frozen,
        key=replicate(key, mesh),
        config=cfg,
        model=model,
        weights=weights,
        readings=read,
    )


def computes_in(cfg: Mapping[str, Any]) -> str | None:
    """The type in which config.model says that layers compute; None: that of the weights."""
    return cfg["model"].get("dtype") if isinstance(cfg["model"], Mapping) else None  # an autoencoder's is a preset


def mesh_of(cfg: Mapping[str, Any], devices: Sequence[jax.Device] | None = None) -> tuple[Mesh, dict[str, str]]:
    """The mesh of config.mesh, over all devices if not told which, and the sharding rules of each tree (rules.TREES).

    config.mesh.rules is the name of a rule set, or {"default": name, TREE: name, ...}.
    """
    settings = dict(cfg["mesh"])
    chosen = settings.pop("rules", "replicate")
    others = dict(chosen) if isinstance(chosen, Mapping) else {"default": chosen}
    known(others, ("default", *rules.TREES), "config.mesh.rules")
    rule_set = rules.by_tree(others.pop("default", "replicate"), others)
    given = {} if devices is None else {"devices": devices}
    return call(make_mesh, "config.mesh", **settings, **given), rule_set


def warn_of_whole(state: State, rule_set: Mapping[str, str], mesh: Mesh) -> None:
    """Says which large tensors every device holds whole though the rules mean to split them."""
    if whole := rules.left_whole(state, rule_set, mesh):
        listed = ", ".join(f"{path} ({size / 2**20:.0f} MiB)" for path, size in list(whole.items())[:WHOLE_SHOWN])
        more = f" and {len(whole) - WHOLE_SHOWN} more" if len(whole) > WHOLE_SHOWN else ""
        sizes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
        log.warning(
            "config.mesh.rules leave %.2f GiB whole on each of %d devices: no dim divides over the axes (%s): %s%s",
            sum(whole.values()) / 2**30, mesh.size, sizes, listed, more,
        )  # fmt: skip


def placer(abstract: Params, rule_set: str | rules.Rules, mesh: Mesh, dtype: str) -> Place:
    """(path, array) -> the array on the mesh in `dtype`, sharded by the rules, one tensor in host memory at a time."""
    shardings = flatten(rules.infer(abstract, rule_set, mesh))
    return lambda path, array: place_array(np.asarray(array).astype(jnp.dtype(dtype)), shardings[path])


def optimizer_of(cfg: Mapping[str, Any]) -> Any:
    """The optimiser of config.optimizer."""
    opt = dict(cfg["optimizer"])
    known(opt, OPTIMIZER_KEYS, "config.optimizer")
    accumulate, batch = opt.get("accumulate", 1), cfg["data"]["batch_size"]
    if accumulate < 1 or batch % accumulate:
        raise ValueError(f"config.optimizer.accumulate {accumulate} does not divide batch size {batch}")
    return optimizer(
        opt["name"],
        learning_rate(opt["rate"], cfg["steps"], **{k: opt[k] for k in ("schedule", "warmup", "final") if k in opt}),
        **{k: opt[k] for k in OPTIMIZER_SETTINGS if k in opt},
    )


def step_of(
    cfg: Mapping[str, Any],
    objective: base.Objective,
    net: Net,
    teacher_apply: Callable[..., Any] | None,
    tx: Any,
    weights: Callable[[Params, Any], Params] | None,
    prepare: Callable[[Any, Any], Any] | None,
    read: Mapping[str, Reading],
) -> Step:
    """The step of a config, to be jitted."""
    return train_step(
        objective,
        net.apply,
        teacher_apply,
        tx,
        accumulate=cfg["optimizer"].get("accumulate", 1),
        weights=weights,
        prepare=prepare,
        readings=read,
        **cfg["average"],
    )


def average_names(cfg: Mapping[str, Any]) -> list[str]:
    """The weight averages of config.average by name, the one that is sampled with first."""
    known(cfg["average"], AVERAGE_KEYS, "config.average")
    return list(averages(**cfg["average"]))


def first_state(
    cfg: Mapping[str, Any], net: Net, tx: Any, objective: base.Objective
) -> Callable[[jax.Array, Params | None], State]:
    """(key, first weights) -> the state before the first step; what has no first weights is drawn."""
    names = average_names(cfg)
    return lambda key, first: init_state(overlay(net.init(key), first or {}), tx, objective, names)


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


def owing(spec: Spec, attribution: str | None) -> Spec:
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


def own_rows_of(cfg: Mapping[str, Any]) -> np.ndarray:
    """Which rows of every global batch this process reads."""
    return own_rows(mesh_of(cfg)[0], cfg["data"]["batch_size"])
