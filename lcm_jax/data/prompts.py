"""Captions without pictures, of a text file or of the words of known captions: for a teacher to draw."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from lcm_jax.data import text_file
from lcm_jax.data.example import TRAIN, Example, one_line
from lcm_jax.data.shorten import meaning, parts, put_together

TRIES = 20  # a caption asked for, before there are too few words for as many
SWAP = 0.6  # share of new captions that are one with a word of another; the rest are words of both


def read(path: str | Path) -> list[str]:
    """The captions of a text file in UTF-8, one a line. Raises FileNotFoundError; ValueError where there is none."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give a text file with a caption a line")
    found = list(filter(None, map(one_line, text_file.lines(path))))
    if not found:
        raise ValueError(f"{path} holds no caption; write one a line")
    return found


def to_draw(captions: Iterable[str], n: int = 1) -> list[Example]:
    """n examples of each caption, without pictures; their keys are decided by caption and number alone."""
    if n < 1:
        raise ValueError(f"{n} pictures a caption: ask for at least 1")
    hashed = {caption: hashlib.sha256(caption.encode()).hexdigest()[:16] for caption in captions}
    return [Example(f"{h}~{i}", caption, None, h, TRAIN) for caption, h in hashed.items() for i in range(n)]


def recombined(examples: Sequence[Example], n: int, seed: int = 0) -> list[str]:
    """`n` new captions of the words of training captions: one with a word of another's, or words of two.

    They name what no picture shows, as prompts do; a network that knows each training picture by its caption has to
    make these up. Groups are drawn alike, however many captions they have. No caption of `examples`, held-out ones
    included, is among them.
    Raises ValueError for n below 1 and where the words do not suffice.
    """
    if n < 1:
        raise ValueError(f"{n} new captions: ask for at least 1")
    groups = defaultdict(list)
    for example in examples:
        if example.split == TRAIN and meaning(parts(example.caption)[0]):
            groups[example.group].append(example.caption)
    listed, draw = list(groups.values()), np.random.default_rng(seed)
    known, made = {e.caption for e in examples}, {}
    for _ in range(TRIES * n if listed else 0):
        first, second = (captions[draw.integers(len(captions))] for captions in _two(listed, draw))
        caption = _crossed(parts(first), parts(second), draw)
        if caption not in known:
            made[caption] = True
        if len(made) == n:
            return list(made)
    raise ValueError(
        f"the words of {len(listed)} groups of training captions made {len(made)} new captions, not {n}: ask for fewer"
    )


def _two(listed: list[list[str]], draw: np.random.Generator) -> list[list[str]]:
    """Two groups, not the same unless there is but one."""
    return [listed[i] for i in draw.choice(len(listed), 2, replace=len(listed) == 1)]


def _crossed(
    first: tuple[list[str], list[str]], second: tuple[list[str], list[str]], draw: np.random.Generator
) -> str:
    """A caption of two, each parted into words and phrases."""
    (words, phrases), (others, other_phrases) = first, second
    if draw.uniform() < SWAP:
        place, word = draw.choice(meaning(words)), others[draw.choice(meaning(others))]
        words = [*words[:place], word, *words[place + 1 :]]
    else:
        words = [word for some in (words, others) for word in _some(some, draw)]
    if not phrases and draw.uniform() < 0.3:
        phrases = other_phrases
    return put_together(words, phrases)


def _some(words: list[str], draw: np.random.Generator) -> list[str]:
    """About half of the words in their order, one that says something among them."""
    kept = {draw.choice(meaning(words)), *np.flatnonzero(draw.uniform(size=len(words)) < 0.5)}
    return [words[i] for i in sorted(kept)]
