"""Every experiment file describes parts that can be built, whatever data or models it names."""

import importlib
from pathlib import Path

import pytest

from lcm_jax import sections
from lcm_jax.diffusion.path import vp_path

MODULES = [f"configs.{path.stem}" for path in sorted((Path(__file__).parents[1] / "configs").glob("*.py"))]
FOUND = {name: make() for name in MODULES if (make := getattr(importlib.import_module(name), "get_config", None))}


@pytest.mark.parametrize("name", [name for name, config in FOUND.items() if "objective" in config])
def test_objective_optimiser_and_sections_are_known(name):
    cfg = sections.with_curriculum(sections.plain(FOUND[name]))
    section = dict(cfg["objective"])
    given = {"path": vp_path(), "kind": "v"} if sections.takes(section["name"], "kind") else {}
    objective = sections.build_objective(section, **given)
    assert objective.needs_teacher == bool(cfg["model"].get("teacher") if isinstance(cfg["model"], dict) else False)
    assert sections.optimizer_of(cfg).init({}) is not None and sections.average_names(cfg) and cfg["steps"] > 0
