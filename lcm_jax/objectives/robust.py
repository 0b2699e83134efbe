"""Distances whose scale follows the training step or the size of a sample."""

from collections.abc import Callable

from lcm_jax.diffusion import distance
from lcm_jax.diffusion.curriculum import Curriculum, Step
from lcm_jax.diffusion.distance import Scale
from lcm_jax.typing import Latent, PerSample

StepDistance = Callable[[Latent, Latent, Step], PerSample]
ScaleLaw = Callable[[Step, int], Scale]  # (step, elements of a sample) -> delta
WITHOUT_SCALE = ("l1", "l2")


def robust(name: str, delta: float | ScaleLaw, reduction: str = "mean") -> StepDistance:
    """The distance `name` at the scale `delta`, which l1 and l2 have no use for."""
    measure = distance.get(name)
    if name in WITHOUT_SCALE:
        return lambda a, b, step: measure(a, b, reduction=reduction)
    law = delta if callable(delta) else fixed(delta)
    return lambda a, b, step: measure(a, b, law(step, a[0].size), reduction=reduction)


def fixed(delta: float) -> ScaleLaw:
    """The same scale at every step."""
    if delta < 0:
        raise ValueError(f"delta is {delta}: give a scale of at least 0")
    return lambda step, d: delta


def by_dimension(step: Step, d: int) -> Scale:
    """iCT's .00054 sqrt(d)."""
    return distance.dimension_delta(d)


def scheduled(intervals: Curriculum, first: float, until: int) -> ScaleLaw:
    """sLCT's scale, falling with the number of intervals; `first` while there are at most `until`.

    Raises ValueError where it would rise after them.
    """
    after = float(distance.scheduled_delta(until + 1, first, until))
    if first < after:
        raise ValueError(f"delta is {first} up to {until} intervals and {after:.3g} above: give at least that")
    return lambda step, d: distance.scheduled_delta(intervals(step), first, until)
