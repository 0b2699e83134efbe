"""What a planned step needs beside what stays on a device: by the compiler, whole or in parts, or estimated."""

import dataclasses
import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from lcm_jax.machine import version
from lcm_jax.parallel.collectives import Traffic, collectives
from lcm_jax.parallel.liveness import peak_bytes
from lcm_jax.planning import Plan, device_bytes
from lcm_jax.train.step import average, bound, readable

log = logging.getLogger(__name__)
LEAST = -1.0  # effort of the compiler for speed: a tenth of the time, as a rule more memory than a run takes
Part = tuple[Callable[..., Any], tuple[Any, ...], int, int, tuple[int, ...]]
GIVEN_UP = ("RESOURCE_EXHAUSTED", "Ran out of memory")


@dataclass(frozen=True)
class Compiled:
    """What the compiler said of one program; bytes are of one device. Without memory it did not fit."""

    seconds: float  # it took
    memory: dict[str, int] | None  # arguments, outputs, aliased (outputs in the place of arguments), temporaries, code
    refused: str | None  # the compiler's words where a device's memory is too small
    flops: float | None  # of one device, after optimisation; a loop's body once
    accessed: float | None  # bytes read and written
    traffic: dict[str, Traffic]
    cached: bool = False

    @property
    def total(self) -> int | None:
        """Bytes while it runs."""
        if self.memory is None:
            return None
        return sum(self.memory.values()) - 2 * self.memory["aliased"]


@dataclass(frozen=True)
class Memory:
    """The most that one device holds at a time, and how that is known."""

    method: str  # "whole", "parts", "composed" or "none"
    peak: int | None  # None: the compiler found no room
    refused: str | None = None
    programs: dict[str, Compiled] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)  # of each program in a step
    extra: dict[str, int] = field(default_factory=dict)  # bytes beside what stays, of each part
    effort: float = 0.0  # of the compiler for speed, -1 to 1; runs compile at 0

    @property
    def traffic(self) -> dict[str, Traffic]:
        """Collectives of one step; of parts together."""
        total: dict[str, Traffic] = {}
        for name, program in self.programs.items():
            for kind, more in program.traffic.items():
                had, times = total.get(kind, Traffic(0, 0, 0)), self.runs[name]
                total[kind] = Traffic(
                    had.count + times * more.count, had.bytes + times * more.bytes, had.sent + times * more.sent
                )
        return total

    @property
    def accessed(self) -> float | None:
        """Bytes read and written in a step, as far as the compiler counts them."""
        found = [self.runs[name] * p.accessed for name, p in self.programs.items() if p.accessed]
        return sum(found) if found else None

    def record(self) -> dict[str, Any]:
        """The numbers as a JSON value."""
        return asdict(self)


def whole(plan: Plan, target: str, cache: Path | None = None, effort: float = 0.0) -> Memory:
    """The step compiled as it would run."""
    found = compiled(plan.lower(), plan.devices, target, cache, effort)
    # Adapters' base and their teacher are two arguments and one copy.
    peak = None if found.refused else found.total - _again(plan.frozen)
    return Memory("whole", peak, found.refused, {"step": found}, {"step": 1}, effort=effort)


def in_parts(plan: Plan, target: str, cache: Path | None = None, effort: float = LEAST) -> Memory:
    """Forward passes, the student's gradient and the update compiled apart: quicker, and less of the host's memory.

    The peak is what stays on a device and the most that one part needs beside it.
    """
    return compiled_parts(parts(plan), plan, target, cache, effort)


def compiled_parts(
    made: dict[str, Part], plan: Plan, target: str, cache: Path | None, effort: float
) -> Memory:
    """in_parts() of parts that are there already."""
    programs, extra, runs = {}, {}, {}
    bar = tqdm(made.items(), "compiling", unit="part", mininterval=0)
    for name, (function, arguments, stays, times, donated) in bar:
        bar.set_postfix_str(name)
        # What it does not read is there all the same.
        lowered = jax.jit(function, donate_argnums=donated, keep_unused=True).lower(*arguments)
        programs[name] = found = compiled(lowered, plan.devices, target, cache, effort)
        runs[name] = times
        if found.refused:
            return Memory("parts", None, f"{name}: {found.refused}", programs, runs, extra, effort)
        extra[name] = max(found.total - stays, 0)
    return Memory("parts", plan.held + max(extra.values()), None, programs, runs, extra, effort)


