"""The host's side of training: feed the step, look at its numbers a step late, save, and stop cleanly."""

import gc
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from lcm_jax.parallel.agreement import Wish
from lcm_jax.parallel.transfer import fetch
from lcm_jax.train.checkpoint import Checkpointer
from lcm_jax.train.course import Course
from lcm_jax.train.interrupt import Interrupt
from lcm_jax.train.metrics import MetricsWriter
from lcm_jax.train.observing import Patience, Tracer, memory

log = logging.getLogger(__name__)
NONFINITE_FILE = "nonfinite.json"
WATCHED = ("loss", "grad")  # a metric of one of these families that is not finite stops the run
# Keywords of `run` that a config sets, and the least that each may be.
SETTINGS = {"log_steps": 1, "checkpoint_steps": 1, "sample_steps": 0, "hang_seconds": 0}
AHEAD = 2  # steps in flight: enough to hide the host, few enough to bound the batches waiting on the device


@runtime_checkable
class Loader(Protocol):
    """An endless source of batches whose position can be stored as JSON and taken up again."""

    def __next__(self) -> Mapping[str, Any]: ...
    def get_state(self) -> Any: ...
    def set_state(self, state: Any) -> None: ...


class NonFiniteLoss(RuntimeError):
    """The loss or a gradient norm was NaN or infinite; the message names the step and the record."""


@dataclass
class _Step:
    """One dispatched step whose numbers are still on the device."""

    number: int
    metrics: Mapping[str, Any]
    index: Any


@dataclass
class _Watch:
    """The numbers of the steps: in flight, then fetched and found finite, then written."""

    describe_batch: Callable[[Any], Any] | None
    folder: Path | None
    in_flight: list[_Step] = field(default_factory=list)
    fetched: list[dict[str, float]] = field(default_factory=list)

    def look(self, until: int) -> None:
        """Fetch the scalars of the steps up to `until` in one transfer; raise if one is not finite."""
        ready = [step for step in self.in_flight if step.number <= until]
        if not ready:
            return
        del self.in_flight[: len(ready)]
        scalars = [{k: v for k, v in step.metrics.items() if np.ndim(v) == 0} for step in ready]
        for step, values in zip(ready, jax.device_get(scalars), strict=True):
            values = {name: float(value) for name, value in values.items()}
            bad = [name for name, x in values.items() if name.startswith(WATCHED) and not math.isfinite(x)]
            if bad:
                self.stop(step, values, sorted(bad, reverse=True))  # the loss before the gradient
            self.fetched.append(values)

    def stop(self, step: _Step, values: dict[str, float], bad: list[str]) -> None:
        """Leave a record of a step that is not finite, and raise."""
        describe = self.describe_batch or (lambda index: index)
        record = {
            "step": step.number,
            "nonfinite": bad,
            "metrics": {name: x if math.isfinite(x) else str(x) for name, x in values.items()},
            "batch": describe(step.index),
            "samples": {name: fetch(v).tolist() for name, v in step.metrics.items() if np.ndim(v) > 0},
        }
        found = f"at step {step.number}{noise_levels(record['samples'])}"
        where = "pass `folder` to record its batch"
        if self.folder is not None:
            path = self.folder / NONFINITE_FILE
            if jax.process_index() == 0:
                self.folder.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(record, indent=1, default=plain) + "\n", encoding="utf-8")
            where = f"its batch and times are in {path}"
        raise NonFiniteLoss(
            f"{', '.join(f'{name} = {values[name]}' for name in bad)} {found}; {where}; the "
            "last checkpoint is from before it: lower the learning rate or look at that batch"
        )

    def means(self) -> dict[str, float]:
        """Each metric's mean over the steps fetched since the last report."""
        names = dict.fromkeys(name for values in self.fetched for name in values)
        columns = {name: [values[name] for values in self.fetched if name in values] for name in names}
        return {name: math.fsum(column) / len(column) for name, column in columns.items()}


