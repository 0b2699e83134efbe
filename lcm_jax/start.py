"""Where a run goes on from: the student's description and first weights, its teacher, its autoencoder."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcm_jax.models import presets
from lcm_jax.models.spec import ModelSpec
from lcm_jax.models.spec import build as build_dataclass
from lcm_jax.models.unet import UNetConfig
from lcm_jax.pipeline import load_params, model_folder
from lcm_jax.settings import known
from lcm_jax.typing import Params
from lcm_jax.weights import folder

MODEL_KEYS = ("start", "teacher", "unet", "kind", "path", "w_width", "dtype", "remat", "about")


@dataclass(frozen=True)
class Start:
    """What a run goes on from: the student's description and first weights, its teacher, its autoencoder."""

    spec: ModelSpec
    unet: Params | None
    teacher: Params | None
    teacher_spec: ModelSpec | None
    autoencoder: Params


def starting_point(model: dict[str, Any] | str) -> Start:
    """Reads config.model: `start` is the folder to go on from, `teacher` the one to distil, alone also the start.

    `unet` as a preset's name draws a fresh network; as a dict it changes sizes of the one started from.
    """
    if not isinstance(model, dict):
        raise ValueError(f"config.model is {model!r}: give a dict of {', '.join(MODEL_KEYS)}")
    known(model, MODEL_KEYS, "config.model")
    source = model.get("start") or model.get("teacher")
    if source is None:
        raise ValueError("config.model.start is missing: give a model folder (an autoencoder's for a new U-Net)")
    where, started = read_spec(source)
    fresh = isinstance(model.get("unet"), str)
    sizes = presets.named(presets.UNETS, model["unet"]) if fresh else started.unet
    if sizes is None:
        raise ValueError(f"{source} holds an autoencoder only: name a preset in config.model.unet")
    changes = {} if fresh else dict(model.get("unet") or {})
    changes |= {k: model[k] for k in ("w_width", "dtype", "remat") if model.get(k) is not None}
    sizes = build_dataclass(UNetConfig, dataclasses.asdict(sizes) | changes, "config.model.unet")
    spec = build_dataclass(
        ModelSpec,
        {
            **vars(started),
            "role": "diffusion" if fresh else started.role,
            "guidance": None if fresh else started.guidance,
            "unet": sizes,
            "kind": model.get("kind") or started.kind,
            "path": model.get("path") or started.path,
            "about": {**started.about, **(model.get("about") or {})},
        },
        "config.model",
    )
    teacher = teacher_spec = None
    if model.get("teacher"):
        teacher_where, teacher_spec = read_spec(model["teacher"])
        check_teacher(str(model["teacher"]), teacher_spec, spec)
        teacher = load_params(teacher_where, "unet", teacher_spec)
    first = None if fresh else load_params(where, "unet", started)
    return Start(spec, first, teacher, teacher_spec, load_params(where, "autoencoder", spec))


def check_teacher(name: str, teacher: ModelSpec, student: ModelSpec) -> None:
    """Raises ValueError where a student cannot learn from a teacher."""
    if teacher.role != "diffusion":
        raise ValueError(f"config.model.teacher {name} is a {teacher.role} model: LCD needs a diffusion model")
    for what in ("latent_shape", "path", "kind"):
        if getattr(teacher, what) != getattr(student, what):
            theirs, ours = getattr(teacher, what), getattr(student, what)
            raise ValueError(f"config.model.teacher {name} has {what} {theirs}, the student {ours}: make them equal")


def read_spec(source: str | Path) -> tuple[Path, ModelSpec]:
    """Folder and description of a model given by path or shipped name."""
    where = model_folder(source)
    return where, ModelSpec.from_json(folder.describe(where), str(where / folder.DESCRIPTION))
