"""Finds the w at which a model is best, on training captions alone: held-out ones are for the verdict."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from lcm_jax.assess.evaluation import Judge
from lcm_jax.assess.evaluation_plan import Setting, check
from lcm_jax.assess.evaluation_set import SPLITS, Captioned, choose
from lcm_jax.assess.generation import generate
from lcm_jax.data.example import TRAIN
from lcm_jax.evaluate import report, scores
from lcm_jax.evaluate.features import FeatureNet, extract
from lcm_jax.pipeline import Pipeline

SHOWN = ("kid", "fd", "precision", "recall", "top1", "top5", "top5_of_n", "top1_group", "top5_group")


def sweep(
    pipe: Pipeline,
    found: Mapping[str, Captioned],
    uncond: Mapping[str, Any],
    net: FeatureNet,
    ws: Sequence[float],
    steps: int,
    limit: int | None = None,
    seed: int = 0,
    resamples: int = 200,
    progress: bool = True,
) -> tuple[float, list[dict[str, Any]]]:
    """The best w, and for each one its scores on training captions with the model's default sampler.

    Best is the lowest sum of two ranks, by KID and by top-5 retrieval among all training images; the smaller w
    wins a tie. Raises ValueError for no w or one that occurs twice.
    """
    if not ws or len(set(ws)) != len(ws):
        raise ValueError(f"the w to try are {list(ws)}: give at least one and none twice")
    name = pipe.default_sampler
    who = "student" if name == "lcm" else "teacher"
    for w in ws:
        check(Setting(who, name, steps, w, TRAIN), pipe)
    splits = [split for split in SPLITS if len(found[split])]  # no more training captions than held-out ones
    judge = Judge(choose(found, splits, limit)[TRAIN], net, pipe, resamples, progress)
    rows = []
    evaluations = {w: pipe.nfe(pipe.setting(name, steps, w=w)) for w in ws}
    total = len(judge.asked) * sum(evaluations.values())
    with tqdm(total=total, unit="evaluation", unit_scale=True, disable=not progress, dynamic_ncols=True) as bar:
        for w in sorted(ws):
            bar.set_description(f"{name} {steps}, w {w:g}")
            done = lambda n, each=evaluations[w]: bar.update(n * each)
            images = generate(pipe, name, steps, w, seed, judge.asked, uncond, done)
            found_scores, _ = scores.score(judge.reference, [extract(net, images)])
            rows.append({"w": w, "guidance": w + 1, "sampler": name, "steps": steps, "scores": found_scores})
    return best(rows), rows


def best(rows: Sequence[Mapping[str, Any]]) -> float:
    """The w with the lowest sum of ranks; `rows` rise in w."""
    kid = np.array([row["scores"]["kid"]["mean"] for row in rows])
    hits = np.array([row["scores"]["top5"]["mean"] for row in rows])
    rank = (kid[None] < kid[:, None]).sum(1) + (hits[None] > hits[:, None]).sum(1)
    return rows[int(rank.argmin())]["w"]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The sweep as a table, the best w marked."""
    chosen = best(rows)
    lines = report.table(
        ["w", *(report.NAMES[name] for name in SHOWN)],
        [
            [f"{row['w']:g}{' (best)' if row['w'] == chosen else ''}", *(report.cell(row["scores"], n) for n in SHOWN)]
            for row in rows
        ],
    )
    return "\n".join(lines) + "\n"
