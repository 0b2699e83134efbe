"""Short training runs on Gaussian data, where what must be learned is known in closed form."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import Gaussian

from lcm_jax.diffusion.boundary import LCMBoundary, consistency
from lcm_jax.diffusion.field import network_field
from lcm_jax.diffusion.path import output_of, vp_path
from lcm_jax.objectives.base import get
from lcm_jax.train.optimizer import learning_rate, optimizer
from lcm_jax.train.step import init_state, train_step

PATH, TRUTH, B, D = vp_path(), Gaussian(0.5, 0.6), 256, 2
BATCH = {
    "mean": jnp.full((B, D), TRUTH.mean),
    "std": jnp.full((B, D), TRUTH.std),
    "context": jnp.zeros((B, 1, 1)),
}
CONSTANTS = {"scale": jnp.ones(()), "uncond": jnp.zeros((1, 1))}


def init(key):
    a, b = jax.random.split(key)
    return {"hidden": jax.random.normal(a, (9, 32)) / 3, "out": 0.1 * jax.random.normal(b, (32, 2))}


def mlp(params, z, t, context, w_features=None):
    """gain(t) z + shift(t), both from an MLP of cosines of t."""
    x = jnp.cos(jnp.pi * (t[:, None] / 1000) * jnp.arange(9.0)[None])
    gain, shift = jnp.split(jnp.tanh(x @ params["hidden"]) @ params["out"], 2, axis=-1)
    return gain * z + shift


def teacher(params, z, t, context):
    x0, eps = TRUTH.field(PATH)(z, t)
    return output_of(PATH, "v", x0, eps, t)


def train(name, steps, rate, **settings):
    objective = get(name, path=PATH, kind="v", **settings)
    tx = optimizer("adamw", learning_rate(rate, steps, "cosine"))
    step = train_step(objective, mlp, teacher, tx, ema_decay=0.99)
    state = init_state(init(jax.random.key(0)), tx, objective)
    frozen = {"teacher": {}, "batch": CONSTANTS}
    many = jax.jit(lambda s: jax.lax.scan(lambda s, _: step(s, frozen, BATCH, jax.random.key(1)), s, length=steps))
    return state.params, many(state)[0].params


def probe(t):
    """Points of the marginal at time t."""
    z0, eps = (jnp.asarray(np.random.default_rng(i).standard_normal((B, D)), jnp.float32) for i in (1, 2))
    t = jnp.full((B,), t)
    alpha, sigma = PATH.alpha(t)[:, None], PATH.sigma(t)[:, None]
    return alpha * (TRUTH.mean + TRUTH.std * z0) + sigma * eps, t


def consistency_of(params):
    return consistency(PATH, LCMBoundary(), network_field(PATH, "v", partial(mlp, params), None, None))


def rms(x):
    return float(jnp.sqrt(jnp.square(x).mean()))


def test_diffusion_finds_the_posterior_mean():
    before, after = train("diffusion", 600, 1e-2)
    for t in (100, 500, 900):
        z, times = probe(t)
        exact = teacher(None, z, times, None)
        was, now = (rms(mlp(p, z, times, None) - exact) for p in (before, after))
        assert now < 0.05 and was > 4 * now, (t, was, now)


@pytest.mark.parametrize("name", ["lcd", "lcf"])
def test_consistency_finds_the_end_of_the_flow(name):
    """At no guidance f must carry every point to the clean end; the steps of 20 leave a bias of 1e-2."""
    settings = dict(distance_name="l2", w_min=0.0, w_max=0.0, mu=0.9)
    before, after = train(name, 1500, 1e-2, **settings)
    for t in (200, 600, 999):
        z, times = probe(t)
        exact = TRUTH.flow(PATH, z, times, jnp.zeros_like(times))
        was, now = (rms(consistency_of(p)(z, times) - exact) for p in (before, after))
        assert now < 0.06 and was > 4 * now, (t, was, now)
