"""Distances whose scale follows the training step or the size of a sample."""

from collections.abc import Callable
from dataclasses import dataclass

import jax

from lcm_jax.diffusion import distance
from lcm_jax.diffusion.curriculum import Curriculum, Step
from lcm_jax.diffusion.distance import Scale
from lcm_jax.typing import Latent, PerSample

StepDistance = Callable[[Latent, Latent, Step], PerSample]
ScaleLaw = Callable[[Step, int], Scale]  # (step, elements of a sample) -> delta
WITHOUT_SCALE = ("l1", "l2")
OF_SCALE = ("cauchy", "geman_mcclure")  # which divide by it


@dataclass(frozen=True)
class Robust:
    """A distance by its name, at the scale that a law gives a step; `scale` is None for l1 and l2, which have none."""

    name: str
    scale: ScaleLaw | None
    reduction: str = "mean"

    def __call__(self, a: Latent, b: Latent, step: Step) -> PerSample:
        at = {} if self.scale is None else {"delta": self.scale(step, a[0].size)}
        return distance.get(self.name)(a, b, **at, reduction=self.reduction)


def robust(name: str, delta: float | ScaleLaw, reduction: str = "mean") -> Robust:
    """The distance `name` at the scale `delta`, which l1 and l2 have no use for.

    Raises ValueError for an unknown name, and for a scale that a distance cannot have.
    """
    distance.get(name)
    if name in WITHOUT_SCALE:
        return Robust(name, None, reduction)
    if name in OF_SCALE and delta == 0:
        raise ValueError(f"delta is {delta}: {name} divides by its scale, give one above 0, as 0.03 is")
    return Robust(name, delta if callable(delta) else fixed(delta), reduction)


def fixed(delta: float) -> ScaleLaw:
    """The same scale at every step."""
    if delta < 0:
        raise ValueError(f"delta is {delta}: give a scale of at least 0")
    return lambda step, d: delta


def by_dimension(step: Step, d: int) -> Scale:
    """iCT's .00054 sqrt(d)."""
    return distance.dimension_delta(d)


def scheduled(intervals: Curriculum, first: float | None, until: int) -> ScaleLaw:
    """sLCT's scale, falling with the number of intervals; `first` while there are at most `until`.

    `first` None is .00054 sqrt(d). Raises ValueError where the scale would rise after them: now, or for None when
    the size of a sample is known.
    """

    def checked(start: float) -> float:
        with jax.ensure_compile_time_eval():  # a number, also while a step is traced
            after = float(distance.scheduled_delta(until + 1, start, until))
        if start < after:
            raise ValueError(f"delta is {start:.3g} up to {until} intervals and {after:.3g} above: give at least that")
        return start

    if first is not None:
        checked(first)
    start = lambda d: checked(distance.dimension_delta(d)) if first is None else first
    return lambda step, d: distance.scheduled_delta(intervals(step), start(d), until)
