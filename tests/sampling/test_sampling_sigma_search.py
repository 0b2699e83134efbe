"""The search for noise levels, on scores whose best list is known."""

import math

import numpy as np
import pytest

from lcm_jax.diffusion.grid import Karras
from lcm_jax.sampling.few_step import check_falling
from lcm_jax.sampling.sigma_search import search

LEVELS = [float(s) for s in Karras().grid(640)]
WANTED = (80.0, 1.2, 0.15)


def valley(sigmas):
    """Least where every level is as wanted; each level lowers the score."""
    return -len(sigmas) + sum((math.log(a) - math.log(b)) ** 2 for a, b in zip(sigmas, WANTED, strict=False))


def test_each_level_is_found_in_a_few_tries():
    found = search(valley, LEVELS, 3)
    nearest = [min(LEVELS, key=lambda s, w=w: abs(math.log(s / w))) for w in WANTED]
    assert found.best == [tuple(nearest[:k]) for k in (1, 2, 3)]
    assert found.scores == [pytest.approx(valley(best)) for best in found.best]
    assert len(found.tried) < 2 * 2 * math.log(640, 1.5)


def test_the_best_list_that_was_tried_is_kept():
    """On a score without a valley the thirds may mislead, the result may not be worse than any try."""
    rng = np.random.default_rng(0)
    noise = {}
    found = search(lambda s: noise.setdefault(s, rng.uniform()), LEVELS, 3)
    for best, score in zip(found.best, found.scores, strict=True):
        rivals = [v for s, v in found.tried.items() if len(s) == len(best) and s[:-1] == best[:-1]]
        assert score == min(rivals) == found.tried[best]
        check_falling(best)


def test_every_level_may_be_used():
    assert search(valley, [80.0, 1.0, 0.1], 3).best[-1] == (80.0, 1.0, 0.1)


@pytest.mark.parametrize(
    "levels, n, message",
    [
        ([80.0, 1.0], 3, "3 steps cannot be chosen from 2 noise levels"),
        ([80.0, 1.0], 0, "0 steps cannot be chosen"),
        ([1.0, 80.0], 1, "must fall, got 1 before 80: sort them"),
        ([80.0, 80.0], 1, "must fall"),
        ([80.0, 0.0], 1, "noise level 0 is not above 0"),
        ([], 1, "at least one noise level"),
    ],
)
def test_levels_that_make_no_list(levels, n, message):
    with pytest.raises(ValueError, match=message):
        search(valley, levels, n)
