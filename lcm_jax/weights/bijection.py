"""Names and layouts of PyTorch checkpoints against nested dicts: a leaf rename and a transpose, nothing else.

Modules here carry their reference's names, so a path keeps all its parts but the last:
params["a"]["0"]["kernel"] <-> "a.0.weight".
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Path = tuple[str, ...]
_LEAF = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
_SHOWN = 6  # keys named in an error before "and n more"


def flatten(tree: Mapping[str, Any]) -> dict[Path, Any]:
    """{("a", "b"): leaf} of {"a": {"b": leaf}}."""
    flat: dict[Path, Any] = {}
    for name, child in tree.items():
        if isinstance(child, Mapping):
            flat.update({(name, *path): leaf for path, leaf in flatten(child).items()})
        else:
            flat[(name,)] = child
    return flat


def unflatten(flat: Mapping[Path, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for (*parents, leaf), value in flat.items():
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = value
    return tree


def torch_key(path: Sequence[str]) -> str:
    """The PyTorch name of a leaf: ("a", "0", "kernel") -> "a.0.weight"."""
    return ".".join((*path[:-1], _LEAF.get(path[-1], path[-1])))


def to_torch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """PyTorch's names and layouts of a parameter tree; the inverse of `from_torch`."""
    keys = _keys(params, str)
    return {keys[path]: _to_torch_layout(path, np.asarray(leaf)) for path, leaf in flatten(params).items()}


def from_torch(
    tensors: Mapping[str, Any],
    abstract: Mapping[str, Any],
    *,
    ignore: Sequence[str] = (),
    rename: Callable[[str], str] = str,
) -> dict[str, Any]:
    """The tree `abstract` (of anything with shape and dtype) filled from PyTorch's tensors, as numpy arrays.

    Every leaf must be found and every tensor used, except those whose whole name matches a pattern of
    `ignore`. A 1x1 convolution may fill a linear map (old attention layers were saved so). Values are cast to
    the leaf's dtype. `rename` is that of `to_torch`.
    Raises ValueError naming what is missing, unexpected or of another shape.
    """
    return fill(tensors, abstract, lambda path, array: array, ignore, rename)


def fill(
    tensors: Mapping[str, Any],
    abstract: Mapping[str, Any],
    place: Callable[[Path, np.ndarray], Any],
    ignore: Sequence[str] = (),
    rename: Callable[[str], str] = str,
) -> dict[str, Any]:
    """`from_torch` tensor by tensor: each leaf is what place(path, array) returns, and the array is let go.

    Names and shapes are all checked before the first tensor is read, without reading where `tensors` has a
    method shape(key). Tensors are read in their own order, that of the files they lie in. The host holds one
    tensor as stored and the same one in its new layout.
    Raises ValueError as `from_torch` does.
    """
    wanted = flatten(abstract)
    keys = _keys(abstract, rename)
    paths = {key: path for path, key in keys.items()}
    _check(tensors, wanted, keys, ignore)
    filled = {}
    for key in tensors:
        if key in paths:
            path = paths[key]
            filled[path] = place(path, _leaf(path, tensors[key], wanted[path]))
    return unflatten({path: filled[path] for path in wanted})


def _check(
    tensors: Mapping[str, Any], wanted: Mapping[Path, Any], keys: Mapping[Path, str], ignore: Sequence[str]
) -> None:
    skip = re.compile("|".join(f"(?:{pattern})" for pattern in ignore) or r"(?!)")
    shape_of = getattr(tensors, "shape", lambda key: np.shape(tensors[key]))
    present, known = set(tensors), set(keys.values())
    misshaped = []
    for path, leaf in wanted.items():
        if (key := keys[path]) in present:
            stored = np.broadcast_to(np.int8(0), tuple(shape_of(key)))  # a shape to turn, no memory
            shape = _from_torch_layout(path, stored, len(leaf.shape)).shape
            if shape != tuple(leaf.shape):
                misshaped.append(f"{key} ({shape} here as {path[-1]}, network wants {tuple(leaf.shape)})")
    wrong = {
        "missing": [key for key in keys.values() if key not in present],
        "unexpected": [key for key in tensors if key not in known and not skip.fullmatch(key)],
        "of another shape": misshaped,
    }
    if any(wrong.values()):
        parts = (f"{len(names)} {what}: {some(names)}" for what, names in wrong.items() if names)
        raise ValueError(f"checkpoint does not fit the network; check the preset. {'; '.join(parts)}")


def _leaf(path: Path, value: Any, leaf: Any) -> np.ndarray:
    """The tensor in our layout and type, in one copy."""
    return np.asarray(_from_torch_layout(path, np.asarray(value), len(leaf.shape)), leaf.dtype, order="C")


def _keys(tree: Mapping[str, Any], rename: Callable[[str], str]) -> dict[Path, str]:
    keys: dict[Path, str] = {}
    owner: dict[str, Path] = {}
    for path in flatten(tree):
        key = keys[path] = rename(torch_key(path))
        if key in owner:
            pair = f"{'/'.join(owner[key])} and {'/'.join(path)}"
            raise ValueError(f"{pair} both become {key!r}: rename one of them")
        owner[key] = path
    return keys


def _from_torch_layout(path: Path, value: np.ndarray, rank: int) -> np.ndarray:
    if path[-1] != "kernel" or value.ndim < 2:
        return value
    if rank == 2 and value.ndim > 2 and set(value.shape[2:]) == {1}:
        value = value.reshape(value.shape[:2])
    return np.moveaxis(value, (1, 0), (-2, -1))  # [o, i, *space] -> [*space, i, o]


def _to_torch_layout(path: Path, value: np.ndarray) -> np.ndarray:
    if path[-1] == "kernel" and value.ndim >= 2:
        value = np.moveaxis(value, (-2, -1), (1, 0))
    return np.asarray(value, order="C")


def some(names: Sequence[str]) -> str:
    """The first names for an error message, and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
