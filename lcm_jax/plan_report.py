"""What a run takes on machines that are not there yet: memory, operations, messages, time, and whether it fits."""

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lcm_jax import plan_composed, plan_memory, planning, sections
from lcm_jax.machine import machine, version
from lcm_jax.parallel import rules
from lcm_jax.parallel.chips import EXAMPLES, Topology, compiles_for_tpu, of_kind, topology
from lcm_jax.parallel.collectives import Traffic
from lcm_jax.plan_memory import Memory
from lcm_jax.planning import Plan

log = logging.getLogger(__name__)
QUICK = 3e8  # trained parameters up to which a step is compiled unasked: minutes, and a few GiB of the host's memory
KEPT_BACK = 0.02  # of a chip's memory, by its runtime (v5e: 0.25 of 16 GiB)
COMPOSED_SHARE = 0.75  # of the peak of whole passes: of SD 1.5 0.80 was found (benchmarks.topologies)
NODE = 8  # GPUs that NVLink joins
GPU_SHARE = 0.75  # of a GPU's memory that jax takes by itself
GIB = 2**30


@dataclass(frozen=True)
class Times:
    """Seconds a step takes at least: no operation, byte or message is faster than the chip's stated rates."""

    compute: float | None
    memory: float | None
    links: float | None

    @property
    def step(self) -> float | None:
        """Of all three at once, each hidden behind the longest."""
        found = [t for t in (self.compute, self.memory, self.links) if t is not None]
        return max(found) if self.compute is not None else None

    @property
    def bound(self) -> str:
        """What takes longest."""
        return max(("compute", "memory", "links"), key=lambda name: getattr(self, name) or 0.0)


def roofline(chip: Any, flops: float, accessed: float, sent: float) -> Times:
    """Least times of one chip's operations, bytes of memory and bytes sent; None where no rate is stated."""
    over = lambda amount, rate: None if rate is None else amount / rate
    return Times(over(flops, chip.flops), over(accessed, chip.bandwidth), over(sent, chip.links))


