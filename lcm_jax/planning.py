"""What a run takes, before anything is there: parameters, memory a device, floating-point operations."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lcm_jax import build
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


def plan(config: Any) -> Plan:
    """Traces and lowers the step of a config that trains a U-Net, or its adapters, from abstract trees.

    Neither weights nor latents have to be there if config.model.family says what they would be.
    Raises ValueError or FileNotFoundError as `build.run` does.
    """
    cfg = build.plain(config)
    parts = build.latent_parts(cfg, planning=True)
    mesh, rule_set = build.mesh_of(cfg)
    tx = build.optimizer_of(cfg)
    place = lambda tree, dtype=None: _placed(tree, rule_set, mesh, dtype)
    frozen: dict[str, Any] = {"teacher": None, "batch": _whole(_constants(parts), mesh)}
    base = unet(parts.spec.unet).abstract()
    if parts.teacher is not None:
        frozen["teacher"] = place(parts.teacher.abstract(), parts.start.teacher_dtype)
    if parts.start.lora is not None:
        frozen["base"] = frozen["teacher"] or place(base, parts.start.teacher_dtype)
    key = jax.eval_shape(lambda: jax.random.key(0))
    # What starts as a teacher and what is drawn have the same shapes.
    state = place(jax.eval_shape(build.first_state(parts.trained, tx, parts.objective), key, None))
    apply = None if parts.teacher is None else parts.teacher.apply
    step = build.step_of(cfg, parts.objective, parts.trained, apply, tx, parts.weights, None)
    batch = _batch(parts, cfg["data"]["batch_size"], mesh)
    lowered = jax.jit(step, donate_argnums=0).lower(state, frozen, batch, _whole(key, mesh))
    kept = {name: getattr(state, name) for name in ("params", "target", "ema", "opt_state")}
    kept |= {name: frozen[name] for name in ("teacher",) if frozen[name] is not None}
    if frozen["teacher"] is None and "base" in frozen:
        kept["base"] = frozen["base"]
    return Plan(
        lowered,
        _parameters(parts),
        {name: size for name, tree in {**kept, "batch": batch}.items() if (size := device_bytes(tree))},
        float((lowered.cost_analysis() or {}).get("flops", np.nan)),
        cfg["data"]["batch_size"],
        mesh.size,
    )


def device_bytes(tree: Any) -> int:
    """Bytes of a tree of ShapeDtypeStructs with shardings on one device."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


def _parameters(parts: build.Parts) -> dict[str, int]:
    count = lambda tree: sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
    spec = parts.spec
    found = {"U-Net": count(unet(spec.unet).abstract())}
    if parts.start.lora is not None:
        found["adapters"] = count(parts.trained.abstract())
    return found | {name: count(network(spec, name).abstract()) for name in ("autoencoder", *text_networks(spec))}


def _placed(tree: Any, rule_set: str, mesh: Mesh, dtype: str | None) -> Any:
    cast = lambda leaf: leaf if dtype is None else jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype))
    tree = jax.tree.map(cast, tree)
    return rules.with_shardings(tree, rules.infer(tree, rule_set, mesh))


def _whole(tree: Any, mesh: Mesh) -> Any:
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), tree)


def _constants(parts: build.Parts) -> dict[str, Any]:
    told = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in _told(parts).items()}
    return {"scale": jax.ShapeDtypeStruct((), jnp.float32), "uncond": told}


def _told(parts: build.Parts) -> dict[str, tuple[int, ...]]:
    """Shapes of a caption's entries."""
    spec = parts.spec
    told: dict[str, tuple[int, ...]] = {"context": (spec.text.length, spec.unet.context_width)}
    if spec.pooled_width is not None:
        told["pooled"] = (spec.pooled_width,)
    return told


def _batch(parts: build.Parts, size: int, mesh: Mesh) -> dict[str, Any]:
    shapes = {"mean": parts.spec.latent_shape, "std": parts.spec.latent_shape, **_told(parts)}
    dtypes = dict.fromkeys(shapes, jnp.float32)
    if parts.spec.unet.added_width:
        shapes["time_ids"], dtypes["time_ids"] = (6,), jnp.int32
    split = mesh.shape["data"] * mesh.shape["fsdp"]
    if size % split:
        raise ValueError(f"config.data.batch_size {size} does not divide over {split} devices (data x fsdp)")
    sharding = batch_sharding(mesh)
    return {k: jax.ShapeDtypeStruct((size, *shape), dtypes[k], sharding=sharding) for k, shape in shapes.items()}
