"""The consistency function f(z, t) -> z0_hat: a prediction mixed so that f is the identity at the data."""

import abc
import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from lcm_jax.diffusion.path import Path, Prediction, divide, expand, predict
from lcm_jax.typing import Field, Latent, PerSample, Times

Consistency = Callable[[Latent, Times], Latent]


class Boundary(abc.ABC):
    """How much of z and of x0 goes into f."""

    @abc.abstractmethod
    def mix(self, path: Path, t: Times) -> tuple[PerSample, PerSample]:
        """Factors (on z, on x0), each [b]."""


@dataclasses.dataclass(frozen=True)
class LCMBoundary(Boundary):
    """LCM's scalings in table time (LCM eq. 9): f = c_skip z + c_out x0, which is z itself at t = 0."""

    timestep_scaling: float = 10.0
    sigma_data: float = 0.5

    def c_skip(self, t: Times) -> PerSample:
        return self.sigma_data**2 / (self.scaled(t) ** 2 + self.sigma_data**2)

    def c_out(self, t: Times) -> PerSample:
        scaled = self.scaled(t)
        return scaled / jnp.sqrt(scaled**2 + self.sigma_data**2)

    def scaled(self, t: Times) -> PerSample:
        """Times as numbers whose square fits in their type."""
        return float(self.timestep_scaling) * t

    def mix(self, path: Path, t: Times) -> tuple[PerSample, PerSample]:
        return self.c_skip(t), self.c_out(t)


@dataclasses.dataclass(frozen=True)
class EDMBoundary(Boundary):
    """CM's scalings in sigma (CM app. C): f = c_skip x + c_out F(c_in x), which is x itself at sigma_min.

    EDM's denoiser is the same network F read with sigma_min = 0 (EDM Tab. 1), so f is a mix of x and that
    denoiser, and a teacher becomes a student without touching its weights. Off VE, x = z / alpha and
    sigma = sigma_t / alpha_t. Raises ValueError for a negative sigma_min and a sigma_data that is not positive.
    """

    sigma_min: float = 0.002
    sigma_data: float = 0.5

    def __post_init__(self):
        if not self.sigma_min >= 0:
            raise ValueError(f"sigma_min is {self.sigma_min}: give the noise level where f is the identity, 0 or more")
        if not self.sigma_data > 0:
            raise ValueError(f"sigma_data is {self.sigma_data}: give the std of normalised latents, above 0, as 0.5 is")

    def c_skip(self, sigma: PerSample) -> PerSample:
        return self.sigma_data**2 / ((sigma - self.sigma_min) ** 2 + self.sigma_data**2)

    def c_out(self, sigma: PerSample) -> PerSample:
        return (sigma - self.sigma_min) * self.sigma_data * self.c_in(sigma)

    def c_in(self, sigma: PerSample) -> PerSample:
        return 1 / jnp.sqrt(sigma**2 + self.sigma_data**2)

    def mix(self, path: Path, t: Times) -> tuple[PerSample, PerSample]:
        alpha = path.alpha(t)
        sigma = path.sigma(t) / alpha
        denoiser = dataclasses.replace(self, sigma_min=0.0)
        on_x0 = divide(sigma - self.sigma_min, sigma)  # c_out / the denoiser's c_out
        return (self.c_skip(sigma) - on_x0 * denoiser.c_skip(sigma)) / alpha, on_x0


def consistency(path: Path, boundary: Boundary, field: Field) -> Consistency:
    """f: (z, t) -> z0_hat, the clean sample at the end of the ODE trajectory through z_t (LCM eq. 9)."""

    def f(z: Latent, t: Times) -> Latent:
        on_z, on_x0 = boundary.mix(path, t)
        return expand(on_z, z) * z + expand(on_x0, z) * field(z, t).x0

    return f


def edm_field(
    path: Path,
    network: Callable[[Latent, PerSample], Latent],
    sigma_data: float = 0.5,
    time_scale: float = 250.0,
) -> Field:
    """The denoiser of a raw network F(c_in x, time_scale ln sigma) (EDM eq. 7; its scale .25, CM 250)."""
    scalings = EDMBoundary(sigma_min=0.0, sigma_data=sigma_data)

    def field(z: Latent, t: Times) -> Prediction:
        alpha = path.alpha(t)
        sigma = path.sigma(t) / alpha
        x = z / expand(alpha, z)
        log_sigma = jnp.log(jnp.maximum(sigma, jnp.finfo(sigma.dtype).tiny))
        raw = network(expand(scalings.c_in(sigma), z) * x, time_scale * log_sigma)
        x0 = expand(scalings.c_skip(sigma), z) * x + expand(scalings.c_out(sigma), z) * raw
        return predict(path, "x0", x0, z, t)

    return field
