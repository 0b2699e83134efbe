"""Where a run of a network of noise levels goes on from: its description, first weights, teacher, autoencoder."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from lcm_jax.models import presets
from lcm_jax.models.edm_spec import EDMSpec
from lcm_jax.models.spec import build as build_dataclass
from lcm_jax.objectives import base
from lcm_jax.objectives.consistency import Consistency
from lcm_jax.settings import known
from lcm_jax.source import Model, open_model
from lcm_jax.start import opened

SWITCHES = ("norm", "classes", "dropout", "dtype", "remat")  # of the network, beside its preset
INTERVALS, MIDDLE = 640, 420  # of the grid, where the second of two steps begins: at 0.5286 of 80 (sLCT's script)
MODEL_KEYS = ("start", "teacher", "family", "variant", "kind", "network", *SWITCHES, "about")


@dataclass(frozen=True)
class EDMStart:
    """What a run goes on from; weights are not read yet."""

    spec: EDMSpec  # of what is trained
    model: Model | None  # its autoencoder; its first weights and latent statistics unless `fresh`
    fresh: bool  # a new network, rather than the model's
    teacher: Model | None


def starting_point(
    model: dict[str, Any], objective: base.Objective, name: str, planning: bool = False
) -> EDMStart:
    """Reads config.model: `start` gives the autoencoder and, if it is of noise levels itself, the first weights.

    `network` names the preset of a new network; `teacher` is the denoiser to distil, alone also the start. `family`
    says whose autoencoder it is, `kind` what a single file's U-Net predicts; `planning` takes the family's description
    in the place of a model that is not there.
    Raises ValueError naming the key.
    """
    if not isinstance(model, dict):
        raise ValueError(f"config.model is {model!r}: give a dict of {', '.join(MODEL_KEYS)}")
    known(model, MODEL_KEYS, "config.model")
    source = model.get("start") or model.get("teacher")
    if source is None:
        raise ValueError("config.model.start is missing: give a model folder, whose autoencoder made the latents")
    found, started = opened(source, model, planning, ("autoencoder",))
    fresh = not isinstance(started, EDMSpec)
    if fresh and not model.get("network"):
        raise ValueError(f"{source} holds no network of noise levels: name a preset in config.model.network")
    if not fresh and model.get("network"):
        raise ValueError(f"{source} is the network to go on with: leave config.model.network out")
    sizes = presets.named(presets.NOISE_NETWORKS, model["network"]) if fresh else started.network
    changes = {name: model[name] for name in SWITCHES if model.get(name) is not None}
    for what in ("norm", "classes"):
        own = getattr(sizes, what)
        if not fresh and changes.get(what, own) != own:
            raise ValueError(f"config.model.{what} is {changes[what]!r}, the weights of {source} are of {own!r}")
    reading = objective.reading
    if reading.label_drop and not changes.get("classes", sizes.classes):
        raise ValueError("config.objective.label_drop drops labels, but config.model.classes is 0: leave it out")
    spec = build_dataclass(
        EDMSpec,
        {
            "role": "consistency" if isinstance(objective, Consistency) else "diffusion",
            "image_size": sizes.side * started.autoencoder.factor,
            "network": build_dataclass(type(sizes), dataclasses.asdict(sizes) | changes, "config.model"),
            "autoencoder": started.autoencoder,
            "sigma_data": reading.sigma_data,
            "time_scale": reading.time_scale,
            **noise_range(objective),
            "classes": () if fresh else started.classes,
            "no_label": not fresh and started.no_label,
            "about": {**started.about, **(model.get("about") or {})},
        },
        "config.model",
    )
    if not fresh:
        agree(str(source), started, spec)
    teacher = None
    if model.get("teacher"):
        teacher = open_model(model["teacher"])
        if not isinstance(teacher.spec, EDMSpec) or teacher.spec.role != "diffusion":
            raise ValueError(f"config.model.teacher {model['teacher']} is no denoiser: train one by objective edm")
        agree(str(model["teacher"]), teacher.spec, spec)
        spec = dataclasses.replace(spec, classes=teacher.spec.classes)
    if objective.needs_teacher and teacher is None:
        raise ValueError(f"objective {name!r} distils: set config.model.teacher to the folder of a denoiser")
    if teacher is not None and not objective.needs_teacher:
        raise ValueError(f"objective {name!r} has no use for config.model.teacher: name it in config.model.start")
    return EDMStart(spec, found, fresh, teacher)


def noise_range(objective: base.Objective) -> dict[str, Any]:
    """The noise levels that a consistency model is trained at, and those to sample it at; {} for others.

    Where the objective's times lie on no grid (ECT), only where its f is the identity.
    """
    if not isinstance(objective, Consistency):
        return {}
    karras, low = getattr(objective.pair, "karras", None), {"sigma_min": objective.boundary.sigma_min}
    if karras is None:
        return low
    high, middle = karras.sigma_max, float(f"{karras.grid(INTERVALS)[MIDDLE]:.4g}")
    return {**low, "sigma_max": high, "rho": karras.rho, "sigmas": ((high,), (high, middle))}


def agree(name: str, given: EDMSpec, wanted: EDMSpec) -> None:
    """Raises ValueError where weights are read in another way than they were trained."""
    for what in ("latent_shape", "sigma_data", "time_scale"):
        if getattr(given, what) != getattr(wanted, what):
            raise ValueError(
                f"{name} has {what} {getattr(given, what)}, the objective {getattr(wanted, what)}: "
                f"set config.objective.{what} to the former"
            )
    if given.network.classes != wanted.network.classes:
        ours, theirs = wanted.network.classes, given.network.classes
        raise ValueError(f"{name} has {theirs} classes, the network {ours}: set config.model.classes to {theirs}")
    if wanted.classes and given.classes != wanted.classes:
        raise ValueError(f"{name} has classes of other names than the network: distil a model of the same classes")
