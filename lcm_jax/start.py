"""Where a run goes on from: the student's description and first weights, its teacher, its autoencoder."""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcm_jax.families import FAMILIES
from lcm_jax.models import presets
from lcm_jax.models.autoencoder import AutoencoderConfig
from lcm_jax.models.edm_spec import EDMSpec
from lcm_jax.models.lora import LoraConfig
from lcm_jax.models.spec import ModelSpec
from lcm_jax.models.spec import build as build_dataclass
from lcm_jax.models.unet import UNetConfig
from lcm_jax.settings import call, known
from lcm_jax.source import Model, Spec, open_model

log = logging.getLogger(__name__)
MODEL_KEYS = (
    "start", "teacher", "family", "variant", "empty_caption", "unet", "kind", "path", "w_width", "dtype", "remat",
    "teacher_dtype", "attention", "lora", "about",
)  # fmt: skip


@dataclass(frozen=True)
class Start:
    """What a run goes on from; weights are not read yet. `model` and `teacher` are None where a plan needs none."""

    spec: ModelSpec  # of the student
    fresh: bool  # a new network, rather than the model's
    model: Model | None  # the student's first weights, its autoencoder and text encoders
    teacher: Model | None
    teacher_spec: ModelSpec | None
    teacher_dtype: str
    lora: LoraConfig | None  # adapters are trained, not the network
    attention: str  # the kernel (models.attention.KERNELS)


def starting_point(model: dict[str, Any] | str, planning: bool = False) -> Start:
    """Reads config.model: `start` is the model to go on from, `teacher` the one to distil, alone also the start.

    `unet` is a preset's name and draws a fresh network. `family` names what start and teacher must be; `planning` takes
    its description in the place of one that is not there.
    Raises ValueError naming the key.
    """
    if not isinstance(model, dict):
        raise ValueError(f"config.model is {model!r}: give a dict of {', '.join(MODEL_KEYS)}")
    known(model, MODEL_KEYS, "config.model")
    source = model.get("start") or model.get("teacher")
    if source is None:
        raise ValueError("config.model.start is missing: give a model folder (an autoencoder's for a new U-Net)")
    found, started = opened(source, model, planning)
    if isinstance(started, EDMSpec):
        raise ValueError(f"{source} is a network of noise levels, without captions: give a text-to-image model")
    if not isinstance(model.get("unet") or "", str):
        raise ValueError(f"config.model.unet is {model['unet']!r}: name a preset, or leave it out")
    fresh = bool(model.get("unet"))
    sizes = presets.named(presets.UNETS, model["unet"]) if fresh else started.unet
    if sizes is None:
        raise ValueError(f"{source} holds an autoencoder only: name a preset in config.model.unet")
    changes = {k: model[k] for k in ("w_width", "dtype", "remat") if model.get(k) is not None}
    width = started.unet.w_width if started.unet is not None and not fresh else None
    if width is not None and changes.get("w_width", width) != width:
        raise ValueError(
            f"config.model.w_width is {changes['w_width']}, {source} is told w in {width} numbers: set it and "
            f"config.objective.w_width to {width}"
        )
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
    if not fresh and spec.kind != started.kind:
        raise ValueError(f"config.model.kind is {spec.kind!r}, but {source} predicts {started.kind!r}: leave it out")
    teacher = teacher_spec = None
    teacher_dtype = model.get("teacher_dtype") or spec.unet.dtype
    if model.get("teacher"):
        same = model["teacher"] == source
        teacher, teacher_spec = (found, started) if same else opened(model["teacher"], model, planning)
        if isinstance(teacher_spec, EDMSpec):
            raise ValueError(f"config.model.teacher {model['teacher']} is a network of noise levels, without captions")
        check_teacher(str(model["teacher"]), teacher_spec, spec)
        teacher_spec = teacher_spec.computing_in(teacher_dtype)
    lora = None
    if model.get("lora") is not None:
        given = dict(model["lora"])
        if (targets := given.pop("targets", None)) is not None:
            given["targets"] = tuple(targets)
        lora = call(LoraConfig, "config.model.lora", given)
        if fresh:
            raise ValueError("config.model.lora adapts a trained network: give no preset in config.model.unet")
    # A plan is of another machine than the one that makes it: what that could not compute is no error.
    attention = "auto" if planning else model.get("attention", "auto")
    return Start(spec, fresh, found, teacher, teacher_spec, teacher_dtype, lora, attention)


FAMILIAR = ("unet", "kind", "path", "latent_shape")  # of a text-to-image model


def opened(
    source: str, model: dict[str, Any], planning: bool, shared: Sequence[str] = FAMILIAR
) -> tuple[Model | None, Spec]:
    """A model and its description; ValueError where the `shared` parts are not those of config.model.family."""
    family = None if model.get("family") in ("", "none") else model.get("family")
    if family is not None and family not in FAMILIES:
        raise ValueError(f"config.model.family is {family!r}; choose one of {', '.join(FAMILIES)}, or none")
    try:
        said = model.get("kind") or (None if family is None else FAMILIES[family].kind)
        # Folders say so themselves.
        how = {"variant": model.get("variant"), "empty_caption": model.get("empty_caption")}
        found = open_model(source, kind=said if Path(source).is_file() else None, **how)
    except FileNotFoundError:
        if not planning or family is None:
            raise
        log.warning("%s is not here: planned as a published %s", source, family)
        return None, FAMILIES[family]
    if family is not None:
        for what in shared:
            wanted, got = getattr(FAMILIES[family], what), getattr(found.spec, what, None)
            if what == "unet" and got is not None:
                free = {name: getattr(wanted, name) for name in ("w_width", "upcast_attention", "dtype", "remat")}
                got = dataclasses.replace(got, **free)
            if what == "autoencoder" and isinstance(got, AutoencoderConfig):  # mended for float16, some need no more
                got = dataclasses.replace(got, force_upcast=wanted.force_upcast)
            if got != wanted:
                own, there = different(got, wanted)
                raise ValueError(
                    f"{source} is not of config.model.family {family!r}: {what} has {own}, there {there}; name its own "
                    "family, or none"
                )
    return found, found.spec


def different(got: Any, wanted: Any) -> tuple[str, str]:
    """What two values differ in: of two descriptions of one kind only the entries that do."""
    if type(got) is not type(wanted) or not dataclasses.is_dataclass(got):
        return str(got), str(wanted)
    names = [f.name for f in dataclasses.fields(got) if getattr(got, f.name) != getattr(wanted, f.name)]
    own, there = (", ".join(f"{name} {getattr(each, name)}" for name in names) for each in (got, wanted))
    return own, there


def check_teacher(name: str, teacher: ModelSpec, student: ModelSpec) -> None:
    """Raises ValueError where a student cannot learn from a teacher."""
    if teacher.role != "diffusion":
        raise ValueError(f"config.model.teacher {name} is a {teacher.role} model: LCD needs a diffusion model")
    for what in ("latent_shape", "path", "kind"):
        if getattr(teacher, what) != getattr(student, what):
            theirs, ours = getattr(teacher, what), getattr(student, what)
            raise ValueError(f"config.model.teacher {name} has {what} {theirs}, the student {ours}: make them equal")
