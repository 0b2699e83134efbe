"""Every score of one image set, averaged over seeds, with its spread and its interval over groups."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from lcm_jax.evaluate.bootstrap import group_weights, interval, resampled_mean
from lcm_jax.evaluate.features import Features
from lcm_jax.evaluate.frechet import frechet_distance, moments
from lcm_jax.evaluate.frechet_resampled import frechet_resampled
from lcm_jax.evaluate.kid import kid, kid_resampled
from lcm_jax.evaluate.kid_paired import kid_paired
from lcm_jax.evaluate.precision_recall import precision_recall
from lcm_jax.evaluate.retrieval import neighbours, retrieval, unit

NEIGHBOURS = 3  # k of precision and recall
TOP = (1, 5)
FIRST_SEED, SECOND_SEED = 0, 1  # of the resamples, so that every setting is compared on the same ones
SPLITS = 16  # random halvings that the floor of halves is averaged over

Scores = dict[str, Any]  # name -> {"mean", "spread", "per_seed", "interval"}
Others = Float[np.ndarray, "m d"]  # of another number than the first set
Resampled = dict[str, Float[np.ndarray, " r"]]  # name -> mean over the seeds in each resample


@dataclass(frozen=True, eq=False)
class Labelled:
    """Features of real images with what they are called and which near-copies they belong with."""

    features: Features
    captions: Sequence[str]
    groups: Sequence[str]


@dataclass(frozen=True, eq=False)
class Reference:
    """What generated images are held against; `real` and `other` are of equal number and share no group."""

    real: Labelled  # the images whose captions are generated
    other: Labelled  # training images: their distance to `real` is the floor
    gallery: Labelled  # all images of the split, among which the nearest is looked up
    train: Features  # all training images: is a generated one a copy of one?
    copy_distance: float  # as near as this to a training image is a copy (cosine distance)
    resamples: int = 200

    @cached_property
    def real_weights(self) -> np.ndarray:
        return group_weights(self.resamples, FIRST_SEED, self.real.groups)[0]

    @cached_property
    def other_weights(self) -> np.ndarray:
        return group_weights(self.resamples, SECOND_SEED, self.other.groups)[0]

    @cached_property
    def own(self) -> dict[str, float]:
        """The copying check of the real images themselves, equal ones left out: what no copying looks like."""
        away = nearest_distance(self.real.features, self.train, skip_itself=True)
        return {"nearest_train": float(np.median(away)), "copies": float((away <= self.copy_distance).mean())}


def score(reference: Reference, sets: Sequence[Features]) -> tuple[Scores, Resampled]:
    """Scores of images generated from the captions of `reference.real`, in that order, one set a seed.

    fd, kid: against `real`, caption by caption; fd_train, kid_train: against `other`; precision, recall; top1,
    top5: share whose 1 or 5 nearest real images of the split include its caption, *_group its base, *_of_n the
    same among `real` alone; nearest_train: median cosine distance to the nearest training image; copies: share
    nearer than `copy_distance`.
    Raises ValueError when a set is not of the reference's size.
    """
    ref, u, o = reference, reference.real_weights, reference.other_weights
    rows: list[dict[str, tuple[float, np.ndarray | None]]] = []
    for features in sets:
        if len(features) != len(ref.real.captions):
            n = len(ref.real.captions)
            raise ValueError(f"{len(features)} generated images are held against {n} real ones: give equal numbers")
        row = paired_distances(ref.real.features, features, u)
        against = distances(ref.other.features, features, o, u)
        row |= {f"{name}_train": value for name, value in against.items()}
        row |= _coverage(ref.real.features, features)
        near = neighbours(features, ref.gallery.features, min(max(TOP), len(ref.gallery.features)))
        for k in TOP:
            for suffix, wanted, labels in _labels(ref):
                hits = retrieval(near[:, :k], wanted, labels).hits.astype(np.float64)
                row[f"top{k}{suffix}"] = float(hits.mean()), resampled_mean(hits, u)
        near = neighbours(features, ref.real.features, max(TOP))
        hits = retrieval(near, ref.real.captions, ref.real.captions).hits.astype(np.float64)
        row[f"top{max(TOP)}_of_n"] = float(hits.mean()), resampled_mean(hits, u)
        away = nearest_distance(features, ref.train)
        copied = (away <= ref.copy_distance).astype(np.float64)
        row["nearest_train"] = float(np.median(away)), None
        row["copies"] = float(copied.mean()), resampled_mean(copied, u)
        rows.append(row)
    return over_seeds(rows)


def floor(reference: Reference, altered: Features | None = None) -> tuple[Scores, Resampled]:
    """Scores of other real images in the generated ones' place: what a perfect model of the law would get.

    `altered` are the features of those same images after something was done to them (a blur).
    """
    ref, fake = reference, reference.other.features if altered is None else altered
    row = distances(ref.real.features, fake, ref.real_weights, ref.other_weights)
    return over_seeds([row | _coverage(ref.real.features, fake)])


def halves(reference: Reference) -> tuple[Scores, Resampled]:
    """Distances between random halves of the real images, whole groups to one side: a floor at half of n."""
    groups = np.asarray(reference.real.groups, object)
    names, features = sorted(set(groups)), reference.real.features
    rows = []
    for seed in range(SPLITS):
        chosen = np.random.default_rng(seed).permutation(len(names))[: len(names) // 2]
        left = np.isin(groups, np.asarray(names, object)[chosen])
        if min(left.sum(), (~left).sum()) < 2:
            raise ValueError("the real images do not fall into two halves of 2: evaluate on more images")
        fd = frechet_distance(moments(features[left]), moments(features[~left]))
        rows.append({"fd": (fd, None), "kid": (kid(features[left], features[~left]), None)})
    return over_seeds(rows)


def chance(reference: Reference) -> dict[str, float]:
    """What blind guessing gets of each retrieval score."""
    nothing = np.zeros((len(reference.real.captions), min(max(TOP), len(reference.gallery.captions))), int)
    return {
        f"top{k}{suffix}": retrieval(nothing[:, :k], wanted, labels).chance
        for k in TOP
        for suffix, wanted, labels in _labels(reference)
    }


def distances(real: Features, fake: Others, real_weights: np.ndarray, fake_weights: np.ndarray) -> dict[str, Any]:
    """Name -> (value, resampled values) of the two distances between unpaired sets."""
    values = centred(kid(real, fake), kid_resampled(real, fake, real_weights, fake_weights))
    return {"fd": _frechet(real, fake, real_weights, fake_weights), "kid": values}


def paired_distances(real: Features, fake: Features, weights: np.ndarray) -> dict[str, Any]:
    """`distances` of sets whose i-th members share a caption."""
    value = float(kid_paired(real, fake, np.ones((1, len(real))))[0])
    return {"fd": _frechet(real, fake, weights, weights), "kid": centred(value, kid_paired(real, fake, weights))}


def nearest_distance(features: Features, train: Others, skip_itself: bool = False) -> Float[np.ndarray, " n"]:
    """Cosine distance of each row to the nearest training row; `skip_itself` leaves equal rows out."""
    away = 1 - unit(features) @ unit(train).T
    if skip_itself:
        away[away < 1e-9] = np.inf
    return away.min(1)


def over_seeds(rows: Sequence[dict[str, tuple[float, np.ndarray | None]]]) -> tuple[Scores, Resampled]:
    """Mean, standard deviation and values over the rows; intervals of the mean where it was resampled."""
    scores, resampled = {}, {}
    for name in rows[0]:
        values = [row[name][0] for row in rows]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
        scores[name] = {"mean": float(np.mean(values)), "spread": spread, "per_seed": values, "interval": None}
        if rows[0][name][1] is not None:
            resampled[name] = np.mean([row[name][1] for row in rows], axis=0)
            scores[name]["interval"] = list(interval(resampled[name]))
    return scores, resampled


def _frechet(
    real: Features, fake: Others, real_weights: np.ndarray, fake_weights: np.ndarray
) -> tuple[float, Float[np.ndarray, " r"]]:
    value = frechet_distance(moments(real), moments(fake))
    return centred(value, frechet_resampled(real, fake, real_weights, fake_weights))


def centred(value: float, resampled: Float[np.ndarray, " r"]) -> tuple[float, Float[np.ndarray, " r"]]:
    """Resamples hold fewer different images and more near-copies, which raises distances: only their spread is used."""
    return value, resampled - resampled.mean() + value


def _labels(ref: Reference) -> tuple[tuple[str, Sequence[str], Sequence[str]], ...]:
    return ("", ref.real.captions, ref.gallery.captions), ("_group", ref.real.groups, ref.gallery.groups)


def _coverage(real: Features, fake: Others) -> dict[str, tuple[float, None]]:
    precision, recall = precision_recall(real, fake, NEIGHBOURS)
    return {"precision": (precision, None), "recall": (recall, None)}
