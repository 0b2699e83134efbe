"""Which two neighbouring times a training sample compares: pair(key, b, step) -> (t, s), s < t, both [b]."""

import abc
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lcm_jax.diffusion.curriculum import Constant, Curriculum
from lcm_jax.typing import PerSample, Times

Step = int | Int[Array, ""]
Pair = tuple[Times, Times]
FINEST = 2**14  # of a gap: t - s keeps three digits in float32, where 2^24 would leave none


class PairSampler(abc.ABC):
    """The law of (t, s)."""

    @abc.abstractmethod
    def __call__(self, key: jax.Array, b: int, step: Step) -> Pair:
        """Times of b samples at a training step."""


@dataclasses.dataclass(frozen=True)
class UniformSkip(PairSampler):
    """Any t of skip .. T-1 and s = t - skip (LCM Alg. 1)."""

    T: int = 1000
    skip: int = 20

    def __post_init__(self):
        if not 1 <= self.skip < self.T:
            raise ValueError(f"skip must lie in 1 .. T-1 = {self.T - 1}, got {self.skip}")

    def __call__(self, key: jax.Array, b: int, step: Step) -> Pair:
        t = jax.random.randint(key, (b,), self.skip, self.T)
        return t, t - self.skip


@dataclasses.dataclass(frozen=True)
class FixedGrid(PairSampler):
    """t on the grid i T / intervals - 1, s = max(t - skip, 0) (LCM code, diffusers: t = 19, 39 .. 999)."""

    T: int = 1000
    intervals: int = 50
    skip: int = 20

    def __post_init__(self):
        if not 1 <= self.intervals <= self.T:
            raise ValueError(f"intervals must lie in 1 .. T = {self.T}, got {self.intervals}")
        if self.skip < 1:
            raise ValueError(f"skip must be at least 1, got {self.skip}")

    @property
    def times(self) -> np.ndarray:
        """The grid, rising."""
        return np.arange(1, self.intervals + 1) * (self.T // self.intervals) - 1

    def __call__(self, key: jax.Array, b: int, step: Step) -> Pair:
        t = jax.random.choice(key, jnp.asarray(self.times), (b,))
        return t, jnp.maximum(t - self.skip, 0)


@dataclasses.dataclass(frozen=True)
class Karras:
    """EDM's grid (EDM eq. 5), falling from sigma_max at index 0 to sigma_min at index N; N may be traced.

    Raises ValueError for noise levels that do not rise from above 0, and a rho that is not positive.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self):
        if not self.sigma_min > 0:
            raise ValueError(f"sigma_min is {self.sigma_min}: give the grid's lowest noise level, above 0, as 0.002 is")
        if not self.sigma_max > self.sigma_min:
            raise ValueError(f"sigma_max is {self.sigma_max}: give more than sigma_min, which is {self.sigma_min}")
        if not self.rho > 0:
            raise ValueError(f"rho is {self.rho}: give a positive number, as 7 is")

    def sigma(self, i: Int[Array, "*n"], N: Step) -> Float[Array, "*n"]:
        """Noise level at index i of N intervals; the ends are exact, beyond them they are held."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        inside = (high + i / N * (low - high)) ** self.rho
        return jnp.where(i <= 0, self.sigma_max, jnp.where(i >= N, self.sigma_min, inside))

    def index(self, sigma: Float[Array, "*n"], N: Step) -> Int[Array, "*n"]:
        """Index i < N of the interval (sigma_{i+1}, sigma_i] that holds sigma."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        i = jnp.floor((high - sigma ** (1 / self.rho)) / (high - low) * N)
        return jnp.clip(i, 0, N - 1).astype(int)

    def grid(self, N: Step, maximum: int | None = None) -> Float[Array, " n"]:
        """All N + 1 levels; a traced N needs the `maximum` it can reach, the rest then being sigma_min."""
        return self.sigma(jnp.arange((N if maximum is None else maximum) + 1), N)


@dataclasses.dataclass(frozen=True)
class KarrasNeighbours(PairSampler):
    """Neighbours on EDM's grid, every interval alike (CM Alg. 2 and 3)."""

    intervals: Curriculum = Constant(40)
    karras: Karras = Karras()

    def __call__(self, key: jax.Array, b: int, step: Step) -> Pair:
        N = self.intervals(step)
        i = jax.random.randint(key, (b,), 0, N)
        return self.karras.sigma(i, N), self.karras.sigma(i + 1, N)


@dataclasses.dataclass(frozen=True)
class LogNormalNeighbours(PairSampler):
    """Neighbours on EDM's grid, as likely as their share of a log-normal law (iCT sec. 3.5).

    p_i ~ erf((ln sigma_i - P_mean) / (sqrt2 P_std)) - erf((ln sigma_{i+1} - P_mean) / (sqrt2 P_std)): as
    drawing sigma from that law cut to the grid and taking its interval, so no table depends on N.
    """

    intervals: Curriculum
    P_mean: float = -1.1
    P_std: float = 2.0
    karras: Karras = Karras()

    def __post_init__(self):
        check_spread(self.P_std)

    def cdf(self, sigma: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """erf((ln sigma - P_mean) / (sqrt2 P_std)), in [-1, 1]."""
        return jax.lax.erf((jnp.log(sigma) - self.P_mean) / (2**0.5 * self.P_std))

    def __call__(self, key: jax.Array, b: int, step: Step) -> Pair:
        N = self.intervals(step)
        low, high = self.cdf(jnp.array([self.karras.sigma_min, self.karras.sigma_max]))
        u = jax.random.uniform(key, (b,), minval=low, maxval=high)
        i = self.karras.index(jnp.exp(self.P_mean + 2**0.5 * self.P_std * jax.lax.erf_inv(u)), N)
        return self.karras.sigma(i, N), self.karras.sigma(i + 1, N)


@dataclasses.dataclass(frozen=True)
class LogNormalGap(PairSampler):
    """Continuous t, log-normal, and a gap that shrinks by stages: s = max(0, t - t n(t) / q^(stage+1)) (ECT).

    n(t) = 1 + 8 sigmoid(-t); a stage lasts `stage_steps` training steps. q^(stage+1) grows up to FINEST.
    """

    q: float = 2.0
    stage_steps: int = 25_000
    P_mean: float = -1.1
    P_std: float = 2.0

    def __post_init__(self):
        if not self.q > 1:
            raise ValueError(f"q is {self.q}: the gap closes by this factor a stage, give more than 1")
        if self.stage_steps < 1:
            raise ValueError(f"stage_steps is {self.stage_steps}: give how many updates a stage lasts, 1 or more")
        check_spread(self.P_std)

    def __call__(self, key: jax.Array, b: int, step: Step) -> Pair:
        t: PerSample = jnp.exp(self.P_mean + self.P_std * jax.random.normal(key, (b,)))
        return t, self.earlier(t, step)

    def earlier(self, t: PerSample, step: Step) -> PerSample:
        """The s of a t at a training step."""
        stage = jnp.asarray(step) // self.stage_steps
        closing = jnp.minimum(float(self.q) ** (stage + 1), FINEST)
        return t * jnp.maximum(0, 1 - (1 + 8 * jax.nn.sigmoid(-t)) / closing)


def check_spread(P_std: float) -> None:
    """ValueError for a log-normal law without spread."""
    if not P_std > 0:
        raise ValueError(f"P_std is {P_std}: give the spread of ln sigma, above 0")
