"""How many intervals N the time grid has at a training step: N(step), traced, never above `.maximum`."""

import abc
import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Step = int | Int[Array, ""]
Intervals = Int[Array, ""]


class Curriculum(abc.ABC):
    """N as a function of the step."""

    @abc.abstractmethod
    def __call__(self, step: Step) -> Intervals:
        """Number of intervals (one less than the number of grid points)."""

    @property
    @abc.abstractmethod
    def maximum(self) -> int:
        """Largest N the curriculum reaches."""


@dataclasses.dataclass(frozen=True)
class Constant(Curriculum):
    """The same N throughout (consistency distillation)."""

    N: int = 40

    def __post_init__(self):
        if self.N < 1:
            raise ValueError(f"a grid needs at least 1 interval, got N={self.N}")

    def __call__(self, step: Step) -> Intervals:
        return jnp.asarray(self.N)

    @property
    def maximum(self) -> int:
        return self.N


@dataclasses.dataclass(frozen=True)
class _Growing(Curriculum):
    """N from s0 to s1 over `total` training steps."""

    s0: int
    s1: int
    total: int

    def __post_init__(self):
        if not 1 <= self.s0 <= self.s1:
            raise ValueError(f"a curriculum needs 1 <= s0 <= s1, got s0={self.s0}, s1={self.s1}")
        if self.total < 1:
            raise ValueError(f"a curriculum needs total >= 1 training steps, got {self.total}")

    @property
    def maximum(self) -> int:
        return self.s1

    def _progress(self, step: Step) -> Float[Array, ""]:
        return jnp.clip(jnp.asarray(step) / self.total, 0, 1)


@dataclasses.dataclass(frozen=True)
class SquareRoot(_Growing):
    """Consistency training, N^2 linear in k: ceil(sqrt(k/K ((s1+1)^2 - s0^2) + s0^2) - 1) (CM app. C)."""

    def __call__(self, step: Step) -> Intervals:
        square = self._progress(step) * ((self.s1 + 1) ** 2 - self.s0**2) + self.s0**2
        return jnp.clip(jnp.ceil(jnp.sqrt(square) - 1), 1, self.s1).astype(int)


@dataclasses.dataclass(frozen=True)
class Doubling(_Growing):
    """iCT's min(s0 2^floor(k / K'), s1) with K' = floor(K / (log2 floor(s1 / s0) + 1)) (iCT sec. 3.4).

    Where s1 / s0 is no power of two, the last stage is that much shorter.
    """

    def __call__(self, step: Step) -> Intervals:
        ratio = self.s1 // self.s0
        stage = jnp.asarray(step) // max(int(self.total / (math.log2(ratio) + 1)), 1)
        return jnp.minimum(self.s0 * 2 ** jnp.minimum(stage, ratio.bit_length()), self.s1)


@dataclasses.dataclass(frozen=True)
class Geometric(_Growing):
    """The smooth form of doubling: s0 (s1 / s0)^(k / K), rounded."""

    def __call__(self, step: Step) -> Intervals:
        return jnp.round(self.s0 * (self.s1 / self.s0) ** self._progress(step)).astype(int)


def ct_mu(N: int | Intervals, mu0: float = 0.9, s0: int = 2) -> Float[Array, ""]:
    """Consistency training's target decay exp(s0 ln mu0 / N) (CM app. C; N intervals as in its code)."""
    return jnp.asarray(mu0 ** (s0 / N))
