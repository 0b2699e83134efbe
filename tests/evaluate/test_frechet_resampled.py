"""The fast bootstrap of the Frechet distance against the distance itself, one resample after the other."""

import numpy as np
import pytest

from lcm_jax.evaluate.frechet import frechet_distance, moments
from lcm_jax.evaluate.frechet_resampled import frechet_resampled


@pytest.mark.parametrize("n, m, d", [(12, 9, 30), (40, 25, 6)])
def test_every_resample_is_the_distance_of_its_moments(n, m, d):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, d)) + 3, rng.normal(size=(m, d)) * 2
    u, v = rng.multinomial(n, np.full(n, 1 / n), 5), rng.multinomial(m, np.full(m, 1 / m), 5)
    u, v = u.astype(float), v.astype(float)
    want = [frechet_distance(moments(x, a), moments(y, b)) for a, b in zip(u, v, strict=True)]
    np.testing.assert_allclose(frechet_resampled(x, y, u, v), want, rtol=1e-9)


def test_equal_sets_have_no_distance():
    x = np.random.default_rng(0).normal(size=(10, 4))
    u = np.ones((2, 10))
    np.testing.assert_allclose(frechet_resampled(x, x, u, u), 0, atol=1e-6)


def test_too_few_samples_are_an_error():
    x = np.zeros((3, 2))
    with pytest.raises(ValueError, match="at least 2 samples"):
        frechet_resampled(x, x, np.array([[1.0, 0, 0]]), np.ones((1, 3)))
