"""How the networks of a step are read as fields: what they are told besides the point and its time."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from lcm_jax.diffusion.boundary import edm_field
from lcm_jax.diffusion.field import guided_field, network_field
from lcm_jax.diffusion.guidance import guidance_embedding, sample_w
from lcm_jax.diffusion.path import Path
from lcm_jax.objectives.base import Nets, Uniform, check_share, condition_of, drop_captions, unconditional
from lcm_jax.typing import Batch, Field, Metrics

DROPPED = 0xD409  # folded into a reading's key, which drops units as it is


class Fields(NamedTuple):
    """One field a network, conditioning bound; and what was drawn for it, to be logged."""

    student: Field
    target: Field
    teacher: Field | None
    drawn: Metrics


@runtime_checkable
class Reading(Protocol):
    """The conditioning is drawn once a step, so that student and target are told the same."""

    def __call__(self, path: Path, nets: Nets, batch: Batch, key: PRNGKeyArray, b: int) -> Fields:
        """The fields of b samples."""
        ...


@dataclass(frozen=True)
class Captioned:
    """Networks of captions; student and target are told w, by which the teacher is guided (LCM eq. 13)."""

    kind: str  # what they predict: "eps", "v" or "x0"
    w: Uniform
    w_width: int | None  # None: the networks have no input for w (LCM-LoRA)
    drop: float  # share of captions replaced by the empty one

    def __post_init__(self) -> None:
        check_share(self.drop)

    def __call__(self, path: Path, nets: Nets, batch: Batch, key: PRNGKeyArray, b: int) -> Fields:
        w_key, drop_key = jax.random.split(key)
        w = sample_w(w_key, b, self.w.low, self.w.high)
        told = drop_captions(condition_of(batch), batch["uncond"], jax.random.bernoulli(drop_key, self.drop, (b,)))
        more = {} if self.w_width is None else {"w_features": guidance_embedding(w, self.w_width)}
        field = lambda net: network_field(path, self.kind, partial(net, **told, **more))
        teacher = None
        if nets.teacher is not None:
            empty = unconditional(told, batch["uncond"])
            teacher = guided_field(path, self.kind, nets.teacher, told, empty, w)
        return Fields(field(nets.student), field(nets.target), teacher, {"sample/w": w})


@dataclass(frozen=True)
class Preconditioned:
    """Networks F(c_in x, c_noise) of EDM, told a label where the batch has one, dropping the same units.

    A share `label_drop` of the labels is replaced by the batch's `no_label`. Raises ValueError for no share, and where
    sigma_data or time_scale is not positive.
    """

    sigma_data: float = 0.5
    time_scale: float = 250.0  # of ln sigma; CM's, EDM has .25
    label_drop: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_drop < 1:
            raise ValueError(f"label_drop is {self.label_drop}: give a share of at least 0 and below 1")
        if not self.sigma_data > 0:
            raise ValueError(f"sigma_data is {self.sigma_data}: give the std of normalised latents, above 0, as 0.5 is")
        if not self.time_scale > 0:
            raise ValueError(f"time_scale is {self.time_scale}: give the factor of ln sigma, above 0, as 250 is")

    def __call__(self, path: Path, nets: Nets, batch: Batch, key: PRNGKeyArray, b: int) -> Fields:
        told = {"labels": batch["label"]} if "label" in batch else {}
        if told and self.label_drop:
            drop = jax.random.bernoulli(jax.random.fold_in(key, DROPPED), self.label_drop, (b,))
            told = {"labels": jnp.where(drop, batch["no_label"], batch["label"])}
        field = lambda net, **more: edm_field(path, partial(net, **told, **more), self.sigma_data, self.time_scale)
        teacher = None if nets.teacher is None else field(nets.teacher)
        return Fields(field(nets.student, dropout_key=key), field(nets.target, dropout_key=key), teacher, {})
