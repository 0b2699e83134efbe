"""THE jitted function: networks, objective, gradient, optimiser and weight averages in one step."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray

from lcm_jax.objectives.base import Nets, Objective
from lcm_jax.parallel.reading import Reading
from lcm_jax.train.averages import Numbers, averages, several
from lcm_jax.train.norm import norm
from lcm_jax.train.state import State
from lcm_jax.typing import Batch, Metrics, Params

Apply = Callable[..., Any]
Step = Callable[[State, Any, Batch, PRNGKeyArray], tuple[State, Metrics]]


def init_state(
    params: Params, tx: optax.GradientTransformation, objective: Objective, names: Sequence[str] = ("ema",)
) -> State:
    """The state before the first step: target and sampling EMAs, of these names, start as the parameters.

    Each is a copy, so that donating the state leaves `params` (a teacher's, it may be) alive.
    """
    copy = lambda: jax.tree.map(jnp.copy, params)
    target = None if objective.mu is None else copy()
    return State(jnp.zeros((), jnp.int32), copy(), target, several(names, lambda name: copy()), tx.init(params))


def train_step(
    objective: Objective,
    apply: Apply,
    teacher_apply: Apply | None,
    tx: optax.GradientTransformation,
    *,
    ema_decay: Numbers | None = 0.9999,
    ema_power: Numbers | None = None,
    accumulate: int = 1,
    weights: Callable[[Params, Any], Params] | None = None,
    prepare: Callable[[Any, Batch], Batch] | None = None,
    readings: Mapping[str, Reading] = MappingProxyType({}),
) -> Step:
    """step(state, frozen, batch, key) -> (state, metrics); to be jitted with `state` donated.

    `frozen` holds what is read but not trained: {"teacher": params, "batch": entries added to every
    batch (scale, uncond)}. `key` is the run's root key; the step folds in state.step, so a resumed
    run draws the same noise. `ema_decay` and `ema_power` say which averages are kept (train.averages).
    `accumulate` splits the batch into that many gradient passes; pass i takes every accumulate-th sample
    from i on, so a batch sharded over devices stays spread over all of them. `weights` makes a network's
    parameters of what is trained and of `frozen` (adapters are merged so), `prepare` what the objective
    reads of `frozen` and the batch (captions are encoded so). `readings` say how the layers of "params",
    "target" and "teacher" read weights that devices hold in parts (parallel.reading).
    """

    follow = averages(ema_decay, ema_power)

    def loss(params: Params, target: Params | None, frozen: Any, batch: Batch, key: PRNGKeyArray, step: jax.Array):
        see = lambda trained, tree: readable(trained, tree, frozen, weights, readings)
        online, read = see(params, "params")
        behind, read_behind = (online, read) if target is None else see(target, "target")
        nets = Nets(
            bound(apply, online, read),
            bound(apply, jax.lax.stop_gradient(behind), read_behind),
            bound(teacher_apply, frozen["teacher"], readings.get("teacher")) if objective.needs_teacher else None,
        )
        batch = batch if prepare is None else prepare(frozen, batch)
        return objective.loss(nets, {**batch, **frozen["batch"]}, key, step)

    def split(x: jax.Array) -> jax.Array:
        if len(x) % accumulate:
            raise ValueError(f"a batch of {len(x)} does not split into accumulate = {accumulate} equal passes")
        return x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1)

    def gradient(state: State, frozen: Any, batch: Batch, key: PRNGKeyArray):
        if accumulate == 1:
            return jax.grad(loss, has_aux=True)(state.params, state.target, frozen, batch, key, state.step)
        parts = jax.tree.map(split, batch)

        def add(total, part):
            i, micro = part
            this = jax.grad(loss, has_aux=True)(
                state.params, state.target, frozen, micro, jax.random.fold_in(key, i), state.step
            )
            return jax.tree.map(jnp.add, total, this[0]), this[1]

        zero = jax.tree.map(jnp.zeros_like, state.params)
        total, metrics = jax.lax.scan(add, zero, (jnp.arange(accumulate), parts))
        # Scalars are averaged over the passes; per-sample diagnostics [b] are put together again.
        join = lambda x: x.mean(0) if x.ndim == 1 else x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
        return jax.tree.map(lambda g: g / accumulate, total), jax.tree.map(join, metrics)

    def step(state: State, frozen: Any, batch: Batch, key: PRNGKeyArray) -> tuple[State, Metrics]:
        grads, metrics = gradient(state, frozen, batch, jax.random.fold_in(key, state.step))
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        mu = objective.mu(state.step) if callable(objective.mu) else objective.mu
        target = None if state.target is None else average(state.target, params, mu)
        count = state.step.astype(jnp.float32)
        old = state.ema if len(follow) > 1 else {name: state.ema for name in follow}
        ema = several(follow, lambda name: average(old[name], params, follow[name](count)))
        metrics = metrics | {"grad_norm": norm(grads)}
        return State(state.step + 1, params, target, ema, opt_state), metrics

    return step


def readable(
    trained: Params,
    tree: str,
    frozen: Any,
    weights: Callable[[Params, Any], Params] | None,
    readings: Mapping[str, Reading],
) -> tuple[Params, Reading | None]:
    """A network's weights and how its layers read them: merged adapters lie as what they are merged into."""
    if weights is None:
        return trained, readings.get(tree)
    return weights(readings[tree].tree(trained) if readings else trained, frozen), readings.get("teacher")


def bound(apply: Apply, weights: Params, read: Reading | None) -> Apply:
    """A network with its weights, read by its layers as they are unless `read` says how."""
    return partial(apply, weights) if read is None else partial(apply, weights, read=read)


def average(old: Params, new: Params, decay: Any) -> Params:
    """decay * old + (1 - decay) * new, leaf by leaf, in the leaves' own precision."""
    return jax.tree.map(lambda a, b: a + ((1.0 - decay) * (b - a)).astype(a.dtype), old, new)
