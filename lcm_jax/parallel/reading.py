"""How a layer reads a weight that devices hold in parts: put together there, and the gradient split again at once."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lcm_jax.parallel import rules

MULTIPLIED = ("kernel", "embedding")  # what a layer itself casts; it adds and scales in float32


@dataclass(frozen=True)
class Reading:
    """(path, weight) -> the weight whole over data and fsdp, split over tensor alone; to be traced.

    Called where a layer reads, so that what recomputes a block gathers its weights again instead of keeping them.
    Left to find out by itself, XLA may split activations by channels instead (SD 1.5's U-Net, compiled for 16 TPUs:
    hundreds of collective-permutes in a forward pass), and with fsdp and tensor together (jax 0.10.2) it computes wrong
    products without a word. A kernel goes over the links in the type in which layers compute, and its gradient back.
    """

    rule_set: str  # by which the weights are split
    mesh: Mesh
    dtype: str | None = None  # in which layers compute; None: weights' own

    def __call__(self, path: str, weight: jax.Array) -> jax.Array:
        split = rules.sharding_of(path, weight.shape, self.rule_set, self.mesh)
        whole = NamedSharding(self.mesh, PartitionSpec(*map(_over_tensor, split.spec)))
        if whole == split:
            return weight
        cast = self.dtype is not None and path.endswith(MULTIPLIED)
        return _put_together(weight.astype(self.dtype) if cast else weight, split, whole)

    def tree(self, weights: Any) -> Any:
        """All weights at once, in their own type."""
        own = replace(self, dtype=None)
        return jax.tree_util.tree_map_with_path(lambda path, leaf: own(rules.path_of(path), leaf), weights)


def readings(rule_set: Mapping[str, str], mesh: Mesh, dtype: str | None = None) -> dict[str, Reading]:
    """The Reading of each tree of weights; none where no tree is split over data or fsdp.

    `dtype` is what the trained network computes in; a teacher's weights are kept in the type in which it does.
    """
    if mesh.shape["fsdp"] == 1 and (mesh.shape["data"] == 1 or "zero" not in rule_set.values()):
        return {}
    own = rules.TREES["teacher"]
    return {tree: Reading(name, mesh, None if tree == own else dtype) for tree, name in rule_set.items()}


def _over_tensor(axes: Any) -> str | None:
    return "tensor" if "tensor" in (axes if isinstance(axes, tuple) else (axes,)) else None


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _put_together(weight: jax.Array, split: NamedSharding, whole: NamedSharding) -> jax.Array:
    # Held in parts up to here: XLA would put the wider type together and change it then.
    return jax.lax.with_sharding_constraint(jax.lax.with_sharding_constraint(weight, split), whole)


def _forward(weight: jax.Array, split: NamedSharding, whole: NamedSharding) -> tuple[jax.Array, None]:
    return _put_together(weight, split, whole), None


def _backward(split: NamedSharding, whole: NamedSharding, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.with_sharding_constraint(gradient, split),)


_put_together.defvjp(_forward, _backward)
