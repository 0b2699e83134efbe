"""Every solver against the exact flow of Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import Gaussian, latents, times

from lcm_jax.diffusion import solver
from lcm_jax.diffusion.path import VE, Prediction, diffuse, predict, vp_path

ORDER = {"ddim": 1, "euler": 1, "heun": 2, "dpm_solver": 2, "dpm_solver_pp": 2}
PATHS = {"vp": (vp_path(), 800.0, 300.0), "ve": (VE(), 8.0, 0.5)}


@pytest.mark.parametrize("on", PATHS)
@pytest.mark.parametrize("name", ORDER)
def test_order_of_convergence(name, on):
    """Halving the step (in lambda) divides the global error by 2^order."""
    path, t, s = PATHS[on]
    truth, psi = Gaussian(), solver.get(name)
    with jax.enable_x64(True):
        z0 = diffuse(path, latents(), latents(seed=1), times(t))
        exact = truth.flow(path, z0, times(t), times(s))
        errors = []
        for n in (16, 32, 64):
            grid = path.time(jnp.linspace(path.lam(times(t))[0], path.lam(times(s))[0], n + 1))
            z = z0
            for a, b in zip(grid[:-1], grid[1:], strict=True):
                z = psi(path, truth.field(path), z, times(a), times(b))
            errors.append(float(jnp.abs(z - exact).max()))
        rates = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(rates, ORDER[name], atol=0.25)


@pytest.mark.parametrize("name", ORDER)
def test_oracle_lands_on_the_point_of_shared_noise(name):
    """Consistency training is distillation with a perfect teacher."""
    path, z0, eps = vp_path(), latents(), latents(seed=1)
    t, s = jnp.array([999, 519, 39, 19]), jnp.array([979, 499, 19, 0])
    z_s = solver.get(name)(path, lambda z, t: Prediction(z0, eps), diffuse(path, z0, eps, t), t, s)
    np.testing.assert_allclose(z_s, diffuse(path, z0, eps, s), atol=1e-6)


def test_ddim_golden_value():
    with jax.enable_x64(True):
        path, t, s = vp_path(), jnp.array([519]), jnp.array([499])
        z = jnp.array([[0.7]])
        field = lambda z, t: predict(path, "eps", jnp.full_like(z, -0.3), z, t)  # noqa: E731
        np.testing.assert_allclose(solver.ddim(path, field, z, t, s), 0.7530949785, atol=1e-10)


@pytest.mark.parametrize("kind", ["eps", "x0"])
def test_ddim_is_the_first_order_dpm_solver(kind):
    with jax.enable_x64(True):
        path, t, s = vp_path(), times(519), times(499)
        z, out = latents(), latents(seed=1)
        h = path.lam(s) - path.lam(t)
        c = [x[0] for x in (path.alpha(t), path.sigma(t), path.alpha(s), path.sigma(s))]
        if kind == "eps":
            expected = c[2] / c[0] * z - c[3] * jnp.expm1(h)[0] * out
        else:
            expected = c[3] / c[1] * z - c[2] * jnp.expm1(-h)[0] * out
        got = solver.ddim(path, lambda z, t: predict(path, kind, out, z, t), z, t, s)
        np.testing.assert_allclose(got, expected, atol=1e-12)


@pytest.mark.parametrize("name", ["dpm_solver", "dpm_solver_pp"])
def test_second_order_rules_are_the_papers(name):
    """DPM-Solver-2 and DPM-Solver++(2S) in their published exponential form, r = 1/2."""
    with jax.enable_x64(True):
        path, t, s, z = vp_path(), times(519), times(499), latents()
        field = Gaussian().field(path)
        h = float((path.lam(s) - path.lam(t))[0])
        m = path.time(path.lam(t) + h / 2)
        (a_t, g_t), (a_m, g_m), (a_s, g_s) = (
            (float(path.alpha(u)[0]), float(path.sigma(u)[0])) for u in (t, m, s)
        )
        if name == "dpm_solver":
            u = a_m / a_t * z - g_m * np.expm1(h / 2) * field(z, t).eps
            expected = a_s / a_t * z - g_s * np.expm1(h) * field(u, m).eps
        else:
            u = g_m / g_t * z - a_m * np.expm1(-h / 2) * field(z, t).x0
            expected = g_s / g_t * z - a_s * np.expm1(-h) * field(u, m).x0
        np.testing.assert_allclose(solver.get(name)(path, field, z, t, s), expected, atol=1e-12)


def test_heun_is_edms_rule_on_ve():
    with jax.enable_x64(True):
        path, z, t, s = VE(), latents(scale=3.0), times(5.0), times(3.0)
        field = Gaussian().field(path)
        slope = (z - field(z, t).x0) / 5.0
        end = z + (3.0 - 5.0) * slope
        expected = z + (3.0 - 5.0) * (slope + (end - field(end, s).x0) / 3.0) / 2
        np.testing.assert_allclose(solver.heun(path, field, z, t, s), expected, atol=1e-12)
        np.testing.assert_allclose(solver.euler(path, field, z, t, s), end, atol=1e-12)


def test_heun_is_euler_for_a_constant_denoiser():
    path, z, t, s = VE(), latents(), times(5.0), times(3.0)
    field = lambda z, t: predict(path, "x0", jnp.ones_like(z), z, t)  # noqa: E731
    np.testing.assert_allclose(
        solver.heun(path, field, z, t, s), solver.euler(path, field, z, t, s), atol=1e-6
    )


def test_heun_ends_at_the_data():
    """At sigma = 0 the slope is 0/0: the step is Euler's and lands on x0."""
    path, z, t, s = VE(), latents(), times(0.002), times(0.0)
    field = lambda z, t: predict(path, "x0", jnp.ones_like(z), z, t)  # noqa: E731
    np.testing.assert_allclose(solver.heun(path, field, z, t, s), 1, atol=1e-6)


@pytest.mark.parametrize("name", ORDER)
@pytest.mark.parametrize("on", PATHS)
def test_no_step_moves_nothing(name, on):
    path, t, s = PATHS[on]
    z, at = latents(), jnp.array([t, s, t, s])
    np.testing.assert_allclose(solver.get(name)(path, Gaussian().field(path), z, at, at), z, atol=1e-5)


@pytest.mark.parametrize("name", ORDER)
def test_traced_times_compile_once(name):
    path, z, traces = vp_path(), latents(), []

    @jax.jit
    def step(z, t, s):
        traces.append(1)
        return solver.get(name)(path, Gaussian().field(path), z, t, s)

    for t in (999, 519, 19):
        t, s = times(t), times(max(t - 20, 0))
        exact = Gaussian().flow(path, z, t, s)
        np.testing.assert_allclose(step(z, t, s), exact, atol=0.06 if s[0] == 0 else 5e-3)
    assert len(traces) == 1


@pytest.mark.parametrize("name", ORDER)
def test_zero_terminal_snr_gives_finite_steps(name):
    path, eps = vp_path(zero_terminal_snr=True), latents()
    z_s = solver.get(name)(path, Gaussian().field(path), eps, times(999), times(979))
    np.testing.assert_allclose(z_s, Gaussian().flow(path, eps, times(999), times(979)), atol=0.02)


def test_unknown_solver_lists_the_names():
    with pytest.raises(ValueError, match="unknown solver 'rk4'; choose one of ddim, euler, heun"):
        solver.get("rk4")
