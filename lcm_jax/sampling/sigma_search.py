"""Finds the noise levels of few-step sampling that score best, one at a time (CM sec. 5, "greedy ternary search")."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from lcm_jax.sampling.few_step import check_falling

Sigmas = tuple[float, ...]


class Found(NamedTuple):
    """The best list of each length from 1 on, its score, and every list that was tried."""

    best: list[Sigmas]
    scores: list[float]
    tried: dict[Sigmas, float]


def search(score: Callable[[Sigmas], float], levels: Sequence[float], n: int) -> Found:
    """Lists of 1 to n noise levels out of falling `levels`, the first being the first; a lower score is better.

    Each level is sought below the one before it, thirds being dropped as if the score had one valley; the best
    list that was tried is kept even where it had more. Raises ValueError for levels that do not fall or are
    too few.
    """
    check_falling(levels)
    if not 1 <= n <= len(levels):
        raise ValueError(f"{n} steps cannot be chosen from {len(levels)} noise levels: give more levels or fewer steps")
    levels = [float(level) for level in levels]
    tried: dict[Sigmas, float] = {}

    def ask(sigmas: Sigmas) -> float:
        if sigmas not in tried:
            tried[sigmas] = float(score(sigmas))
        return tried[sigmas]

    best = [(levels[0],)]
    ask(best[0])
    for length in range(2, n + 1):
        kept = best[-1]
        at = lambda i, kept=kept: ask((*kept, levels[i]))
        low, high = levels.index(kept[-1]) + 1, len(levels) - 1 - (n - length)  # room for those to come
        while high - low > 2:
            third = (high - low) // 3
            left, right = low + third, high - third
            if at(left) <= at(right):
                high = right - 1
            else:
                low = left + 1
        for i in range(low, high + 1):
            at(i)
        best.append(min((s for s in tried if s[:-1] == kept), key=tried.__getitem__))
    return Found(best, [tried[sigmas] for sigmas in best], tried)
