"""Sharding as data about names: (path regex -> splits) rules read on an abstract tree."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

WHOLE_NAMED = 4  # tensors that `named_whole` names
AnyMesh = Mesh | AbstractMesh  # where a tensor would lie can be asked of devices that are not there
Axes = str | tuple[str, ...]
Split = tuple[int | None, Axes]  # a dim, None: the largest one, and the mesh axes it is split over
Rules = Sequence[tuple[str, Sequence[Split]]]

SMALL = 2**14  # elements: below this, gathering a tensor costs more than keeping a copy
LARGE = 2**20  # elements: a tensor of that size should not be whole by accident

LARGEST, INPUTS, OUTPUTS = None, -2, -1  # a Flax kernel is [..., inputs, outputs]
# Modules that narrow what another has widened: attention's way out, a feed-forward's second map, a residual block's
# second convolution. Split by their inputs where the one before is split by its outputs, heads, hidden units and
# channels between the two stay on their device, and one sum joins them (arXiv 1909.08053).
NARROWS = (
    r"(to_out/\d+|ff/net/2|resnets/\d+/conv2"  # U-Net, autoencoder
    r"|(down|middle|up)/\d+/(conv1|proj)|blocks/\d+/(proj|fc2)"  # networks of noise levels
    r"|out_proj|mlp/fc2)/kernel$"  # text and image towers
)

# The first rule whose pattern is found in a path decides; its splits are made in turn. What the wanted dim does not
# allow is asked of the largest that does; what none allows, and what is small, stays whole.
RULES: dict[str, Rules] = {
    # What jax.pmap did: data parallelism.
    "replicate": ((".*", ()),),
    # What ZeRO-3 does: everything in parts, gathered where it is used.
    "fsdp": ((".*", ((LARGEST, "fsdp"),)),),
    # For what is read once a step: moments and averages. By this name a run's weights and teacher are whole (ZeRO-1).
    "zero": ((".*", ((LARGEST, ("data", "fsdp")),)),),
    "tensor": (
        (NARROWS, ((INPUTS, "tensor"),)),
        (".*", ((OUTPUTS, "tensor"),)),
    ),
    "fsdp_tensor": (
        (NARROWS, ((INPUTS, "tensor"), (LARGEST, "fsdp"))),  # of the dims before the inputs, or the inputs again
        (".*", ((OUTPUTS, "tensor"), (LARGEST, "fsdp"))),
    ),
}
TREES = {"params": "params", "target": "target", "ema": "ema", "optimizer": "opt_state", "teacher": "teacher"}
READ_WHOLE = ("params", "teacher")  # under "zero": every layer of every pass reads them


def named(name: str) -> Rules:
    """The rule set of that name; KeyError lists the names."""
    if name not in RULES:
        raise KeyError(f"unknown sharding rules '{name}'; known: {', '.join(RULES)}")
    return RULES[name]


def by_tree(default: str, others: Mapping[str, str]) -> dict[str, str]:
    """The rule set of each tree: of TREES' values, which name a state's fields and the frozen networks.

    `others` are the exceptions, by TREES' keys. Raises KeyError for an unknown rule set.
    """
    chosen = {tree: default for tree in TREES}
    if default == "zero":
        chosen |= dict.fromkeys(READ_WHOLE, "replicate")
    chosen |= others
    for name in (default, *chosen.values()):
        named(name)
    return {TREES[tree]: name for tree, name in chosen.items()}


def path_of(key_path: tuple[Any, ...]) -> str:
    """Name of a leaf such as `params/conv_in/kernel` from its jax key path."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def spec_of(shape: tuple[int, ...], splits: Sequence[Split], mesh: AnyMesh) -> PartitionSpec:
    """Where the splits put a tensor of that shape.

    A second split is of a dim before the first's, or of the same one again: with inputs over tensor and outputs over
    fsdp XLA (jax 0.10.2) computes other outputs, silently. Gradients are wrong in either order unless weights are
    read as parallel.reading has them.
    """
    found: list[tuple[str, ...]] = [()] * len(shape)
    for dim, axes in splits if math.prod(shape) >= SMALL else ():
        taken = [i for i, over in enumerate(found) if over]
        for over in _narrower(axes, mesh):
            parts = lambda i, over=over: math.prod(mesh.shape[axis] for axis in (*found[i], *over))
            able = [i for i, size in enumerate(shape) if size and size % parts(i) == 0]
            free = [i for i in able if not taken or i < taken[0]]
            if options := free or [i for i in able if i in taken]:
                wanted = len(shape) + dim if dim is not None else -1
                # Of equal dims the last wins: the output features of a Flax kernel.
                where = wanted if wanted in options else max(options, key=lambda i: (shape[i], i))
                found[where] += over
                break
    while found and not found[-1]:
        found.pop()
    return PartitionSpec(*(over[0] if len(over) == 1 else over or None for over in found))


