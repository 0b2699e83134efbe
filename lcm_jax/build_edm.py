"""Runs that train a network of noise levels."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from lcm_jax.assembly import LATENTS, Run, assemble, check_latents, owing, placer
from lcm_jax.data import manifest
from lcm_jax.data.latent_rows import LatentRows
from lcm_jax.data.loader import make_loader
from lcm_jax.diffusion.coupling import OptimalTransport
from lcm_jax.models.edm_spec import EDMSpec
from lcm_jax.objectives import base
from lcm_jax.parallel.transfer import replicate
from lcm_jax.sections import build_objective, mesh_of, own_rows_of, with_curriculum
from lcm_jax.settings import call
from lcm_jax.source import network, on_host
from lcm_jax.start_edm import EDMStart
from lcm_jax.start_edm import starting_point as starting_point_edm


def edm_parts(cfg: dict[str, Any], planning: bool = False) -> tuple[base.Objective, EDMStart]:
    """What a run of a network of noise levels is made of before any weights are read."""
    section = with_curriculum(cfg)["objective"]
    objective = build_objective(section)
    return objective, starting_point_edm(cfg["model"], objective, section["name"], planning)


def edm_run(cfg: dict[str, Any]) -> Run:
    """The parts of a run that trains a network of noise levels on latents at sigma_data, without captions."""
    cfg = with_curriculum(cfg)
    objective, start = edm_parts(cfg)
    data = dict(cfg["data"])
    per = data.pop("statistics", None)
    if per is not None and not start.fresh:
        source = cfg["model"].get("start") or cfg["model"]["teacher"]
        raise ValueError(f"config.data.statistics is {per!r}, but {source} has statistics of its own: leave it out")
    check_coupling(objective, cfg)
    loader = call(make_loader, "config.data", data, seed=cfg["seed"], own=own_rows_of(cfg))
    made = loader.manifest
    manifest.check_fits(made, start.spec.latent_shape)
    manifest.check_classes(loader.rows.classes, start.spec.network.classes, start.spec.classes)
    told = noise_condition(start.spec)
    spec = dataclasses.replace(start.spec, classes=loader.rows.classes if told else ())
    spec = dataclasses.replace(spec, no_label=learns_no_label(start, objective.reading.label_drop, loader.rows))
    spec = owing(spec, (each.dataset.get("attribution") for each in loader.rows.manifests))
    if start.fresh:
        mean, std = loader.rows.statistics(per or "element")
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
    check_latents(loader, networks["autoencoder"])
    apply = None if teacher is None else teacher.apply
    return assemble(cfg, spec, networks, "network", reads, loader, objective, net, first, frozen, apply, start.model)


def check_coupling(objective: base.Objective, cfg: dict[str, Any]) -> None:
    """Raises ValueError where the samples of a gradient pass do not split into the parts to be coupled."""
    if isinstance(couple := getattr(objective, "couple", None), OptimalTransport):
        couple.part_size(cfg["data"]["batch_size"] // cfg["optimizer"].get("accumulate", 1))


def learns_no_label(start: EDMStart, label_drop: float, rows: LatentRows) -> bool:
    """Whether a network is, or was, told "no label"; ValueError where its teacher knows none."""
    if not start.spec.network.classes:
        return False
    told = label_drop > 0 or rows.unlabelled
    if told and start.teacher is not None and not start.teacher.spec.no_label:
        remedy = "set config.objective.label_drop to 0" if label_drop > 0 else "choose pictures that all have a label"
        raise ValueError(f"the teacher never learned pictures without a label: {remedy}, or train it with label_drop")
    return told or start.spec.no_label


def noise_condition(spec: EDMSpec) -> dict[str, Any]:
    """What every batch of a network that is told labels holds beside its own: the number that means none of them."""
    return {"no_label": jnp.int32(spec.network.classes)} if spec.network.classes else {}
