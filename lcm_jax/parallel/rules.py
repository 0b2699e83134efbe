"""Sharding as data about names: (path regex -> tactic) rules read on an abstract tree."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Tactic = Callable[[tuple[int, ...], Mesh], PartitionSpec]
Rules = Sequence[tuple[str, Tactic]]

SMALL = 2**14  # elements: below this, gathering a tensor costs more than keeping a copy


def replicated(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """A full copy on every device."""
    return PartitionSpec()


def fully_sharded(shape: tuple[int, ...], mesh: Mesh, small: int = SMALL) -> PartitionSpec:
    """The largest dim that the fsdp axis divides is split over it; small tensors stay whole."""
    parts = mesh.shape["fsdp"]
    divisible = [dim for dim, size in enumerate(shape) if size % parts == 0 and size > 0]
    if parts == 1 or math.prod(shape) < small or not divisible:
        return PartitionSpec()
    # Of equal dims the last wins: the output features of a Flax kernel.
    largest = max(divisible, key=lambda dim: (shape[dim], dim))
    return PartitionSpec(*("fsdp" if dim == largest else None for dim in range(largest + 1)))


RULES: dict[str, Rules] = {
    "replicate": ((".*", replicated),),  # what jax.pmap did: data parallelism
    "fsdp": ((".*", fully_sharded),),  # what ZeRO-3 does: parameters, averages and moments in parts
}


def path_of(key_path: tuple[Any, ...]) -> str:
    """Name of a leaf such as `params/conv_in/kernel` from its jax key path."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def infer(abstract_tree: Any, rules: str | Rules, mesh: Mesh) -> Any:
    """Tree of NamedSharding shaped like `abstract_tree`; the first matching rule decides.

    Raises KeyError for an unknown rule set and ValueError for a leaf that no rule matches.
    """
    if isinstance(rules, str):
        if rules not in RULES:
            raise KeyError(f"unknown sharding rules '{rules}'; known: {', '.join(RULES)}")
        rules = RULES[rules]

    def sharding(key_path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = path_of(key_path)
        for pattern, tactic in rules:
            if re.search(pattern, name):
                return NamedSharding(mesh, tactic(tuple(leaf.shape), mesh))
        raise ValueError(f"no sharding rule matches '{name}'; end the rules with ('.*', replicated)")

    return jax.tree_util.tree_map_with_path(sharding, abstract_tree)


def with_shardings(abstract_tree: Any, shardings: Any) -> Any:
    """The abstract tree with each leaf's sharding attached, as a restore or an early compile wants it."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract_tree,
        shardings,
    )
