"""Builds the optimiser: the one door to optax's transformations."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from lcm_jax.train.norm import norm

SETTINGS = ("b1", "b2", "eps", "weight_decay", "clip")  # keywords of `optimizer`
UNUSED = {"sgd": ("b1", "b2", "eps"), "adafactor": ("b1", "b2", "eps")}  # those without effect on an optimiser
MATRICES = ("kernel", "down", "up")  # of layers and adapters; what biases of maps and tables of labels are not


def learning_rate(
    peak: float, steps: int, schedule: str = "constant", warmup: int = 0, final: float = 0.0
) -> optax.Schedule:
    """Linear warm-up to `peak`, then constant, or a cosine or line down to `final` * peak at `steps`.

    Raises ValueError for an unknown schedule, listing those there are.
    """
    rest = max(steps - warmup, 1)
    shapes = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, final),
        "linear": lambda: optax.linear_schedule(peak, peak * final, rest),
    }
    if schedule not in shapes:
        raise ValueError(f"unknown learning-rate schedule {schedule!r}; choose one of {', '.join(shapes)}")
    if not warmup:
        return shapes[schedule]()
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), shapes[schedule]()], [warmup])


def optimizer(
    name: str,
    rate: Any,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    clip: float | None = None,
) -> optax.GradientTransformation:
    """The named optimiser behind an optional clip of the global gradient norm.

    The weight decay of RAdam and SGD is of the coupled kind, added to the (clipped) gradient before the
    moments, as the consistency-training papers use it; the others' is decoupled. Muon moves kernels and
    adapters, NAdamW all else; its updates have AdamW's size, so that rates carry over (arXiv 2502.16982, eq. 4).
    Adafactor keeps two vectors a matrix in place of two moments a number; its rate is relative to each tensor's own
    size (arXiv 1804.04235, Alg. 4).
    Names: adamw, radam, sgd, adafactor, muon; ValueError lists them.
    """
    makers = {
        "adamw": lambda: optax.adamw(rate, b1, b2, eps, weight_decay=weight_decay),
        "radam": lambda: optax.chain(optax.add_decayed_weights(weight_decay), optax.radam(rate, b1, b2, eps)),
        "sgd": lambda: optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(rate)),
        # optax would take decay from the weights whatever the rate.
        "adafactor": lambda: optax.chain(
            optax.adafactor(weight_decay_rate=weight_decay or None), optax.scale_by_learning_rate(rate, flip_sign=False)
        ),
        "muon": lambda: contrib.muon(
            rate,
            eps=eps,
            weight_decay=weight_decay,
            adam_b1=b1,
            adam_b2=b2,
            adam_weight_decay=weight_decay,
            muon_weight_dimension_numbers=kernels,
            consistent_rms=0.2,
            ns_steps=4,  # as close to orthogonal as five without this preconditioning (arXiv 2512.04632)
            preconditioning="aol",
        ),
    }
    if name not in makers:
        raise ValueError(f"unknown optimizer {name!r}; choose one of {', '.join(makers)}")
    return optax.chain(clipped(clip), makers[name]()) if clip else makers[name]()


def clipped(limit: float) -> optax.GradientTransformation:
    """Gradients whose norm over all tensors is at most `limit`; optax's own, but for how the norm is summed."""

    def update(grads: Any, params: Any) -> Any:
        length = norm(grads)
        return jax.tree.map(lambda g: jnp.where(length < limit, g, g * (limit / length).astype(g.dtype)), grads)

    return optax.stateless(update)


def kernels(params: Any) -> Any:
    """For Muon: a kernel as a matrix, everything before its last axis against that axis; None for the rest."""

    def axes(path: tuple[Any, ...], p: jax.Array) -> contrib.MuonDimensionNumbers | None:
        matrix = p.ndim > 1 and path[-1].key in MATRICES
        return contrib.MuonDimensionNumbers(tuple(range(p.ndim - 1)), p.ndim - 1) if matrix else None

    return jax.tree_util.tree_map_with_path(axes, params)
