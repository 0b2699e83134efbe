"""Consistency functions: identity at the data end, and the exact answer for Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import Gaussian, latents, times

from lcm_jax.diffusion.boundary import EDMBoundary, LCMBoundary, consistency, edm_field
from lcm_jax.diffusion.path import VE, vp_path


def test_lcm_scalings():
    boundary, t = LCMBoundary(), jnp.array([0, 19, 999])
    np.testing.assert_allclose(boundary.c_skip(t)[:2], [1, 6.9e-6], rtol=5e-3)
    np.testing.assert_allclose(boundary.c_out(t)[:2], [0, 0.9999965], rtol=1e-6)
    np.testing.assert_allclose(boundary.c_skip(t) + boundary.c_out(t) ** 2, 1, atol=1e-6)
    whole = LCMBoundary()
    object.__setattr__(whole, "timestep_scaling", 100)  # as a JSON file may have it; here annotations are checked
    np.testing.assert_allclose(whole.c_out(t), LCMBoundary(100.0).c_out(t))


@pytest.mark.parametrize(
    "sigma,c_skip,c_out,c_in",
    [
        (0.002, 1, 0, 1.999984),
        (0.17, 0.898557, 0.159058, 1.893545),
        (1.0, 0.200641, 0.446319, 0.894427),
        (80.0, 3.9063e-5, 0.499978, 0.0124998),
    ],
)
def test_edm_scalings(sigma, c_skip, c_out, c_in):
    boundary, sigma = EDMBoundary(), jnp.array([sigma])
    got = [boundary.c_skip(sigma)[0], boundary.c_out(sigma)[0], boundary.c_in(sigma)[0]]
    np.testing.assert_allclose(got, [c_skip, c_out, c_in], rtol=1e-5)


@pytest.mark.parametrize(
    "path,boundary,clean",
    [
        (vp_path(), LCMBoundary(), 0),
        (vp_path(zero_terminal_snr=True), LCMBoundary(3.0), 0),
        (VE(), EDMBoundary(), 0.002),
        (VE(), EDMBoundary(sigma_min=0.0), 0.0),
    ],
)
def test_f_is_the_identity_at_the_clean_end(path, boundary, clean):
    z = latents()
    f = consistency(path, boundary, Gaussian().field(path))
    np.testing.assert_array_equal(f(z, times(clean)), z)


def test_f_is_the_predicted_sample_at_every_used_time():
    path, z, t = vp_path(), latents(), jnp.array([19, 259, 519, 999])
    field = Gaussian().field(path)
    np.testing.assert_allclose(consistency(path, LCMBoundary(), field)(z, t), field(z, t).x0, atol=3e-5)


@pytest.mark.parametrize("sigma", [0.002, 0.17, 1.0, 80.0])
def test_one_network_read_as_denoiser_and_as_consistency_function(sigma):
    """f = c_skip x + c_out F(c_in x), though the field shows only the denoiser of the same F."""
    path, boundary, x, t = VE(), EDMBoundary(), latents(scale=sigma + 0.5), times(sigma)
    network = lambda x, noise: jnp.sin(3 * x) + noise[:, None, None, None] / 1000  # noqa: E731
    raw = network(boundary.c_in(t)[0] * x, 250 * jnp.log(t))
    expected = boundary.c_skip(t)[0] * x + boundary.c_out(t)[0] * raw
    got = consistency(path, boundary, edm_field(path, network))(x, t)
    np.testing.assert_allclose(got, expected, atol=2e-5, rtol=2e-5)


def test_edm_denoiser():
    """EDM Tab. 1: D = sd^2 / (s^2 + sd^2) x + s sd / sqrt(s^2 + sd^2) F(x / sqrt(s^2 + sd^2), ln(s) / 4)."""
    x, s = latents(), 2.0
    network = lambda x, noise: x**2 + noise[:, None, None, None]  # noqa: E731
    field = edm_field(VE(), network, time_scale=0.25)
    root = np.sqrt(s**2 + 0.25)
    expected = 0.25 / root**2 * x + s * 0.5 / root * ((x / root) ** 2 + np.log(s) / 4)
    seen = field(x, times(s))
    np.testing.assert_allclose(seen.x0, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(seen.x0 + s * seen.eps, x, rtol=1e-4, atol=1e-6)


def test_edm_boundary_off_ve_works_on_the_rescaled_sample():
    """On a VP path z / alpha with sigma / alpha is the same problem, so f agrees."""
    vp, boundary, truth = vp_path(), EDMBoundary(), Gaussian()
    z, t = latents(), jnp.array([100, 300, 500, 900])
    alpha = vp.alpha(t)[:, None, None, None]
    on_ve = consistency(VE(), boundary, truth.field(VE()))(z / alpha, vp.sigma(t) / vp.alpha(t))
    on_vp = consistency(vp, boundary, truth.field(vp))(z, t)
    np.testing.assert_allclose(on_vp, on_ve, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sigma_min", [0.0, 0.002])
def test_f_has_finite_slopes_at_both_ends(sigma_min):
    field = edm_field(VE(), lambda x, noise: x)
    f = consistency(VE(), EDMBoundary(sigma_min), field)
    t = jnp.array([sigma_min, 0.002, 0.1, 80.0])
    slope = jax.grad(lambda z: f(z, t).sum())(latents())
    assert np.all(np.isfinite(slope))
