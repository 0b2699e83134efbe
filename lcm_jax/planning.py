"""A run's step from shapes alone: parameters, bytes a device, operations, and the step itself to be compiled."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clu.parameter_overview import get_parameter_overview
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lcm_jax import assembly, build_captioned, build_edm, sections
from lcm_jax.flops import flops
from lcm_jax.models.functional import Net
from lcm_jax.models.unet import unet
from lcm_jax.objectives.base import Nets
from lcm_jax.parallel import rules
from lcm_jax.parallel.reading import Reading, readings
from lcm_jax.parallel.transfer import batch_sharding
from lcm_jax.source import network, text_networks
from lcm_jax.train.state import State
from lcm_jax.train.step import Step, bound, readable
from lcm_jax.typing import Params

STATE = ("params", "target", "ema", "opt_state")  # what of a state there is memory in


@dataclass(frozen=True)
class Plan:
    """A step and what it is fed, as shapes with shardings; bytes are of one device."""

    work: "Work"
    tx: Any  # the optimiser
    step: Step
    one_pass: Step  # the same without accumulation
    state: State
    frozen: Any
    batch: dict[str, jax.ShapeDtypeStruct]
    key: jax.ShapeDtypeStruct
    mesh: Mesh
    rule_set: dict[str, str]  # of each tree
    readings: Mapping[str, Reading]  # of trees that lie in parts
    parameters: dict[str, int]  # of each network
    bytes: dict[str, int]  # of what stays on a device from step to step, and of a batch
    batch_size: int
    accumulate: int

    @functools.cached_property
    def flops(self) -> float:
        """Operations of a step over the whole batch, before a compiler has seen it.

        Counted for one device and one pass: what repeats in a loop would be counted once.
        """
        return flops(self.one_pass, self.state, self.frozen, self.batch, self.key)

    @property
    def left_whole(self) -> dict[str, int]:
        """Bytes by path of large tensors that every device holds whole though the rules mean to split them."""
        trees = {"teacher": self.frozen["teacher"]}
        return {k: v for t in (self.state, trees) for k, v in rules.left_whole(t, self.rule_set, self.mesh).items()}

    @property
    def devices(self) -> int:
        """How many there are."""
        return self.mesh.size

    @property
    def held(self) -> int:
        """Bytes that stay on each device, and those of a batch."""
        return sum(self.bytes.values())

    def lower(self) -> jax.stages.Lowered:
        """The step as a run jits it."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state)
        step = jax.jit(self.step, donate_argnums=0, out_shardings=(shardings, None))
        return step.lower(self.state, self.frozen, self.batch, self.key)

    def tensors(self) -> str:
        """A table of what is trained: name, shape, dtype, size and the mesh axes that split each dim."""
        return get_parameter_overview(self.state.params, include_stats="sharding")

    def held_under(self, rule_set: dict[str, str]) -> int:
        """Bytes that would stay on each device under other sharding rules."""
        placed = lambda tree, name: rules.with_shardings(tree, rules.infer(tree, name, self.mesh))
        state = {name: getattr(self.state, name) for name in STATE}
        networks = {name: placed(self.frozen[name], rule_set["teacher"]) for name in self.work.frozen}
        return device_bytes((placed(state, rule_set), networks, self.batch))

    def record(self) -> dict[str, Any]:
        """The numbers as a JSON value."""
        kept = ("parameters", "bytes", "held", "flops", "batch_size", "accumulate", "devices")
        return {name: getattr(self, name) for name in kept}

    def loss(
        self, params: Params, state: State, frozen: Any, batch: Any, key: Any, target: Any, teacher: Any
    ) -> jax.Array:
        """The objective's loss as the step calls it; `target` and `teacher` stand in for those networks."""
        work, step = self.work, state.step
        online = readable(params, "params", frozen, work.weights, self.readings)
        nets = Nets(bound(work.trained.apply, *online), target, teacher)
        return work.objective.loss(nets, {**batch, **frozen["batch"]}, jax.random.fold_in(key, step), step)[0]


@dataclass(frozen=True)
class Work:
    """What a step works on; of shapes alone. Frozen networks have no sharding yet, nor have `constants`."""

    objective: Any
    trained: Net
    teacher: Net | None
    frozen: dict[str, tuple[Any, str]]  # networks that are not trained, and their type
    constants: dict[str, Any]  # the same for every batch
    batch: dict[str, Any]  # of one sample
    parameters: dict[str, int]
    weights: Any = None