@dataclass(frozen=True)
class Forecast:
    """A plan on a topology."""

    plan: Plan
    on: Topology
    memory: Memory
    accessed: float  # bytes of a chip's memory read and written in a step
    traffic: Mapping[str, Traffic]
    measured: bool  # accessed and traffic are the compiler's
    others: Mapping[str, tuple[int, int]]  # change of the config: (bytes that stay, estimated peak), where it helps

    @property
    def times(self) -> Times:
        """By roofline."""
        sent = float(sum(t.sent for t in self.traffic.values()))
        return roofline(self.on.chip, self.plan.flops / self.on.count, self.accessed, sent)

    @property
    def needed(self) -> int | None:
        """Bytes a chip should have: the peak, with room for what composing misses."""
        peak = self.memory.peak
        return math.ceil(peak / COMPOSED_SHARE) if peak is not None and self.memory.method == "composed" else peak

    @property
    def fits(self) -> bool | None:
        """Whether a chip's memory suffices; None where it is not stated."""
        if self.memory.refused:
            return False
        return None if self.on.chip.memory is None else self.needed <= room(self.on)

    def verdict(self) -> list[str]:
        """Lines that say whether it fits and, if not, what helps."""
        size = self.on.chip.memory
        if self.fits is None:
            return [f"{self.memory.peak / GIB:.2f} GiB a device; the host's memory is shared by all of them"]
        if self.fits:
            tight = self.on.chip.platform == "gpu" and self.needed > GPU_SHARE * size
            more = "; set XLA_PYTHON_CLIENT_MEM_FRACTION=0.97, jax takes 0.75 by itself" if tight else ""
            return [f"fits: {self.needed / GIB:.2f} of {size / GIB:.1f} GiB a chip{more}"]
        peak = self.needed
        needs = "" if peak is None else f": needs {peak / GIB:.2f} of {size / GIB:.1f} GiB a chip"
        lines = [f"does not fit{needs}"]
        if self.memory.refused:
            lines.append(f"  the compiler: {self.memory.refused}")
        for change, (held, peak) in self.others.items():
            said = "fits" if peak <= room(self.on) else "does not fit"
            lines.append(f"  with {change}: {held / GIB:.2f} GiB stay, about {peak / GIB:.2f} GiB at most: {said}")
        return lines if self.others else [*lines, "  nothing in the config helps: take more chips, or larger ones"]

    def lines(self) -> list[str]:
        """What to print."""
        plan, on, times = self.plan, self.on, self.times
        mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.shape.items())
        told = ", ".join(f"{tree} {name}" for tree, name in plan.rule_set.items())
        if len(names := set(plan.rule_set.values())) == 1:
            (told,) = names
        passes = f" in {plan.accumulate} passes" if plan.accumulate > 1 else ""
        slices = f"{on.slices} slices of " if on.slices > 1 else ""
        lines = [f"{slices}{on.name}: {on.count} chips ({mesh}), rules: {told}; global batch {plan.batch_size}{passes}"]
        lines += ["", "parameters"]
        lines += [f"  {name:<18}{count / 1e6:>10.1f} M" for name, count in plan.parameters.items()]
        lines += ["", "stays on each device, and a batch"]
        lines += [f"  {name:<18}{size / GIB:>10.3f} GiB" for name, size in plan.bytes.items()]
        lines += [f"  {'together':<18}{plan.held / GIB:>10.3f} GiB"]
        if whole := plan.left_whole:
            size = sum(whole.values()) / GIB
            lines += [f"  of which {size:.3f} GiB are {len(whole)} large tensors left whole: no dim of theirs divides"]
            lines += [f"    {named}" for named in rules.named_whole(whole)]
        lines += ["", f"memory, {self.said()}"]
        lines += [f"  {name:<18}{size / GIB:>10.3f} GiB beside it" for name, size in self.memory.extra.items()]
        if self.memory.peak is not None:
            lines += [f"  {'peak':<18}{self.memory.peak / GIB:>10.3f} GiB a chip"]
        each = plan.flops / plan.batch_size
        lines += ["", f"{plan.flops / 1e12:.3f} TFLOP a step, {each / 1e9:.1f} GFLOP a sample, before optimisation"]
        known = "in the compiled program" if self.measured else "estimated, of weights and gradients alone"
        lines += ["", f"messages a step, {known}"]
        lines += [
            f"  {kind:<18}{t.count:>7} x {t.bytes / GIB:>9.3f} GiB, {t.sent / GIB:.3f} GiB sent by a device"
            for kind, t in self.traffic.items()
        ] or ["  none"]
        if times.step is not None:
            parts = ", ".join(f"{name} {1e3 * (getattr(times, name) or 0):.1f}" for name in asdict(times))
            chip, rate = on.chip, plan.batch_size / times.step
            lines += ["", f"at best {1e3 * times.step:.1f} ms a step, {rate:.1f} samples/s, bound by {times.bound}"]
            lines += [f"  ms: {parts}, at {chip.flops / 1e12:.0f} TFLOP/s (bfloat16), {chip.bandwidth / 1e9:.0f} GB/s,"]
            lines += [f"  links {chip.links / 1e9:.0f} GB/s ({chip.source})"]
            if on.slices > 1:
                lines += ["  messages between slices go over a slower network, which is not counted"]
            if on.chip.platform == "gpu" and on.count > NODE:
                lines += [f"  messages between hosts of {NODE} GPUs go over a slower network, which is not counted"]
        return [*lines, "", *self.verdict()]

    def said(self) -> str:
        """How its memory is known."""
        seconds = sum(p.seconds for p in self.memory.programs.values() if not p.cached)
        took = f", {seconds:.0f} s" if seconds else ", kept from before"
        of = self.on.name if self.on.chip.platform == "tpu" else "the host's processor"
        if self.memory.effort < 0:
            took += ", with little effort"
        return {
            "whole": f"by the compiler for {of}{took}",
            "parts": f"by the compiler for {of}, part by part: what stays and the most a part needs beside it{took}",
            "composed": f"by the compiler for {of}, composed of one block of each kind (leave a third of room){took}",
            "none": "estimated without a compiler (activations in the order of the program, unfused)",
        }[self.memory.method]

    def record(self) -> dict[str, Any]:
        """Everything as a JSON value, with versions and date."""
        step = self.times.step
        return {
            "topology": {"name": self.on.name, "shape": self.on.shape, "slices": self.on.slices},
            "chip": asdict(self.on.chip),
            "mesh": dict(self.plan.mesh.shape),
            "rules": self.plan.rule_set,
            **self.plan.record(),
            "memory": self.memory.record(),
            "peak": self.memory.peak,
            "needed": self.needed,
            "traffic": {kind: asdict(t) for kind, t in self.traffic.items()},
            "traffic_and_accessed": "compiled" if self.measured else "estimated",
            "accessed": self.accessed,
            "seconds": {**asdict(self.times), "step": step, "bound": self.times.bound},
            "samples_per_second": None if step is None else self.plan.batch_size / step,
            "fits": self.fits,
            "others": {change: {"held": h, "peak": p} for change, (h, p) in self.others.items()},
            "verdict": self.verdict(),
            "made_on": machine(),
        }


