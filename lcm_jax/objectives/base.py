"""What an objective is: a frozen bundle of parts with a loss; found by its file name."""

import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from lcm_jax.typing import Batch, Condition, Latent, Metrics

Decay = float | Callable[[Array], Array] | None  # of the target's average; a function takes the training step


class Nets(NamedTuple):
    """The networks of one step with their parameters bound: call them like the module's apply.

    `target` holds theta- (the online weights where the objective keeps no average); `teacher` is
    None unless the objective distils.
    """

    student: Callable[..., Any]
    target: Callable[..., Any]
    teacher: Callable[..., Any] | None = None


@runtime_checkable
class Objective(Protocol):
    """A training method. `mu` is the target's decay (at a step), None when the target is the online network.

    Builders read more. Those whose `build` takes a `kind` (and the `path`) train networks of captions: a consistency
    model where `reading` has w and w_width (reading.Captioned), sampled as `boundary.timestep_scaling` and a `pair`
    that is a grid.FixedGrid say. All others, but "autoencoder", train networks of noise levels and have a `reading`
    with sigma_data, time_scale and label_drop (reading.Preconditioned): a consistency.Consistency a consistency
    model, sampled as `boundary.sigma_min` and, where there is one, `pair.karras` say; any other a denoiser.
    """

    mu: Decay
    needs_teacher: bool

    def loss(
        self, nets: Nets, batch: Batch, key: PRNGKeyArray, step: Array
    ) -> tuple[Float[Array, ""], Metrics]:
        """Mean loss over the batch and what to log."""
        ...


def draw_latent(batch: Batch, key: PRNGKeyArray) -> Latent:
    """A sample of the cached posterior in diffusion units: (mean + std n - shift) * scale; no shift is 0.

    `shift` and `scale` are one number, one a channel [c] or one an element [h, w, c].
    """
    n = jax.random.normal(key, batch["mean"].shape, batch["mean"].dtype)
    raw = batch["mean"] + batch["std"] * n
    wide = lambda name: jnp.broadcast_to(jnp.asarray(batch[name], raw.dtype), raw.shape)
    return (raw - wide("shift") if "shift" in batch else raw) * wide("scale")


CONDITION = ("context", "pooled", "time_ids")  # a batch's entries that are keywords of a captioned network


def condition_of(batch: Batch) -> Condition:
    """What a batch tells captioned networks."""
    return {name: batch[name] for name in CONDITION if name in batch}


def unconditional(condition: Condition, uncond: Mapping[str, Array]) -> Condition:
    """The condition with the empty caption's entries for every sample; sizes stay what they are (SDXL section 2.2)."""
    return {k: jnp.broadcast_to(uncond[k], v.shape) if k in uncond else v for k, v in condition.items()}


def drop_captions(condition: Condition, uncond: Mapping[str, Array], drop: Bool[Array, " b"]) -> Condition:
    """The condition with the empty caption in the place of those marked in `drop` [b]."""
    empty = unconditional(condition, uncond)
    mark = lambda like: drop.reshape(-1, *[1] * (like.ndim - 1))
    return {k: jnp.where(mark(v), empty[k], v) for k, v in condition.items()}


def names() -> list[str]:
    """Every objective there is: the modules of this folder that define `build`."""
    package = importlib.import_module("lcm_jax.objectives")
    found = [m.name for m in pkgutil.iter_modules(package.__path__)]
    return sorted(n for n in found if hasattr(importlib.import_module(f"{package.__name__}.{n}"), "build"))


def builder(name: str) -> Callable[..., Objective]:
    """The function that builds the objective `name` from its settings; ValueError lists the names there are."""
    if name not in names():
        raise ValueError(f"unknown objective {name!r}; there are: {', '.join(names())}")
    return importlib.import_module(f"lcm_jax.objectives.{name}").build


def check_share(drop: float) -> None:
    """ValueError for a `drop` that is no share of the captions."""
    if not 0 <= drop <= 1:
        raise ValueError(f"drop is {drop}: give the share of captions to leave out, 0 to 1, as 0.1 is")


@dataclass(frozen=True)
class Uniform:
    """A law that draws from [low, high]."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not -math.inf < self.low <= self.high < math.inf:
            raise ValueError(f"a range goes from low to high, got [{self.low}, {self.high}]")
