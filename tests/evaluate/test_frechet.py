"""The Frechet distance against closed forms."""

import numpy as np
import pytest

from lcm_jax.evaluate.frechet import frechet_distance, moments, moments_of

RNG = np.random.default_rng


def exact_sample(n, covariance, mean, seed):
    """n points whose sample mean and unbiased covariance are exactly these."""
    x = RNG(seed).normal(size=(n, len(mean)))
    x = x - x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(x.T @ x / (n - 1))).T
    return x @ np.linalg.cholesky(covariance).T + mean


def test_diagonal_gaussians():
    a, b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 1.0, 0.25])
    mean = np.array([1.0, 2.0, -2.0])
    want = 9 + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    x, y = exact_sample(50, np.diag(a), 0 * mean, 0), exact_sample(70, np.diag(b), mean, 1)
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(want, rel=1e-10)
    got = frechet_distance(moments_of(0 * mean, np.diag(a)), moments_of(mean, np.diag(b)))
    assert got == pytest.approx(want, rel=1e-10)


def test_covariances_that_do_not_commute():
    # In two dimensions Tr(M^(1/2)) = sqrt(Tr M + 2 sqrt(det M)).
    a, b = np.array([[2.0, 0.8], [0.8, 1.0]]), np.array([[1.0, -0.6], [-0.6, 3.0]])
    m = a @ b
    want = np.trace(a + b) - 2 * np.sqrt(np.trace(m) + 2 * np.sqrt(np.linalg.det(m)))
    zero = np.zeros(2)
    assert frechet_distance(moments_of(zero, a), moments_of(zero, b)) == pytest.approx(want, rel=1e-10)


def test_fewer_samples_than_features():
    # Two sets in orthogonal subspaces: the cross term is 0.
    x, y = RNG(0).normal(size=(5, 40)), RNG(1).normal(size=(6, 40))
    x[:, 20:] = 0
    y[:, :20] = 0
    spread = x.var(0, ddof=1).sum() + y.var(0, ddof=1).sum()
    want = np.square(x.mean(0) - y.mean(0)).sum() + spread
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("n", [10, 200])
def test_equal_sets_have_distance_zero_and_order_does_not_matter(n):
    x, y = RNG(0).normal(size=(n, 30)).astype(np.float32), RNG(1).normal(size=(n, 30)).astype(np.float32)
    assert abs(frechet_distance(moments(x), moments(x[::-1]))) < 1e-10
    a, b = moments(x), moments(y)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)


@pytest.mark.parametrize("n", [8, 60])
def test_weights_count_rows(n):
    x = RNG(0).normal(size=(n, 20))
    weights = RNG(1).integers(0, 4, n).astype(float)
    repeated, weighted = moments(np.repeat(x, weights.astype(int), 0)), moments(x, weights)
    np.testing.assert_allclose(repeated.mean, weighted.mean, atol=1e-12)

    def covariance(m):
        return m.factor @ m.factor.T

    np.testing.assert_allclose(covariance(repeated), covariance(weighted), atol=1e-12)


def test_what_has_no_distance_is_an_error():
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        moments(np.ones((1, 3)))
    with pytest.raises(ValueError, match="nan or inf"):
        moments(np.full((4, 3), np.nan))


@pytest.mark.parametrize("n", [30, 200])
def test_the_matrix_root_of_scipy(n):
    """Random covariances of 64 dimensions, singular ones too, whose eigenvalues span eight orders."""
    sqrtm = pytest.importorskip("scipy.linalg").sqrtm
    scale = np.logspace(0, -4, 64)
    x, y = (RNG(seed).normal(size=(n, 64)) @ RNG(seed + 9).normal(size=(64, 64)) * scale for seed in (0, 1))
    a, b = np.cov(x.T), np.cov(y.T)
    shift = x.mean(0) - y.mean(0)
    root = sqrtm(a + 1e-14 * np.eye(64)) @ sqrtm(b + 1e-14 * np.eye(64))
    want = shift @ shift + np.trace(a + b) - 2 * np.linalg.svd(root, compute_uv=False).sum()
    for got in (frechet_distance(moments(x), moments(y)), frechet_distance(moments_of(x.mean(0), a), moments(y))):
        assert got == pytest.approx(want, rel=1e-6)
    if n > 64:  # the root of the product itself, as FID programs take it
        product = shift @ shift + np.trace(a + b) - 2 * np.trace(sqrtm(a @ b)).real
        assert frechet_distance(moments(x), moments(y)) == pytest.approx(product, rel=1e-6)
