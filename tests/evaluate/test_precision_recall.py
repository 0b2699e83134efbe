"""Precision and recall on clusters whose overlap is known."""

import numpy as np
import pytest

from lcm_jax.evaluate import precision_recall as subject
from lcm_jax.evaluate.precision_recall import covered, precision_recall


def cluster(n, centre, seed):
    return np.random.default_rng(seed).normal(size=(n, 6)) * 0.1 + centre


def test_dropped_modes_cost_recall_and_strays_cost_precision():
    real = np.concatenate([cluster(200, 0, 0), cluster(200, 10, 1)])
    fake = np.concatenate([cluster(150, 0, 2), cluster(50, -10, 3)])
    precision, recall = precision_recall(real, fake)
    assert 0.6 < precision <= 0.75  # three quarters lie in a real mode
    assert 0.35 < recall <= 0.5  # one of two modes is found


def test_equal_and_disjoint_sets():
    a, b = cluster(50, 0, 0), cluster(50, 10, 1)
    assert precision_recall(a, a) == (1.0, 1.0)
    assert precision_recall(a, b) == (0.0, 0.0)


def test_reach_is_the_distance_of_the_kth_neighbour():
    support = np.array([[0.0], [1.0], [3.0], [7.0]])
    # k = 2: reaches 3, 2, 3, 6
    queries = np.array([[-3.0], [-3.01], [12.99], [13.01]])
    np.testing.assert_array_equal(covered(support, queries, k=2), [True, False, True, False])


def test_blocks_change_nothing(monkeypatch):
    a, b = cluster(50, 0, 0), cluster(31, 0.1, 1)
    whole = covered(a, b)
    monkeypatch.setattr(subject, "_ROWS", 7)
    np.testing.assert_array_equal(covered(a, b), whole)
    assert 0 < whole.sum() < len(whole)


def test_too_few_samples_are_an_error():
    with pytest.raises(ValueError, match="3 samples have no 3 neighbours"):
        covered(np.ones((3, 2)), np.ones((1, 2)))
