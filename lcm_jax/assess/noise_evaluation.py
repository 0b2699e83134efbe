"""Scores pictures drawn from noise alone against training images, and seeks the noise levels that score best."""

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lcm_jax.assess.evaluation import open_result
from lcm_jax.assess.evaluation_set import Captioned, choose
from lcm_jax.assess.generation import identity
from lcm_jax.data.example import TRAIN
from lcm_jax.diffusion.grid import Karras
from lcm_jax.edm_pipeline import EDMPipeline
from lcm_jax.evaluate import report
from lcm_jax.evaluate.controls import blur
from lcm_jax.evaluate.features import FeatureNet, Images, extract, fingerprint
from lcm_jax.evaluate.frechet import frechet_distance, moments
from lcm_jax.evaluate.frechet_name import frechet_name
from lcm_jax.evaluate.kid import kid
from lcm_jax.evaluate.precision_recall import precision_recall
from lcm_jax.sampling.sigma_search import Found, search
from lcm_jax.weights.folder import write_text

SCORES, TABLE = "scores.json", "table.md"
NAMES = ("kid", "fd", "fd - floor", "precision", "recall")
HEADS = report.NAMES  # what they are called
LEVELS = 40  # of Karras' grid, among which the search chooses
SOUGHT = {"kid": 1, "fd": 1, "precision": -1, "recall": -1}  # what noise levels may be sought by; -1: more is better


