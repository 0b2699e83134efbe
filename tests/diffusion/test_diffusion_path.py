"""Noise schedules and the three views of a prediction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcm_jax.diffusion.path import VE, VPTable, diffuse, expand, output_of, predict, pure_noise, vp_path

ONE = jnp.ones((1, 2))
SCHEDULES = ("scaled_linear", "linear", "cosine")
GOLDEN = {  # Stable Diffusion's schedule: t -> alpha, sigma, lambda, in double precision
    999: (0.068265, 0.997667, -2.68202),
    499: (0.526944, 0.849900, -0.478025),
    259: (0.811773, 0.583973, 0.329366),
    19: (0.991082, 0.133252, 2.006558),
    0: (0.999575, 0.029155, 3.534712),
}
SPANS = [(999, 979, 0.1197), (519, 499, 0.0671), (39, 19, 0.3785), (19, 0, 1.528)]  # t, s, lam(s) - lam(t)


def normal(seed, shape=(3, 2, 2, 4)):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("fractional", [False, True])
def test_stable_diffusion_schedule(fractional):
    path = vp_path()
    t = jnp.array(list(GOLDEN)).astype(float if fractional else int)
    got = np.stack([path.alpha(t), path.sigma(t), path.lam(t)], axis=1)
    np.testing.assert_allclose(got, list(GOLDEN.values()), rtol=2e-5)


@pytest.mark.parametrize("t,s,span", SPANS)
def test_log_snr_spans_of_skipping_steps(t, s, span):
    np.testing.assert_allclose(np.diff(vp_path().lam(jnp.array([t, s]))), span, rtol=1e-3)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_variance_is_preserved_and_tables_are_exact_near_the_data(schedule):
    path = vp_path(schedule)
    t = jnp.arange(1000)
    np.testing.assert_allclose(path.alpha(t) ** 2 + path.sigma(t) ** 2, 1, atol=1e-6)
    np.testing.assert_allclose(path.sigma(t), np.sqrt(1 - path.alphas**2), rtol=1e-6)
    np.testing.assert_allclose(path.sigma(t * 1.0), path.sigma(t), rtol=2e-4)
    assert path.T == 1000 and not path.zero_terminal_snr


def test_linear_and_cosine_schedules_follow_their_definitions():
    alphas = vp_path("linear", 1e-4, 0.02, T=10).alphas
    np.testing.assert_allclose(alphas, np.sqrt(np.cumprod(1 - np.linspace(1e-4, 0.02, 10))))
    bar = lambda u: np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2  # noqa: E731
    np.testing.assert_allclose(vp_path("cosine").alphas[499] ** 2, bar(0.5) / bar(0), rtol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_time_inverts_log_snr(schedule):
    path = vp_path(schedule)
    with jax.enable_x64(True):
        t = jnp.array([0.0, 0.3, 19.5, 500.25, 998.9, 999.0])
        np.testing.assert_allclose(path.time(path.lam(t)), t, atol=1e-6)
        np.testing.assert_allclose(path.lam(t), jnp.log(path.alpha(t) / path.sigma(t)), atol=1e-9)


def test_fractional_times_interpolate_log_alpha():
    path = vp_path()
    middle = path.alpha(jnp.array([700.5]))
    np.testing.assert_allclose(middle, np.sqrt(path.alphas[700] * path.alphas[701]), rtol=1e-6)


def test_ve():
    path, t = VE(), jnp.array([0.002, 1.0, 80.0])
    np.testing.assert_array_equal(path.alpha(t), 1)
    np.testing.assert_array_equal(path.sigma(t), t)
    np.testing.assert_allclose(path.time(path.lam(t)), t, rtol=1e-6)


def test_diffuse_mixes_sample_by_sample():
    z0, eps, t = normal(0), normal(1), jnp.array([0, 499, 999])
    z = diffuse(vp_path(), z0, eps, t)
    for i in range(3):
        alpha, sigma, _ = GOLDEN[int(t[i])]
        np.testing.assert_allclose(z[i], alpha * z0[i] + sigma * eps[i], atol=1e-5)


@pytest.mark.parametrize(
    "path,kind,t",
    [(vp_path(), kind, (0, 499, 999)) for kind in ("eps", "v", "x0")]
    + [(vp_path(zero_terminal_snr=True), kind, (0, 499, 998)) for kind in ("v", "x0")]
    + [(VE(), kind, (0.002, 1.0, 80.0)) for kind in ("eps", "x0")],
)
def test_conversions_invert(path, kind, t):
    z0, eps, t = normal(0), normal(1), jnp.array(t)
    z = diffuse(path, z0, eps, t)
    seen = predict(path, kind, output_of(path, kind, z0, eps, t), z, t)
    sigma, alpha = expand(path.sigma(t), z), expand(path.alpha(t), z)
    np.testing.assert_allclose(jnp.minimum(alpha / sigma, 1) * (seen.x0 - z0), 0, atol=1e-5)
    np.testing.assert_allclose(jnp.minimum(sigma / alpha, 1) * (seen.eps - eps), 0, atol=1e-5)
    np.testing.assert_allclose(alpha * seen.x0 + sigma * seen.eps, z, rtol=1e-4, atol=1e-5)


def test_v_is_alpha_eps_minus_sigma_x0():
    z0, eps, t = normal(0), normal(1), jnp.array([259, 259, 259])
    alpha, sigma, _ = GOLDEN[259]
    np.testing.assert_allclose(output_of(vp_path(), "v", z0, eps, t), alpha * eps - sigma * z0, atol=1e-5)


@pytest.mark.parametrize("kind", ["v", "x0"])
def test_zero_terminal_snr_is_finite_at_the_end(kind):
    path = vp_path(zero_terminal_snr=True)
    z0, eps, t = normal(0), normal(1), jnp.array([0, 500, 999])
    assert path.zero_terminal_snr and path.alpha(t)[2] == 0 and path.sigma(t)[2] == 1
    assert np.isclose(path.alpha(t)[0], vp_path().alpha(t)[0])
    z = diffuse(path, z0, eps, t)
    np.testing.assert_array_equal(z[2], eps[2])
    seen = predict(path, kind, output_of(path, kind, z0, eps, t), z, t)
    np.testing.assert_allclose(seen.x0, z0, atol=1e-5)
    np.testing.assert_allclose(seen.eps[1:], eps[1:], atol=1e-5)
    assert np.all(np.isfinite(path.lam(t))) and np.all(np.diff(path.lam(t)) < 0)
    np.testing.assert_allclose(path.time(path.lam(t)), t, atol=1e-3)


def test_eps_prediction_with_zero_terminal_snr_fails_while_tracing():
    path, z, t = vp_path(zero_terminal_snr=True), jnp.zeros((1, 2)), jnp.array([999])
    with pytest.raises(ValueError, match="zero terminal SNR.*v or x0"):
        jax.eval_shape(lambda z, t: predict(path, "eps", z, z, t), z, t)


def test_noise_cannot_be_read_off_a_clean_sample():
    x0 = jnp.ones((1, 2))
    read = lambda output: predict(VE(), "x0", output, x0, jnp.zeros(1)).eps.sum()  # noqa: E731
    value, slope = jax.value_and_grad(read)(x0)
    assert value == 0 and np.all(np.isfinite(slope))


def test_samplers_start_from_noise_of_the_path():
    noise, t = normal(0), jnp.array([80.0, 80.0, 80.0])
    np.testing.assert_allclose(pure_noise(VE(), noise, t), 80 * noise, rtol=1e-6)
    np.testing.assert_array_equal(pure_noise(vp_path(), noise, jnp.array([999, 999, 999])), noise)


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: vp_path("sqrt"), "unknown beta schedule 'sqrt'; choose one of scaled_linear"),
        (lambda: VPTable((0.9, 0.95)), "fall strictly"),
        (lambda: VPTable((1.0, 0.5)), "below 1"),
        (lambda: VPTable((0.9,)), "at least 2"),
        (lambda: predict(vp_path(), "noise", ONE, ONE, jnp.array([1])), "choose one of eps, v, x0"),
        (lambda: output_of(VE(), "v", ONE, ONE, jnp.array([1.0])), "variance-preserving path, not VE"),
    ],
)
def test_errors_name_the_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call()