def parts(plan: Plan) -> dict[str, Part]:
    """(function, arguments, bytes of those that stay, runs a step, arguments given away) of each heavy part."""
    work, calls = plan.work, {"teacher": [], "target": []}
    micro = _of_a_pass(plan.batch, plan.accumulate)

    def seen(name: str) -> Callable[..., Any]:
        def stand_in(z: Any, *more: Any, **named: Any) -> Any:
            shape = lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x))
            calls[name].append(jax.tree.map(shape, ((z, *more), named)))
            return jnp.zeros_like(z)

        return stand_in

    stand_ins = [seen("target"), seen("teacher") if work.teacher is not None else None]
    bare = jax.grad(lambda *args: plan.loss(*args, *stand_ins))
    held_as = lambda tree, like: jax.lax.with_sharding_constraint(tree, jax.tree.map(lambda x: x.sharding, like))
    gradient = lambda *args: held_as(bare(*args), plan.state.params)
    fed = (plan.state.params, plan.state, plan.frozen, micro, plan.key)
    jax.eval_shape(gradient, *fed)
    sharding = next(iter(plan.batch.values())).sharding
    found: dict[str, Part] = {}
    behind = ("params", plan.state.params) if plan.state.target is None else ("target", plan.state.target)
    networks = {"teacher": (work.teacher, "teacher", plan.frozen["teacher"]), "target": (work.trained, *behind)}
    for name, seen_calls in calls.items():
        if seen_calls:
            net, tree, params = networks[name]
            merge = work.weights if name == "target" else None

            def run(params: Any, frozen: Any, a: Any, k: Any, net: Any = net, tree: str = tree, merge: Any = merge):
                return bound(net.apply, *readable(params, tree, frozen, merge, plan.readings))(*a, **k)

            arguments = (params, None if merge is None else plan.frozen)
            told, times = _split(seen_calls[0], sharding), len(seen_calls) * plan.accumulate
            found[f"{name} forward"] = run, (*arguments, *told), device_bytes(arguments), times, ()
    stays = device_bytes((plan.state.params, plan.state, plan.frozen, plan.batch))
    found["student gradient"] = gradient, fed, stays, plan.accumulate, ()

    def update(state: Any, grads: Any) -> Any:
        updates, opt_state = plan.tx.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p + u.astype(p.dtype), state.params, updates)
        like = jax.tree.structure(params)
        follow = lambda tree: average(tree, params, 0.5) if jax.tree.structure(tree) == like else tree
        averages = jax.tree.map(follow, (state.target, state.ema), is_leaf=lambda t: jax.tree.structure(t) == like)
        after = dataclasses.replace(state, params=params, opt_state=opt_state, target=averages[0], ema=averages[1])
        return held_as(after, plan.state)

    found["optimiser update"] = update, (plan.state, plan.state.params), device_bytes(plan.state), 1, (0,)
    return found


def _again(tree: Any) -> int:
    """Bytes on one device of leaves that are there already."""
    return device_bytes(tree) - device_bytes(list({id(leaf): leaf for leaf in jax.tree.leaves(tree)}.values()))


def _of_a_pass(batch: Mapping[str, Any], accumulate: int) -> dict[str, Any]:
    cut = lambda x: jax.ShapeDtypeStruct((x.shape[0] // accumulate, *x.shape[1:]), x.dtype, sharding=x.sharding)
    return jax.tree.map(cut, dict(batch))


def _split(call: Any, sharding: Any) -> Any:
    """A network's arguments (z, ...), of which those of every sample are split over the devices."""
    samples = call[0][0].shape[0]
    each = lambda x: x.shape[:1] == (samples,)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding if each(x) else None), call
    )