def room(on: Topology) -> int:
    """Bytes of a chip that a program may take."""
    return int(on.chip.memory * (1 - KEPT_BACK))


def named(name: str, config: Any) -> Topology:
    """The topology of that name, as many times as config.mesh.slices says. ValueError lists the known."""
    slices = sections.plain(config)["mesh"].get("slices") or 1
    on = topology(name, 1)
    return topology(name, slices) if on.chip.platform == "tpu" else on


def here() -> Topology:
    """The devices that this process would train on. ValueError where their topology is not known."""
    kind, count = jax.devices()[0].device_kind, jax.device_count()
    chip = of_kind(kind)
    if jax.default_backend() == "cpu":
        return topology(f"cpu:{count}")
    if chip is not None and chip.platform == "gpu":
        return topology(f"gpu:{count}x{chip.name}")
    raise ValueError(f"the topology of {count} {kind} is not known here: name it to launch.plan, such as {EXAMPLES}")


def other_libtpu() -> str | None:
    """What to say where libtpu is not the one that jax asks for; None where it is, or none is there."""
    has, asks = version("libtpu"), [r for r in metadata.requires("jax") or () if r.startswith("libtpu==")]
    wanted = asks[0].removeprefix("libtpu==").partition(";")[0].strip() if asks else "*"
    if has is None or f"{has}.".startswith(wanted.rstrip("*")):
        return None
    return f"libtpu {has} is here, jax {jax.__version__} asks for {wanted}: pip install 'libtpu=={wanted}'"


def forecast(
    config: Any, on: Topology, method: str | None = None, cache: Path | None = None, effort: float | None = None
) -> Forecast:
    """What a config takes on a topology.

    `method` says how memory is found out: "whole", "parts" (plan_memory), "composed" (plan_composed) or "none"; None:
    "whole" where that is quick. `effort` is the compiler's, -1 to 1; None: 0 for the whole step, else LEAST.
    Raises ValueError as planning.plan does, and where there is no compiler for the method asked for.
    """
    able = on.chip.platform == "cpu" or (on.chip.platform == "tpu" and compiles_for_tpu())
    if method not in (None, "none") and not able:
        why = "install libtpu (lcm_jax[tpu])" if on.chip.platform == "tpu" else "GPUs are needed for that"
        raise ValueError(f"--compile {method}: no compiler for {on.name} is here, {why}; --compile none estimates")
    if able and on.chip.platform == "tpu" and (wrong := other_libtpu()):
        log.warning("%s (another may compile ten times as long)", wrong)
    devices = on.devices()
    plan = planning.plan(config, jax.devices()[: on.count] if devices is None else devices)
    trained = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(plan.state.params))
    if method is None:
        method = "whole" if able and trained <= QUICK else "none"
        if able and method == "none":
            more = "--compile composed, parts or whole asks the compiler"
            log.warning("%.0f M parameters: estimated; %s", trained / 1e6, more)
    if method == "none":
        memory = plan_memory.estimated(plan)
    else:
        ways = {"whole": plan_memory.whole, "parts": plan_memory.in_parts, "composed": plan_composed.composed}
        memory = ways[method](plan, on.name, cache, **({} if effort is None else {"effort": effort}))
    measured = bool(memory.programs) and not memory.refused
    if measured:
        accessed, traffic = memory.accessed or 0.0, memory.traffic
    else:
        peak = memory.peak or plan.held
        accessed, traffic = 2.0 * peak, weights_sent(plan)  # read and written once
    found = Forecast(plan, on, memory, accessed, traffic, measured, {})
    if found.fits is not False:
        return found
    return Forecast(plan, on, memory, accessed, traffic, measured, what_helps(config, plan))


