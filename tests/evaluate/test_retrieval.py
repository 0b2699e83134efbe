"""Retrieval on planted neighbours, and the chance it is compared with."""

import numpy as np
import pytest

from lcm_jax.evaluate.retrieval import neighbours, retrieval

REAL = np.array([[1.0, 0.0], [0.9, 0.5], [0.0, 1.0], [-1.0, 0.1]])
CAPTIONS = ["cat", "cat", "dog", "owl"]


def test_neighbours_by_angle_not_length():
    nearest = neighbours(np.array([[50.0, 1.0], [-0.01, 0.02]]), REAL, 2)
    np.testing.assert_array_equal(nearest, [[0, 1], [2, 3]])


def test_hits_and_chance():
    nearest = neighbours(np.array([[1.0, 0.1], [1.0, 0.1], [0.1, 1.0], [0.1, 1.0]]), REAL, 2)
    wanted = ["cat", "dog", "dog", "emu"]
    top1, top2 = retrieval(nearest[:, :1], wanted, CAPTIONS), retrieval(nearest, wanted, CAPTIONS)
    np.testing.assert_array_equal(top1.hits, [True, False, True, False])
    assert top1.rate == 0.5
    assert top1.chance == pytest.approx((2 / 4 + 1 / 4 + 1 / 4 + 0) / 4)
    # Two of four without replacement: cat is missed with 2/4 * 1/3, dog with 3/4 * 2/3.
    assert top2.chance == pytest.approx((5 / 6 + 1 / 2 + 1 / 2 + 0) / 4)
    assert (top2.hits >= top1.hits).all()


def test_unrelated_features_score_at_chance():
    rng = np.random.default_rng(0)
    labels = [str(i % 20) for i in range(200)]
    wanted = [str(i % 20) for i in range(3000)]
    got = retrieval(neighbours(rng.normal(size=(3000, 8)), rng.normal(size=(200, 8)), 5), wanted, labels)
    assert got.rate == pytest.approx(got.chance, abs=0.03)
    assert got.chance == pytest.approx(1 - 0.95**5, abs=0.01)


def test_more_neighbours_than_images_is_an_error():
    with pytest.raises(ValueError, match="5 neighbours asked of 4 real images"):
        neighbours(np.ones((1, 2)), REAL, 5)
