"""Which skipping step k and which solver to distil with, at a small fixed budget (LCM Fig. 3).

    python -m benchmarks.skip_solver --out runs/skip_solver       # 2 cores: 10 minutes a cell, 12 cells

Every cell is the quick start's distillation of the same student for the same updates, with n drawn as Algorithm 1 does
(any t >= k), and is sampled at one time list. Beside them stands the student as all of them start: the teacher's
weights. What few updates do shows best where chance is taken out of the comparison: one step of the student is held
against what the teacher's 50 make of the same noise, which is what a perfect student draws.
Resumable: finished cells are kept, an interrupted one goes on where it stopped.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from ml_collections import ConfigDict

from benchmarks import results, training
from configs import quickstart
from lcm_jax import run_folder
from lcm_jax.assess import evaluation, evaluation_set, feature_networks, generation
from lcm_jax.assess.evaluation_plan import Plan
from lcm_jax.assess.evaluation_set import Captioned
from lcm_jax.data.example import HELDOUT
from lcm_jax.evaluate import report
from lcm_jax.image_keys import image_keys
from lcm_jax.objectives.base import unconditional
from lcm_jax.pipeline import Pipeline

SKIPS = (1, 5, 20, 50)
SOLVERS = ("ddim", "dpm_solver", "dpm_solver_pp")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/emoji", help="what is scored; trained on are the quick start's sets")
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--rate", type=float, default=2e-5, help="of AdamW")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--w", type=float, default=0.0)
    parser.add_argument("--limit", type=int, default=160, help="captions to score")
    parser.add_argument("--out", default="runs/skip_solver")
    args = parser.parse_args()
    cells = [cell(args, solver, skip) for skip in SKIPS for solver in SOLVERS]
    student = before(args)
    start = {"scores": score(args, student, Path(args.out) / "before")}
    found, uncond = evaluation_set.open_folder(args.data, None, {}, student.spec)
    asked = found[HELDOUT].take(evaluation_set.choose(found, (HELDOUT,), args.limit)[HELDOUT].chosen)
    ends = latents(Pipeline.load(quickstart.get_config().model.teacher), "ddim", 50, args.w, asked, uncond)
    for one in (start, *cells):
        pipe = student if one is start else run_folder.pipeline(folder(args, one["solver"], one["skip"]))
        away = latents(pipe, "lcm", 1, args.w, asked, uncond) - ends
        one["rms"] = float(np.sqrt(np.mean(away**2)))
    text = table(cells, start, args.steps)
    path = results.save("skip_solver", {"protocol": vars(args), "start": start, "cells": cells, "table": text})
    print(text)
    print(draw(cells, start, args, path.with_suffix(".png")))


def cell(args: argparse.Namespace, solver: str, skip: int) -> dict:
    """Trains and scores one combination."""
    where = folder(args, solver, skip)
    kept, asked = where / "scores.json", {**vars(args), "solver": solver, "skip": skip}
    if kept.exists() and (made := json.loads(kept.read_text()))["asked"] == asked:
        return made["cell"]
    config = recipe(args)
    config.objective.update(skip=skip, solver_name=solver, grid="any")
    training.train(config, where)
    made = {"solver": solver, "skip": skip, "scores": score(args, run_folder.pipeline(where), where)}
    kept.write_text(json.dumps({"asked": asked, "cell": made}))
    return made


def folder(args: argparse.Namespace, solver: str, skip: int) -> Path:
    """The run of a cell."""
    return Path(args.out) / f"{solver}_{skip}"


def recipe(args: argparse.Namespace) -> ConfigDict:
    """The quick start's, at the budget asked for."""
    config = quickstart.get_config()
    config.steps = args.updates
    config.data.batch_size = args.batch_size
    # Muon's cost does not fall with the batch: at 8 it would be most of a step.
    config.optimizer = dict(name="adamw", rate=args.rate, schedule="cosine", warmup=20, b2=0.99, clip=1.0)
    config.loop.update(checkpoint_steps=500, sample_steps=0)
    return config


