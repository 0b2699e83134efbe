"""Scores at the size of published tables for a model without captions: FID, precision and recall from noise alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from lcm_jax import cache
from lcm_jax.assess.feature_networks import feature_network
from lcm_jax.assess.generation import identity
from lcm_jax.assess.picture_scores import NEIGHBOURS, score_pictures
from lcm_jax.assess.protocol import scored
from lcm_jax.assess.reference_statistics import RealImages, reference, some_features
from lcm_jax.edm_pipeline import EDMPipeline
from lcm_jax.evaluate.report import table
from lcm_jax.settings import call
from lcm_jax.weights.folder import write_text


@dataclass(frozen=True)
class Plan:
    """What a config asks for: `samples` pictures at each of `steps`, held against all real ones.

    Precision and recall are of `manifold` pictures a side, or as many as there are, 0 for neither; `batch` pictures
    are drawn a call and device.
    """

    steps: Sequence[int]
    samples: int
    seed: int = 0
    batch: int = 64
    features: str = "inception"
    manifold: int = 10_000

    def __post_init__(self) -> None:
        if not self.steps or len(set(self.steps)) != len(self.steps):
            raise ValueError(f"config.steps is {list(self.steps)}: give at least one number and none twice")
        if self.samples < max(2, jax.process_count()):
            raise ValueError(f"config.samples is {self.samples}: give 2 or more, and one or more a process")
        if self.batch < 1:
            raise ValueError(f"config.batch is {self.batch}: give 1 or more pictures a call and device")
        if self.manifold < 0:
            raise ValueError(f"config.manifold is {self.manifold}: give a number of pictures, 0 for none")


def run(
    config: Mapping[str, Any],
    pipe: EDMPipeline,
    real: RealImages,
    out: str | Path,
    about: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Scores every number of steps of a config (`Plan`), a JSON file each: an interrupted run goes on.

    Every class of a model that is told classes has its turn; processes take turns, too. Raises ValueError for
    settings that are unknown or missing, and steps the model has no noise levels for, before anything is drawn.
    """
    plan = call(Plan, "config", config)
    times = {steps: pipe.times(steps).tolist() for steps in plan.steps}
    size = min(plan.manifold, plan.samples, real.count)
    least = max(NEIGHBOURS + 1, jax.process_count())
    if 0 < size < least:
        raise ValueError(f"precision and recall need {least} pictures a side, not {size}: set config.manifold=0")
    net, keep = feature_network(plan.features), cache.folder() / "statistics"
    statistics = reference(net, real, keep)
    manifold = some_features(net, real, size, keep) if size else None
    own = np.arange(plan.samples)[jax.process_index() :: jax.process_count()]
    told = {
        "model": identity(pipe),
        "sampler": pipe.name,
        "samples": plan.samples,
        "seed": plan.seed,
        "classes": pipe.spec.network.classes and "each has its turn",
        "judged": {"images": real.identity, "network": net.hash, "manifold": size},
    }
    found = []
    for steps in plan.steps:
        path = Path(out) / f"{pipe.name}-{steps}.json"

        def score(steps: int = steps, path: Path = path) -> dict[str, Any]:
            with tqdm(total=len(own), unit="image", desc=path.stem, disable=not progress) as bar:
                each = {"steps": steps, "seed": plan.seed, "batch": plan.batch, "done": bar.update}
                sets = pipe.stream(plan.samples, own, **each)
                at_once = pipe.drawers.size(plan.batch, len(own))
                return score_pictures(sets, None, net, statistics, manifold=manifold, batch=at_once)

        row = {"steps": steps, "times": times[steps], "evaluations": pipe.nfe(steps)}
        found.append(scored(path, {**row, **told}, score, {"origin": pipe.origin, **(about or {})}))
    write_text(Path(out) / "table.md", as_table(found) + "\n")
    return {"rows": found}


def as_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a line a row."""
    manifold = found[0].get("manifold")
    heads = ["sampler", "steps", "evaluations", found[0]["frechet"]["name"]]
    heads += [] if manifold is None else [f"{name}, {manifold['n']:,} a side" for name in ("precision", "recall")]
    lines = []
    for one in found:
        line = [one["sampler"], str(one["steps"]), str(one["evaluations"]), f"{one['frechet']['value']:.2f}"]
        line += [] if manifold is None else [f"{one['manifold'][name]:.3f}" for name in ("precision", "recall")]
        lines.append(line)
    n, real = found[0]["n"], found[0]["frechet"]["real"]
    return "\n".join([*table(heads, lines), "", f"{n:,} generated pictures, {real:,} real ones."])
