"""Whole-trajectory samplers against the exact flow of Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import Gaussian, latents, times

from lcm_jax.diffusion import solver
from lcm_jax.diffusion.grid import Karras
from lcm_jax.diffusion.path import VE, Prediction, diffuse, vp_path
from lcm_jax.sampling import reference
from lcm_jax.sampling.schedule import filled

ORDER = {"ddim": 1, "dpmpp_2m": 2, "heun": 2, "dpm_solver": 2, "dpm_solver_pp": 2}


@pytest.mark.parametrize(
    "spacing,n,expected",
    [
        ("trailing", 4, [999, 749, 499, 249, 0]),
        ("trailing", 3, [999, 666, 332, 0]),
        ("leading", 4, [751, 501, 251, 1, 0]),
        ("linspace", 4, [999, 749, 500, 250, 0]),
        ("trailing", 1, [999, 0]),
    ],
)
def test_times(spacing, n, expected):
    np.testing.assert_array_equal(reference.reference_times(n, spacing=spacing), expected)


@pytest.mark.parametrize("spacing", reference.SPACINGS)
@pytest.mark.parametrize("n", [1, 7, 50, 333, 500])
def test_times_fall_strictly_to_zero(spacing, n):
    falling = reference.reference_times(n, spacing=spacing)
    assert len(falling) == n + 1 and falling[0] <= 999 and falling[-1] == 0
    assert np.all(np.diff(falling) < 0)


@pytest.mark.parametrize(
    "sampler,steps,guided,count",
    [
        ("ddim", 50, False, 50),
        ("ddim", 4, True, 8),
        ("dpmpp_2m", 20, True, 40),
        ("dpm_solver", 10, False, 19),
        ("dpm_solver_pp", 1, True, 2),
        ("heun", 18, False, 35),
    ],
)
def test_network_evaluations(sampler, steps, guided, count):
    assert reference.nfe(sampler, steps, guided) == count


@pytest.mark.parametrize("sampler", reference.SAMPLERS)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_evaluations_are_counted_as_they_happen(sampler, n):
    path, calls = vp_path(), []
    truth = Gaussian().field(path)

    def field(z, t):
        jax.debug.callback(lambda: calls.append(1))
        return truth(z, t)

    jax.block_until_ready(reference.sample(sampler, path, field, latents(), reference.reference_times(n)))
    jax.effects_barrier()
    assert len(calls) == reference.nfe(sampler, n, guided=False)


@pytest.mark.parametrize("on", ["vp", "ve"])
@pytest.mark.parametrize("sampler", ORDER)
def test_order_of_convergence(sampler, on):
    """The global error, apart from the small last step, falls with the order in the number of steps."""
    with jax.enable_x64(True):
        path, truth = (vp_path() if on == "vp" else VE()), Gaussian()
        errors = []
        for n in (20, 40, 80):
            at = path.time(jnp.linspace(-2.5, 1.0, n + 1))
            unit = latents()
            z = unit if on == "vp" else at[0] * unit
            exact = truth.flow(path, z, times(at[0]), times(at[-1]))
            got = reference.sample(sampler, path, truth.field(path), unit, at, denoise=False)
            errors.append(float(jnp.abs(got - exact).max()))
        rates = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(rates, ORDER[sampler], atol=0.3)


@pytest.mark.parametrize("sampler", ORDER)
def test_one_compilation_serves_any_number_of_steps(sampler):
    path, field, noise = vp_path(), Gaussian().field(vp_path()), latents()
    sample = jax.jit(lambda times, count: reference.sample(sampler, path, field, noise, times, count))
    for n in (1, 2, 7):
        at = reference.reference_times(n)
        exact = reference.sample(sampler, path, field, noise, at)
        np.testing.assert_allclose(sample(*filled(at)), exact, atol=1e-5)
    assert sample._cache_size() == 1


@pytest.mark.parametrize("sampler", ORDER)
def test_fifty_steps_reach_the_exact_sample(sampler):
    """On Stable Diffusion's table the flow of the Gaussian carries noise to the data."""
    path, truth, noise = vp_path(), Gaussian(), latents()
    sample = jax.jit(lambda noise: reference.sample(sampler, path, truth.field(path), noise, at))
    at = reference.reference_times(50)
    exact = truth.consistency(path)(noise, times(999))
    np.testing.assert_allclose(sample(noise), exact, atol=0.08 if ORDER[sampler] == 1 else 0.06)


