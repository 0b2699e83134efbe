"""What a run takes, before anything is there: parameters, memory a device, floating-point operations."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lcm_jax import build
from lcm_jax.models.functional import Net
from lcm_jax.models.unet import unet
from lcm_jax.parallel import rules
from lcm_jax.parallel.transfer import batch_sharding
from lcm_jax.source import network, text_networks


@dataclass(frozen=True)
class Plan:
    """A lowered step and what it is fed; bytes are of one device."""

    lowered: Any  # jax.stages.Lowered: `compile()` says what else memory holds
    parameters: dict[str, int]  # of each network
    bytes: dict[str, int]  # of what stays on a device from step to step, and of a batch
    flops: float  # of one step over the whole batch, before the compiler has seen it
    batch_size: int
    devices: int

    def table(self) -> str:
        """Lines to print."""
        lines = [f"{self.devices} devices, global batch {self.batch_size}", "", "parameters"]
        lines += [f"  {name:<16}{count / 1e6:>10.1f} M" for name, count in self.parameters.items()]
        lines += ["", "bytes on each device, activations apart"]
        lines += [f"  {name:<16}{size / 2**30:>10.3f} GiB" for name, size in self.bytes.items()]
        lines += [f"  {'together':<16}{sum(self.bytes.values()) / 2**30:>10.3f} GiB", ""]
        each = self.flops / self.batch_size
        lines += [f"{self.flops / 1e12:.3f} TFLOP a step, {each / 1e9:.1f} GFLOP a sample"]
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """The numbers as a JSON value."""
        kept = ("parameters", "bytes", "flops", "batch_size", "devices")
        return {name: getattr(self, name) for name in kept}


@dataclass(frozen=True)
class _Work:
    """What a step works on; of shapes alone. Frozen networks have no sharding yet, nor have `constants`."""

    objective: Any
    trained: Net
    teacher: Net | None
    frozen: dict[str, tuple[Any, str]]  # networks that are not trained, and their type
    constants: dict[str, Any]  # the same for every batch
    batch: dict[str, Any]  # of one sample
    parameters: dict[str, int]
    weights: Any = None


def plan(config: Any) -> Plan:
    """Traces and lowers the step of a config that trains a network, or its adapters, on latents, from abstract trees.

    Neither weights nor latents have to be there if config.model.family says what they would be.
    Raises ValueError or FileNotFoundError as `build.run` does.
    """
    cfg = build.plain(config)
    work = (_captioned if build.takes(cfg["objective"]["name"], "kind") else _noise_levels)(cfg)
    mesh, rule_set = build.mesh_of(cfg)
    tx = build.optimizer_of(cfg)
    frozen: dict[str, Any] = {"teacher": None, "batch": _whole(work.constants, mesh)}
    frozen |= {name: _placed(tree, rule_set["teacher"], mesh, dtype) for name, (tree, dtype) in work.frozen.items()}
    key = jax.eval_shape(lambda: jax.random.key(0))
    # What starts as a teacher and what is drawn have the same shapes.
    first = jax.eval_shape(build.first_state(work.trained, tx, work.objective), key, None)
    state = _placed(first, rule_set, mesh, None)
    apply = None if work.teacher is None else work.teacher.apply
    step = build.step_of(cfg, work.objective, work.trained, apply, tx, work.weights, None)
    batch = _batch(work.batch, cfg["data"]["batch_size"], mesh)
    if work.weights is not None:  # one copy serves as teacher and as what is adapted
        frozen.setdefault("base", frozen["teacher"])
    lowered = jax.jit(step, donate_argnums=0).lower(state, frozen, batch, _whole(key, mesh))
    kept = {name: getattr(state, name) for name in ("params", "target", "ema", "opt_state")}
    kept |= {name: frozen[name] for name in work.frozen}
    return Plan(
        lowered,
        work.parameters,
        {name: size for name, tree in {**kept, "batch": batch}.items() if (size := device_bytes(tree))},
        float((lowered.cost_analysis() or {}).get("flops", np.nan)),
        cfg["data"]["batch_size"],
        mesh.size,
    )


def _captioned(cfg: dict[str, Any]) -> _Work:
    parts = build.latent_parts(cfg, planning=True)
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
    return _Work(
        parts.objective,
        parts.trained,
        parts.teacher,
        frozen,
        {"scale": _floats(), "uncond": told},
        {"mean": _floats(*spec.latent_shape), "std": _floats(*spec.latent_shape), **told, **sizes},
        parameters | {name: _count(network(spec, name)) for name in ("autoencoder", *text_networks(spec))},
        parts.weights,
    )


def _noise_levels(cfg: dict[str, Any]) -> _Work:
    objective, start = build.edm_parts(cfg, planning=True)
    spec = start.spec
    net, teacher, latent = network(spec, "network"), None, _floats(*spec.latent_shape)
    if start.teacher is not None:
        teacher = network(start.teacher.spec, "network")
    return _Work(
        objective,
        net,
        teacher,
        {} if teacher is None else {"teacher": (teacher.abstract(), "float32")},
        {"shift": latent, "scale": latent},
        {"mean": latent, "std": latent},
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
        raise ValueError(f"config.data.batch_size {size} does not divide over {split} devices (data x fsdp)")
    sharding = batch_sharding(mesh)
    return {k: jax.ShapeDtypeStruct((size, *v.shape), v.dtype, sharding=sharding) for k, v in sample.items()}
