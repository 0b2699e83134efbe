"""The kernel distance against its definition, and that it is unbiased."""

import numpy as np
import pytest

from lcm_jax.evaluate.kid import kid, kid_resampled


def plain(x, y):
    """The definition, pair by pair."""

    def k(a, b):
        return (a @ b / len(a) + 1) ** 3

    def within(s):
        return np.mean([k(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j])

    return within(x) + within(y) - 2 * np.mean([k(a, b) for a in x for b in y])


def test_it_is_the_definition():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 4)), rng.normal(size=(5, 4)) + 1
    assert kid(x, y) == pytest.approx(plain(x, y), rel=1e-10)


def test_it_is_unbiased_and_sees_a_difference():
    rng = np.random.default_rng(0)

    def draw(shift=0.0):
        return rng.normal(size=(20, 5)) + shift

    same = np.array([kid(draw(), draw()) for _ in range(400)])
    error = same.std() / np.sqrt(len(same))
    assert abs(same.mean()) < 3 * error
    assert (same < 0).any()
    other = np.array([kid(draw(), draw(0.5)) for _ in range(50)])
    assert other.mean() > 20 * error


def test_resampling_leaves_samples_out_and_never_pairs_one_with_itself():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(5, 3))
    u = np.array([[1, 1, 1, 0, 0, 1], [2, 0, 1, 0, 3, 1]], float)
    v = np.array([[0, 1, 1, 1, 1], [1, 1, 0, 2, 1]], float)
    got = kid_resampled(x, y, u, v)
    assert got[0] == pytest.approx(plain(x[u[0] > 0], y[v[0] > 0]), rel=1e-10)
    xs, ys = (np.repeat(np.arange(len(w)), w.astype(int)) for w in (u[1], v[1]))

    def k(a, b):
        return (a @ b / 3 + 1) ** 3

    def within(s, ids):
        return np.mean([k(s[i], s[j]) for i in ids for j in ids if i != j])

    want = within(x, xs) + within(y, ys) - 2 * np.mean([k(x[i], y[j]) for i in xs for j in ys])
    assert got[1] == pytest.approx(want, rel=1e-10)


def test_too_few_samples_are_an_error():
    with pytest.raises(ValueError, match="at least 2 different samples"):
        kid(np.ones((1, 3)), np.ones((4, 3)))
    with pytest.raises(ValueError, match="at least 2 different samples"):
        kid_resampled(np.ones((2, 3)), np.ones((2, 3)), np.array([[2.0, 0.0]]), np.ones((1, 2)))