def compiled(lowered: Any, devices: int, target: str, cache: Path | None, effort: float = 0.0) -> Compiled:
    """Compiles for `target`, a name, and keeps in the folder `cache` what was found out."""
    about = [target, str(effort), *(f"{name} {version(name)}" for name in ("jax", "jaxlib", "libtpu"))]
    path = None
    if cache is not None:
        digest = hashlib.sha256("\n".join([*about, lowered.as_text()]).encode()).hexdigest()
        path = cache / f"{digest[:32]}.json"
        if path.exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
            traffic = {kind: Traffic(**values) for kind, values in kept.pop("traffic").items()}
            return Compiled(**{**kept, "traffic": traffic, "cached": True})
    begun = time.perf_counter()
    try:
        found = _told(_compiled(lowered, effort), devices, begun)
    except jax.errors.JaxRuntimeError as error:
        if not any(words in str(error) for words in GIVEN_UP):
            raise
        words = re.sub(r"\s+", " ", str(error).partition(": ")[2]).partition("Total hbm usage")[0]
        found = Compiled(time.perf_counter() - begun, None, words[:300].strip(), None, None, {})
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(found)), encoding="utf-8")
        part.replace(path)
    return found


def _compiled(lowered: Any, effort: float) -> Any:
    """With less effort where that is wanted and the compiler (jaxlib before 0.12) can be told."""
    if effort:
        try:
            return lowered.compile({"exec_time_optimization_effort": effort})
        except jax.errors.JaxRuntimeError as error:
            if "No such compile option" not in str(error):
                raise
            log.warning("this jaxlib's compiler takes no effort: compiled as a run is")
    return lowered.compile()


def _told(program: Any, devices: int, begun: float) -> Compiled:
    stats, cost = program.memory_analysis(), program.cost_analysis() or {}
    names = {"arguments": "argument", "outputs": "output", "aliased": "alias", "temporaries": "temp"}
    memory = {ours: getattr(stats, f"{theirs}_size_in_bytes") for ours, theirs in names.items()}
    memory["code"] = stats.generated_code_size_in_bytes
    traffic = collectives(program.as_text(), devices)
    seconds = time.perf_counter() - begun
    return Compiled(seconds, memory, None, cost.get("flops"), cost.get("bytes accessed"), traffic)


def estimated(plan: Plan) -> Memory:
    """Without a compiler: gradients, and what is alive at once on the way there, for one device's share of a pass.

    Everything is taken to be computed in the order it was written, with nothing fused but changes of type and shape;
    what the tensor axis would split of activations is counted whole.
    """
    split = plan.mesh.shape["data"] * plan.mesh.shape["fsdp"]
    micro = _of_a_pass(plan.batch, plan.accumulate * split)
    work, params, target = plan.work, plan.state.params, plan.state.target
    frozen_target = params if target is None else target

    def loss(params: Any, state: Any, frozen: Any, batch: Any, key: Any) -> jax.Array:
        behind = params if state.target is None else state.target
        stopped = jax.lax.stop_gradient(readable(behind, "target", frozen, work.weights, {})[0])
        teacher = None if work.teacher is None else partial(work.teacher.apply, frozen["teacher"])
        return plan.loss(params, state, frozen, batch, key, partial(work.trained.apply, stopped), teacher)

    bare = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (params, plan.state, plan.frozen, micro, plan.key)
    )
    traced = jax.make_jaxpr(jax.grad(loss))(*bare)
    shares = {leaf.shape: _share(leaf) for leaf in jax.tree.leaves((frozen_target, plan.frozen, params))}
    size = lambda aval: round(_bytes(aval) * shares.get(getattr(aval, "shape", None), 1.0))
    gradients = device_bytes(params)
    extra = {
        "student gradient": peak_bytes(traced, size) + (gradients if plan.accumulate > 1 else 0),
        "optimiser update": 2 * gradients,  # and what it makes of them
    }
    return Memory("none", plan.held + max(extra.values()), extra=extra)


def _share(leaf: Any) -> float:
    """The part of a tensor that one device holds."""
    whole = max(leaf.size, 1)
    part = 1
    for size in leaf.sharding.shard_shape(leaf.shape):
        part *= size
    return part / whole


def _bytes(aval: Any) -> int:
    size = getattr(aval, "size", 0)
    kind = getattr(aval, "dtype", None)
    return size * (getattr(kind, "itemsize", 0) or 0)