@dataclass
class _Clock:
    """Where the time since `begun` went, in seconds; saving and hooks do not count as training."""

    begun: float = field(default_factory=time.perf_counter)
    spent: Counter[str] = field(default_factory=Counter)
    images: int = 0
    steps: int = 0

    @contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Counts the time within for `what`."""
        before = time.perf_counter()
        yield
        self.spent[what] += time.perf_counter() - before

    def rates(self, course: Course | None) -> dict[str, float]:
        """Images per second, where the host's time went, and what went to no step at all."""
        aside = {f"{name}/seconds": self.spent[name] for name in ("save", "hooks") if self.spent[name]}
        training = max(time.perf_counter() - self.begun - sum(aside.values()), 1e-9)
        waits = {f"{name}/wait_share": self.spent[name] / training for name in ("data", "device")}
        shares = {**waits, "host/share": 1 - sum(waits.values())}
        whole = {} if course is None else course.rates(training, self.steps)
        return {"images/s": self.images / training, **shares, **aside, **whole}


def check(settings: Mapping[str, Any], section: str = "") -> None:
    """Raises ValueError for a number that means nothing to `run`; of SETTINGS, and `steps`."""
    for name, value in settings.items():
        least = SETTINGS.get(name, 1)
        if not isinstance(value, int | float) or not value >= least:
            raise ValueError(f"{section}{name} must be at least {least}, not {value!r}")