def test_ddim_is_the_solver_step_by_step():
    path, truth, z = vp_path(), Gaussian(), latents()
    at = reference.reference_times(5)
    got = reference.sample("ddim", path, truth.field(path), z, at, denoise=False)
    for t, s in zip(at[:-1], at[1:], strict=True):
        z = solver.ddim(path, truth.field(path), z, times(int(t)), times(int(s)))
    np.testing.assert_allclose(got, z, atol=1e-5)


def test_dpmpp_2m_is_the_papers():
    """DPM-Solver++ Alg. 2 written out, with a first-order first and last step."""
    path, truth = vp_path(), Gaussian()
    at = reference.reference_times(6, spacing="linspace")
    with jax.enable_x64(True):
        got = reference.sample("dpmpp_2m", path, truth.field(path), latents(), at, denoise=False)
        alpha, sigma = path.alphas[at], path.sigmas[at]
        lam, z, history = np.log(alpha / sigma), latents(), []
        for i in range(6):
            history.append(truth.field(path)(z, times(int(at[i]))).x0)
            h, guess = lam[i + 1] - lam[i], history[-1]
            if 0 < i < 5:
                r = (lam[i] - lam[i - 1]) / h
                guess = (1 + 1 / (2 * r)) * history[-1] - 1 / (2 * r) * history[-2]
            z = sigma[i + 1] / sigma[i] * z - alpha[i + 1] * np.expm1(-h) * guess
        np.testing.assert_allclose(got, z, atol=1e-10)


@pytest.mark.parametrize("sampler", reference.SAMPLERS)
def test_an_oracle_is_returned_whole(sampler):
    path, z0, eps = vp_path(), latents(), latents(seed=1)
    path = vp_path(zero_terminal_snr=True)
    at = reference.reference_times(4)
    oracle = lambda z, t: Prediction(z0, eps)  # noqa: E731
    clean = reference.sample(sampler, path, oracle, eps, at)
    np.testing.assert_allclose(clean, z0, atol=1e-5)
    table_end = reference.sample(sampler, path, oracle, eps, at, denoise=False)
    np.testing.assert_allclose(table_end, diffuse(path, z0, eps, times(0)), atol=1e-5)


@pytest.mark.parametrize("sampler", reference.SAMPLERS)
@pytest.mark.parametrize("n", [1, 2, 4])
def test_zero_terminal_snr_trajectories_are_finite(sampler, n):
    path = vp_path(zero_terminal_snr=True)
    got = reference.sample(sampler, path, Gaussian().field(path), latents(), reference.reference_times(n))
    assert np.all(np.isfinite(got)) and float(jnp.abs(got).max()) < 10


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: reference.nfe("pndm", 4, True), "unknown sampler 'pndm'; choose one of ddim, ddim_leading"),
        (
            lambda: reference.reference_times(4, spacing="even"),
            "unknown spacing 'even'; choose one of trailing",
        ),
        (lambda: reference.reference_times(0), "allows 1 to 500 steps, got 0"),
        (lambda: reference.reference_times(501), "allows 1 to 500 steps, got 501"),
        (
            lambda: reference.sample(
                "ddim", vp_path(), Gaussian().field(vp_path()), latents(), np.array([999])
            ),
            "at least two times, got 1",
        ),
    ],
)
def test_errors_name_the_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_sampler_brings_its_spacing():
    np.testing.assert_array_equal(reference.sampler_times("ddim", 2), reference.reference_times(2))
    leading = reference.reference_times(2, spacing="leading")
    np.testing.assert_array_equal(reference.sampler_times("ddim_leading", 2), leading)
    with pytest.raises(ValueError, match="unknown sampler"):
        reference.sampler_times("plms", 2)


def test_edm_s_sampler_ends_on_the_data():
    """Heun on Karras' grid carries noise to where the flow of Gaussian data ends, at second order."""
    truth, path, noise, errors = Gaussian(), VE(), latents((64, 2)), []
    exact = truth.consistency(path)(80 * noise, jnp.full(64, 80.0))
    for n in (18, 40):
        levels = reference.edm_times(n, Karras())
        assert len(levels) == n + 1 and levels[-1] == 0 and levels[0] == 80
        got = reference.sample("heun", path, truth.field(path), noise, levels)
        errors.append(float(jnp.abs(got - exact).max()))
    assert errors[1] < 0.02 and errors[0] / errors[1] == pytest.approx((39 / 17) ** 2, rel=0.15)
    with pytest.raises(ValueError, match="at least 2 steps, got 1"):
        reference.edm_times(1, Karras())