@dataclass(frozen=True)
class Plan:
    """What to draw: steps, seeds, and as many pictures as real ones, at most half of the training set.

    `noise_protocol` holds more against the whole set, as published tables do.
    """

    steps: tuple[int, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    limit: int | None = 1000

    def __post_init__(self) -> None:
        for name in ("steps", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} is {list(values)}: give at least one value and none twice")


class Judge:
    """Holds pictures against training images; other training images, of other groups, are the floor."""

    def __init__(self, found: Mapping[str, Captioned], net: FeatureNet, limit: int | None = None):
        chosen = choose(found, [TRAIN], limit)[TRAIN]
        self.net, self.n = net, len(chosen.chosen)
        self._labels = None if chosen.whole.labels is None else chosen.whole.labels[chosen.chosen]
        self.keys = fingerprint("\n".join(chosen.train.keys[i] for i in (*chosen.chosen, *chosen.other)))
        self.real = extract(net, chosen.whole.images[chosen.chosen])
        self._other = chosen.train.images[chosen.other]
        self.floor = frechet_distance(moments(self.real), moments(extract(net, self._other)))

    def labels(self, pipe: EDMPipeline) -> np.ndarray | None:
        """What a model is told: the classes of the real images, one each; None where it is told nothing.

        Raises ValueError where the images have no labels.
        """
        if not pipe.spec.network.classes:
            return None
        if self._labels is None:
            raise ValueError("this model draws by classes: hold it against a data set that was encoded with labels")
        return self._labels

    def controls(self) -> dict[str, dict[str, float]]:
        """Scores of other real images, and of those blurred by one pixel: between them lies what is worth having."""
        return {"real": self.score(self._other), "blurred": self.score(blur(self._other))}

    def score(self, images: Images) -> dict[str, float]:
        """KID x 1000, Frechet distance and what it is above the floor's, precision and recall (k = 3)."""
        fake = extract(self.net, images)
        precision, recall = precision_recall(self.real, fake)
        fd = frechet_distance(moments(self.real), moments(fake))
        values = 1000 * kid(self.real, fake), fd, fd - self.floor, precision, recall
        return dict(zip(NAMES, map(float, values), strict=True))


def evaluate(
    pipe: EDMPipeline,
    judge: Judge,
    plan: Plan,
    out: str | Path,
    about: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Scores the plan's steps and seeds that `out` does not hold yet; writes scores.json and table.md.

    Scores in `out` of another model or other images are laid aside. Returns the content of scores.json.
    Raises ValueError for steps the model has no noise levels for, before anything is drawn.
    """
    out = Path(out)
    times = {steps: pipe.times(steps).tolist() for steps in plan.steps}
    protocol: dict[str, Any] = {
        "n": judge.n,
        "images": judge.keys,
        "features": {"name": judge.net.name, "hash": judge.net.hash, "resize": judge.net.resize},
        "model": identity(pipe),
    }
    labels = judge.labels(pipe)
    if labels is not None:
        pictures = dict(sorted(Counter(pipe.names(labels)).items()))
        protocol["labels"] = {"those of": "the real images, one each", "pictures": pictures}
    protocol["hash"] = fingerprint(json.dumps(protocol, sort_keys=True))
    result = open_result(out, protocol, {**pipe.origin, **(about or {})})
    result["references"] = result["references"] or judge.controls()
    kept = {(tuple(entry["times"]), entry["seed"]) for entry in result["entries"]}
    for seed in plan.seeds:
        for steps in plan.steps:
            if (tuple(times[steps]), seed) in kept:
                continue
            scores = judge.score(pipe(judge.n, steps=steps, label=labels, seed=seed, progress=progress))
            entry = {"sampler": pipe.name, "steps": steps, "evaluations": pipe.nfe(steps), "times": times[steps]}
            result["entries"].append({**entry, "seed": seed, "scores": scores})
            write_text(out / SCORES, json.dumps(result, indent=1) + "\n")
    write_text(out / SCORES, json.dumps(result, indent=1) + "\n")
    write_text(out / TABLE, markdown(result))
    return result


def best_sigmas(
    pipe: EDMPipeline, judge: Judge, steps: int, seed: int = 0, by: str = "kid", progress: bool = True
) -> Found:
    """The lists of 1 to `steps` noise levels that score best `by` one of SOUGHT, one level at a time (CM sec. 5).

    Raises ValueError for a denoiser, which has no such levels, and for another score.
    """
    if pipe.spec.role != "consistency":
        raise ValueError("noise levels are sought for a consistency model; this one is a denoiser")
    if by not in SOUGHT:
        raise ValueError(f"noise levels are sought by {', '.join(SOUGHT)}, not by {by!r}")
    spec, sign = pipe.spec, SOUGHT[by]
    levels = np.asarray(Karras(max(spec.sigma_min, 0.002), spec.sigma_max, spec.rho).grid(LEVELS))[:-1]
    more = {"label": judge.labels(pipe), "seed": seed, "progress": progress}
    score = lambda sigmas: sign * judge.score(pipe(judge.n, sigmas=sigmas, **more))[by]
    best, scores, tried = search(score, levels.tolist(), steps)
    return Found(best, [sign * s for s in scores], {sigmas: sign * s for sigmas, s in tried.items()})


def markdown(result: Mapping[str, Any]) -> str:
    """The table: means over the seeds and, of several, standard deviations; controls above."""
    rows = [[name, "", *(figure([scores[k]], k) for k in NAMES)] for name, scores in result["references"].items()]
    entries = result["entries"]
    for steps in sorted({entry["steps"] for entry in entries}):
        own = [entry for entry in entries if entry["steps"] == steps]
        means = (figure([entry["scores"][name] for entry in own], name) for name in NAMES)
        rows.append([f"{own[0]['sampler']}, {steps}", str(own[0]["evaluations"]), *means])
    net, n = result["protocol"]["features"]["name"], result["protocol"]["n"]
    distance = frechet_name(net, n, n)
    heads = ["", "evaluations", f"KID-{net} x 1000", distance, f"{distance} - floor", "precision", "recall"]
    return "\n".join(report.table(heads, rows)) + "\n"


def figure(values: Sequence[float], name: str) -> str:
    """mean, and +- the standard deviation over several."""
    digits = 2 if name in ("precision", "recall") else 0
    text = f"{statistics.mean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} +- {statistics.stdev(values):.{digits}f}"
