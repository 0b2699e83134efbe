"""Data whose diffusion is known in closed form: z0 ~ N(mean, std^2) in every coordinate.

On a path z_t = alpha z0 + sigma eps the marginal is N(alpha mean, v^2), v^2 = alpha^2 std^2 + sigma^2, and
the probability flow carries standard scores: (z_t - alpha_t mean) / v_t is constant along it.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from lcm_jax.diffusion.path import Prediction, expand


@dataclass(frozen=True)
class Gaussian:
    mean: float = 0.3
    std: float = 0.7

    def spread(self, path, t, like):
        alpha, sigma = expand(path.alpha(t), like), expand(path.sigma(t), like)
        return alpha, sigma, jnp.sqrt(alpha**2 * self.std**2 + sigma**2)

    def field(self, path):
        """Posterior means of x0 and eps at z_t."""

        def field(z, t):
            alpha, sigma, v = self.spread(path, t, z)
            score = (z - alpha * self.mean) / v**2
            return Prediction(x0=self.mean + alpha * self.std**2 * score, eps=sigma * score)

        return field

    def flow(self, path, z, t, s):
        """Where the probability flow carries z_t at time s."""
        alpha_t, _, v_t = self.spread(path, t, z)
        alpha_s, _, v_s = self.spread(path, s, z)
        return alpha_s * self.mean + v_s * (z - alpha_t * self.mean) / v_t

    def consistency(self, path):
        """Where it carries z_t at the clean end."""

        def f(z, t):
            alpha, _, v = self.spread(path, t, z)
            return self.mean + self.std * (z - alpha * self.mean) / v

        return f


def latents(shape=(4, 2, 2, 3), seed=0, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).standard_normal(shape))


def times(*values, b=4):
    """The values, repeated to a batch of b if there is one."""
    return jnp.asarray(values * b if len(values) == 1 else values)
