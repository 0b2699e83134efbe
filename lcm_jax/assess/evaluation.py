"""Scores a student and its teacher setting by setting, keeping every finished one on disk."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lcm_jax import cache
from lcm_jax.assess.evaluation_plan import Plan, Setting, settings
from lcm_jax.assess.evaluation_set import Captioned, EvaluationSet, choose
from lcm_jax.assess.generation import generate, identity, reconstruct
from lcm_jax.evaluate import figure, report, scores
from lcm_jax.evaluate.controls import blur
from lcm_jax.evaluate.features import FeatureNet, Images, cached, extract, fingerprint
from lcm_jax.evaluate.ratios import ratios
from lcm_jax.pipeline import Pipeline
from lcm_jax.weights.folder import write_text

log = logging.getLogger(__name__)
SCORES, TABLE, FIGURE, RESAMPLED = "scores.json", "table.md", "scores.png", "resampled"
FORMAT = 1
CONTROLS = ("floor", "blurred_floor", "halves", "autoencoder", "blur")


class Judge:
    """Scores pictures of one split; what it needs of the real images is computed when first asked for."""

    def __init__(self, chosen: EvaluationSet, net: FeatureNet, pipe: Pipeline, resamples: int, progress: bool):
        self.set, self.net, self.pipe, self.resamples, self.progress = chosen, net, pipe, resamples, progress
        self.asked = chosen.whole.take(chosen.chosen)

    @cached_property
    def reference(self) -> scores.Reference:
        whole, train = self.set.whole, self.set.train
        keep = cache.folder() / "features"
        train_features = cached(self.net, train.images, keep, self.progress)
        features = train_features if whole is train else cached(self.net, whole.images, keep, self.progress)
        real = labelled(self.asked, features[self.set.chosen])
        own = scores.nearest_distance  # of a reconstruction to its own image: the diagonal
        away = [own(a[None], b[None])[0] for a, b in zip(self.reconstructed, real.features, strict=True)]
        return scores.Reference(
            real=real,
            other=labelled(train.take(self.set.other), train_features[self.set.other]),
            gallery=labelled(whole, features),
            train=train_features,
            copy_distance=float(np.median(away)),
            resamples=self.resamples,
        )

    @cached_property
    def reconstructed(self) -> np.ndarray:
        """Features of the real images behind the autoencoder."""
        return extract(self.net, reconstruct(self.pipe, self.asked.images))

    def control(self, name: str) -> tuple[scores.Scores, scores.Resampled]:
        """Scores of images whose worth is known beforehand."""
        if name == "floor":
            return scores.floor(self.reference)
        if name == "blurred_floor":
            others = self.set.train.images[self.set.other]
            return scores.floor(self.reference, extract(self.net, blur(others)))
        if name == "halves":
            return scores.halves(self.reference)
        if name == "autoencoder":
            return scores.score(self.reference, [self.reconstructed])
        return scores.score(self.reference, [extract(self.net, blur(self.asked.images))])

    def describe(self) -> dict[str, Any]:
        """What one must know of the real images to read the scores."""
        ref = self.reference
        numbers = {"n": len(self.asked), "gallery": len(self.set.whole), "train": len(self.set.train)}
        hashes = {"keys": fingerprint("\n".join(self.asked.keys)), "features": fingerprint(ref.gallery.features)}
        return {**numbers, **hashes, "chance": scores.chance(ref), "copy_distance": ref.copy_distance, "own": ref.own}


def evaluate(
    student: Pipeline | None,
    teacher: Pipeline | None,
    found: Mapping[str, Captioned],
    uncond: Mapping[str, Any],
    net: FeatureNet,
    plan: Plan,
    out: str | Path,
    about: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Scores every setting of the plan that `out` does not hold yet; writes scores.json, table.md, scores.png.

    `about` (JSON values: machine, versions) goes into the protocol. Scores in `out` of other models, images or
    seeds are laid aside under another name. Returns the content of scores.json.
    Raises ValueError for settings or numbers of images that are impossible, before anything is drawn.
    """
    out = Path(out)
    wanted = settings(plan, student, teacher)
    sets = choose(found, plan.splits, plan.limit)
    pipe = student or teacher
    judges = {split: Judge(s, net, pipe, plan.resamples, progress) for split, s in sets.items()}
    protocol = describe(student, teacher, found, net, plan, next(iter(judges.values())))
    origins = {name: p.origin for name, p in (("student", student), ("teacher", teacher)) if p is not None}
    result = open_result(out, protocol, {**origins, **(about or {})})

    def finish(entry: Mapping[str, Any], scored: tuple[scores.Scores, scores.Resampled]) -> None:
        key = fingerprint(protocol["hash"], json.dumps(entry, sort_keys=True))
        (out / RESAMPLED).mkdir(exist_ok=True)
        np.savez_compressed(out / RESAMPLED / f"{key}.npz", **scored[1])
        result["references"].setdefault(entry["split"], judges[entry["split"]].describe())
        result["entries"].append({**entry, "key": key, "scores": scored[0]})
        write_text(out / SCORES, json.dumps(result, indent=1) + "\n")

    kept = {identify(entry) for entry in result["entries"]}
    for split in plan.splits:
        for name in CONTROLS:
            entry = {"who": "control", "name": name, "split": split}
            if identify(entry) not in kept:
                finish(entry, judges[split].control(name))

    pending = [s for s in wanted if identify(asdict(s)) not in kept]
    models = {"student": student, "teacher": teacher}
    evaluations = lambda s: models[s.who].nfe(models[s.who].setting(s.sampler, s.steps, w=s.w))
    total = sum(evaluations(s) * len(judges[s.split].asked) * len(plan.seeds) for s in pending)
    with tqdm(total=total, unit="evaluation", unit_scale=True, disable=not progress, dynamic_ncols=True) as bar:
        for setting in pending:
            bar.set_description(f"{setting.who} {setting.sampler} {setting.steps}, w {setting.w:g}, {setting.split}")
            pipe, judge = models[setting.who], judges[setting.split]
            nfe = evaluations(setting)
            features = [
                extract(net, draw(pipe, setting, seed, judge.asked, uncond, lambda n, nfe=nfe: bar.update(n * nfe)))
                for seed in plan.seeds
            ]
            entry = {**asdict(setting), "name": "generated", "guidance": setting.w + 1, "nfe": nfe}
            finish(entry | {"seeds": list(plan.seeds)}, scores.score(judge.reference, features))

    result["ratios"] = ratios(result["entries"], lambda e: dict(np.load(out / RESAMPLED / f"{e['key']}.npz")))
    write_text(out / SCORES, json.dumps(result, indent=1) + "\n")
    write_text(out / TABLE, report.markdown(result))
    figure.figure(result, out / FIGURE)
    return result