def run(
    step_fn: Callable[[Any, Any, Any, jax.Array], tuple[Any, Mapping[str, Any]]],
    state: Any,
    frozen: Any,
    loader: Loader,
    root_key: jax.Array,
    steps: int,
    *,
    place_batch: Callable[[Mapping[str, Any]], Any],
    log_steps: int = 50,
    checkpoint_steps: int = 1000,
    sample_steps: int = 0,
    checkpointer: Checkpointer | None = None,
    writer: MetricsWriter | None = None,
    hooks: Iterable[Callable[[int, Any, Mapping[str, float]], Mapping[str, float] | None]] = (),
    describe_batch: Callable[[Any], Any] | None = None,
    folder: str | Path | None = None,
    hang_seconds: float = 1800.0,
    profile: tuple[int, int] | None = None,
    course: Course | None = None,
) -> Any:
    """Train from `state.step` to step `steps` and return the state; interrupted, it returns an earlier one.

    step_fn(state, frozen, batch, root_key) -> (state, metrics) is dispatched without waiting for the step
    before. Scalars of `metrics` are averaged over `log_steps` steps and written; its arrays (times `[b]`,
    ...) are read only when the loss is not finite. Every `sample_steps` (0: never) and at the end each hook
    gets (step, state, metrics) and may return more metrics; it must not keep the state, which is donated.
    `describe_batch` turns a batch's "index", which tells its samples apart, into JSON for the record that a
    non-finite loss leaves in `folder`/nonfinite.json.

    A step that takes longer than `hang_seconds` (0: none does) ends every process, the stacks of its threads on stderr
    (observing.Patience); the first step, which compiles, may take as long as it likes. `profile` (first, last) are
    steps that are recorded, for TensorBoard or Perfetto, in `folder`/profile. With the `course` of the run goodput is
    written, too, and MFU.

    Several processes call it with the same arguments, each with its own part of the data, all but the first without
    `writer`. A signal to any one of them stops all after the same step, AHEAD steps later.

    Raises NonFiniteLoss (the last good checkpoint stays the newest), CheckpointError, and ValueError if
    the loader ends.
    """
    intervals = {"log_steps": log_steps, "checkpoint_steps": checkpoint_steps, "sample_steps": sample_steps}
    check({"steps": steps, **intervals, "hang_seconds": hang_seconds})
    hooks = tuple(hooks)
    tracer, patience = Tracer(profile, folder), Patience(hang_seconds)
    started = saved = number = int(state.step)
    watch = _Watch(describe_batch, None if folder is None else Path(folder))
    clock, first, latest = _Clock(), {}, {}
    wish, stopping = Wish(AHEAD), False

    def report(at: int) -> None:
        nonlocal clock, first, latest
        latest = {**watch.means(), **clock.rates(course), **memory(), **first}
        watch.fetched.clear()
        clock, first = _Clock(), {}
        if writer is not None:
            writer.write(at, latest)

    def save() -> None:
        nonlocal saved
        with clock.on("device"):
            watch.look(number)  # never store a state whose loss was not looked at
        if checkpointer is not None:
            with clock.on("save"):
                checkpointer.save(number, state, loader.get_state(), watch.means() or latest)
        saved = number

    def call_hooks() -> None:
        with clock.on("device"):
            watch.look(number)
        with clock.on("hooks"):
            for hook in hooks:
                more = hook(number, state, latest)
                if more and writer is not None:
                    writer.write(number, more)

    try:
        with Interrupt() as stop:
            while number < steps and not stopping:
                before = time.perf_counter()
                with clock.on("data"):
                    batch = next(loader, None)
                if batch is None:
                    raise ValueError(f"the loader ended at step {number} of {steps}; it must repeat its data")
                tracer.begin(number + 1)
                placed = place_batch(batch)
                state, metrics = step_fn(state, frozen, placed, root_key)
                number += 1
                watch.in_flight.append(_Step(number, metrics, batch.get("index")))
                clock.images += images_in(placed)
                clock.steps += 1
                if number == started + 1:  # holds the compilation: no part of any rate
                    jax.block_until_ready(metrics)
                    first = {"first_step/seconds": time.perf_counter() - before}
                    gc.collect()  # what is frozen with the rest keeps its memory, on the device, too
                    gc.freeze()  # what was built to get here stays: a collection looks through what is new only
                    clock = _Clock()
                elif len(watch.in_flight) > AHEAD:
                    with clock.on("device"):
                        jax.block_until_ready(watch.in_flight[-1 - AHEAD].metrics)
                tracer.end(number, metrics)
                if (number - 1) % log_steps == 0 and number - 1 > started:
                    with clock.on("device"):
                        watch.look(number - 1)  # a step late: the device is busy with `number` meanwhile
                    report(number - 1)
                    if checkpointer is not None:
                        checkpointer.check()
                if writer is not None:
                    writer.tick(number)
                if number % checkpoint_steps == 0:
                    save()
                if sample_steps and number % sample_steps == 0 and number < steps:
                    patience.rest()
                    call_hooks()
                patience()
                stopping = wish(stop.requested)
            watch.look(number)
            if watch.fetched:
                report(number)
            if number > saved:
                save()
            patience.rest()
            if number >= steps and number > started:
                call_hooks()
            if stopping:
                name = stop.name or "a signal to another process"
                log.warning("stopped by %s after step %d of %d", name, number, steps)
    finally:
        gc.unfreeze()
        patience.rest()
        tracer.close()
        if checkpointer is not None:
            checkpointer.wait()  # what was being written when something went wrong is still good
    return state


def images_in(placed: Any) -> int:
    """Samples of a batch over all processes: the leading dim of its first array."""
    return next((value.shape[0] for value in jax.tree.leaves(placed) if np.ndim(value)), 0)


def noise_levels(samples: Mapping[str, list]) -> str:
    """At which times the samples lie whose own loss is not finite, in words; nothing where none says so."""
    losses, times = samples.get("sample/loss", []), samples.get("sample/t", [])
    bad = sorted({t for loss, t in zip(losses, times, strict=False) if not math.isfinite(loss)})
    if not bad:
        return ""
    return f", at t = {bad[0]:g}" if len(bad) == 1 else f", of {len(bad)} times from t = {bad[0]:g} to {bad[-1]:g}"


def plain(value: Any) -> Any:
    """numpy values as JSON's own."""
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else str(value)
