"""One captioned image as every reader hands it over, before anything is decoded."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

TRAIN, HELDOUT = "train", "heldout"
CAPTION_NAMES = ("text", "caption")  # what sets call their captions
MARK = "\ufeff"  # of byte order, which some programs begin a text with


@dataclass(frozen=True)
class Example:
    """A captioned image: `key` is unique in its set, `group` never straddles the two splits.

    `load()` decodes the pixels, uint8 [H, W, 3] in RGB, and raises ValueError naming the file when it cannot; it is
    None of a caption whose picture has yet to be drawn.
    `label` is the name of its class, for networks that are told classes in the place of captions.
    """

    key: str
    caption: str
    load: Callable[[], np.ndarray] | None = field(repr=False, compare=False)
    group: str = ""
    split: str = TRAIN
    tags: tuple[str, ...] = ()
    label: str | None = None


class Found(list[Example]):
    """Examples of a source that says more of itself.

    `damage` says in a line each what could not be listed; `classes` are the names of all its classes in its own
    order, whether there are examples of them or not.
    """

    def __init__(self, examples: Iterable[Example] = (), damage: Iterable[str] = (), classes: Iterable[str] = ()):
        super().__init__(examples)
        self.damage, self.classes = tuple(damage), tuple(classes)

    @classmethod
    def like(cls, other: Iterable[Example], examples: Iterable[Example]) -> "Found":
        """`examples` of the source that `other` are of."""
        return cls(examples, getattr(other, "damage", ()), getattr(other, "classes", ()))


def described(key: str, caption: Any, load: Callable[[], np.ndarray], about: Mapping, heldout: float) -> Example:
    """An example whose `about` may hold `group` (the key unless given), `split`, `tags` (a list, or words) and `label`.

    A split that is neither of the two counts as not given: sets of other makers use the word for their own.
    """
    group = str(about.get("group") or key)
    split = about.get("split")
    tags = about.get("tags")
    tags = tuple(tags.split()) if isinstance(tags, str) else tuple(str(t) for t in _listed(tags))
    return Example(
        key=key,
        caption=one_line(caption),
        load=load,
        group=group,
        split=split if split in (TRAIN, HELDOUT) else split_of(group, heldout),
        tags=tags,
        label=label_of(about.get("label")),
    )


def counted(number: int, what: str) -> str:
    """ "1 picture", "2 pictures"."""
    return f"{number} {what}{'s' * (number != 1)}"


def label_of(value: Any) -> str | None:
    """The name of a class from text or a whole number; None for anything else, and for empty text."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return str(int(value))
    return (" ".join(value.split()) or None) if isinstance(value, str) else None


def one_line(caption: Any) -> str:
    """A caption as words with single spaces; of several the first; "" for anything that is no text."""
    if isinstance(caption, bytes):
        caption = caption.decode("utf-8", "replace")
    if not isinstance(caption, str):
        caption = next((c for c in _listed(caption) if isinstance(c, str | bytes)), "")
        return one_line(caption)
    return " ".join(caption.replace(MARK, "").split())


def _listed(values: Any) -> list:
    if isinstance(values, np.ndarray):
        return values.tolist() if values.ndim else [values.item()]
    return list(values) if isinstance(values, list | tuple) else []


def split_of(group: str, heldout: float = 0.1) -> str:
    """Decided by the sha256 of the group alone: the same on every machine and for any order.

    Raises ValueError for a `heldout` that is no share.
    """
    if not 0 <= heldout <= 1:
        raise ValueError(f"heldout is {heldout}: give the share of pictures that are not trained on, 0 to 1, as 0.1 is")
    return HELDOUT if fraction(group) < heldout else TRAIN


def fraction(text: str) -> float:
    """A number in [0, 1) drawn by the sha256 of `text`."""
    # the top 53 bits: all of them fit a float, so that nothing rounds up to 1
    return (int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 11) / 2**53


def with_tag(examples: Iterable[Example], tag: str | None) -> list[Example]:
    """The examples that carry `tag` (all for None); ValueError with the known tags if there are none."""
    examples = examples if isinstance(examples, list) else list(examples)
    if tag is None:
        return examples
    chosen = [e for e in examples if tag in e.tags]
    if not chosen:
        known = sorted({t for e in examples for t in e.tags})
        raise ValueError(
            f"no example carries the tag {tag!r}; this set knows: {', '.join(known) or 'no tags'}"
        )
    return Found.like(examples, chosen)
