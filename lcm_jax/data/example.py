"""One captioned image as every reader hands it over, before anything is decoded."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

TRAIN, HELDOUT = "train", "heldout"


@dataclass(frozen=True)
class Example:
    """A captioned image: `key` is unique in its set, `group` never straddles the two splits.

    `load()` decodes the pixels, uint8 [H, W, 3] in RGB, and raises ValueError naming the file when it cannot.
    """

    key: str
    caption: str
    load: Callable[[], np.ndarray] = field(repr=False, compare=False)
    group: str = ""
    split: str = TRAIN
    tags: tuple[str, ...] = ()


def split_of(group: str, heldout: float = 0.1) -> str:
    """Decided by the sha256 of the group alone: the same on every machine and for any order."""
    fraction = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
    return HELDOUT if fraction < heldout else TRAIN


def with_tag(examples: Iterable[Example], tag: str | None) -> list[Example]:
    """The examples that carry `tag` (all for None); ValueError with the known tags if there are none."""
    examples = list(examples)
    if tag is None:
        return examples
    chosen = [e for e in examples if tag in e.tags]
    if not chosen:
        known = sorted({t for e in examples for t in e.tags})
        raise ValueError(
            f"no example carries the tag {tag!r}; this set knows: {', '.join(known) or 'no tags'}"
        )
    return chosen
