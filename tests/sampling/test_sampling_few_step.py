"""Multistep consistency sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import Gaussian, latents

from lcm_jax.diffusion.boundary import EDMBoundary, LCMBoundary, consistency
from lcm_jax.diffusion.grid import Karras
from lcm_jax.diffusion.path import VE, vp_path
from lcm_jax.sampling import few_step
from lcm_jax.sampling.schedule import LENGTH, filled

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    "n,times",
    [
        (1, [999]),
        (2, [999, 499]),
        (4, [999, 759, 499, 259]),
        (8, [999, 879, 759, 639, 499, 379, 259, 139]),
        (50, list(range(999, 0, -20))),
    ],
)
def test_lcm_times(n, times):
    np.testing.assert_array_equal(few_step.lcm_times(n), times)


def test_lcm_times_of_another_grid():
    np.testing.assert_array_equal(few_step.lcm_times(2, T=100, original_steps=10), [99, 49])


@pytest.mark.parametrize("n", [0, -1, 51])
def test_lcm_times_refuse_steps_off_the_grid(n):
    with pytest.raises(ValueError, match=f"1 to 50 steps, got {n}"):
        few_step.lcm_times(n)


def test_lcm_times_refuse_a_grid_finer_than_the_table():
    with pytest.raises(ValueError, match="1 .. T = 10, got 50"):
        few_step.lcm_times(1, T=10)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_each_call_sees_the_last_answer_at_its_noise_level(n):
    """Against a plain loop over the same draws; f is traced once and called n times."""
    path, shape, times, traces = vp_path(), (3, 2, 2, 4), few_step.lcm_times(n), []

    def f(z, t):
        traces.append(t.shape)
        return 0.5 * z + t[:, None, None, None] / 1000

    noise = jax.random.normal(KEY, (n, *shape))
    got = jax.jit(lambda noise: few_step.sample(f, path, noise.__getitem__, times))(noise)
    assert traces == [(3,)]
    x = f(noise[0], jnp.full(3, times[0]))
    for t, new in zip(times[1:], noise[1:], strict=True):
        x = f(path.alphas[t] * x + path.sigmas[t] * new, jnp.full(3, t))
    np.testing.assert_allclose(got, x, atol=1e-5)


def test_a_clean_start_is_noised_to_the_first_time():
    start, path, truth = latents(), vp_path(), Gaussian()
    noise, times = jax.random.normal(KEY, (1, *start.shape)), few_step.lcm_times(1, strength=0.5)
    f = truth.consistency(path)
    got = few_step.sample(f, path, noise.__getitem__, times, start=start)
    expected = f(path.alphas[499] * start + path.sigmas[499] * noise[0], jnp.full(4, 499))
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("n,strength,times", [(4, 0.5, [499, 379, 259, 139]), (1, 0.3, [299]), (2, 1.0, [999, 499])])
def test_lcm_times_of_an_image_to_be_changed(n, strength, times):
    np.testing.assert_array_equal(few_step.lcm_times(n, strength=strength), times)


@pytest.mark.parametrize(
    "n,strength,message",
    [(4, 0.0, r"\(0, 1\]"), (4, 1.5, r"\(0, 1\]"), (6, 0.1, "1 to 5 steps at strength 0.1")],
)
def test_impossible_strengths_are_errors(n, strength, message):
    with pytest.raises(ValueError, match=message):
        few_step.lcm_times(n, strength=strength)


def test_one_compilation_serves_any_number_of_steps():
    path, keys = vp_path(), jax.random.split(KEY, 2)
    slope = lambda z, t: 0.5 * z + t[:, None, None, None] / 1000
    sample = jax.jit(lambda times, count: few_step.sample(slope, path, few_step.fresh(keys, (3, 3, 1)), times, count))
    for n in (1, 3, 50):
        times = few_step.lcm_times(n)
        exact = few_step.sample(slope, path, few_step.fresh(keys, (3, 3, 1)), times)
        np.testing.assert_allclose(sample(*filled(times)), exact, atol=1e-5)
    assert sample._cache_size() == 1
    assert len(filled(np.arange(LENGTH + 1)).times) == LENGTH + 1


def test_a_samples_noise_is_its_own_keys():
    keys = jax.random.split(KEY, 3)
    noise, other = (few_step.fresh(some, (4, 4, 1)) for some in (keys, keys[1:]))
    drawn = np.stack([noise(i) for i in range(2)])
    assert drawn.shape == (2, 3, 4, 4, 1)
    np.testing.assert_array_equal(drawn[:, 1:], [other(i) for i in range(2)])
    assert len(np.unique(drawn)) == drawn.size


@pytest.mark.parametrize("n", [1, 2, 4, 8])
@pytest.mark.parametrize("on", ["vp", "ve"])
def test_exact_consistency_samples_have_the_law_of_the_data(n, on):
    truth, shape = Gaussian(), (2000, 5, 5, 1)
    if on == "vp":
        path, times, sigma_min = vp_path(), few_step.lcm_times(n), 0.0
    else:
        path, times, sigma_min = VE(), Karras().grid(n + 1)[:n], 0.0
    noise = jax.random.normal(jax.random.key(5), (n, *shape))
    x = few_step.sample(truth.consistency(path), path, noise.__getitem__, times, sigma_min=sigma_min)
    terminal = 0.07 * truth.mean / truth.std if on == "vp" and n == 1 else 0  # alpha_999 is not quite 0
    np.testing.assert_allclose(x.mean(), truth.mean, atol=0.01 + terminal * truth.std)
    np.testing.assert_allclose(x.std(), truth.std, rtol=0.01)


def test_ve_steps_land_at_sigma_min():
    """CM Alg. 1: one step f(80 n, 80), a second from x + sqrt(.53^2 - .002^2) n."""
    path, shape, times = VE(), (2, 2, 2, 1), jnp.array([80.0, 0.53])
    f = consistency(path, EDMBoundary(), Gaussian().field(path))
    first, second = noise = jax.random.normal(KEY, (2, *shape))
    x = f(80 * first, jnp.full(2, 80.0))
    expected = f(x + np.sqrt(0.53**2 - 0.002**2) * second, jnp.full(2, 0.53))
    got = few_step.sample(f, path, noise.__getitem__, times, sigma_min=0.002)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_zero_terminal_snr_samples_are_finite():
    path = vp_path(zero_terminal_snr=True)
    f = consistency(path, LCMBoundary(), Gaussian().field(path))
    x = few_step.sample(f, path, few_step.fresh(jax.random.split(KEY, 2), (2, 2, 1)), few_step.lcm_times(4))
    assert np.all(np.isfinite(x))


def test_no_times_is_an_error():
    with pytest.raises(ValueError, match="at least one time"):
        few_step.sample(lambda z, t: z, vp_path(), lambda i: jnp.zeros((1, 2)), np.array([], int))
