"""Runs that train a network of noise levels."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from lcm_jax.assembly import LATENTS, Run, assemble, owing, placer
from lcm_jax.data import manifest
from lcm_jax.data.loader import make_loader
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
    per = data.pop("statistics", "element")
    loader = call(make_loader, "config.data", data, seed=cfg["seed"], own=own_rows_of(cfg))
    made = loader.manifest
    manifest.check_fits(made, start.spec.latent_shape)
    manifest.check_classes(loader.rows.classes, start.spec.network.classes, start.spec.classes)
    told = noise_condition(start.spec)
    spec = dataclasses.replace(start.spec, classes=loader.rows.classes if told else ())
    spec = owing(spec, (each.dataset.get("attribution") for each in loader.rows.manifests))
    if start.fresh:
        mean, std = manifest.statistics(loader.rows.folders, per)
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