def draw(
    pipe: Pipeline,
    setting: Setting,
    seed: int,
    asked: Captioned,
    uncond: Mapping[str, Any],
    done: Callable[[int], object],
) -> Images:
    """The pictures of one setting and seed."""
    return generate(pipe, setting.sampler, setting.steps, setting.w, seed, asked, uncond, done)


def describe(
    student: Pipeline | None,
    teacher: Pipeline | None,
    found: Mapping[str, Captioned],
    net: FeatureNet,
    plan: Plan,
    judge: Judge,
) -> dict[str, Any]:
    """Everything that decides a score besides its setting; `hash` tells two protocols apart."""
    protocol: dict[str, Any] = {
        "n": len(judge.asked),
        "seeds": list(plan.seeds),
        "resamples": plan.resamples,
        "features": {"name": net.name, "hash": net.hash, "resize": net.resize},
        "images": {split: fingerprint("\n".join(rows.keys), rows.images) for split, rows in found.items()},
        "guidance": "w is LCM's: cond + w (cond - uncond); guidance = w + 1",
    }
    for name, pipe in (("student", student), ("teacher", teacher)):
        if pipe is not None:
            protocol[name] = {"hash": identity(pipe), "kind": pipe.spec.kind, "T": pipe.path.T}
    return protocol | {"hash": fingerprint(json.dumps(protocol, sort_keys=True))}


def open_result(out: Path, protocol: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """The result of `out` to go on with, or an empty one; another protocol's is renamed, never overwritten."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / SCORES
    if path.exists():
        try:
            before = json.loads(path.read_text())
            same = before["format"] == FORMAT and before["protocol"]["hash"] == protocol["hash"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path} holds no scores of this project: move it away or choose another --out") from None
        if same:
            return before | {"about": dict(about)}
        aside = path.with_name(f"scores-{before['protocol']['hash']}.json")
        log.warning("%s holds scores of other models or settings; it goes to %s", path, aside.name)
        path.rename(aside)
    return {"format": FORMAT, "protocol": protocol, "about": dict(about), "references": {}, "entries": [], "ratios": []}


def identify(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes an entry the only one of its kind under a protocol."""
    return (entry.get("name", "generated"), *(entry.get(key) for key in ("who", "sampler", "steps", "w", "split")))


def labelled(rows: Captioned, features: np.ndarray) -> scores.Labelled:
    """Features with the labels of the rows they belong to."""
    return scores.Labelled(features, rows.captions, rows.groups)
