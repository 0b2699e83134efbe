"""Captions that leave something open: random words of the whole ones, over the same pictures."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lcm_jax.data.example import TRAIN, Example, Found

FILLERS = frozenset("a an and at by for from in of on or the to with".split())  # say nothing alone


def shortened(examples: Sequence[Example], n: int) -> list[Example]:
    """Up to `n` shorter captions of each training example, as examples of their own named KEY~1 .. KEY~n.

    A shorter caption keeps a random choice of the words in their order, at least one that is no filler, never
    all; what follows a colon ("waving hand: dark skin tone") is kept or left out phrase by phrase. A network
    that has seen one picture a caption knows the picture from the caption; with these it learns what a "flag"
    or a "woman" may look like. The choice depends on the key alone.
    Raises ValueError for n below 1 or when no caption can be shortened.
    """
    if n < 1:
        raise ValueError(f"{n} shortened captions a picture: give at least 1")
    found = [
        replace(example, key=f"{example.key}~{i}", caption=caption)
        for example in examples
        if example.split == TRAIN
        for i, caption in enumerate(captions(example, n), 1)
    ]
    if not found:
        raise ValueError("no training caption can be shortened: each is a single word")
    return Found.like(examples, found)


def captions(example: Example, n: int) -> list[str]:
    """At most `n` different shorter captions of one example."""
    words, phrases = parts(example.caption)
    telling = meaning(words)
    if not telling or len(words) + len(phrases) < 2:
        return []
    seed = int.from_bytes(hashlib.sha256(example.key.encode()).digest()[:8], "big")
    draw = np.random.default_rng(seed)
    chosen: list[str] = []
    for _ in range(4 * n):  # few words have few choices: repeats are skipped, not replaced for ever
        share = draw.uniform()
        subject_words = {draw.choice(telling), *np.flatnonzero(draw.uniform(size=len(words)) < share)}
        kept = [phrase for phrase in phrases if draw.uniform() < share]
        caption = put_together([words[i] for i in sorted(subject_words)], kept)
        if caption not in (example.caption, *chosen) and len(chosen) < n:
            chosen.append(caption)
    return chosen


def parts(caption: str) -> tuple[list[str], list[str]]:
    """The words before the first colon, and the phrases behind it."""
    subject, _, rest = caption.partition(": ")
    return subject.split(), rest.split(", ") if rest else []


def meaning(words: Sequence[str]) -> list[int]:
    """Places of the words that say something alone."""
    return [i for i, word in enumerate(words) if word.lower() not in FILLERS]


def put_together(words: Sequence[str], phrases: Sequence[str]) -> str:
    """The caption of `parts`."""
    return ": ".join(filter(None, (" ".join(words), ", ".join(phrases))))
