"""One network as a safetensors file, under our names or PyTorch's; read from the device leaf by leaf."""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lcm_jax.typing import Params
from lcm_jax.weights import bijection, folder
from lcm_jax.weights.safetensors_stream import write_stream

Trees = Mapping  # network -> Params; of no stated types: to check them would be to load one


class Networks(Mapping):
    """Networks that are loaded when asked for and not kept; `abstract` has the shapes of all of them."""

    def __init__(self, abstract: Mapping[str, Params], load: Callable[[str], Params]):
        self.abstract, self._load = abstract, load

    def __getitem__(self, name: str) -> Params:
        if name not in self.abstract:
            raise KeyError(name)
        return self._load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.abstract)

    def __len__(self) -> int:
        return len(self.abstract)

    def __contains__(self, name: object) -> bool:
        return name in self.abstract  # a mapping's own way would load it


def shapes_of(networks: Trees) -> Mapping[str, Params]:
    """The same trees, of anything with shape and dtype; nothing is loaded for it."""
    return networks.abstract if isinstance(networks, Networks) else networks


def size(tree: Params, dtype: str) -> int:
    """Bytes of a tree whose floating-point leaves are stored in `dtype`."""
    return sum(math.prod(leaf.shape) * _stored(leaf, dtype).itemsize for leaf in jax.tree.leaves(tree))


class TorchTensors(Mapping):
    """A network under PyTorch's names, in its layouts and in `dtype`; each tensor is made when asked for.

    `load` gives the tree whose shapes `abstract` has, when the first tensor is asked for.
    """

    def __init__(self, abstract: Params, load: Callable[[], Params], dtype: str):
        self._leaves = {bijection.torch_key(path): (path, leaf) for path, leaf in bijection.flatten(abstract).items()}
        self._load, self._dtype = load, dtype

    def __getitem__(self, key: str) -> np.ndarray:
        path, _ = self._leaves[key]
        leaf = self._load()
        for part in path:
            leaf = leaf[part]
        nested = bijection.unflatten({path: folder.cast(leaf, self._dtype, "/".join(path))})
        return bijection.to_torch(nested)[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._leaves)

    def __len__(self) -> int:
        return len(self._leaves)

    def __contains__(self, key: object) -> bool:
        return key in self._leaves  # a mapping's own way would make the tensor

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of one tensor, without making it."""
        path, leaf = self._leaves[key]
        turned = path[-1] == "kernel" and len(leaf.shape) > 1
        return (leaf.shape[-1], leaf.shape[-2], *leaf.shape[:-2]) if turned else tuple(leaf.shape)

    def dtype(self, key: str) -> np.dtype:
        """The type of one tensor, without making it."""
        return _stored(self._leaves[key][1], self._dtype)


def write_flax(path: Path, tree: Params, dtype: str, metadata: Mapping[str, str]) -> None:
    """Writes a tree under its dotted paths in `dtype`; ValueError names a leaf that is too large for it."""
    flat = bijection.flatten(tree)
    keys = {".".join(leaf): leaf for leaf in flat}
    layout = {key: jax.ShapeDtypeStruct(flat[p].shape, _stored(flat[p], dtype)) for key, p in keys.items()}
    write_stream(path, layout, lambda key: folder.cast(flat[keys[key]], dtype, "/".join(keys[key])), metadata)


def write_torch(path: Path, tree: Params, dtype: str) -> None:
    """Writes a tree under PyTorch's names and in its layouts in `dtype`; ValueError as `write_flax` has it."""
    tensors = TorchTensors(tree, lambda: tree, dtype)
    layout = {key: jax.ShapeDtypeStruct(tensors.shape(key), tensors.dtype(key)) for key in tensors}
    write_stream(path, layout, tensors.__getitem__, {"format": "pt"})


def _stored(leaf: Any, dtype: str) -> np.dtype:
    return np.dtype(dtype) if jax.dtypes.issubdtype(leaf.dtype, np.floating) else np.dtype(leaf.dtype)
