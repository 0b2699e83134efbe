"""Every experiment file describes parts that can be built, whatever data or models it names."""

import importlib
import inspect
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from lcm_jax import build_captioned, sections
from lcm_jax.diffusion.path import vp_path
from lcm_jax.train.checkpoint import Checkpointer

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


STABLE_DIFFUSION = ["lcd_sd15", "lcd_sd21_base", "lcd_sd21_768", "lcd_sdxl", "lora_sd15", "lora_sdxl", "lcf_sd"]
TRAINED = [name.partition(".")[2] for name, config in FOUND.items() if "objective" in config]


def given(name, *changes):
    """The config as launch.train reads it, locked, with changes from the command line."""
    argv = ["launch.train", f"--config=configs/{name}.py", *(f"--config.{change}" for change in changes)]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", values, lock_config=True, sys_argv=argv)
    values(argv)
    return sections.plain(values.config)


@pytest.mark.parametrize("name", STABLE_DIFFUSION)
def test_every_option_of_stable_diffusion_is_one_of_the_command_line(name, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    kind, lora = "v" if name == "lcd_sd21_768" else "eps", name.startswith("lora")
    cfg = given(
        name, "optimizer.accumulate=4", "optimizer.weight_decay=0.01", "optimizer.name=adafactor", "objective.drop=0.1",
        f"model.kind={kind}", "model.variant=fp16", "model.remat=dots", "checkpoint.best_metric=loss/mean",
        "checkpoint.best_mode=max", *(["model.lora.targets=('/attn1/to_(q|k)$', '/ff/')"] if lora else []),
    )  # fmt: skip
    assert cfg["optimizer"]["accumulate"] == 4 and cfg["optimizer"]["weight_decay"] == 0.01
    assert sections.optimizer_of(cfg).init({}) is not None
    assert (cfg["model"]["variant"], cfg["checkpoint"]["best_metric"]) == ("fp16", "loss/mean")
    assert set(cfg["checkpoint"]) <= set(inspect.signature(Checkpointer).parameters)
    parts = build_captioned.latent_parts(cfg, planning=True)
    assert (parts.objective.reading.drop, parts.spec.kind, parts.spec.unet.remat) == (0.1, kind, "dots")
    assert not lora or parts.start.lora.targets == ("/attn1/to_(q|k)$", "/ff/")


@pytest.mark.parametrize("name", TRAINED)
def test_what_a_plan_advises_can_be_given(name, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    deep = "block" if sections.takes(FOUND[f"configs.{name}"].objective.name, "kind") else True
    remat = [f"model.remat={deep}"] if name != "emoji_autoencoder" else []  # which no plan is made of
    advised = ["optimizer.accumulate=2", "mesh.rules=fsdp", "mesh.data=1", "mesh.fsdp=-1", "mesh.tensor=1"]
    cfg = given(name, *advised, *remat, "optimizer.weight_decay=0.1", "checkpoint.best_metric=loss/mean")
    assert (cfg["optimizer"]["accumulate"], cfg["optimizer"]["weight_decay"], cfg["mesh"]["fsdp"]) == (2, 0.1, -1)
    assert not remat or cfg["model"]["remat"] == deep
