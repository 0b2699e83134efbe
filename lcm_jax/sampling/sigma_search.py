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
    tried: dict[Sigmas, float] = {}

    def ask(sigmas: Sigmas) -> float:
        if sigmas not in tried:
            tried[sigmas] = float(score(sigmas))
        return tried[sigmas]

    chosen: list[int] = [0]
    best, scores = [(float(levels[0]),)], [ask((float(levels[0]),))]
    for length in range(2, n + 1):
        kept = best[-1]
        at = lambda i, kept=kept: ask((*kept, float(levels[i])))
        low, high = chosen[-1] + 1, len(levels) - 1 - (n - length)  # the last must leave room for those to come
        while high - low > 2:
            third = (high - low) // 3
            left, right = low + third, high - third
            if at(left) <= at(right):
                high = right - 1
            else:
                low = left + 1
        for i in range(low, high + 1):
            at(i)
        winner = min((s for s in tried if len(s) == length and s[:-1] == kept), key=tried.__getitem__)
        chosen.append([float(v) for v in levels].index(winner[-1]))
        best.append(winner)
        scores.append(tried[winner])
    return Found(best, scores, tried)
