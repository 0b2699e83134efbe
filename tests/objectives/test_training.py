"""Short training runs on Gaussian data, where what must be learned is known in closed form."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import get
from gaussian import Gaussian

from lcm_jax.diffusion.boundary import EDMBoundary, LCMBoundary, consistency, edm_field
from lcm_jax.diffusion.field import network_field
from lcm_jax.diffusion.path import VE, output_of, vp_path
from lcm_jax.train.optimizer import learning_rate, optimizer
from lcm_jax.train.step import init_state, train_step

PATH, TRUTH, B, D = vp_path(), Gaussian(0.5, 0.6), 256, 2
BATCH = {
    "mean": jnp.full((B, D), TRUTH.mean),
    "std": jnp.full((B, D), TRUTH.std),
    "context": jnp.zeros((B, 1, 1)),
}
CONSTANTS = {"scale": jnp.ones(()), "uncond": {"context": jnp.zeros((1, 1))}}


def init(key):
    a, b = jax.random.split(key)
    return {"hidden": jax.random.normal(a, (9, 32)) / 3, "out": 0.1 * jax.random.normal(b, (32, 2))}


def mlp(params, z, t, context=None, w_features=None):
    """gain(t) z + shift(t), both from an MLP of cosines of t."""
    x = jnp.cos(jnp.pi * (t[:, None] / 1000) * jnp.arange(9.0)[None])
    gain, shift = jnp.split(jnp.tanh(x @ params["hidden"]) @ params["out"], 2, axis=-1)
    return gain * z + shift


def teacher(params, z, t, context):
    x0, eps = TRUTH.field(PATH)(z, t)
    return output_of(PATH, "v", x0, eps, t)


def preconditioned(params, x, noise, labels=None, dropout_key=None):
    """F: gain and shift from a net of ln sigma, with no unit dropped."""
    h = jnp.tanh((noise[:, None] / 3 - jnp.linspace(-2, 2, 9)[None]) * 2)
    gain, shift = jnp.split(jnp.tanh(h @ params["hidden"]) @ params["out"], 2, axis=-1)
    return gain * x + shift


def preconditioned_teacher(params, x, noise, dropout_key=None):
    """The F whose denoiser is the posterior mean."""
    sigma, scalings = jnp.exp(noise), EDMBoundary(sigma_min=0.0)
    on_x, on_f = scalings.c_skip(sigma)[:, None], scalings.c_out(sigma)[:, None]
    z = x / scalings.c_in(sigma)[:, None]
    return (TRUTH.field(VE())(z, sigma).x0 - on_x * z) / on_f


def train(name, updates, rate, nets=(mlp, teacher), **settings):
    objective = get(name, **settings)
    tx = optimizer("adamw", learning_rate(rate, updates, "cosine"))
    step = train_step(objective, *nets, tx, ema_decay=0.99)
    state = init_state(init(jax.random.key(0)), tx, objective)
    frozen = {"teacher": {}, "batch": CONSTANTS}
    many = jax.jit(lambda s: jax.lax.scan(lambda s, _: step(s, frozen, BATCH, jax.random.key(1)), s, length=updates))
    return state.params, many(state)[0].params


def probe(t):
    """Points of the marginal at time t."""
    z0, eps = (jnp.asarray(np.random.default_rng(i).standard_normal((B, D)), jnp.float32) for i in (1, 2))
    t = jnp.full((B,), t)
    alpha, sigma = PATH.alpha(t)[:, None], PATH.sigma(t)[:, None]
    return alpha * (TRUTH.mean + TRUTH.std * z0) + sigma * eps, t


def consistency_of(params):
    return consistency(PATH, LCMBoundary(), network_field(PATH, "v", partial(mlp, params)))


def rms(x):
    return float(jnp.sqrt(jnp.square(x).mean()))


def test_diffusion_finds_the_posterior_mean():
    before, after = train("diffusion", 600, 1e-2, path=PATH, kind="v")
    for t in (100, 500, 900):
        z, times = probe(t)
        exact = teacher(None, z, times, None)
        was, now = (rms(mlp(p, z, times, None) - exact) for p in (before, after))
        assert now < 0.05 and was > 4 * now, (t, was, now)


@pytest.mark.parametrize("name", ["lcd", "lcf"])
def test_consistency_finds_the_end_of_the_flow(name):
    """At no guidance f must carry every point to the clean end; the steps of 20 leave a bias of 1e-2."""
    settings = dict(path=PATH, kind="v", distance_name="l2", w_min=0.0, w_max=0.0, mu=0.9)
    before, after = train(name, 1500, 1e-2, **settings)
    for t in (200, 600, 999):
        z, times = probe(t)
        exact = TRUTH.flow(PATH, z, times, jnp.zeros_like(times))
        was, now = (rms(consistency_of(p)(z, times) - exact) for p in (before, after))
        assert now < 0.06 and was > 4 * now, (t, was, now)


def probe_ve(sigma):
    z0, eps = (jnp.asarray(np.random.default_rng(i).standard_normal((B, D)), jnp.float32) for i in (1, 2))
    return TRUTH.mean + TRUTH.std * z0 + sigma * eps, jnp.full((B,), sigma)


def edm_of(params):
    return edm_field(VE(), partial(preconditioned, params), time_scale=1.0)


def test_edm_finds_the_posterior_mean():
    before, after = train("edm", 1000, 1e-2, (preconditioned, None), time_scale=1.0)
    for sigma in (0.1, 0.5, 2.0):
        z, times = probe_ve(sigma)
        exact = TRUTH.field(VE())(z, times).x0
        was, now = (rms(edm_of(p)(z, times).x0 - exact) for p in (before, after))
        assert now < 0.03 and was > 4 * now, (sigma, was, now)


NETS = (preconditioned, preconditioned_teacher)
SIGMA_MIN = 0.002


def distances(params, sigma, exact):
    """How far f is from `exact`(z, t) at a noise level."""
    z, times = probe_ve(sigma)
    f = consistency(VE(), EDMBoundary(SIGMA_MIN), edm_of(params))
    return rms(f(z, times) - exact(z, times))


def flow(z, t):
    """The end of the probability flow, where noise and data are independent."""
    return TRUTH.flow(VE(), z, t, jnp.full_like(t, SIGMA_MIN))


def straight(z, t):
    """The end of the lines that optimal transport draws: noise is the standard score of its data."""
    return TRUTH.mean + (z - TRUTH.mean) * (TRUTH.std + SIGMA_MIN) / (TRUTH.std + t[:, None])


@pytest.mark.parametrize(
    "name, updates, rate, settings, limit",
    [
        ("cd", 1500, 1e-2, {}, 0.06),
        ("ct", 3000, 1e-2, {"steps": 3000, "s1": 40, "mu0": 0.5}, 0.08),
        ("ict", 1500, 1e-2, {"steps": 1500, "s1": 160, "P_mean": 0.0}, 0.04),
        (
            "ict",
            1500,
            1e-2,
            {"steps": 1500, "s1": 160, "P_mean": 1.0, "curriculum": "geometric", "distance_name": "l2"},
            0.06,
        ),
        ("slct", 3000, 3e-3, {"steps": 3000, "s1": 160, "P_mean": 0.0, "transport": False}, 0.06),
        ("ect", 1500, 1e-2, {"stage_steps": 200}, 0.06),
    ],
)
def test_consistency_on_noise_levels_finds_the_end_of_the_flow(name, updates, rate, settings, limit):
    """f must carry z to the clean end; the grid leaves a bias, CT's of 40 uniform intervals most."""
    before, after = train(name, updates, rate, NETS, time_scale=1.0, **settings)
    for sigma in (1.0, 5.0, 80.0):
        was, now = (distances(p, sigma, flow) for p in (before, after))
        assert now < limit and was > 4 * now, (sigma, was, now)


def test_transport_straightens_the_flow():
    """Coupled in runs of 64 points of a plane, f is that of the optimal plan, not of independent noise."""
    settings = {"steps": 1000, "s1": 160, "P_mean": 0.0, "transport_parts": 4}
    _, after = train("slct", 1000, 3e-3, NETS, time_scale=1.0, **settings)
    for sigma in (0.2, 1.0, 5.0):
        near, far = (distances(after, sigma, exact) for exact in (straight, flow))
        assert near < 0.03 and far > 4 * near, (sigma, near, far)