def what_helps(config: Any, plan: Plan) -> dict[str, tuple[int, int]]:
    """Changes of a config that lower the estimated peak: (bytes that stay, peak) of each."""
    cfg, devices = sections.plain(config), list(plan.mesh.devices.flat)
    split = plan.mesh.shape["data"] * plan.mesh.shape["fsdp"]
    deep = cfg["model"].get("remat")
    changes: dict[str, dict[str, dict[str, Any]]] = {
        "config.mesh.rules=zero": {"mesh": {"rules": "zero"}},
        "config.mesh.rules=fsdp, data=1, fsdp=-1": {"mesh": {"rules": "fsdp", "data": 1, "fsdp": -1, "tensor": 1}},
    }
    if deep in (None, False, "none"):
        kind = "block" if sections.takes(cfg["objective"]["name"], "kind") else True
        changes[f"config.model.remat={kind}"] = {"model": {"remat": kind}}
    most = plan.batch_size // split
    if most > plan.accumulate and most % plan.accumulate == 0:
        changes[f"config.optimizer.accumulate={most}"] = {"optimizer": {"accumulate": most}}
    changes["all of these"] = {
        section: {k: v for change in changes.values() for k, v in change.get(section, {}).items()}
        for section in ("mesh", "model", "optimizer")
    }
    now, found = plan_memory.estimated(plan).peak, {}
    for words, change in changes.items():
        other = {name: {**section, **change[name]} if change.get(name) else section for name, section in cfg.items()}
        try:
            tried = planning.plan(other, devices)
        except ValueError as error:  # an axis that the batch or the slices do not allow
            log.info("%s: %s", words, error)
            continue
        peak = plan_memory.estimated(tried).peak
        if peak < 0.98 * now:
            found[words] = tried.held, peak
    return found


def weights_sent(plan: Plan) -> dict[str, Traffic]:
    """Messages that sharded weights and their gradients take at least: gathered for each pass that reads them."""
    found: dict[str, list[int]] = {}

    def add(kind: str, tree: Any, times: int) -> None:
        for leaf in jax.tree.leaves(tree):
            size = leaf.size * leaf.dtype.itemsize
            part = int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
            sent = 2 * size if kind == "all-reduce" else size - part
            total = found.setdefault(kind, [0, 0, 0])
            for i, value in enumerate((1, size, sent)):
                total[i] += times * value

    divided = lambda tree: [leaf for leaf in jax.tree.leaves(tree) if not leaf.sharding.is_fully_replicated]
    whole = lambda tree: [leaf for leaf in jax.tree.leaves(tree) if leaf.sharding.is_fully_replicated]
    passes = plan.accumulate
    if reading := divided(plan.state.params):
        add("all-gather", reading, 2 * passes)  # forward and backward
        add("reduce-scatter", reading, passes)
    if (own := whole(plan.state.params)) and plan.mesh.shape["data"] * plan.mesh.shape["fsdp"] > 1:
        add("all-reduce", own, 1)
    for tree in (plan.state.target, *(plan.frozen[name] for name in plan.work.frozen)):
        if reading := divided(tree):
            add("all-gather", reading, passes)
    return {kind: Traffic(*values) for kind, values in found.items()}
