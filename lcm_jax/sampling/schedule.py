"""Falling times filled up to one length, so that what is compiled for one number of steps serves every number."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Int, Num

LENGTH = 1024  # more steps than this compile anew, at their own length


class Schedule(NamedTuple):
    """The first `count` of `times` are those of a sample; both may be arguments of a compiled function."""

    times: Num[Array | np.ndarray, " n"]
    count: int | Int[Array | np.ndarray, ""]


def filled(times: Num[np.ndarray, " n"]) -> Schedule:
    """The schedule of these times, its last one repeated up to LENGTH."""
    return Schedule(np.pad(times, (0, max(0, LENGTH - len(times))), mode="edge"), len(times))
