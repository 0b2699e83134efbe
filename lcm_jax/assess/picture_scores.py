"""FID, CLIP score, precision and recall of many pictures that are seen once, set by set, and never held together."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from lcm_jax.assess.clip_judge import ClipJudge
from lcm_jax.evaluate.clip_score import clip_scores
from lcm_jax.evaluate.feature_statistics import FeatureStatistics, joined_over_hosts, merged_over_hosts
from lcm_jax.evaluate.features import BATCH, FeatureNet, Features, Set, feature_batches
from lcm_jax.evaluate.frechet import frechet_distance
from lcm_jax.evaluate.frechet_name import frechet_name
from lcm_jax.evaluate.precision_recall import precision_recall

NEIGHBOURS = 3  # of a picture, whose distance is its reach in precision and recall


def score_pictures(
    sets: Iterable[Set],
    captions: Sequence[str] | None,
    net: FeatureNet,
    real: FeatureStatistics,
    clip: ClipJudge | None = None,
    manifold: Features | None = None,
    batch: int = BATCH,
) -> dict[str, Any]:
    """The Frechet distance to `real` and, with a CLIP, the mean score with the captions, as JSON values.

    `captions` go with the pictures of `sets`, in order; on several hosts, with those of this one, and all of them get
    the scores of the whole. The distance is called FID only where `frechet_name` allows it. With features of real
    pictures as `manifold`, precision and recall of as many generated ones, the first, are found, too: hosts must have
    taken turns at them, and their features alone are held.
    Raises ValueError for other numbers of pictures than captions, or fewer than two, or than the manifold's.
    """
    asked = None if clip is None else clip.of_captions(captions)
    seen, fits, at = FeatureStatistics.none(len(real.mean)), FeatureStatistics.none(1), 0
    size = 0 if manifold is None else len(manifold)
    own, first = len(range(jax.process_index(), size, jax.process_count())), []
    for images in sets:
        for features in feature_batches(net, [images], batch):
            if seen.count < own:
                first.append(features[: own - seen.count])
            seen.add(features)
        if clip is not None and at + len(images) <= len(captions):
            vectors = np.concatenate(list(feature_batches(clip.vision, [images], batch)))
            fits.add(clip_scores(vectors, asked[at : at + len(images)])[:, None])
        at += len(images)
    if captions is not None and at != len(captions):
        raise ValueError(f"{at} pictures and {len(captions)} captions: give one caption a picture")
    seen, fits = merged_over_hosts(seen), merged_over_hosts(fits)
    found: dict[str, Any] = {
        "n": seen.count,
        "frechet": {
            "name": frechet_name(net.name, seen.count, real.count),
            "value": frechet_distance(seen.moments, real.moments),
            "real": real.count,
            "features": {"name": net.name, "hash": net.hash, "resize": net.resize},
        },
    }
    if clip is not None:
        spread = float(np.sqrt(fits.covariance[0, 0] / fits.count))
        found["clip_score"] = {"mean": float(fits.mean[0]), "standard_error": spread, "clip": clip.hash}
    if manifold is not None:
        precision, recall = precision_recall(manifold, joined_over_hosts(np.concatenate(first), size), NEIGHBOURS)
        found["manifold"] = {"precision": precision, "recall": recall, "n": size, "k": NEIGHBOURS}
    return found
