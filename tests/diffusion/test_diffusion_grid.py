"""Pair samplers, EDM's grid and the curricula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcm_jax.diffusion.curriculum import Constant, Doubling, Geometric, SquareRoot, ct_mu
from lcm_jax.diffusion.grid import (
    FixedGrid,
    Karras,
    KarrasNeighbours,
    LogNormalGap,
    LogNormalNeighbours,
    UniformSkip,
)
from lcm_jax.diffusion.weight import inverse_step

KEY = jax.random.key(0)
GRID = [
    80,
    45.31373,
    24.40834,
    12.38158,
    5.838948,
    2.515219,
    0.9654169,
    0.3182833,
    0.0850872,
    0.01672075,
    0.002,
]
LAW = [0.00398, 0.008944, 0.01958, 0.04108, 0.080605, 0.142446, 0.213494, 0.245501, 0.181737, 0.062633]
WEIGHT = [0.02883, 0.047835, 0.083148, 0.152844, 0.300867, 0.645244, 1.545276, 4.288237, 14.62706, 67.93131]


def test_any_time_with_a_skip():
    t, s = UniformSkip(T=10, skip=3)(KEY, 5000, 0)
    assert set(np.asarray(t).tolist()) == set(range(3, 10)) and t.dtype == jnp.int32
    np.testing.assert_array_equal(t - s, 3)
    np.testing.assert_allclose(np.bincount(t)[3:] / 5000, 1 / 7, atol=0.02)


def test_fixed_grid():
    pair = FixedGrid()
    np.testing.assert_array_equal(pair.times, np.arange(19, 1000, 20))
    t, s = pair(KEY, 5000, 0)
    assert set(np.asarray(t).tolist()) == set(pair.times.tolist())
    np.testing.assert_array_equal(s, np.maximum(t - 20, 0))
    assert s.min() == 0 and np.all(s < t)


def test_karras_grid_golden_values():
    np.testing.assert_allclose(Karras().grid(10), GRID, rtol=2e-6)
    levels = Karras().grid(640)
    for index, sigma in {300: 3.309, 360: 1.404, 400: 0.743, 420: 0.5286, 440: 0.3693, 480: 0.1698}.items():
        np.testing.assert_allclose(levels[index], sigma, rtol=1e-3)
    assert levels[0] == 80 and levels[-1] == np.float32(0.002)


def test_karras_grid_with_traced_intervals():
    traces = []

    @jax.jit
    def grid(N):
        traces.append(1)
        return Karras().grid(N, maximum=20)

    np.testing.assert_allclose(grid(10)[:11], GRID, rtol=2e-6)
    np.testing.assert_array_equal(grid(10)[11:], np.float32(0.002))
    np.testing.assert_allclose(grid(20), Karras().grid(20), rtol=1e-6)
    assert len(traces) == 1


@pytest.mark.parametrize("N", [1, 10, 640])
def test_karras_index_finds_the_interval(N):
    karras = Karras()
    levels = np.asarray(karras.grid(N), np.float64)
    middles = jnp.asarray(np.sqrt(levels[1:] * levels[:-1]))
    np.testing.assert_array_equal(karras.index(middles, N), np.arange(N))
    np.testing.assert_array_equal(
        karras.index(jnp.array([100.0, 80.0, 0.002, 1e-4]), N), [0, 0, N - 1, N - 1]
    )


def test_neighbours_are_uniform_and_follow_the_curriculum():
    pair = KarrasNeighbours(Doubling(s0=2, s1=4, total=10))
    for step, N in ((0, 2), (9, 4)):
        t, s = pair(KEY, 4000, jnp.asarray(step))
        levels = np.asarray(pair.karras.grid(N))
        i = np.searchsorted(-levels, -np.asarray(t))
        np.testing.assert_allclose(t, levels[i], rtol=1e-5)
        np.testing.assert_allclose(s, levels[i + 1], rtol=1e-5)
        np.testing.assert_allclose(np.bincount(i, minlength=N) / 4000, 1 / N, atol=0.03)


def law(pair, N):
    cdf = np.asarray(pair.cdf(pair.karras.grid(N)), np.float64)
    return -np.diff(cdf) / (cdf[0] - cdf[-1])


@pytest.mark.parametrize("N,mean", [(10, 8.4203), (20, 17.4529), (640, 564.563)])
def test_log_normal_law_golden_values(N, mean):
    with jax.enable_x64(True):
        pair = LogNormalNeighbours(Constant(N))
        levels = pair.karras.grid(N)
        p, weights = law(pair, N), inverse_step(levels[:-1], levels[1:])
        np.testing.assert_allclose(p @ weights, mean, rtol=1e-5)
        if N == 10:
            np.testing.assert_allclose(p, LAW, atol=1e-6)
            np.testing.assert_allclose(weights, WEIGHT, rtol=1e-4)


@pytest.mark.parametrize("N", [10, 40])
def test_log_normal_draws_follow_the_law(N):
    pair, b = LogNormalNeighbours(Doubling(s0=10, s1=40, total=3)), 100_000
    t, s = jax.jit(pair, static_argnums=1)(KEY, b, {10: 0, 40: 2}[N])
    levels = np.asarray(pair.karras.grid(N))
    i = np.abs(levels[None] - np.asarray(t)[:, None]).argmin(1)
    np.testing.assert_allclose(s, levels[i + 1], rtol=1e-5)
    p = law(pair, N)
    share = np.bincount(i, minlength=N) / b
    assert np.all(np.abs(share - p) < 5 * np.sqrt(p / b))
    if N == 10:
        np.testing.assert_allclose(share, LAW, atol=0.006)


def test_shrinking_gap():
    """ECT: at the first stage with q = 2 much of the gap reaches down to the data."""
    pair = LogNormalGap(q=2.0, stage_steps=100)
    t, s = pair(KEY, 50_000, 0)
    np.testing.assert_allclose([jnp.log(t).mean(), jnp.log(t).std()], [-1.1, 2.0], rtol=0.02)
    np.testing.assert_array_equal(s[t < 1], 0)  # n(t) > 2 there
    t8, s8 = pair(KEY, 50_000, jnp.asarray(799))
    np.testing.assert_array_equal(t8, t)
    np.testing.assert_allclose(1 - s8 / t8, (1 + 8 / (1 + jnp.exp(t8))) / 2**8, rtol=1e-3, atol=1e-6)
    assert np.all(s8 < t8)


@pytest.mark.parametrize("q", [2.0, 3.0, 256.0, 1e6])
def test_the_gap_never_closes(q):
    """However long a run goes on, s stays below t and their distance is what the law says to three digits."""
    t = jnp.exp(jnp.linspace(-10.0, 5.0, 4001))
    for stage in (13, 30, 200):
        gap = t - LogNormalGap(q=q, stage_steps=10).earlier(t, jnp.asarray(10 * stage))
        expected = np.asarray(t, np.float64) * (1 + 8 / (1 + np.exp(np.asarray(t, np.float64)))) / 2**14
        np.testing.assert_allclose(gap, expected, rtol=2e-3)


def test_a_whole_number_closes_the_gap_as_its_float_does():
    t, wide = jnp.exp(jnp.linspace(-10.0, 5.0, 101)), LogNormalGap(q=256.0, stage_steps=10)
    whole = LogNormalGap(q=256.0, stage_steps=10)
    object.__setattr__(whole, "q", 256)  # as a config file may have it; here annotations are checked
    for stage in (0, 3, 30):
        step = jnp.asarray(10 * stage)
        np.testing.assert_array_equal(whole.earlier(t, step), wide.earlier(t, step))


def test_ct_curriculum():
    N = SquareRoot(s0=2, s1=150, total=1000)
    assert N(0) + 1 == 2 and N(1000) + 1 == 151 and N(5000) == 150  # points are intervals + 1
    expected = [np.ceil(np.sqrt(k / 1000 * (151**2 - 4) + 4) - 1) for k in (1, 333, 999)]
    np.testing.assert_array_equal([N(k) for k in (1, 333, 999)], expected)
    np.testing.assert_allclose(ct_mu(N(1000), mu0=0.9, s0=2), np.exp(2 * np.log(0.9) / 150), rtol=1e-6)
    np.testing.assert_allclose(ct_mu(2, mu0=0.9, s0=2), 0.9, rtol=1e-6)


def test_doubling_curriculum():
    N = Doubling(s0=10, s1=640, total=294_000)
    stages = [int(N(42_000 * i + offset)) for i in range(7) for offset in (0, 41_999)]
    assert stages == [n for n in (10, 20, 40, 80, 160, 320, 640) for _ in range(2)]
    assert N(10**7) == 640 == N.maximum
    assert [int(Doubling(10, 1280, 800)(100 * i)) for i in range(8)] == [10 * 2**i for i in range(8)]
    N = Doubling(s0=10, s1=1000, total=7643)  # log2 100 = 6.644: stages of 999 steps, the last of 650
    assert [int(N(k)) for k in (998, 999, 6992, 6993, 7642)] == [10, 20, 640, 1000, 1000]
    assert int(Doubling(10, 19, 100)(99)) == 10  # floor(s1 / s0) = 1: one stage, as the formula has it


def test_geometric_curriculum_is_doubling_made_smooth():
    N = Geometric(s0=10, s1=640, total=600)
    assert [int(N(k)) for k in (0, 100, 300, 600, 900)] == [10, 20, 80, 640, 640]
    assert np.all(np.diff([int(N(k)) for k in range(0, 601, 20)]) > 0)


@pytest.mark.parametrize(
    "N", [Constant(18), SquareRoot(2, 150, 100), Doubling(10, 640, 100), Geometric(3, 9, 100)]
)
def test_curricula_are_traced_and_stay_within_bounds(N):
    steps = jnp.arange(0, 200, 7)
    counts = jax.jit(jax.vmap(N))(steps)
    assert jnp.issubdtype(counts.dtype, jnp.integer)
    assert counts.min() >= 1 and counts.max() == N.maximum
    assert np.all(np.diff(counts) >= 0)


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: UniformSkip(1000, 0), "skip must lie in 1 .. T-1 = 999, got 0"),
        (lambda: UniformSkip(1000, 1000), "skip must lie in"),
        (lambda: FixedGrid(100, 101), "intervals must lie in 1 .. T = 100, got 101"),
        (lambda: FixedGrid(skip=0), "skip must be at least 1"),
        (lambda: Constant(0), "at least 1 interval"),
        (lambda: Doubling(10, 5, 100), "1 <= s0 <= s1, got s0=10, s1=5"),
        (lambda: Geometric(1, 5, 0), "total >= 1 training steps, got 0"),
    ],
)
def test_errors_name_the_bounds(call, message):
    with pytest.raises(ValueError, match=message):
        call()
