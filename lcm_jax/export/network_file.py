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


def shapes_of(networks: Mapping[str, Params]) -> Mapping[str, Params]:
    """The same trees, of anything with shape and dtype; nothing is loaded for it."""
    return networks.abstract if isinstance(networks, Networks) else networks


def size(tree: Params, dtype: str) -> int:
    """Bytes of a tree whose floating-point leaves are stored in `dtype`."""
    return sum(math.prod(leaf.shape) * _stored(leaf, dtype).itemsize for leaf in jax.tree.leaves(tree))


def write_flax(path: Path, tree: Params, dtype: str, metadata: Mapping[str, str]) -> None:
    """Writes a tree under its dotted paths in `dtype`; ValueError names a leaf that is too large for it."""
    flat = bijection.flatten(tree)
    keys = {".".join(leaf): leaf for leaf in flat}
    layout = {key: jax.ShapeDtypeStruct(flat[p].shape, _stored(flat[p], dtype)) for key, p in keys.items()}
    write_stream(path, layout, lambda key: _cast(flat, keys[key], dtype), metadata)


def write_torch(path: Path, tree: Params, dtype: str) -> None:
    """Writes a tree under PyTorch's names and in its layouts in `dtype`; ValueError as `write_flax` has it."""
    flat = bijection.flatten(tree)
    keys = {bijection.torch_key(leaf): leaf for leaf in flat}
    layout = {
        key: jax.ShapeDtypeStruct(_torch_shape(p, flat[p].shape), _stored(flat[p], dtype)) for key, p in keys.items()
    }

    def read(key: str) -> np.ndarray:
        (array,) = bijection.to_torch(bijection.unflatten({keys[key]: _cast(flat, keys[key], dtype)})).values()
        return array

    write_stream(path, layout, read, {"format": "pt"})


def _cast(flat: Mapping[tuple[str, ...], Any], path: tuple[str, ...], dtype: str) -> np.ndarray:
    return folder.cast(flat[path], dtype, "/".join(path))


def _torch_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[-1], shape[-2], *shape[:-2]) if path[-1] == "kernel" and len(shape) > 1 else tuple(shape)


def _stored(leaf: Any, dtype: str) -> np.dtype:
    return np.dtype(dtype) if jax.dtypes.issubdtype(leaf.dtype, np.floating) else np.dtype(leaf.dtype)
