"""Which skipping step k and which solver to distil with, at a small fixed budget (LCM Fig. 3).

    python -m benchmarks.skip_solver --batch_size 8 --out runs/skip_solver       # 2 cores: 10 minutes a cell, 12 cells

Every cell is the quick start's distillation of the same student for the same updates, with n drawn as Algorithm 1 does
(any t >= k), and is sampled at one time list. Beside them stands the student as all of them start: the teacher's
weights. Resumable: finished cells are kept, an interrupted one goes on where it stopped.
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from ml_collections import ConfigDict

from benchmarks import results, training
from configs import quickstart
from lcm_jax import run_folder
from lcm_jax.assess import evaluation, evaluation_set, feature_networks
from lcm_jax.assess.evaluation_plan import Plan
from lcm_jax.pipeline import Pipeline

SKIPS = (1, 5, 20, 50)
SOLVERS = ("ddim", "dpm_solver", "dpm_solver_pp")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/emoji", help="what is scored; trained on are the quick start's sets")
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rate", type=float, default=5e-5, help="of AdamW")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--w", type=float, default=0.0)
    parser.add_argument("--limit", type=int, default=160, help="captions to score")
    parser.add_argument("--out", default="runs/skip_solver")
    args = parser.parse_args()
    cells = [cell(args, solver, skip) for skip in SKIPS for solver in SOLVERS]
    start = score(args, before(args), Path(args.out) / "before")
    text = table(cells, start, args.steps)
    path = results.save("skip_solver", {"protocol": vars(args), "start": start, "cells": cells, "table": text})
    print(text)
    print(draw(cells, start, args, path.with_suffix(".png")))


def cell(args: argparse.Namespace, solver: str, skip: int) -> dict:
    """Trains and scores one combination."""
    where = Path(args.out) / f"{solver}_{skip}"
    kept, asked = where / "scores.json", {**vars(args), "solver": solver, "skip": skip}
    if kept.exists() and (made := json.loads(kept.read_text()))["asked"] == asked:
        return made["cell"]
    config = recipe(args)
    config.objective.update(skip=skip, solver_name=solver, grid="any")
    training.train(config, where)
    made = {"solver": solver, "skip": skip, "scores": score(args, run_folder.pipeline(where), where)}
    kept.write_text(json.dumps({"asked": asked, "cell": made}))
    return made


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


def table(cells: list[dict], start: dict, steps: list[int]) -> str:
    """Markdown: KID x 1000 of every cell and step count, mean and spread over the seeds of sampling."""
    lines = ["| k | solver | " + " | ".join(f"{n} steps" for n in steps) + " |", "|---|---|" + "---|" * len(steps)]
    for skip, solver, scores in [("", "before", start), *((c["skip"], c["solver"], c["scores"]) for c in cells)]:
        kids = [scores[str(n)]["kid"] for n in steps]
        cells_of_row = " | ".join(f"{1000 * kid['mean']:.0f} +- {1000 * kid['spread']:.0f}" for kid in kids)
        lines.append(f"| {skip} | {solver} | {cells_of_row} |")
    return "\n".join(lines)


def draw(cells: list[dict], start: dict, args: argparse.Namespace, path: Path) -> Path:
    """KID against k, one line a solver, one panel a step count; dotted where all of them start."""
    figure, axes = plt.subplots(1, len(args.steps), figsize=(4 * len(args.steps), 3.4), sharey=True, squeeze=False)
    for axis, steps in zip(axes[0], args.steps, strict=True):
        for solver in SOLVERS:
            line = [c for c in cells if c["solver"] == solver]
            kids = [1000 * c["scores"][str(steps)]["kid"]["mean"] for c in line]
            axis.plot([c["skip"] for c in line], kids, "o-", label=solver)
        axis.axhline(1000 * start[str(steps)]["kid"]["mean"], color="grey", linestyle=":", label="before")
        axis.set(xscale="log", xlabel="skipping step k", title=f"{steps} steps")
        axis.set_xticks(SKIPS, [str(k) for k in SKIPS])
    axes[0][0].set_ylabel("KID-MobileNetV2 x 1000, held-out")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    return path


if __name__ == "__main__":
    main()
