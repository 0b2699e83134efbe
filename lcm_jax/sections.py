"""The sections of a config, each turned into the part of a run that it describes."""

import inspect
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lcm_jax.objectives import base
from lcm_jax.parallel import rules
from lcm_jax.parallel.mesh import make_mesh
from lcm_jax.parallel.transfer import own_rows
from lcm_jax.settings import call, known
from lcm_jax.train import checkpoint, loop
from lcm_jax.train.averages import averages
from lcm_jax.train.optimizer import SETTINGS as OPTIMIZER_SETTINGS
from lcm_jax.train.optimizer import UNUSED, learning_rate, optimizer

log = logging.getLogger(__name__)
FREE = ("steps", "loop", "checkpoint", "mesh")  # that may change when a run goes on
AT_LEAST_0, BELOW_1 = ("rate", "final", "eps", "weight_decay"), ("b1", "b2")  # settings of optimisers
SECTIONS = ("seed", "steps", "data", "model", "objective", "optimizer", "average", "mesh", "loop", "checkpoint")
AVERAGE_KEYS = ("ema_decay", "ema_power")
OPTIMIZER_KEYS = ("name", "rate", "schedule", "warmup", "final", "accumulate", *OPTIMIZER_SETTINGS)
REQUIRED = {"data": ("batch_size",), "objective": ("name",), "optimizer": ("name", "rate")}


def plain(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """The config as nested dicts, its sections checked."""
    cfg = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    known(cfg, SECTIONS, "config")
    if missing := [s for s in SECTIONS if s not in cfg]:
        raise ValueError(f"config lacks {', '.join(missing)}")
    for section, keys in REQUIRED.items():
        if missing := [key for key in keys if key not in cfg[section]]:
            raise ValueError(f"config.{section} lacks {', '.join(missing)}")
    check_numbers(cfg)
    known(cfg["loop"], loop.SETTINGS, "config.loop")
    loop.check({"steps": cfg["steps"]}, "config.")
    loop.check(cfg["loop"], "config.loop.")
    known(cfg["checkpoint"], checkpoint.SETTINGS, "config.checkpoint")
    checkpoint.check(cfg["checkpoint"], "config.checkpoint.")
    return cfg


def fixed(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config stays as it is when a run goes on."""
    return {section: value for section, value in cfg.items() if section not in FREE}


def check_numbers(cfg: Mapping[str, Any]) -> None:
    """Raises ValueError for a seed, batch size or setting of the optimiser that means nothing."""
    opt = cfg["optimizer"]
    whole = {"seed": (cfg["seed"], 0), "data.batch_size": (cfg["data"]["batch_size"], 1)}
    whole["optimizer.warmup"] = (opt.get("warmup", 0), 0)
    for name, (value, least) in whole.items():
        if not isinstance(value, int) or not least <= value < 2**32:
            raise ValueError(f"config.{name} is {value!r}: give a whole number of at least {least} and below 2^32")
    for name, most in {**dict.fromkeys(AT_LEAST_0, math.inf), **dict.fromkeys(BELOW_1, 1)}.items():
        if opt.get(name) is not None and not 0 <= opt[name] < most:
            raise ValueError(f"config.optimizer.{name} is {opt[name]!r}: give a number of at least 0 and below {most}")


def build_objective(section: Mapping[str, Any], **given: Any) -> base.Objective:
    """The objective a config section names."""
    settings = dict(section)
    return call(base.builder(settings.pop("name")), "config.objective", settings, **given)


def takes(objective: str, setting: str) -> bool:
    """Whether an objective has a setting; those of captioned U-Nets have a `kind`."""
    return setting in inspect.signature(base.builder(objective)).parameters


def with_curriculum(cfg: dict[str, Any]) -> dict[str, Any]:
    """The config with the length of the objective's curriculum, by default the run's, written down.

    So a run that goes on for longer than it was begun for cannot change what its first steps were.
    """
    section = cfg["objective"]
    if not takes(section["name"], "steps") or section.get("steps") is not None:
        return cfg
    return {**cfg, "objective": {**section, "steps": cfg["steps"]}}


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
    return call(make_mesh, "config.mesh", settings, **given), rule_set


def own_rows_of(cfg: Mapping[str, Any]) -> np.ndarray:
    """Which rows of every global batch this process reads."""
    return own_rows(mesh_of(cfg)[0], cfg["data"]["batch_size"])


def computes_in(cfg: Mapping[str, Any]) -> str | None:
    """The type in which config.model says that layers compute; None: that of the weights."""
    return cfg["model"].get("dtype") if isinstance(cfg["model"], Mapping) else None  # an autoencoder's is a preset


def optimizer_of(cfg: Mapping[str, Any]) -> Any:
    """The optimiser of config.optimizer."""
    opt = dict(cfg["optimizer"])
    known(opt, OPTIMIZER_KEYS, "config.optimizer")
    accumulate, batch = opt.get("accumulate", 1), cfg["data"]["batch_size"]
    if accumulate < 1 or batch % accumulate:
        raise ValueError(f"config.optimizer.accumulate {accumulate} does not divide batch size {batch}")
    if without := [k for k in UNUSED.get(opt["name"], ()) if k in opt]:
        log.warning("config.optimizer.%s has no effect: %s does not take it", without[0], opt["name"])
    return optimizer(
        opt["name"],
        learning_rate(opt["rate"], cfg["steps"], **{k: opt[k] for k in ("schedule", "warmup", "final") if k in opt}),
        **{k: opt[k] for k in OPTIMIZER_SETTINGS if k in opt},
    )


def average_names(cfg: Mapping[str, Any]) -> list[str]:
    """The weight averages of config.average by name, the one that is sampled with first."""
    known(cfg["average"], AVERAGE_KEYS, "config.average")
    return list(averages(**cfg["average"]))
