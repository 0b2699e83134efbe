"""Networks of a line or two, and the batches they are fed, for tests of objectives."""

import jax
import jax.numpy as jnp
import numpy as np

from lcm_jax.diffusion.grid import PairSampler
from lcm_jax.objectives.base import Nets
from lcm_jax.sections import build_objective

B, WIDTH = 6, 3


def get(name, **settings):
    """The objective of that name."""
    return build_objective({"name": name, **settings})


class At(PairSampler):
    """Always the same two times."""

    def __init__(self, t, s):
        self.times = t, s

    def __call__(self, key, b, step):
        return tuple(jnp.full((b,), time) for time in self.times)


def batch(shape=(4, 4, 2), std=0.1, b=B, seed=0, dtype=np.float32):
    """Everything any objective reads."""
    rng = np.random.default_rng(seed)
    draw = lambda *s: jnp.asarray(rng.standard_normal(s), dtype)
    return {
        "mean": draw(b, *shape),
        "std": jnp.full((b, *shape), std, dtype),
        "context": draw(b, 2, WIDTH),
        "image": jnp.asarray(rng.integers(0, 256, (b, 8, 8, 3)), jnp.uint8),
        "uncond": {"context": jnp.zeros((2, WIDTH), dtype)},
        "scale": jnp.asarray(0.5, dtype),
    }


def weights(seed=0, dtype=jnp.float32):
    """Four numbers."""
    return jnp.asarray(np.random.default_rng(seed).uniform(0.2, 0.8, 4), dtype)


def network(p, z, t=None, context=None, w_features=None, *, labels=None, dropout_key=None, method=None):
    """Bends z by time, caption or label and guidance; as an autoencoder, doubles or halves the channels."""
    if method == "encode":
        return jnp.tanh(jnp.concatenate([p[0] * z, p[1] * z - 1], axis=-1))
    if method == "decode":
        return p[2] * z + p[3]
    one = lambda v: v.astype(z.dtype).reshape(-1, *[1] * (z.ndim - 1))
    out = p[0] * z + p[1] * one(t / 1000) * jnp.sin(z)
    out = out if context is None else out + p[2] * one(context.mean((1, 2)))
    out = out if labels is None else out + p[2] * one(labels)
    return out if w_features is None else out + p[3] * one(w_features[:, 0])


def nets(student, target=None, teacher=None):
    """The three networks on their own four numbers."""
    bind = lambda p: lambda *a, **kw: network(p, *a, **kw)
    return Nets(bind(student), bind(student if target is None else target), None if teacher is None else bind(teacher))


class Recorder:
    """A network that remembers what it was called with (to be used outside jit)."""

    def __init__(self, p=None):
        self.p, self.calls = weights() if p is None else p, []

    def __call__(self, *args, **kwargs):
        self.calls.append((*args, *(kwargs[k] for k in ("context", "w_features") if k in kwargs)))
        return network(self.p, *args, **kwargs)


KEY = jax.random.key(5)
STEP = jnp.asarray(0)
