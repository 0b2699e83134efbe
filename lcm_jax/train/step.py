"""THE jitted function: networks, objective, gradient, optimiser and weight averages in one step."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray

from lcm_jax.objectives.base import Nets, Objective
from lcm_jax.train.averages import Numbers, averages, several
from lcm_jax.train.state import State
from lcm_jax.typing import Batch, Metrics, Params

FROZEN = ("teacher", "base")  # networks among what is frozen
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
    gather: Callable[[str, Params], Params] | None = None,
) -> Step:
    """step(state, frozen, batch, key) -> (state, metrics); to be jitted with `state` donated.

    `frozen` holds what is read but not trained: {"teacher": params, "batch": entries added to every
    batch (scale, uncond)}. `key` is the run's root key; the step folds in state.step, so a resumed
    run draws the same noise. `ema_decay` and `ema_power` say which averages are kept (train.averages).
    `accumulate` splits the batch into that many gradient passes; pass i takes every accumulate-th sample
    from i on, so a batch sharded over devices stays spread over all of them. `weights` makes a network's
    parameters of what is trained and of `frozen` (adapters are merged so), `prepare` what the objective
    reads of `frozen` and the batch (captions are encoded so), `gather` puts weights together that devices
    hold in parts, before they are read (parallel.rules.gatherer).
    """

    follow = averages(ema_decay, ema_power)

    def loss(params: Params, target: Params | None, frozen: Any, batch: Batch, key: PRNGKeyArray, step: jax.Array):
        if gather is not None:
            params, target = gather("params", params), None if target is None else gather("target", target)
            read = {name: gather("teacher", frozen[name]) for name in FROZEN if frozen.get(name) is not None}
            frozen = {**frozen, **read}
        whole = (lambda trained: trained) if weights is None else (lambda trained: weights(trained, frozen))
        online = whole(params)
        nets = Nets(
            partial(apply, online),
            partial(apply, jax.lax.stop_gradient(online if target is None else whole(target))),
            partial(teacher_apply, frozen["teacher"]) if objective.needs_teacher else None,
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


def average(old: Params, new: Params, decay: Any) -> Params:
    """decay * old + (1 - decay) * new, leaf by leaf, in the leaves' own precision."""
    return jax.tree.map(lambda a, b: a + ((1.0 - decay) * (b - a)).astype(a.dtype), old, new)


def norm(tree: Any) -> jax.Array:
    """Euclidean norm of all leaves together, float32."""
    return jnp.sqrt(sum(jnp.square(x.astype(jnp.float32)).sum() for x in jax.tree.leaves(tree)))
