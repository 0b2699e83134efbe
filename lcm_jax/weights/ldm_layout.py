"""One tensor of an original Stable Diffusion file against the one or three of ours that hold the same numbers."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lcm_jax.weights.bijection import some

Shapes = Mapping[str, tuple[int, ...]]


class Form(NamedTuple):
    """How a tensor of the file becomes ours (views of it) and how ours become it; both keep every bit."""

    split: Callable[[np.ndarray], Sequence[np.ndarray]]
    join: Callable[[Sequence[np.ndarray]], np.ndarray]


SAME = Form(lambda whole: [whole], lambda ours: ours[0])
POINTWISE = Form(lambda whole: [whole.reshape(whole.shape[:2])], lambda ours: ours[0][:, :, None, None])
TRANSPOSED = Form(lambda whole: [whole.T], lambda ours: ours[0].T)
THIRDS = Form(lambda whole: np.split(whole, 3), np.concatenate)


class Entry(NamedTuple):
    """A name in the file, our names for the same numbers, and the way between them."""

    original: str
    ours: tuple[str, ...]
    form: Form = SAME

    def shapes(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The shapes of ours, from that in the file; ValueError where they cannot be had from it."""
        try:
            return [part.shape for part in self.form.split(np.broadcast_to(np.int8(0), shape))]
        except ValueError:
            raise ValueError(f"{self.original} has the shape {shape}, not that of {', '.join(self.ours)}") from None

    def read(self, whole: np.ndarray, part: int) -> np.ndarray:
        """One of ours; a part of a tensor is copied, so that it does not keep the rest in memory."""
        return whole if self.form is SAME else np.array(self.form.split(whole)[part], order="C")

    def write(self, ours: Mapping[str, Any]) -> np.ndarray:
        """The tensor of the file; ValueError where ours are not of one type or do not fit together."""
        parts = [np.asarray(ours[name]) for name in self.ours]
        if len({(part.shape, part.dtype) for part in parts}) > 1:
            raise ValueError(f"{', '.join(self.ours)} differ in shape or type: they are one tensor in the file")
        return np.asarray(self.form.join(parts), order="C")


def both(*modules: str) -> list[str]:
    """The weight and the bias of each module."""
    return [f"{module}.{leaf}" for module in modules for leaf in ("weight", "bias")]


def count(pattern: str, names: Collection[str]) -> int:
    """How many of pattern.format(0), pattern.format(1), ... are there in a row."""
    i = 0
    while pattern.format(i) in names:
        i += 1
    return i


def must_match(found: Collection[str], wanted: Collection[str], what: str) -> None:
    """Raises ValueError naming what is missing and what is too many."""
    wrong = {
        "missing": sorted(set(wanted) - set(found)),
        "unexpected": sorted(set(found) - set(wanted)),
    }
    if any(wrong.values()):
        parts = "; ".join(f"{len(keys)} {how}: {some(keys)}" for how, keys in wrong.items() if keys)
        raise ValueError(f"this {what} is incomplete or of another kind: {parts}")
