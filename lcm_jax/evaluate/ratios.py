"""What distillation kept: few steps of the student over many of its teacher, with intervals and a control.

A distance ratio is judged by the margin ours - limit * theirs, which stays meaningful when a denominator's
interval reaches 0. The floor's own images under a 1 px blur, in the student's place, must fail it, or it proves
nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lcm_jax.evaluate.bootstrap import interval

Entry = Mapping[str, Any]  # one scored setting of evaluation.json
Load = Callable[[Entry], Mapping[str, np.ndarray]]  # its resampled scores

DDIM = ("ddim", "ddim_leading")
EXCESS = "fd - floor"
DISTANCES = ("kid", EXCESS)
RETRIEVAL = ("top1", "top5", "top1_group", "top5_group")


@dataclass(frozen=True)
class Promise:
    """Statistics of the student at `ours` steps over the teacher's DDIM at `theirs`, and the limit.

    DDIM is judged at even spacing down from pure noise and, where it was scored, at Stable Diffusion's stock
    ("leading") spacing, which the LCM paper compares with and which few steps suit badly.
    """

    statistics: tuple[str, ...]
    ours: int
    theirs: int
    limit: float
    at_least: bool  # a floor for hits, a ceiling for distances


PROMISES = (
    Promise(DISTANCES, 2, 2, 0.5, False),
    Promise(DISTANCES, 4, 50, 1.25, False),
    Promise(RETRIEVAL, 4, 50, 0.8, True),
)


def ratios(entries: Sequence[Entry], load: Load) -> list[dict[str, Any]]:
    """One row for each promise, statistic, split and w of the student whose settings are all among `entries`.

    The teacher stands at the student's w if it was scored there, else at the first w it was scored at.
    """
    rows = []
    for promise in PROMISES:
        for ours in _matching(entries, who="student", steps=promise.ours):
            floor = _matching(entries, who="control", name="floor", split=ours["split"])
            blur = _matching(entries, who="control", name="blurred_floor", split=ours["split"])
            for sampler in DDIM if floor and blur else ():
                theirs = _matching(entries, who="teacher", sampler=sampler, steps=promise.theirs, split=ours["split"])
                if not theirs:
                    continue
                teacher = next((t for t in theirs if t["w"] == ours["w"]), theirs[0])
                about = {
                    "split": ours["split"],
                    "ours": f"student {promise.ours} steps, w {ours['w']:g}",
                    "theirs": f"teacher {promise.theirs} steps, w {teacher['w']:g}",
                    "sampler": sampler,
                }
                for name in promise.statistics:
                    ratio = [_values(e, load, name, floor[0]) for e in (ours, teacher)]
                    control = None if promise.at_least else _values(blur[0], load, name, floor[0])
                    rows.append(about | _row(name, *ratio, control, promise))
    return rows


def _row(
    name: str, ours: np.ndarray, theirs: np.ndarray, blur: np.ndarray | None, promise: Promise
) -> dict[str, Any]:
    """Each array holds the value itself and after it those of the resamples; hits have no control."""
    margin = (ours - promise.limit * theirs) * (-1 if promise.at_least else 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = ours / theirs
    sound = bool((theirs > 0).all())
    return {
        "statistic": name,
        "limit": promise.limit,
        "at_least": promise.at_least,
        "ratio": float(ratio[0]) if theirs[0] > 0 else None,
        "interval": list(interval(ratio[1:])) if sound else None,
        "holds": bool(margin[0] <= 0),
        "holds_in_interval": bool(interval(margin[1:]).high <= 0),
        "blur_ratio": None if blur is None or theirs[0] <= 0 else float(blur[0] / theirs[0]),
        "blur_fails": None if blur is None else bool(blur[0] > promise.limit * theirs[0]),
    }


def _values(entry: Entry, load: Load, name: str, floor: Entry) -> np.ndarray:
    if name == EXCESS:
        return _values(entry, load, "fd", floor) - _values(floor, load, "fd", floor)
    return np.concatenate([[entry["scores"][name]["mean"]], load(entry)[name]])


def _matching(entries: Sequence[Entry], **wanted: Any) -> list[Entry]:
    return [e for e in entries if all(e.get(k) == v for k, v in wanted.items())]