def _narrower(axes: Axes, mesh: AnyMesh) -> Iterator[tuple[str, ...]]:
    """Those of the axes that have more than one device: all, then each alone, the longest first."""
    axes = tuple(axis for axis in ((axes,) if isinstance(axes, str) else axes) if mesh.shape[axis] > 1)
    if axes:
        yield axes
    if len(axes) > 1:
        yield from ((axis,) for axis in sorted(axes, key=lambda axis: -mesh.shape[axis]))


def infer(abstract_tree: Any, rules: str | Rules | Mapping[str, str], mesh: AnyMesh) -> Any:
    """Tree of NamedSharding shaped like `abstract_tree`; the first matching rule decides.

    `rules` as a mapping names the rule set of each of the tree's branches; a branch that is not there is whole.
    Raises KeyError for an unknown rule set and ValueError for a leaf that no rule matches.
    """

    def sharding(key_path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        path = path_of(key_path)
        name = rules.get(path.partition("/")[0], "replicate") if isinstance(rules, Mapping) else rules
        return sharding_of(path, tuple(leaf.shape), name, mesh)

    return jax.tree_util.tree_map_with_path(sharding, abstract_tree)


def sharding_of(path: str, shape: tuple[int, ...], rules: str | Rules, mesh: AnyMesh) -> NamedSharding:
    """Of one leaf; raises as `infer` does."""
    for pattern, splits in named(rules) if isinstance(rules, str) else rules:
        if re.search(pattern, path):
            return NamedSharding(mesh, spec_of(shape, splits, mesh))
    raise ValueError(f"no sharding rule matches '{path}'; end the rules with ('.*', ())")


def with_shardings(abstract_tree: Any, shardings: Any) -> Any:
    """The abstract tree with each leaf's sharding attached, as a restore or an early compile wants it."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract_tree,
        shardings,
    )


def left_whole(abstract_tree: Any, rules: str | Mapping[str, str], mesh: AnyMesh) -> dict[str, int]:
    """Bytes by path of the large tensors that rules other than "replicate" leave whole on every device.

    None of their dims divides over the axes that the rules name, or those have one device.
    """
    found = {}
    leaves = jax.tree_util.tree_leaves_with_path(abstract_tree)
    for (key_path, leaf), sharding in zip(leaves, jax.tree.leaves(infer(abstract_tree, rules, mesh)), strict=True):
        path, size = path_of(key_path), math.prod(leaf.shape)
        name = rules.get(path.partition("/")[0], "replicate") if isinstance(rules, Mapping) else rules
        if name != "replicate" and size >= LARGE and sharding.is_fully_replicated and mesh.size > 1:
            found[path] = size * leaf.dtype.itemsize
    return found


def named_whole(whole: Mapping[str, int]) -> list[str]:
    """What a message says of `left_whole`'s: the first few with their sizes, and how many more there are."""
    named = [f"{path} ({size / 2**20:.0f} MiB)" for path, size in list(whole.items())[:WHOLE_NAMED]]
    return [*named, f"{len(whole) - len(named)} more"] if len(whole) > len(named) else named
