"""Classifier-free guidance, the law of w and its embedding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import Gaussian, latents, times

from lcm_jax.diffusion import solver
from lcm_jax.diffusion.guidance import guidance_embedding, guide, sample_w
from lcm_jax.diffusion.path import Prediction, vp_path


def predictions():
    cond = Prediction(latents(seed=1), latents(seed=2))
    return cond, Prediction(latents(seed=3), latents(seed=4))


def test_no_guidance_is_the_plain_prediction():
    cond, uncond = predictions()
    for seen, plain in zip(guide(cond, uncond, jnp.zeros(4)), cond, strict=True):
        np.testing.assert_array_equal(seen, plain)


def test_guidance_extrapolates_sample_by_sample():
    cond, uncond = predictions()
    w = jnp.array([0.0, 2.0, 7.5, 14.0])
    for seen, c, u in zip(guide(cond, uncond, w), cond, uncond, strict=True):
        for i in range(4):
            np.testing.assert_allclose(seen[i], (1 + w[i]) * c[i] - w[i] * u[i], rtol=1e-4, atol=1e-5)


def test_for_a_first_order_step_increments_combine():
    """LCM eq. 13: the guided step is (1 + w) psi(cond) - w psi(uncond)."""
    path, z, t, s, w = vp_path(), latents(), times(519), times(499), times(7.0)
    cond, uncond = Gaussian(0.5, 0.2).field(path), Gaussian(0.0, 1.0).field(path)
    guided = solver.ddim(path, lambda z, t: guide(cond(z, t), uncond(z, t), w), z, t, s)
    psi = [solver.ddim(path, field, z, t, s) for field in (cond, uncond)]
    np.testing.assert_allclose(guided, 8 * psi[0] - 7 * psi[1], atol=1e-5)


def test_w_is_uniform_over_its_range():
    w = sample_w(jax.random.key(0), 20_000, 2.0, 14.0)
    assert 2 <= w.min() < 2.01 and 13.99 < w.max() <= 14
    np.testing.assert_allclose([w.mean(), w.std()], [8, 12 / 12**0.5], rtol=0.02)
    np.testing.assert_array_equal(sample_w(jax.random.key(0), 3, 7.5, 7.5), 7.5)


@pytest.mark.parametrize("dim", [4, 256, 512])
def test_embedding_against_double_precision(dim):
    w = np.float32([0, 7, 14, 0.1, 2.3456, 13.999, 59.87, -3.21])
    half = dim // 2
    angle = 1000.0 * w.astype(np.float64)[:, None] * np.exp(-np.log(10000) * np.arange(half) / (half - 1))
    expected = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    for embed in (guidance_embedding, jax.jit(guidance_embedding, static_argnums=1)):
        got = embed(jnp.asarray(w), dim)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, atol=2e-6)


def test_embedding_of_no_guidance():
    np.testing.assert_array_equal(guidance_embedding(jnp.zeros(1), 8), [[0, 0, 0, 0, 1, 1, 1, 1]])


@pytest.mark.parametrize("dim", [2, 7])
def test_embedding_refuses_widths_without_two_halves(dim):
    with pytest.raises(ValueError, match=f"even dim of at least 4, got {dim}"):
        guidance_embedding(jnp.zeros(1), dim)
