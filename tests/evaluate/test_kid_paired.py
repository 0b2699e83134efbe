"""The paired kernel distance against its definition, and that captions do not bias it."""

import numpy as np
import pytest

from lcm_jax.evaluate.kid import kid
from lcm_jax.evaluate.kid_paired import kid_paired


def test_it_is_the_definition_also_when_resampled():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(6, 3)) + 1
    k = lambda a, b: (a @ b / 3 + 1) ** 3
    h = lambda i, j: k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i])
    weights = np.array([[1.0] * 6, [2, 0, 1, 0, 3, 1]])
    for w, got in zip(weights, kid_paired(x, y, weights), strict=True):
        ids = np.repeat(np.arange(6), w.astype(int))
        assert got == pytest.approx(np.mean([h(i, j) for i in ids for j in ids if i != j]), rel=1e-10)


def test_one_law_that_listens_to_captions_is_at_zero_where_the_unpaired_form_is_below():
    rng = np.random.default_rng(0)

    def pair():
        caption = rng.normal(size=(15, 4))
        return caption + 0.3 * rng.normal(size=(15, 4)), caption + 0.3 * rng.normal(size=(15, 4))

    pairs = [pair() for _ in range(300)]
    ours = np.array([kid_paired(x, y, np.ones((1, 15)))[0] for x, y in pairs])
    plain = np.array([kid(x, y) for x, y in pairs])
    error = ours.std() / np.sqrt(len(ours))
    assert abs(ours.mean()) < 3 * error
    assert plain.mean() < -5 * plain.std() / np.sqrt(len(plain))


def test_one_caption_is_too_few():
    with pytest.raises(ValueError, match="at least 2 different captions"):
        kid_paired(np.ones((2, 3)), np.ones((2, 3)), np.array([[2.0, 0.0]]))