def before(args: argparse.Namespace) -> Pipeline:
    """The student that every cell starts from."""
    config, where = recipe(args), Path(args.out) / "before"
    config.steps = 1
    config.optimizer = dict(name="sgd", rate=0.0)
    training.train(config, where)
    return run_folder.pipeline(where)


def score(args: argparse.Namespace, student: Pipeline, where: Path) -> dict:
    """{steps: scores} of few-step sampling of the held-out captions."""
    found, uncond = evaluation_set.open_folder(args.data, None, {}, student.spec)
    plan = Plan(steps=tuple(args.steps), w=(args.w,), seeds=(0, 1, 2), splits=("heldout",), limit=args.limit)
    net = feature_networks.feature_network("mobilenetv2")
    scored = evaluation.evaluate(student, None, found, uncond, net, plan, where / "evaluation")
    return {str(e["steps"]): e["scores"] for e in scored["entries"] if e["who"] == "student"}


def latents(
    pipe: Pipeline, sampler: str, steps: int, w: float, asked: Captioned, uncond: dict[str, np.ndarray]
) -> np.ndarray:
    """Latents of all captions from noise that is the same for every model and sampler."""
    keys, setting = image_keys(asked.captions, 1, seed=0), pipe.setting(sampler, steps, w=w)
    unit = jax.jit(jax.vmap(lambda key: jax.random.normal(key, pipe.spec.latent_shape)))

    @jax.jit
    def sample(params, keys, *told):
        told, every = dict(zip(asked.condition, told, strict=True)), jnp.full(len(keys), w)
        return pipe.latents(setting, params, told, unconditional(told, uncond), every, lambda i: unit(keys))

    draw, rows = partial(sample, pipe.drawers.params["unet"]), (keys, *asked.condition.values())
    return pipe.drawers.map(draw, rows, pipe.drawers.even_size(generation.BATCH, len(asked)), int)


def table(cells: list[dict], start: dict, steps: list[int]) -> str:
    """Markdown: RMS of one step to the teacher's 50, in latents; KID x 1000, its spread over the seeds of sampling."""
    heads = ["k", "solver", "1 step to the teacher's 50, RMS", *(f"KID x 1000, {n} steps" for n in steps)]
    rows = []
    for one in ({"skip": "", "solver": "before", **start}, *cells):
        kids = [one["scores"][str(n)]["kid"] for n in steps]
        shown = [f"{1000 * kid['mean']:.0f} +- {1000 * kid['spread']:.0f}" for kid in kids]
        rows.append([str(one["skip"]), one["solver"], f"{one['rms']:.4f}", *shown])
    return "\n".join(report.table(heads, rows))


def draw(cells: list[dict], start: dict, args: argparse.Namespace, path: Path) -> Path:
    """Each score against k, one line a solver; dotted where all of them start."""
    panels = {"RMS of 1 step to the teacher's 50": lambda one: one["rms"]}
    for n in args.steps:
        panels[f"KID-MobileNetV2 x 1000, {n} steps"] = lambda one, n=n: 1000 * one["scores"][str(n)]["kid"]["mean"]
    figure, axes = plt.subplots(1, len(panels), figsize=(3.6 * len(panels), 3.2), squeeze=False)
    for axis, (title, value) in zip(axes[0], panels.items(), strict=True):
        for solver in SOLVERS:
            line = [c for c in cells if c["solver"] == solver]
            axis.plot([c["skip"] for c in line], [value(c) for c in line], "o-", label=solver)
        axis.axhline(value(start), color="grey", linestyle=":", label="before")
        axis.set(xscale="log", xlabel="skipping step k")
        axis.set_title(title, fontsize=9)
        axis.set_xticks(SKIPS, [str(k) for k in SKIPS])
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    return path


if __name__ == "__main__":
    main()