def plan(config: Any, devices: Sequence[Any] | None = None) -> Plan:
    """Traces the step of a config that trains a network, or its adapters, on latents, from abstract trees.

    `devices` are those of the mesh, by default all there are. Neither weights nor latents have to be there if
    config.model.family says what they would be. Raises ValueError or FileNotFoundError as `build.run` does.
    """
    cfg = sections.plain(config)
    if cfg["objective"]["name"] == "autoencoder":
        raise ValueError("config.objective.name is 'autoencoder': plans are for what trains on latents")
    work = (_captioned if sections.takes(cfg["objective"]["name"], "kind") else _noise_levels)(cfg)
    mesh, rule_set = sections.mesh_of(cfg, devices)
    tx, read = sections.optimizer_of(cfg), readings(rule_set, mesh, sections.computes_in(cfg))
    frozen: dict[str, Any] = {"teacher": None, "batch": _whole(work.constants, mesh)}
    frozen |= {name: _placed(tree, rule_set["teacher"], mesh, dtype) for name, (tree, dtype) in work.frozen.items()}
    key = jax.eval_shape(lambda: jax.random.key(0))
    # What starts as a teacher and what is drawn have the same shapes.
    first = jax.eval_shape(assembly.first_state(cfg, work.trained, tx, work.objective), key, None)
    state = _placed(first, rule_set, mesh, None)
    batch = _batch(work.batch, cfg["data"]["batch_size"], mesh)
    if work.weights is not None:  # one copy serves as teacher and as what is adapted
        frozen.setdefault("base", frozen["teacher"])
    kept = {name: getattr(state, name) for name in STATE}
    names = sections.average_names(cfg)
    if len(names) > 1:
        kept |= {"ema": None, **{f"ema {name}": kept["ema"][name] for name in names}}
    kept |= {name: frozen[name] for name in work.frozen}
    return Plan(
        work,
        tx,
        _step(cfg, work, tx, read),
        _step({**cfg, "optimizer": {**cfg["optimizer"], "accumulate": 1}}, work, tx, {}),
        state,
        frozen,
        batch,
        _whole(key, mesh),
        mesh,
        rule_set,
        read,
        work.parameters,
        {name: size for name, tree in {**kept, "batch": batch}.items() if (size := device_bytes(tree))},
        cfg["data"]["batch_size"],
        cfg["optimizer"].get("accumulate", 1),
    )


def operations(config: Any) -> float:
    """Of a step over the whole batch, before a compiler has seen it, whatever its mesh; raises as `plan` does."""
    return plan({**sections.plain(config), "mesh": {}}, jax.devices()[:1]).flops


def _step(cfg: dict[str, Any], work: Work, tx: Any, read: Mapping[str, Reading]) -> Step:
    apply = None if work.teacher is None else work.teacher.apply
    return assembly.step_of(cfg, work.objective, work.trained, apply, tx, work.weights, None, read)


def _captioned(cfg: dict[str, Any]) -> Work:
    parts = build_captioned.latent_parts(cfg, planning=True)
    spec, start = parts.spec, parts.start
    net = unet(spec.unet)
    frozen = {} if parts.teacher is None else {"teacher": (parts.teacher.abstract(), start.teacher_dtype)}
    parameters = {"U-Net": _count(net)}
    if start.lora is not None:
        if parts.teacher is None:
            frozen["base"] = net.abstract(), start.teacher_dtype
        parameters["adapters"] = _count(parts.trained)
    told = {"context": _floats(spec.text.length, spec.unet.context_width)}
    if spec.pooled_width is not None:
        told["pooled"] = _floats(spec.pooled_width)
    sizes = {"time_ids": jax.ShapeDtypeStruct((6,), jnp.int32)} if spec.unet.added_width else {}
    return Work(
        parts.objective,
        parts.trained,
        parts.teacher,
        frozen,
        {"scale": _floats(), "uncond": told},
        {"mean": _floats(*spec.latent_shape), "std": _floats(*spec.latent_shape), **told, **sizes},
        parameters | {name: _count(network(spec, name)) for name in ("autoencoder", *text_networks(spec))},
        parts.weights,
    )


def _noise_levels(cfg: dict[str, Any]) -> Work:
    objective, start = build_edm.edm_parts(cfg, planning=True)
    spec, told = start.spec, build_edm.noise_condition(start.spec)
    net, teacher, latent = network(spec, "network"), None, _floats(*spec.latent_shape)
    if start.teacher is not None:
        teacher = network(start.teacher.spec, "network")
    return Work(
        objective,
        net,
        teacher,
        {} if teacher is None else {"teacher": (teacher.abstract(), "float32")},
        {"shift": latent, "scale": latent, **{k: jax.ShapeDtypeStruct((), v.dtype) for k, v in told.items()}},
        {"mean": latent, "std": latent, **({"label": jax.ShapeDtypeStruct((), jnp.int32)} if told else {})},
        {"network": _count(net), "autoencoder": _count(network(spec, "autoencoder"))},
    )


def device_bytes(tree: Any) -> int:
    """Bytes of a tree of ShapeDtypeStructs with shardings on one device."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


def _count(net: Net) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(net.abstract()))


def _floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _placed(tree: Any, rule_set: str | dict[str, str], mesh: Mesh, dtype: str | None) -> Any:
    cast = lambda leaf: leaf if dtype is None else jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype))
    tree = jax.tree.map(cast, tree)
    return rules.with_shardings(tree, rules.infer(tree, rule_set, mesh))


def _whole(tree: Any, mesh: Mesh) -> Any:
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), tree)


def _batch(sample: dict[str, Any], size: int, mesh: Mesh) -> dict[str, Any]:
    split = mesh.shape["data"] * mesh.shape["fsdp"]
    if size % split:
        near = " or ".join(str(n) for n in (size - size % split, size - size % split + split) if n)
        why = f"config.data.batch_size {size} does not divide over {split} devices (data x fsdp)"
        raise ValueError(f"{why}: --config.data.batch_size={near} does")
    sharding = batch_sharding(mesh)
    return {k: jax.ShapeDtypeStruct((size, *v.shape), v.dtype, sharding=sharding) for k, v in sample.items()}
