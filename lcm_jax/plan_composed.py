"""A planned step of a Stable Diffusion U-Net from one block of each kind, compiled by itself and counted as it comes.

A whole step of SDXL takes hours and more memory than most hosts have to compile; its blocks take minutes. What is
not in a block (embeddings, first and last convolution, solver, loss, optimiser, averages) is compiled as
plan_memory.in_parts does, with U-Nets that have no blocks.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array
from tqdm import tqdm

from lcm_jax.models.unet import UNetConfig
from lcm_jax.models.unet_blocks import Block, block_net, blocks, frame
from lcm_jax.parallel import rules
from lcm_jax.parallel.collectives import Traffic
from lcm_jax.parallel.transfer import batch_sharding
from lcm_jax.plan_memory import LEAST, Compiled, Memory, Part, compiled, compiled_parts, parts
from lcm_jax.planning import Plan

FORWARD = {"teacher forward": "teacher", "target forward": "target"}  # parts, and the tree of weights they read
GRADIENT = "student gradient"
WAYS = {False: ("",), True: ("", ", backward")}  # endings of programs' names, of a pass forward and of one back as well
Size = Callable[[tuple[int, int], int], int]


def composed(plan: Plan, target: str, cache: Path | None = None, effort: float = LEAST) -> Memory:
    """The step in parts, their U-Nets in blocks; raises ValueError for what is no U-Net trained whole.

    At every block there is, beside what stays: what the backward pass keeps (the inputs of the blocks before it),
    gradients that wait at the skip connections, and what the block's own program takes. A compiler may have more than
    one block at work: of SD 1.5's gradient on 16 TPUs this finds 0.72 of what the whole pass takes.
    """
    work = plan.work
    cfg = work.trained.config
    if not isinstance(cfg, UNetConfig) or work.weights is not None:
        raise ValueError("--compile composed is for U-Nets of Stable Diffusion trained whole: take parts or whole")
    if cfg.remat != "block":
        raise ValueError("--compile composed counts what config.model.remat=block keeps: set that, or take parts")
    framed = {name: net and frame(net.config) for name, net in (("trained", work.trained), ("teacher", work.teacher))}
    frames = replace(plan, work=replace(work, **framed))
    made = parts(frames)
    rest = compiled_parts(made, frames, target, cache, effort)
    if rest.refused:
        return replace(rest, method="composed")
    programs = {f"{name}, apart from blocks": program for name, program in rest.programs.items()}
    runs = {f"{name}, apart from blocks": times for name, times in rest.runs.items()}
    extra = dict(rest.extra)
    for name, batch, times, tree, backward in _passes(frames, made):
        maker = _Maker(plan, cfg if tree != "teacher" else work.teacher.config, batch, tree, target, cache, effort)
        chain = blocks(maker.cfg, _sides(plan))
        for block, count in Counter(block.name for block in chain).items():
            runs |= {f"{name}, {block}{way}": times * count for way in WAYS[backward]}
        found = maker.compile(chain, backward)
        for key, program in found.items():
            if program.refused:
                return Memory("composed", None, f"{name}, {key}: {program.refused}", programs, runs, extra, effort)
            programs[f"{name}, {key}"] = program
        extra[name] += max(alive(chain, found, maker.size, backward))
    return Memory("composed", plan.held + max(extra.values()), None, programs, runs, extra, effort)


def _passes(frames: Plan, made: Mapping[str, Part]) -> Iterator[tuple[str, int, int, str, bool]]:
    """(part, samples of a pass, passes a step, tree of weights, whether back as well) of each part with a U-Net."""
    samples = next(iter(frames.batch.values())).shape[0] // frames.accumulate
    for name, tree in FORWARD.items():
        if name in made:
            tree = "params" if tree == "target" and frames.state.target is None else tree
            _, (_, _, given, _), _, times, _ = made[name]
            yield name, given[0].shape[0], times, tree, False
    yield GRADIENT, samples, made[GRADIENT][3], "params", True


def _sides(plan: Plan) -> tuple[int, int]:
    return plan.batch["mean"].shape[1:3]


def alive(chain: list[Block], found: Mapping[str, Compiled], size: Size, backward: bool) -> list[int]:
    """Bytes on one device at each block, on the way forward and, if `backward`, back again.

    `found` are the programs by name, `size` says what a map of some sides and channels takes.
    """
    # Code of all blocks is there all the time.
    code = sum(found[block.name + way].memory["code"] for block in chain for way in WAYS[backward])
    taken = lambda name: found[name].memory["temporaries"] + code
    maps = [size(block.sides, block.inputs) for block in chain]
    made = [size(block.out_sides, block.outputs) for block in chain]
    waiting = [size(block.sides, block.skipped) for block in chain]
    last_use = {block.source: i for i, block in enumerate(chain) if block.source is not None}
    moments = []
    for i, block in enumerate(chain):
        if backward:
            before = sum(maps[: i + 1])
        else:  # the inputs of those behind are gone, but for what still goes over a skip connection
            over = [j for j, use in last_use.items() if j < i - 1 and use > i]
            before = maps[i] + sum(made[j] if j >= 0 else maps[0] for j in over)
        moments.append(before + made[i] + taken(block.name))
    for i, block in enumerate(chain) if backward else ():
        later = [j for j in range(i + 1, len(chain)) if chain[j].source is not None and chain[j].source < i]
        kept = sum(maps[: i + 1]) + sum(waiting[j] for j in later)
        moments.append(kept + made[i] + maps[i] + taken(f"{block.name}, backward"))  # gradients out and in
    return moments


@dataclass(frozen=True)
class _Maker:
    """Compiles blocks of a U-Net for `batch` samples, with the weights of one of a plan's trees."""

    plan: Plan
    cfg: UNetConfig
    batch: int
    tree: str
    target: str
    cache: Path | None
    effort: float

    def compile(self, chain: list[Block], backward: bool) -> dict[str, Compiled]:
        """The programs of each kind of block by its name, those of the way back as "NAME, backward"."""
        found: dict[str, Compiled] = {}
        kinds = {block.name: block for block in chain}
        bar = tqdm(kinds.items(), f"compiling blocks, {self.tree}", unit="kind", mininterval=0)
        for name, block in bar:
            bar.set_postfix_str(name)
            for way in WAYS[backward]:
                found[name + way] = self._of_depth(block, bool(way))
        return found

    def _of_depth(self, block: Block, back: bool) -> Compiled:
        """A block's program; of a deep transformer the difference between one and two of its blocks, repeated."""
        if block.depth <= 2:
            return self._program(block, back)
        one, two = (self._program(replace(block, depth=depth), back) for depth in (1, 2))
        return _extended(one, two, block.depth)

    def _program(self, block: Block, back: bool) -> Compiled:
        net, plan = block_net(block, self.cfg), self.plan
        sharding, dtype = batch_sharding(plan.mesh), jnp.dtype(self.cfg.dtype)
        array = lambda *shape: jax.ShapeDtypeStruct((self.batch, *shape), dtype, sharding=sharding)
        weights = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, self._held_as), net.abstract())
        weights = rules.with_shardings(weights, rules.infer(weights, plan.rule_set[self.tree], plan.mesh))
        told = plan.frozen["batch"]["uncond"]["context"].shape
        more = (array(4 * self.cfg.channels[0]), array(*told)) if block.kind in ("layer", "mid") else ()
        read = plan.readings.get(self.tree)
        forward = lambda weights, *args: net.apply(weights, *args, **({} if read is None else {"read": read}))
        x = array(*block.sides, block.inputs)
        if not back:
            return self._compiled(forward, weights, x, *more)

        def backward(weights: Any, given: Any, x: Array, *more: Array) -> Any:
            """Recomputes the block, as rematerialisation does; captions want no gradient."""
            seen = lambda weights, x, *temb: forward(weights, x, *temb, *more[1:])
            gradients = jax.vjp(seen, weights, x, *more[:1])[1](given)
            lies = jax.tree.map(lambda leaf: leaf.sharding, weights_as)
            return jax.lax.with_sharding_constraint(gradients[0], lies), *gradients[1:]

        weights_as = weights
        return self._compiled(backward, weights, array(*block.out_sides, block.outputs), x, *more)

    def _compiled(self, function: Callable[..., Any], *arguments: Any) -> Compiled:
        lowered = jax.jit(function, keep_unused=True).lower(*arguments)
        return compiled(lowered, self.plan.devices, self.target, self.cache, self.effort)

    @property
    def _held_as(self) -> Any:
        """The type of the tree's weights."""
        plan = self.plan
        tree = plan.frozen["teacher"] if self.tree == "teacher" else plan.state.params
        return jax.tree.leaves(tree)[0].dtype

    def size(self, sides: tuple[int, int], channels: int) -> int:
        """Bytes of a map on one device."""
        shape = self.plan.mesh.shape
        samples = self.batch // (shape["data"] * shape["fsdp"])
        return samples * sides[0] * sides[1] * channels * jnp.dtype(self.cfg.dtype).itemsize


def _extended(one: Compiled, two: Compiled, depth: int) -> Compiled:
    """A program of `depth` equal pieces from those of one and of two."""
    if one.refused or two.refused:
        return one if one.refused else two
    line = lambda a, b: max(a, b, a + (depth - 1) * (b - a))  # of memory that two pieces share: not less than they take
    numbers = lambda a, b: {key: line(a[key], b[key]) for key in a}
    none = Traffic(0, 0, 0)
    traffic = {
        kind: Traffic(**numbers(asdict(one.traffic.get(kind, none)), asdict(two.traffic.get(kind, none))))
        for kind in {**one.traffic, **two.traffic}
    }
    of = lambda name: None if getattr(one, name) is None else line(getattr(one, name), getattr(two, name))
    seconds, cached = one.seconds + two.seconds, one.cached and two.cached
    return Compiled(
        seconds, numbers(one.memory, two.memory), None, of("flops"), of("accessed"), traffic, cached
    )
